"""What runs in the background says the same, runs while nothing else does, and gives way at once."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests import tiny
from tests.engine.test_matches_reference import outcome, prompt
from vermilion.decoding.reference import Reference
from vermilion.types import Decoding, Finish, Request, Sampling

SAMPLING = Sampling(max_tokens=40, ignore_eos=True)


def request(number: int, background: bool) -> Request:
    return Request(
        f"{number}", prompt(20 + number, number), SAMPLING, Decoding("lossless"), background=background
    )


@pytest.mark.parametrize(
    "settings",
    [{}, {"max_running": 2}, {"kv_tokens": 208}, {"kv_tokens": 240, "max_running": 3, "max_rows": 24}],
)
def test_its_text_is_the_same_however_often_it_gives_way(settings: dict[str, int]) -> None:
    model = tiny.model("causal-shift")
    reference = Reference(model, tiny.TRAITS["causal-shift"])
    requests = [request(number, background=number % 2 == 0) for number in range(6)]
    expected = [reference.generate(r.prompt, r.sampling, r.decoding).tokens for r in requests]
    engine = tiny.engine("causal-shift", model, prefill_chunk=16, **settings)
    assert [result.tokens for result in outcome(engine, requests)] == expected


@pytest.mark.parametrize("settings", [{}, {"max_running": 2}, {"kv_tokens": 208}])
def test_others_are_served_as_if_it_were_not_there(settings: dict[str, int]) -> None:
    def steps_of(num_background: int) -> int:
        engine = tiny.engine("causal-shift", tiny.model("causal-shift"), **settings)
        for number in range(num_background):
            engine.submit(request(number, background=True))
        for _ in range(4):
            engine.step()
        engine.submit(request(9, background=False))
        for step in range(1, 500):
            if any(name == "9" and isinstance(event, Finish) for name, event in engine.step()):
                return step
        raise AssertionError("it never ended")

    assert steps_of(3) == steps_of(0)


def test_it_waits_behind_all_others_and_a_realtime_one_overtakes_it() -> None:
    engine = tiny.engine("causal-shift", tiny.model("causal-shift"), max_running=1)
    engine.submit(request(0, background=False))
    engine.step()
    for number, background in ((1, True), (2, False), (3, True), (4, False)):
        engine.submit(request(number, background))
    engine.submit(replace(request(5, background=False), realtime=True))
    assert [s.request.id for s in engine.scheduler.waiting] == ["5", "2", "4", "1", "3"]
