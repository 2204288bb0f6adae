"""Position by position the published samplers' trajectories, over a stand-in model, at temperature 0.

Each file of tests/decoding/trajectories is what a reference sampler did: the generated positions after every
step (null is masked), the settings and the stand-in model's seed, and where the sampler is published. Steps
that settle nothing are left out there, as our decoders leave them out. MASK was never allowed to be chosen.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.scripted import MASK, ScriptedModel, ScriptedRunner
from vermilion.decoding.decoders import DECODERS
from vermilion.decoding.filling import GapFilling
from vermilion.decoding.program import Task
from vermilion.decoding.programs import program_of
from vermilion.models.families import Traits
from vermilion.types import Decoding

GOLDEN = Path(__file__).parent / "trajectories"


def states(told: dict[str, Any]) -> list[list[int | None]]:
    """The generated positions after each pass."""
    decoding = Decoding(**told["decoding"])
    given = {"mask_token_id": MASK, "eos_token_ids": (), **told["traits"]}
    traits = Traits(**{**given, "eos_token_ids": tuple(given["eos_token_ids"])})
    decoder = DECODERS[decoding.decoder]
    assert decoder.fits(traits)
    prompt, size = tuple(told["prompt"]), told["max_tokens"]
    task = Task(prompt, size, decoding, frozenset(), tuple(told.get("suffix", ())))
    program = GapFilling(task, traits) if task.suffix else program_of(task, traits)
    runner = ScriptedRunner(ScriptedModel(told["seed"], told["sharpness"]))
    seen: list[list[int | None]] = [[None] * (decoding.first_length if decoder.grows else size)]
    while program.finish is None:
        readings = runner.run(program.plan(), entropy=decoder.uses_entropy)
        program.apply(readings)
        shown: list[int | None] = [*program.tokens[len(prompt) :]]
        shown += [None if place.masked else place.token for place in program.canvas()]
        shown += [] if decoder.grows else [None] * (size - len(shown))
        if shown != seen[-1]:
            seen.append(shown)
    return seen


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.json")), ids=lambda path: path.stem)
def test_a_trajectory_is_the_reference_sampler_s(
    path: Path, record_property: Callable[[str, object], None]
) -> None:
    told = json.loads(path.read_text())
    for name, key in (("family", "family"), ("trajectory", "algorithm"), ("reference", "reference")):
        record_property(name, told[key])
    assert states(told) == told["states"]
