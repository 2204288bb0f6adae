"""One request must not end or change another: bad numbers, failing plans and forwards, greedy settings."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import tiny
from vermilion.decoding.forward_jobs import Job
from vermilion.decoding.passes import Pass, Reading
from vermilion.engine.engine import Engine
from vermilion.engine.llm import LLM
from vermilion.engine.loading import Loaded
from vermilion.errors import BadRequest, EngineFailure
from vermilion.types import Decoding, Event, Finish, Request, Sampling, Text

DECODINGS = [Decoding("ar"), Decoding("lossless", branches=2), Decoding("relaxed"), Decoding("threshold")]
BYSTANDERS = [
    Request(f"by{i}", tuple(range(2 + i, 9 + 2 * i)), Sampling(max_tokens=20, ignore_eos=True), decoding)
    for i, decoding in enumerate(DECODINGS)
]
ROGUE = Request("rogue", (5, 9, 33), Sampling(max_tokens=20, ignore_eos=True), Decoding("lossless"))


def small(**sizes: object) -> Engine:
    return tiny.engine("causal-shift", tiny.model("causal-shift"), **sizes)


def texts(events: dict[str, list[Event]]) -> dict[str, str]:
    return {
        name: "".join(event.text for event in got if isinstance(event, Text)) for name, got in events.items()
    }


def finish(events: list[Event]) -> Finish:
    assert isinstance(events[-1], Finish)
    return events[-1]


ALONE = texts({request.id: tiny.run(small(), [request])[request.id] for request in BYSTANDERS})


def bystanders_unharmed(engine: Engine, rogue: Request = ROGUE) -> Finish:
    """Run the rogue beside the others; its end, once the others are seen to be as ever."""
    events = tiny.run(engine, [*BYSTANDERS[:2], rogue, *BYSTANDERS[2:]])
    own = events.pop("rogue")
    assert all(finish(got).reason == "length" for got in events.values())
    assert texts(events) == ALONE
    return finish(own)


@pytest.mark.parametrize(
    "sampling",
    [
        {"temperature": 5e-324},
        {"temperature": 1e-310},
        {"temperature": 2.0, "top_p": 0.0},
        {"temperature": 2.0, "min_p": 1.0},
        {"temperature": 1.0, "repetition_penalty": 0.1, "presence_penalty": 5e-324, "logprobs": 20},
        {"repetition_penalty": 10.0, "frequency_penalty": -2.0, "logprobs": 20},
        {"logit_bias": dict.fromkeys(range(tiny.VOCAB), -100.0), "logprobs": 20},
        {"temperature": 1.0, "logit_bias": {4: 100.0, 5: -5e-324}, "logprobs": 20},
    ],
    ids=str,
)
def test_extreme_settings_that_are_allowed_run_and_stay_finite(sampling: dict[str, Any]) -> None:
    rogue = replace(ROGUE, sampling=replace(ROGUE.sampling, **sampling))
    assert bystanders_unharmed(small(), rogue).reason == "length"
    [events] = tiny.run(small(), [rogue]).values()
    infos = [info for event in events if isinstance(event, Text) for info in event.tokens]
    numbers = [number for info in infos for number in (info.logprob, *(top[2] for top in info.top))]
    assert all(map(math.isfinite, numbers))


def test_a_temperature_of_almost_nothing_takes_the_likeliest_token() -> None:
    cold = replace(ROGUE, sampling=replace(ROGUE.sampling, temperature=1e-310))
    assert texts(tiny.run(small(), [cold])) == texts(tiny.run(small(), [ROGUE]))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -1.0),
        ("temperature", math.nan),
        ("temperature", 3.0),
        ("top_p", 1.5),
        ("min_p", -0.1),
        ("top_k", -1),
        ("repetition_penalty", 1e-39),
        ("repetition_penalty", 0.0),
        ("presence_penalty", math.inf),
        ("frequency_penalty", -1e300),
        ("logit_bias", {3: math.nan}),
        ("logit_bias", {3: 1e39}),
        ("logprobs", 21),
    ],
)
def test_numbers_out_of_range_are_refused_by_name(name: str, value: object) -> None:
    engine = small()
    with pytest.raises(BadRequest, match=name):
        engine.submit(replace(ROGUE, sampling=replace(ROGUE.sampling, **{name: value})))  # type: ignore[arg-type]
    assert not engine.has_work


@pytest.mark.parametrize(
    ("field", "value"), [("suffix", (tiny.VOCAB,)), ("existing", (-1,)), ("prompt", (4, tiny.VOCAB))]
)
def test_tokens_that_the_model_does_not_know_are_refused(field: str, value: tuple[int, ...]) -> None:
    with pytest.raises(BadRequest, match=field):
        small().submit(replace(ROGUE, **{field: value}))


class Failing:
    """A worker that fails for one prompt: by raising, or by numbers that are not finite."""

    def __init__(self, engine: Engine, how: Callable[[list[Reading]], list[Reading]]) -> None:
        self.worker, self.how = engine.worker, how
        self.steps = 0

    def run(self, jobs: Sequence[Job]) -> list[list[Reading]]:
        self.steps += 1
        answers = self.worker.run(jobs)
        return [
            self.how(answer) if job.rows.segments[0].ids[:1] == (33,) or 33 in job.rows.segments[0].ids
            else answer
            for job, answer in zip(jobs, answers, strict=True)
        ]  # fmt: skip


def explode(readings: list[Reading]) -> list[Reading]:
    raise RuntimeError("the device fell off")


def not_a_number(readings: list[Reading]) -> list[Reading]:
    return [replace(reading, logprob=math.nan) for reading in readings]


@pytest.mark.parametrize("how", [explode, not_a_number])
def test_a_forward_that_fails_for_one_request_ends_that_one_alone(
    how: Callable[[list[Reading]], list[Reading]],
) -> None:
    engine = small()
    engine.worker = Failing(engine, how)  # type: ignore[assignment]
    own = bystanders_unharmed(engine)
    assert own.reason == "error" and "device" not in own.message


@pytest.mark.parametrize("method", ["plan", "apply"])
@pytest.mark.parametrize("at", [0, 3])
def test_a_program_that_fails_ends_its_own_request_alone(method: str, at: int) -> None:
    engine = small()
    submit, calls = engine.submit, []

    def sabotage(request: Request) -> None:
        program = submit(request)
        if request.id != "rogue":
            return
        original = getattr(program, method)

        def failing(*given: Any) -> Any:
            calls.append(method)
            if len(calls) > at:
                raise IndexError("a bug")
            return original(*given)

        setattr(program, method, failing)

    engine.submit = sabotage  # type: ignore[assignment]
    assert bystanders_unharmed(engine).reason == "error"


def test_a_pass_that_fits_no_memory_ends_its_own_request_alone() -> None:
    engine = small()
    submit = engine.submit

    def grow(request: Request) -> None:
        program = submit(request)
        if request.id == "rogue":
            plan = program.plan

            def large(draft: bool = True) -> Pass:
                planned = plan(draft)
                last = replace(planned.segments[-1], slot=5_000)
                return replace(planned, segments=(*planned.segments[:-1], last))

            program.plan = large  # type: ignore[method-assign]

    engine.submit = grow  # type: ignore[assignment]
    assert bystanders_unharmed(engine).reason == "error"


KNOBS = st.builds(
    Decoding,
    decoder=st.sampled_from(["ar", "lossless", "relaxed", "threshold", "schedule", "entropy", "cumulative"]),
    threshold=st.sampled_from([0.0, 0.5, 1.0]),
    block_length=st.sampled_from([1, 2, 8, 32, 64]),
    first_block=st.sampled_from([0, 1, 64]),
    max_steps=st.sampled_from([0, 1, 64]),
    revise_below=st.sampled_from([0.0, 0.5, 1.0]),
    max_revisions=st.sampled_from([0, 8]),
    draft_nodes=st.sampled_from([1, 8, 64, 256]),
    branches=st.sampled_from([0, 1, 64]),
    lookup=st.sampled_from([0, 64]),
    accept_above=st.sampled_from([0.0, 0.5, 1.0]),
)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(sorted(tiny.TRAITS)),
    KNOBS,
    st.sampled_from([1, 40, 250, 380]),
    st.sampled_from([0, 1, 40]),
    st.sampled_from([1, 7, 60]),
    st.booleans(),
)
def test_corners_of_every_setting_are_refused_or_run(
    kind: str, decoding: Decoding, prompt: int, suffix: int, max_tokens: int, existing: bool
) -> None:
    """In a memory that is not much larger than the context; a bug would end the request with an error."""
    engine = tiny.engine(kind, MODELS[kind], kv_tokens=560, max_rows=64, prefill_chunk=32)
    request = Request(
        "x",
        tuple(2 + i * 7 % 90 for i in range(prompt)),
        Sampling(max_tokens=max_tokens),
        decoding,
        tuple(2 + i * 5 % 90 for i in range(suffix)),
        existing=tuple(range(2, 60)) if existing else (),
    )
    try:
        program = engine.check(request)
    except BadRequest:
        return
    slots, rows = program.max_slots, program.max_draft_rows
    plan = program.plan

    def watched(draft: bool = True) -> Pass:
        planned = plan(draft)
        assert planned.num_slots <= slots
        if kind == "causal-shift":
            stored = sum(len(s.ids) for s in planned.segments[:1])
            assert planned.num_rows - stored <= max(rows, 65)
        return planned

    program.plan = watched  # type: ignore[method-assign]
    engine.submit(request, program)
    events: list[Event] = []
    while engine.has_work:
        events += [event for _, event in engine.step()]
    assert finish(events).reason in ("stop", "length")
    assert engine.scheduler.cache.num_held == 0


MODELS = {kind: tiny.model(kind) for kind in tiny.TRAITS}


def llm(engine: Engine) -> LLM:
    return LLM(loaded=Loaded(engine, engine.tokenizer, None))


def test_a_stream_that_is_never_read_leaves_nothing_running() -> None:
    one = llm(small())
    stream = one.stream("hello")
    assert not one.engine.has_work
    with pytest.raises(BadRequest, match="prompt"):
        one.stream("")
    assert not one.engine.has_work
    assert isinstance(next(stream), Text) and one.engine.has_work
    stream.close()
    assert not one.engine.has_work and not one._events


def test_a_prompt_that_is_refused_leaves_nothing_running() -> None:
    one = llm(small())
    with pytest.raises(BadRequest, match="prompt"):
        one.generate(["ok", ""])
    assert not one.engine.has_work and not one._events


def test_an_answer_that_fails_leaves_nothing_running() -> None:
    engine = small()
    engine.worker = Failing(engine, not_a_number)  # type: ignore[assignment]
    one = llm(engine)
    with pytest.raises(EngineFailure):
        one.generate([[33, 4], [5, 6]], Sampling(max_tokens=30, ignore_eos=True))
    assert not engine.has_work and not one._events
