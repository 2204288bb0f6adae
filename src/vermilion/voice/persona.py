"""Who answers a call: a name, a greeting, instructions and tools, read from a TOML file."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Literal

from vermilion.config import load
from vermilion.errors import BadParameter

SPOKEN = (
    "You are on a phone call and everything you write is spoken aloud. Answer in one or two short sentences. "
    "Begin with a short sentence. Use plain words: no lists, no markdown, no symbols. "
    "Write numbers as words."
)
"""What every persona is told first."""


@dataclass(frozen=True, slots=True)
class Persona:
    """The settings of a persona's file."""

    name: str = "Vermilion"
    greeting: str = "Hello, this is Vermilion. How can I help you?"
    """Spoken when a call begins; empty for none."""
    instructions: str = ""
    """What the model is told beside `SPOKEN`."""
    apology: str = "Sorry, something went wrong here. Could you say that again?"
    """Spoken when a stage failed. Kept as sound from the start, so that it needs no stage."""
    tools: str = ""
    """A set of `call_tools.TOOL_SETS`, or none."""
    must_call: bool = False
    """Whether every answer is a call, held by a grammar, and the tool says what is spoken: for models
    that are too small to decide when to call."""
    effort: Literal["instant", "low", "medium", "high"] = "medium"
    """`reasoning_effort`: which preset decodes. `medium` is lossless and still writes faster than a voice
    speaks."""
    max_tokens: int = 120
    """Of one answer: about half a minute of speech."""
    temperature: float | None = None
    """None leaves the service's default."""

    @property
    def system_prompt(self) -> str:
        return f"{SPOKEN} {self.instructions}".strip()


def find_persona(name_or_file: str | None) -> Persona:
    """The default, one that comes with the package (`restaurant`), or a file's.

    Raises BadParameter for a name without a file, ConfigError for a file with a mistake.
    """
    if name_or_file is None:
        return Persona()
    shipped = resources.files(__package__) / "personas"
    names = sorted(
        path.name.removesuffix(".toml") for path in shipped.iterdir() if path.name.endswith(".toml")
    )
    if name_or_file in names:
        with resources.as_file(shipped / f"{name_or_file}.toml") as path:
            return load(Persona, path)
    path = Path(name_or_file).expanduser()
    if not path.is_file():
        raise BadParameter("--persona", name_or_file, f"{', '.join(names)}, or a TOML file")
    return load(Persona, path)
