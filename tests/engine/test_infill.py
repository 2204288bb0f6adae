"""Infill: the engine gives the reference's middles whatever shares its forwards; the right side matters; the
join never repeats the suffix."""

from __future__ import annotations

from functools import cache

import pytest

from tests import tiny
from tests.engine.test_matches_reference import outcome, prompt
from vermilion.config import EngineConfig
from vermilion.decoding import infill as filling_gaps
from vermilion.decoding.filling import overlap, trimmed
from vermilion.decoding.forward_jobs import Job
from vermilion.decoding.infill import MARGIN, Candidate, chosen
from vermilion.decoding.passes import Reading
from vermilion.decoding.reference import infill
from vermilion.engine.llm import LLM
from vermilion.types import Decoding, Finish, Request, Sampling, Text

BLOCKS = [
    Decoding("threshold", threshold=0.3, block_length=8),
    Decoding("schedule", block_length=8, max_steps=3),
    Decoding("entropy", threshold=2.0, block_length=8),
]
CASES = [(kind, decoding) for kind in tiny.TRAITS for decoding in BLOCKS] + [
    ("causal-shift", decoding)
    for decoding in (Decoding("ar"), Decoding("lossless"), Decoding("relaxed", branches=3, accept_above=0.1))
]
SAMPLINGS = [
    Sampling(max_tokens=12),
    Sampling(max_tokens=75),
    Sampling(max_tokens=17, temperature=0.9, top_p=0.9, top_k=40, min_p=0.01, seed=7),
    Sampling(max_tokens=23, repetition_penalty=1.3, presence_penalty=0.5, logit_bias={5: 2.0, 9: -3.0}),
]


def requests(decoding: Decoding) -> list[Request]:
    return [
        Request(f"{i}", prompt(5 + 9 * i, i), sampling, decoding, prompt(1 + 8 * i, 50 + i))
        for i, sampling in enumerate(SAMPLINGS)
    ]


@pytest.mark.parametrize(("kind", "decoding"), CASES, ids=str)
def test_alone_and_in_any_company(kind: str, decoding: Decoding) -> None:
    model = tiny.model(kind)
    wanted = requests(decoding)
    expected = [infill(model, tiny.TRAITS[kind], request) for request in wanted]
    alone = [outcome(tiny.engine(kind, model), [request])[0] for request in wanted]
    assert alone == expected
    crowded = tiny.engine(kind, model, prefill_chunk=8, max_rows=24)
    assert outcome(crowded, wanted) == expected
    # Again: this time the prompts are in the prefix cache.
    assert outcome(crowded, wanted) == expected


def test_line_breaks_end_the_continuation_alone_and_in_company() -> None:
    """An eighth of the vocabulary breaks the line: some gaps begin with a break, some suffixes do."""
    model, breaks = tiny.model("causal-shift"), frozenset(range(2, 90, 8))
    suffixes = [(8 * i + 2 + i % 2, *prompt(4 + i, 70 + i)) for i in range(10)]
    wanted = [
        Request(f"{i}", prompt(4 + i, 30 + i), Sampling(max_tokens=1 + 6 * i), Decoding("lossless"), suffix)
        for i, suffix in enumerate(suffixes)
    ]
    expected = [infill(model, tiny.TRAITS["causal-shift"], request, breaks) for request in wanted]
    engine = tiny.engine("causal-shift", model, prefill_chunk=8, max_rows=24)
    engine.line_breaks = breaks
    assert outcome(engine, wanted) == expected
    for result in expected:
        assert not breaks.intersection(result.tokens) or result.tokens[0] in breaks
    assert len({len(result.tokens) for result in expected}) > 2


@pytest.mark.parametrize("kind", [kind for kind in tiny.TRAITS if not kind.startswith("full")])
def test_short_memory_changes_nothing(kind: str) -> None:
    model = tiny.model(kind)
    wanted = [
        Request(f"{i}", prompt(40 + i, i), Sampling(max_tokens=60), BLOCKS[0], prompt(5, 50 + i))
        for i in range(5)
    ]
    expected = [infill(model, tiny.TRAITS[kind], request) for request in wanted]
    engine = tiny.engine(kind, model, kv_tokens=288, prefill_chunk=16, max_rows=256)
    assert outcome(engine, wanted) == expected
    assert engine.scheduler.preemptions > 0


@pytest.mark.parametrize("kind", tiny.TRAITS)
def test_another_suffix_gives_another_middle(kind: str) -> None:
    model = tiny.model(kind)
    middles = {
        infill(
            model,
            tiny.TRAITS[kind],
            Request("0", prompt(9, 5), Sampling(max_tokens=16), BLOCKS[0], prompt(6, seed)),
        ).tokens
        for seed in range(8)
    }
    assert len(middles) > 3


