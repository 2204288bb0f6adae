"""Which names mean the served model."""

from __future__ import annotations

from collections.abc import Sequence

from vermilion.errors import BadParameter, ModelNotFound
from vermilion.serving.serve_config import ServeConfig
from vermilion.types import ModelInfo

MERCURY_NAMES = (
    "mercury",
    "mercury-2",
    "mercury-2.5",
    "mercury-3",
    "mercury-small",
    "mercury-coder",
    "mercury-coder-mini",
    "mercury-coder-small",
    "mercury-coder-small-beta",
    "mercury-edit",
    "mercury-edit-2",
    "mercury-next-edit",
    "mercury-decide",
)
"""Names under which Inception has sold its models; clients of theirs have them written in."""


_CLAUDE = "claude-"
"""How every name of Anthropic's models begins; Claude Code asks for several of them by itself."""
_LONGEST_NAME = 200


def check_model(name: str | None, model: ModelInfo, config: ServeConfig) -> None:
    """Raises `ModelNotFound` unless `name` is the served model, another name of it, or not given."""
    if name and not answers_to(name, model, config):
        raise ModelNotFound(name[:100], names(model, config))


def answers_to(name: str, model: ModelInfo, config: ServeConfig) -> bool:
    """Whether `name` means the served model or an adapter of it: its id, an alias or, unless switched off,
    one of Mercury's or Claude's."""
    known = name in names(model, config) or adapter_of(name, model, config) != ""
    mercury = config.mercury_names and name in MERCURY_NAMES
    return known or mercury or (config.claude_names and name.startswith(_CLAUDE))


def meant(spellings: Sequence[str], models: Sequence[ModelInfo], config: ServeConfig) -> ModelInfo | None:
    """Which of several models a name means, in the first of its spellings that means one; the first of the
    models has the names of Mercury's and Claude's besides its own."""
    for name in spellings:
        for model in models:
            if name in names(model, config) or adapter_of(name, model, config):
                return model
    answering = (name for name in spellings if answers_to(name, models[0], config))
    return models[0] if next(answering, None) else None


def names(model: ModelInfo, config: ServeConfig) -> tuple[str, ...]:
    """The model's id, its adapters and the aliases of them, as lists show them."""
    own = (model.id, *model.adapters)
    return (*own, *(alias for alias, id in config.aliases.items() if id in own))


def adapter_of(name: str | None, model: ModelInfo, config: ServeConfig) -> str:
    """The adapter that `name` means, alone or behind the model's own id and a colon; empty for none."""
    asked = config.aliases.get(name or "", name or "").removeprefix(f"{model.id}:")
    return asked if asked in model.adapters else ""


def shown(name: str | None, model: ModelInfo, config: ServeConfig) -> str:
    """What an answer says that it comes from: the adapter, or the model."""
    return adapter_of(name, model, config) or model.id


def check_adapter_name(name: str, taken: Sequence[str], config: ServeConfig) -> None:
    """Raises `BadParameter` for what cannot name an adapter: no word, or a name that a model has. `taken`: of
    the served models, and of adapters of other ones."""
    if name in (*taken, *config.aliases, *MERCURY_NAMES):
        raise BadParameter("adapter", name, "a name that no model has")
    if not 0 < len(name) <= _LONGEST_NAME or not name.isprintable() or " " in name:
        raise BadParameter("adapter", name, f"1 to {_LONGEST_NAME} characters without blanks")
