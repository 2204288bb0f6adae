"""What evaluation asks of an engine beside answers: scores, single forwards, a clean cache, where it runs."""

from __future__ import annotations

import pytest

from tests import tiny
from vermilion.decoding.reference import Reference
from vermilion.types import Decoding, Request, Sampling

PROMPT = (5, 9, 33, 17)


def test_a_score_is_the_logprob_that_decoding_reports() -> None:
    engine = tiny.engine("causal-shift", tiny.model("causal-shift"))
    sampling = Sampling(max_tokens=12, ignore_eos=True)
    answer = Reference(tiny.model("causal-shift"), tiny.TRAITS["causal-shift"]).generate(
        PROMPT, sampling, Decoding("ar")
    )
    program = engine.submit(Request("x", PROMPT, sampling, Decoding("ar")))
    while engine.has_work:
        engine.step()
        # Beside a running request, whose pages it leaves alone.
        engine.score(PROMPT[:2], PROMPT[2:])
    readings = engine.score(PROMPT, answer.tokens)
    assert [reading.token for reading in readings] == list(answer.tokens) == program.tokens[len(PROMPT) :]
    told = [settled.reading.logprob for settled in program.settled]
    assert [reading.target_logprobs[0] for reading in readings] == pytest.approx(told, abs=1e-9)
    assert engine.scheduler.cache.num_held == 0


@pytest.mark.parametrize(("prompt", "answer"), [((), (5,)), ((5,), ()), ((5,), (6,) * 5000)])
def test_what_cannot_be_scored_is_said(prompt: tuple[int, ...], answer: tuple[int, ...]) -> None:
    engine = tiny.engine("causal-shift", tiny.model("causal-shift"))
    with pytest.raises(ValueError, match=r"cannot score|do not fit"):
        engine.score(prompt, answer)
    with pytest.raises(ValueError, match="cannot score"):
        tiny.engine("block", tiny.model("block")).score((5,), (6,))


def test_flushing_forgets_finished_requests_and_leaves_running_ones() -> None:
    engine = tiny.engine("causal-shift", tiny.model("causal-shift"))
    request = Request("x", tuple(range(2, 60)), Sampling(max_tokens=20, ignore_eos=True))
    first = tiny.run(engine, [request])["x"]
    assert engine.stats().pages_cached > 0
    engine.submit(request)
    events = [event for _, event in engine.step()]
    engine.flush()
    engine.scheduler.cache.check()
    assert engine.stats().pages_cached == 0
    while engine.has_work:
        events += [event for _, event in engine.step()]
    assert "".join(getattr(event, "text", "") for event in events) == "".join(
        getattr(event, "text", "") for event in first
    )


def test_an_engine_says_what_it_runs_on_and_how_long_that_took() -> None:
    engine = tiny.engine("causal-shift", tiny.model("causal-shift"))
    info = engine.info()
    assert (info.backend, info.device, info.dtype) == ("torch", "cpu", "float64")
    assert info.num_slots == engine.scheduler.cache.num_slots and info.threads >= 1
    before = engine.timing
    engine.score(PROMPT, PROMPT)
    spent = engine.timing - before
    assert (spent.forwards, spent.rows) == (1, 8) and spent.forward_s > 0 and spent.decode_s > 0
