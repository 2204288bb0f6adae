"""denoiser.json, which lies beside an adapter's tensors and says what they are for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, Self, get_args, get_origin, get_type_hints

from vermilion.errors import ModelFileError
from vermilion.models.families.traits import AUTOREGRESSIVE, Context, Traits
from vermilion.text import read_json

DENOISER_FILE = "denoiser.json"
DRAFTER_FILE = "drafter.json"
Weights = Literal["lora", "copy", "tied"]


@dataclass(frozen=True, slots=True)
class DenoiserFile:
    """What a denoiser needs of its base, and what it is made of."""

    mask_token_id: int = AUTOREGRESSIVE.mask_token_id
    weights: Weights = "lora"
    """Of noisy rows: a LoRA on the base's (PEFT's layout), a second set of projections, or the base's own."""
    context: Context = "causal"
    shift: bool = True
    gated: bool = True
    """Whether clean rows leave the denoiser's weights alone."""
    block_grid: int = 0
    block_length: int = 0
    """Longest block of the training; 0: not known."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What else the file says: base, licence, training, measurements. For readers, not for the engine."""

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Raises ModelFileError for a missing file and for an entry of the wrong kind, naming both."""
        path = folder / DENOISER_FILE
        if not path.is_file():
            raise ModelFileError(f"{path} is missing.")
        given = read_json(path)
        kinds = {name: kind for name, kind in get_type_hints(cls).items() if name != "facts"}
        known = {name: given.pop(name) for name in kinds if name in given}
        for name, value in known.items():
            allowed = get_args(kinds[name]) if get_origin(kinds[name]) is Literal else ()
            if allowed and value not in allowed:
                listed = ", ".join(map(repr, allowed))
                raise ModelFileError(f"{path}: {name} {value!r}; allowed: {listed}.")
            if not allowed and type(value) is not kinds[name]:
                raise ModelFileError(f"{path}: {name} {value!r}; it must be of type {kinds[name].__name__}.")
        return cls(**known, facts=given)

    @classmethod
    def of(cls, traits: Traits, weights: Weights, block_length: int, facts: Mapping[str, Any]) -> Self:
        """The description of a denoiser with these traits."""
        return cls(
            mask_token_id=traits.mask_token_id,
            weights=weights,
            context=traits.context,
            shift=traits.shift,
            gated=traits.gated,
            block_grid=traits.block_grid,
            block_length=block_length,
            facts=facts,
        )

    def write(self, folder: Path) -> None:
        """Replaces the file that may be there."""
        entries = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "facts"}
        text = json.dumps({**entries, **self.facts}, indent=1)
        (folder / DENOISER_FILE).write_text(text, encoding="utf-8")

    def traits(self, eos_token_ids: tuple[int, ...]) -> Traits:
        """How the base with this denoiser wants to be asked."""
        return Traits(
            self.context, self.shift, self.mask_token_id, eos_token_ids, self.block_grid, self.gated
        )
