"""Position by position the published samplers' trajectories, over a stand-in model, at temperature 0.

Each file of tests/decoding/trajectories is what a reference sampler did: the generated positions after every
step (null is masked), the settings and the stand-in model's seed, and where the sampler is published. Steps
that settle nothing are left out there, as our decoders leave them out. MASK was never allowed to be chosen.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
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


def local_leap(
    model: ScriptedModel, prompt: list[int], sizes: tuple[int, int], decoding: Decoding
) -> list[Any]:
    """LocalLeap as its paper states it (arXiv 2510.07081), block by block of (whole, block): an anchor is a
    mask of enough confidence; what is near one needs less."""
    whole, block = sizes
    text: list[int | None] = [*prompt, *([None] * whole)]
    seen = [text[len(prompt) :]]
    for start in range(len(prompt), len(text), block):
        places = range(start, min(start + block, len(text)))
        while any(text[place] is None for place in places):
            known = {place: MASK if token is None else token for place, token in enumerate(text)}
            looks = {}
            for place in places:
                if text[place] is None:
                    logits = model.logits(place, known)
                    logits[MASK] = -np.inf
                    chances = np.exp(logits - logits.max())
                    looks[place] = int(chances.argmax()), float(chances.max() / chances.sum())
            anchors = [place for place, (_, chance) in looks.items() if chance >= decoding.threshold]
            chosen = {
                place
                for place, (_, chance) in looks.items()
                for anchor in anchors
                if place == anchor
                or (abs(place - anchor) <= decoding.radius and chance >= decoding.min_threshold)
            }
            for place in chosen or {max(looks, key=lambda place: (looks[place][1], -place))}:
                text[place] = looks[place][0]
            seen.append(text[len(prompt) :])
    return seen


def test_near_is_local_leap_as_stated() -> None:
    prompt, decoding = [3, 14, 15, 9], Decoding("near", threshold=0.7, min_threshold=0.3, block_length=16)
    told = {
        "decoding": asdict(decoding),
        "traits": {"context": "full", "shift": False},
        "prompt": prompt,
        "max_tokens": 32,
        "seed": 5,
        "sharpness": 2.0,
    }
    expected = local_leap(ScriptedModel(5), prompt, (32, 16), decoding)
    assert states(told) == expected
    alone = {**told, "decoding": asdict(replace(decoding, decoder="threshold"))}
    assert states(alone) != expected
