"""From measured rows to machines and money: what a number of users takes, and what it costs.

Every figure comes from a row of `bench/results` or is an assumption of `Assumptions`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.scale.replicas import Costs
from bench.scale.traces import Traffic

RESULTS = Path(__file__).resolve().parents[1] / "results"
USERS = (10, 1_000, 100_000, 1_000_000)
MERCURY = (0.25, 1.00)
"""Dollars per million tokens in and out."""
STREAMS = 16
"""At once in a replica, as it is sized here."""


@dataclass(frozen=True, slots=True)
class Assumptions:
    requests_a_day: float = 20.0
    """Of an active user."""
    peak_hour: float = 0.12
    """Share of a day's requests that come in its busiest hour."""
    used: float = 0.6
    """Share of a replica's time at the peak that is planned for."""
    core_hour: float = 0.04
    """Dollars."""


@dataclass(frozen=True, slots=True)
class CoreTimes:
    """Milliseconds of one core."""

    name: str
    prompt_token: float
    answer_token: float

    def dollars(self, assumed: Assumptions) -> tuple[float, float]:
        """Per million prompt tokens that are read, and answer tokens."""
        each = assumed.core_hour / 3600 * 1e-3 / assumed.used * 1e6
        return self.prompt_token * each, self.answer_token * each

    def request_s(self, traffic: Traffic, hits: float) -> float:
        """Core seconds of a mean request of which so much of the prompt is cached."""
        read = traffic.mean_prompt_tokens * (1 - hits) * self.prompt_token
        return 1e-3 * (read + traffic.mean_answer_tokens * self.answer_token)


def rows(name: str, **wanted: Any) -> list[dict[str, Any]]:
    lines = (RESULTS / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    found = [json.loads(line) for line in lines]
    return [row for row in found if all(row.get(key) == value for key, value in wanted.items())]


def measured_costs() -> Costs:
    """Of the embedded model on two cores: `ar` in streams.jsonl (90dca90) and prefill.jsonl (70d8d51)."""
    passes = rows("streams", commit="90dca90", preset="ar")
    [prompt] = rows("prefill", commit="70d8d51", preset="ar")
    return Costs(
        [row["rows_per_forward"] for row in passes],
        [row["ms_per_pass"] for row in passes],
        prompt["first_text_ms"] / prompt["prompt_tokens"],
    )


def core_times() -> list[CoreTimes]:
    costs = measured_costs()
    found = [CoreTimes("embedded, 0.135", 2 * costs.prompt_token_ms, 2e3 * costs.pass_s(STREAMS) / STREAMS)]
    for model, size in (("fast-dllm-v2-1.5b", "1.5"), ("dream-7b", "7.6")):
        by_rows = {row["rows"]: row["cpu_ms"] for row in rows("passes", model=model, engine="native")[:6]}
        found.append(CoreTimes(f"{model}, {size}", by_rows[64] / 64, by_rows[STREAMS] / STREAMS))
    return found


def users_table(hits: Sequence[float], assumed: Assumptions = Assumptions()) -> str:
    """Markdown: requests, tokens and two-core replicas of the embedded model at the peak, by hit rate."""
    traffic, own = Traffic(), core_times()[0]
    prompt, answer = traffic.mean_prompt_tokens, traffic.mean_answer_tokens
    head = ["active users", "requests/s at the peak", "tokens/s in", "out"]
    lines = [head + [f"replicas, {hit:.0%} cached" for hit in hits]]
    for users in USERS:
        per_s = users * assumed.requests_a_day * assumed.peak_hour / 3600
        needed = [per_s * own.request_s(traffic, hit) / 2 / assumed.used for hit in hits]
        lines.append(
            [f"{users:,}", f"{per_s:.3g}", f"{per_s * prompt:,.0f}", f"{per_s * answer:,.0f}"]
            + [f"{max(1, -(-each // 1)):,.0f}" for each in needed]
        )
    return markdown(lines)


def cost_table(hits: Sequence[float], assumed: Assumptions = Assumptions()) -> str:
    """Markdown: dollars per million tokens, and of a mean request as a share of Mercury's price."""
    traffic = Traffic()
    price = 1e-6 * (traffic.mean_prompt_tokens * MERCURY[0] + traffic.mean_answer_tokens * MERCURY[1])
    lines = [
        ["model, billions of weights", "core ms/token in", "out", "$/million in, read", "out"]
        + [f"of Mercury's price, {hit:.0%} cached" for hit in hits]
    ]
    for one in core_times():
        dollars = one.dollars(assumed)
        shares = [
            one.request_s(traffic, hit) / assumed.used * assumed.core_hour / 3600 / price for hit in hits
        ]
        lines.append(
            [one.name, f"{one.prompt_token:.2f}", f"{one.answer_token:.2f}"]
            + [f"{each:.3f}" for each in dollars]
            + [f"{share:.1%}" for share in shares]
        )
    return markdown(lines)


def markdown(lines: Sequence[Sequence[str]]) -> str:
    head, *body = ["| " + " | ".join(line) + " |" for line in lines]
    return "\n".join([head, "|" + "---|" * len(lines[0]), *body])