@pytest.mark.parametrize("kind", tiny.TRAITS)
def test_the_middle_never_ends_as_the_suffix_begins(kind: str) -> None:
    engine = tiny.engine(kind, tiny.model(kind))
    decoding = BLOCKS[0] if kind != "causal-shift" else Decoding("lossless")
    wanted = [
        Request(f"{i}", prompt(6, i), Sampling(max_tokens=14), decoding, prompt(1 + i % 4, 90 + i))
        for i in range(12)
    ]
    middles = outcome(engine, wanted)
    assert any(middle.tokens for middle in middles)
    for request, middle in zip(wanted, middles, strict=True):
        if len(middle.tokens) < 14:
            assert not overlap(middle.tokens, request.suffix)


def test_overlap_is_two_tokens_or_the_whole_suffix() -> None:
    assert overlap((4, 5, 6), (5, 6, 7)) == 2
    assert overlap((4, 5), (5, 6, 7)) == 0
    assert overlap((4, 5), (5,)) == 1
    assert overlap((), (5, 6)) == 0
    assert trimmed((4, 5, 6, 5, 6), (5, 6), frozenset()) == (4,)
    assert trimmed((4, 9, 5, 6), (5, 6), frozenset({9})) == (4,)


def test_the_end_with_the_better_right_side_wins() -> None:
    tried = [Candidate(1), Candidate(2), Candidate(3)]
    line = [-0.1, -2.0, -0.1]
    for within in (False, True):
        assert chosen(tried, line, [[-1.0, -9.0], [-1.0, -0.1], [-1.0, -6.0]], within) == 1
        assert chosen(tried, line, [[-1.0], [-1.0], [-1.0]], within) == 0
    # Length costs only within a line.
    assert [chosen(tried, line, [[-2.0], [-1.0], [-9.0]], within) for within in (False, True)] == [1, 0]


def test_a_bridge_wins_by_more_than_the_margin() -> None:
    tried = [Candidate(1), Candidate(0, (7,))]
    for lead, winner in ((MARGIN - 0.1, 0), (MARGIN + 0.1, 1)):
        assert chosen(tried, [-1.0], [[-8.0], [-3.0, lead - 6.0]], True) == winner


@cache
def model() -> LLM:
    return LLM(config=EngineConfig(backend="torch"))


def filled(before: str, after: str, preset: str = "lossless", **settings: object) -> tuple[str, Finish]:
    sampling = Sampling(**{"max_tokens": 24, **settings})  # type: ignore[arg-type]
    events = list(model().stream(before, sampling, preset, suffix=after))
    finish = events[-1]
    assert isinstance(finish, Finish)
    return "".join(event.text for event in events if isinstance(event, Text)), finish


@pytest.mark.model
def test_the_right_side_decides_what_fits() -> None:
    before = "def total(values):\n    result ="
    loop = "\n    for value in values:\n        result += value\n    return result\n"
    looped, _ = filled(before, loop)
    summed, finish = filled(before, "(values)\n    return result\n")
    assert looped.strip() == "0"
    assert "sum" in summed
    assert finish.reason == "stop"


@pytest.mark.model
def test_the_real_answer_does_not_repeat_the_suffix() -> None:
    for before, after in [
        ("def add(a, b):\n    return", "\n\nprint(add(1, 2))\n"),
        ("import os\n\ndef area(width, height):\n    result =", "\n    return result\n"),
        ("The capital of France is", " and it lies on the Seine."),
        ("numbers = [1, 2,", "]\nprint(numbers)\n"),
    ]:
        middle, finish = filled(before, after)
        assert finish.reason == "stop"
        assert middle
        assert not any(middle.endswith(after[:size]) for size in range(2, len(after) + 1))


@pytest.mark.model
def test_sampling_is_the_same_for_the_same_seed() -> None:
    args = ("The weather today is", ", so we stay at home.\n")
    first = filled(*args, temperature=0.8, seed=4)[0]
    assert filled(*args, temperature=0.8, seed=4)[0] == first
    assert len({filled(*args, temperature=1.2, seed=seed)[0] for seed in range(3)}) > 1


@pytest.mark.model
def test_a_suffix_of_white_space_is_plain_completion() -> None:
    before = "def total(values):\n    result ="
    events = list(model().stream(before, Sampling(max_tokens=8), "lossless"))
    plain = "".join(event.text for event in events if isinstance(event, Text))
    assert filled(before, "\n  \n", max_tokens=8)[0] == plain


def test_a_line_that_goes_on_runs_its_last_token_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every pass has a row for what it reads, also behind a line that was kept to its limit."""
    monkeypatch.setattr(filling_gaps, "REACH", 2)
    model = tiny.model("causal-shift")
    one = tiny.engine("causal-shift", model)
    run, shortest = one.worker.run, []

    def watched(jobs: list[Job]) -> list[list[Reading]]:
        shortest.extend(len(segment.ids) for job in jobs for segment in job.rows.segments)
        return run(jobs)

    one.worker.run = watched  # type: ignore[method-assign, assignment]
    wanted = [
        Request(f"{i}", prompt(9 + i, i), Sampling(max_tokens=75), Decoding("lossless"), prompt(5, 50 + i))
        for i in range(20)
    ]
    results = outcome(one, wanted)
    assert any(len(result.tokens) > 2 for result in results) and min(shortest) > 0
