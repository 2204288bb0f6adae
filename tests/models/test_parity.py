"""Checkpoints in their publishers' layouts, read and computed here, give their publishers' logits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.models.test_backbone import through
from tests.parity.checkpoint import Golden, goldens, write
from vermilion.decoding.forward_jobs import Job
from vermilion.decoding.passes import Pass, Segment
from vermilion.engine.worker import Worker
from vermilion.models import catalog
from vermilion.models.build import BuiltModel, build
from vermilion.models.families import Traits

GOLDENS = {golden.name: golden for golden in goldens()}
TOLERANCE = 1e-5
Record = Callable[[str, object], None]


def visible(context: str, grid: int, length: int) -> Tensor:
    """bool [query, key]: whom settled text sees, written down from the traits' definition."""
    at = torch.arange(length)
    return {
        "causal": at[:, None] >= at[None],
        "block": at[:, None] // max(1, grid) >= at[None] // max(1, grid),
        "full": torch.ones(length, length, dtype=torch.bool),
    }[context]


def in_pieces(built: BuiltModel, traits: Traits, texts: list[list[int]], cut: int) -> list[Tensor]:
    """Logits of several texts that share forwards, each in scattered pages: rows before `cut`, then those
    behind over the stored keys."""
    page = 32
    span = {"causal": 1, "block": traits.block_grid, "full": 0}[traits.context]
    worker = Worker(built.model, 16, page, traits.mask_token_id)
    made: list[Tensor] = []
    hook = built.model.register_forward_hook(lambda module, given, hidden: made.append(hidden))
    pages, parts = [[9, 2, 14, 5], [1, 11, 7, 3]], [list[Tensor]() for _ in texts]
    for start, end in ((0, cut), (cut, max(map(len, texts)))):
        jobs, whose = [], []
        for index, text in enumerate(texts):
            ids = tuple(text[start:end])
            if ids:
                segment = Segment(ids, start, start, start, span, noisy=start == cut and cut > 0)
                jobs.append(Job(pages[index], Pass((segment,)), []))
                whose.append(index)
        if jobs:
            worker.run(jobs)
            sizes = [job.rows.num_rows for job in jobs]
            for index, part in zip(whose, built.model.logits(made[-1]).split(sizes), strict=True):
                parts[index].append(part)
    hook.remove()
    return [torch.cat(each) for each in parts]


@pytest.mark.parametrize("name", GOLDENS)
def test_logits_equal_the_publishers(name: str, tmp_path: Path, record_property: Record) -> None:
    golden = GOLDENS[name]
    built = build(catalog.find(str(write(golden, tmp_path))))
    traits = built.spec.traits.for_canvases() if golden.context else built.spec.traits
    assert built.spec.family.name == golden.family
    assert golden.context in ("", traits.context)
    error = largest_error(golden, built, traits)
    record_property("family", golden.family)
    record_property("parity_error", error)
    record_property("reference", golden.reference)
    assert error <= TOLERANCE
    assert {"whole", "masked", "padded-0", "padded-1"} <= golden.cases.keys()
    assert traits.context == "full" or "cached" in golden.cases


def largest_error(golden: Golden, built: BuiltModel, traits: Traits) -> float:
    """Over all cases, each in one forward and in forwards that texts share; `full` texts come whole."""
    wanted = golden.logits()
    texts = {case: golden.cases[case]["ids"] for case in golden.cases}
    seen = {case: visible(traits.context, traits.block_grid, len(ids)) for case, ids in texts.items()}
    with torch.inference_mode():
        got = {case: [through(built.model, ids, seen[case])] for case, ids in texts.items()}
        cut = golden.cases["cached"]["start"] if "cached" in golden.cases else 0
        for pair in (["masked", "whole"], ["padded-0", "padded-1"]):
            for case, logits in zip(
                pair, in_pieces(built, traits, [texts[each] for each in pair], cut), strict=True
            ):
                got[case].append(logits)
    errors = [
        (logits[golden.cases[case]["start"] :] - wanted[case]).abs().max().item()
        for case, made in got.items()
        for logits in made
    ]
    return max(errors)
