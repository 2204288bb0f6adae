"""Which names mean the served model."""

from __future__ import annotations

from vermilion.errors import ModelNotFound
from vermilion.serving.config import ServeConfig
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


def check_model(name: str | None, model: ModelInfo, config: ServeConfig) -> None:
    """Raises `ModelNotFound` unless `name` is the served model, another name of it, or not given."""
    if name and not answers_to(name, model, config):
        raise ModelNotFound(name[:100], names(model, config))


def answers_to(name: str, model: ModelInfo, config: ServeConfig) -> bool:
    """Whether `name` means the served model: its id, an alias or, unless switched off, Mercury's."""
    return name in names(model, config) or (config.mercury_names and name in MERCURY_NAMES)


def names(model: ModelInfo, config: ServeConfig) -> tuple[str, ...]:
    """The model's id and its aliases, as lists show them."""
    return (model.id, *(alias for alias, id in config.aliases.items() if id == model.id))
