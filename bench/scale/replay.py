"""The simulation held to the engine: one trace through both, the simulation's costs measured just before.

The engine has one thread, and its clock is the processor's time, so that other work on the machine does not
count.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.scale.fleet import Fleet, Outcome, Scaling
from bench.scale.replicas import Costs, Served, Sizes
from bench.scale.traces import Call, Traffic, calls, constant

from vermilion.decoding.program import Program
from vermilion.engine.engine import Engine
from vermilion.types import Decoding, Finish, Request, Sampling

AR = Decoding("ar")
STREAMS = (1, 4, 8, 16, 32)
TRAFFIC = Traffic(
    systems=4, system_tokens=200, message_tokens=40, answer_tokens=60, pause_s=4, reading_s=2, longest=1200
)


@dataclass(slots=True)
class Conversation:
    """What was said so far."""

    tokens: list[int]
    running: Program | None = None
    ready: list[Served] = field(default_factory=list)


def measured_costs(engine: Engine) -> Costs:
    """Passes by the number of streams, and a long prompt's time by its tokens, of the processor."""
    passes = []
    for count in STREAMS:
        for i in range(count):
            engine.submit(_request(f"c{count}-{i}", _words(i, 24), 40))
        took = []
        while engine.has_work:
            before = len(engine._sequences)
            began, rows = time.process_time(), engine.timing.rows
            engine.step()
            if engine.timing.rows - rows == count == before:
                took.append(1e3 * (time.process_time() - began))
        passes.append(statistics.median(took))
    engine.flush()
    prompt = _words(999, 1500)
    engine.submit(_request("prompt", prompt, 1))
    began = time.process_time()
    while engine.has_work:
        engine.step()
    engine.flush()
    return Costs(STREAMS, passes, 1e3 * (time.process_time() - began) / len(prompt))


def replayed(engine: Engine, trace: Sequence[Call]) -> Outcome:
    """The trace through the engine, by a clock of the steps' processor time that skips what is idle."""
    now_s, at = 0.0, 0
    talks: dict[int, Conversation] = {}
    running: dict[str, Served] = {}
    served = [Served(call, 0) for call in trace]
    while at < len(served) or running:
        if not running:
            now_s = max(now_s, served[at].call.at_s)
        while at < len(served) and served[at].call.at_s <= now_s:
            one, at = served[at], at + 1
            opening = _words(-1 - one.call.system, one.call.system_tokens)
            talk = talks.setdefault(one.call.session, Conversation(opening))
            talk.ready.append(one)
            _go_on(engine, talk, running)
        began = time.process_time()
        events = engine.step()
        now_s += time.process_time() - began
        for name, event in events:
            one = running[name]
            if one.first_s < 0:
                one.first_s = now_s
            if isinstance(event, Finish):
                one.end_s, one.hit_tokens = now_s, event.usage.cached_tokens
                talk = talks[one.call.session]
                assert talk.running is not None
                talk.tokens, talk.running = list(talk.running.tokens), None
                del running[name]
                _go_on(engine, talk, running)
    return Outcome(served, 0.0)


def _go_on(engine: Engine, talk: Conversation, running: dict[str, Served]) -> None:
    """The next message of a conversation whose last answer is there."""
    if talk.running is not None or not talk.ready:
        return
    one = talk.ready.pop(0)
    new = one.call.prompt_tokens - len(talk.tokens)
    talk.tokens += _words(one.call.session * 1000 + len(talk.tokens), max(1, new))
    name = f"{one.call.session}-{one.call.at_s}"
    running[name] = one
    talk.running = engine.submit(_request(name, talk.tokens, one.call.answer_tokens))


def _request(name: str, tokens: Sequence[int], count: int) -> Request:
    return Request(name, tuple(tokens), Sampling(max_tokens=count, ignore_eos=True), AR)


def _words(seed: int, count: int) -> list[int]:
    random_ = random.Random(seed)
    return [random_.randrange(1000, 40_000) for _ in range(count)]


def compare(engine: Engine, minutes: float, load: float, seed: int = 5) -> dict[str, Any]:
    """`load`: share of the engine's time that the trace is made to take."""
    costs = measured_costs(engine)
    sizes = Sizes(cached_tokens=engine.scheduler.cache.num_slots)
    busy_s = 1e-3 * costs.prompt_token_ms * TRAFFIC.mean_prompt_tokens * 0.4
    busy_s += TRAFFIC.mean_answer_tokens * costs.pass_s(4) / 4
    per_s = load / busy_s / TRAFFIC.turns
    trace = calls(TRAFFIC, constant(per_s), per_s, 60 * minutes, seed)
    real = replayed(engine, trace)
    again = measured_costs(engine)
    simulated = Fleet(costs, sizes, Scaling()).run(trace, "least queue")
    return {
        "calls": len(trace),
        "calls_per_s": round(len(trace) / (60 * minutes), 3),
        "minutes": minutes,
        "costs": _plain(costs),
        "costs_afterwards": _plain(again),
        "engine": figures(real),
        "simulation": figures(simulated),
        "error": {
            name: round(figures(simulated)[name] / value - 1, 3)
            for name, value in figures(real).items()
            if value
        },
    }


def figures(outcome: Outcome) -> dict[str, float]:
    answered = outcome.answered
    took = [each.end_s - each.call.at_s for each in answered]
    return {
        "first_text_ms_median": round(outcome.first_text_ms(0.5), 1),
        "first_text_ms_p95": round(outcome.first_text_ms(0.95), 1),
        "answer_s_mean": round(statistics.mean(took), 4),
        "tokens_per_s": round(
            sum(each.call.answer_tokens for each in answered) / max(each.end_s for each in answered), 2
        ),
        "hits": round(outcome.hits, 4),
    }


def _plain(costs: Costs) -> dict[str, Any]:
    return {
        "streams": list(costs.streams),
        "passes_ms": [round(each, 3) for each in costs.passes_ms],
        "prompt_token_ms": round(costs.prompt_token_ms, 4),
    }
