"""Classifier-free guidance: every pass is made again without the given text, and the engine gives what the
reference gives."""

from __future__ import annotations

import pytest

from tests import tiny
from tests.engine.test_canvas_programs import tiny_engine
from tests.engine.test_filling import seeds
from tests.engine.test_growing import TRAITS
from tests.engine.test_matches_reference import SAMPLINGS, outcome, prompt
from vermilion.decoding.reference import Reference, fill_gap, fill_seeds, grow
from vermilion.errors import BadParameter
from vermilion.types import Decoding, Request, Sampling

GUIDED = [
    Decoding("schedule", block_length=8, max_steps=5, guidance=1.5),
    Decoding("threshold", threshold=0.3, block_length=8, guidance=0.5),
    Decoding("stable", threshold=0.1, max_divergence=0.5, block_length=8, guidance=1.0),
    Decoding("soft-parallel", threshold=0.2, block_length=8, guidance=1.0),
    Decoding("joint", threshold=0.2, edit_threshold=0.2, block_length=8, post_steps=3, guidance=2.0),
]


@pytest.mark.parametrize("kind", ["full", "full-shift"])
@pytest.mark.parametrize("decoding", GUIDED, ids=lambda d: d.decoder)
def test_answers_alone_and_in_any_company(kind: str, decoding: Decoding) -> None:
    model = tiny.model(kind)
    reference = Reference(model, tiny.TRAITS[kind])
    wanted = [Request(f"{i}", prompt(5 + 9 * i, i), one, decoding) for i, one in enumerate(SAMPLINGS)]
    wanted.append(
        Request("plain", prompt(9, 8), Sampling(max_tokens=12), Decoding("schedule", block_length=4))
    )
    expected = [reference.generate(r.prompt, r.sampling, r.decoding) for r in wanted]
    assert outcome(tiny.engine(kind, model), wanted[:1]) == expected[:1]
    assert outcome(tiny.engine(kind, model, max_rows=48), wanted) == expected


def test_gaps_holes_and_texts_of_unknown_length() -> None:
    model, around = tiny.model("full"), prompt(7, 50)
    sampling, threshold = Sampling(max_tokens=9), Decoding("threshold", threshold=0.3, guidance=1.5)
    gap = Request("gap", prompt(9, 1), sampling, threshold, around)
    holes = Request("holes", prompt(9, 2), sampling, threshold, seeds=seeds(2, asks=False))
    growing = [
        Request("dreamon", prompt(9, 3), sampling, Decoding("dreamon", first_length=4, guidance=1.0), around),
        Request("daedal", prompt(9, 4), sampling, Decoding("daedal", first_length=4, guidance=1.0)),
    ]
    expected = [
        fill_gap(model, TRAITS, gap),
        fill_seeds(model, TRAITS, holes),
        *(grow(model, TRAITS, request) for request in growing),
    ]
    assert outcome(tiny_engine(TRAITS, model), [gap, holes, *growing]) == expected


def test_guidance_changes_the_text_and_doubles_the_rows() -> None:
    model = tiny.model("full")
    texts, rows = set(), []
    for guidance in (0.0, 3.0):
        engine = tiny.engine("full", model)
        decoding = Decoding("schedule", block_length=8, guidance=guidance)
        request = Request("x", prompt(20, 1), Sampling(max_tokens=16, ignore_eos=True), decoding)
        [result] = outcome(engine, [request])
        texts.add(result.tokens)
        rows.append(engine.timing.rows)
    assert len(texts) == 2 and rows[1] == 2 * rows[0]


@pytest.mark.parametrize(
    ("kind", "decoding"),
    [
        ("block", Decoding("threshold", guidance=1.0)),
        ("causal-shift", Decoding("lossless", guidance=1.0)),
        ("full", Decoding("wino", guidance=1.0)),
        ("full", Decoding("threshold", guidance=1.0, cache="dual")),
        ("full", Decoding("threshold", guidance=-1.0)),
    ],
    ids=str,
)
def test_where_it_means_nothing_it_is_refused(kind: str, decoding: Decoding) -> None:
    engine = tiny.engine(kind, tiny.model(kind))
    with pytest.raises(BadParameter, match=r"decoding\.guidance"):
        engine.submit(Request("x", (5, 6), Sampling(max_tokens=9), decoding))
    assert not engine.has_work
