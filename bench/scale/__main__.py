"""Capacity and its simulation (docs/SCALE.md).

python -m bench.scale tables                       # from the rows in bench/results, at once
python -m bench.scale simulate                     # two to five minutes: rows and docs/scale-*.svg
    python -m bench.scale validate --minutes 4         # engine and simulation on one trace
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.scale import capacity
from bench.scale.fleet import ROUTES, Fleet, Outcome, Scaling, spread
from bench.scale.replicas import Sizes
from bench.scale.traces import Load, Traffic, calls, constant, day, with_bursts

from vermilion.config import EngineConfig
from vermilion.engine.llm import LLM
from vermilion.evaluation import plots
from vermilion.evaluation.environment import environment
from vermilion.models.catalog import DEFAULT_MODEL

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DOCS = Path(__file__).resolve().parents[2] / "docs"
OUT = capacity.RESULTS / "scale.jsonl"
SEEDS = (1, 2, 3)
REPLICAS, MINUTES = 8, 20
LOADS = (0.1, 0.2, 0.3, 0.4)
"""Conversations that begin in a second, for each replica."""
CACHES = (8_320, 33_280, 133_120)
LARGE = 133_120
COLOURS = ("#888888", "#2b6cb0", "#d9381e")
PEAK, HOURS = 1.2, 24
HITS = (0.0, 0.5, 0.9)


def routed(route: str, load: float, cached_tokens: int) -> dict[str, Any]:
    """A steady load on a fixed number of replicas: means over seeds, and half of their range."""
    per_s, outcomes = load * REPLICAS, []
    for seed in SEEDS:
        trace = calls(Traffic(), constant(per_s), per_s, 60 * MINUTES, seed)
        fleet = Fleet(capacity.measured_costs(), Sizes(cached_tokens), Scaling(REPLICAS, REPLICAS), seed)
        outcomes.append(fleet.run(trace, route))
    figures = {
        "calls": [float(len(each.served)) for each in outcomes],
        "first_text_ms_median": [each.first_text_ms(0.5) for each in outcomes],
        "first_text_ms_p95": [each.first_text_ms(0.95) for each in outcomes],
        "hits": [each.hits for each in outcomes],
        "refused": [each.refused for each in outcomes],
    }
    return {
        "benchmark": "scale", "experiment": "routing", "route": route, "replicas": REPLICAS,
        "minutes": MINUTES,
        "conversations_per_s_per_replica": load, "cached_tokens": cached_tokens, "seeds": list(SEEDS),
        **{name: [round(each, 4) for each in spread(values)] for name, values in figures.items()},
    }  # fmt: skip


def scaled(name: str, scaling: Scaling, route: str = "prefix-aware") -> tuple[dict[str, Any], Outcome]:
    """A day with bursts of five minutes in every two hours."""
    load: Load = with_bursts(day(PEAK), 7200, 300, 2)
    trace = calls(Traffic(), load, 2 * PEAK, 3600 * HOURS, 1)
    outcome = Fleet(capacity.measured_costs(), Sizes(LARGE), scaling, 1).run(trace, route)
    return {
        "benchmark": "scale", "experiment": "day", "fleet": name, "route": route, "calls": len(trace),
        "target": scaling.target, "start_s": scaling.start_s,
        "replica_hours": round(outcome.replica_hours, 1),
        "most": max((count for _, count in outcome.sizes), default=scaling.least),
        "first_text_ms_median": round(outcome.first_text_ms(0.5), 1),
        "first_text_ms_p95": round(outcome.first_text_ms(0.95), 1),
        "first_text_ms_p99": round(outcome.first_text_ms(0.99), 1),
        "hits": round(outcome.hits, 4), "refused": round(outcome.refused, 5),
    }, outcome  # fmt: skip


FLEETS = {
    "4 replicas": Scaling(4, 4),
    "target 2, 60 s to start": Scaling(1, 8, target=2.0),
    "target 4, 60 s to start": Scaling(1, 8, target=4.0),
    "target 4, 5 s to start": Scaling(1, 8, target=4.0, start_s=5.0),
    "target 8, 60 s to start": Scaling(1, 8, target=8.0),
}


def simulate() -> None:
    rows = [routed(route, load, 33_280) for route in ROUTES for load in LOADS]
    rows += [routed(route, 0.3, size) for route in ROUTES for size in CACHES if size != 33_280]
    days = {name: scaled(name, scaling) for name, scaling in FLEETS.items()}
    plain, _ = scaled("4 replicas", FLEETS["4 replicas"], "least queue")
    rows += [*(row for row, _ in days.values()), plain]
    kept = [row for row in capacity.rows("scale") if row["experiment"] == "validation"]
    OUT.write_text("".join(json.dumps(row) + "\n" for row in [*rows, *kept]), encoding="utf-8")
    (DOCS / "scale-routing.svg").write_text(routing_plot(rows), encoding="utf-8")
    (DOCS / "scale-day.svg").write_text(
        day_plot({name: one for name, (_, one) in days.items()}), encoding="utf-8"
    )
    print(routing_table(rows), day_table(rows), sep="\n\n")


def routing_plot(rows: Sequence[dict[str, Any]]) -> str:
    def draw(axes: list[Axes]) -> None:
        panels = (
            (axes[0], "conversations_per_s_per_replica", "first_text_ms_p95", {"cached_tokens": 33_280}),
            (axes[1], "cached_tokens", "hits", {"conversations_per_s_per_replica": 0.3}),
        )
        for one, x, y, fixed in panels:
            for colour, route in zip(COLOURS, ROUTES, strict=True):
                chosen = [
                    row for row in rows
                    if row["route"] == route and all(row.get(key) == value for key, value in fixed.items())
                ]  # fmt: skip
                chosen.sort(key=lambda row: row[x])
                values, ranges = zip(*(row[y] for row in chosen), strict=True)
                one.errorbar(
                    [row[x] for row in chosen], values, ranges, color=colour, marker="o", ms=3, label=route
                )
        axes[0].set(xlabel="conversations a second, per replica", ylabel="time to first token, p95, ms")
        axes[1].set(
            xlabel="tokens that a replica's cache holds",
            ylabel="prompt tokens cached",
            xscale="log",
            ylim=(0, 1),
        )
        axes[0].legend(frameon=False)

    return plots.figure((9.0, 3.6), 2, draw)


def day_plot(outcomes: dict[str, Outcome]) -> str:
    shown = ("4 replicas", "target 4, 60 s to start", "target 4, 5 s to start")

    def draw(axes: list[Axes]) -> None:
        for colour, name in zip(COLOURS, shown, strict=True):
            outcome = outcomes[name]
            sizes = outcome.sizes or [(0.0, 4), (3600.0 * HOURS, 4)]
            axes[0].plot(
                [at / 3600 for at, _ in sizes],
                [count for _, count in sizes],
                color=colour,
                lw=0.9,
                label=name,
            )
            quarters: dict[int, list[float]] = {}
            for each in outcome.answered:
                quarters.setdefault(int(each.call.at_s // 900), []).append(
                    1e3 * (each.first_s - each.call.at_s)
                )
            worst = {at: sorted(values)[int(0.95 * len(values))] for at, values in quarters.items()}
            axes[1].plot(
                [at / 4 for at in sorted(worst)], [worst[at] for at in sorted(worst)], color=colour, lw=0.9
            )
        axes[0].set(xlabel="hour", ylabel="replicas that answer", ylim=(0, None))
        axes[1].set(
            xlabel="hour", ylabel="time to first token, p95 of a quarter of an hour, ms", yscale="log"
        )
        axes[0].legend(frameon=False)

    return plots.figure((9.0, 3.6), 2, draw)


def routing_table(rows: Sequence[dict[str, Any]]) -> str:
    lines = [["router", "cache, tokens", "load", "first token, median ms", "p95 ms", "cached"]]
    for row in rows:
        if row["experiment"] == "routing":
            figures = [row[name] for name in ("first_text_ms_median", "first_text_ms_p95")]
            lines.append(
                [row["route"], f"{row['cached_tokens']:,}", f"{row['conversations_per_s_per_replica']}"]
                + [f"{mean:,.0f} ± {half:,.0f}" for mean, half in figures]
                + [f"{row['hits'][0]:.0%}"]
            )
    return capacity.markdown(lines)


def day_table(rows: Sequence[dict[str, Any]]) -> str:
    lines = [
        ["fleet", "router", "replica hours", "most", "first token, median ms", "p95 ms", "p99 ms", "cached"]
    ]
    for row in rows:
        if row["experiment"] == "day":
            times = [f"{row[f'first_text_ms_{name}']:,.0f}" for name in ("median", "p95", "p99")]
            lines.append(
                [
                    row["fleet"],
                    row["route"],
                    f"{row['replica_hours']}",
                    f"{row['most']}",
                    *times,
                    f"{row['hits']:.0%}",
                ]
            )
    return capacity.markdown(lines)


def validate(minutes: float, load: float) -> None:
    from bench.scale.replay import compare

    llm = LLM(DEFAULT_MODEL, config=EngineConfig(kv_tokens=16_640, threads=1))
    row = {"benchmark": "scale", "experiment": "validation", **environment(llm)}
    row |= compare(llm.engine, minutes, load)
    with OUT.open("a", encoding="utf-8") as file:
        print(json.dumps(row), file=file)
    print(json.dumps(row, indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("tables", "simulate", "validate"))
    parser.add_argument("--minutes", type=float, default=4.0)
    parser.add_argument("--load", type=float, default=0.5)
    options = parser.parse_args()
    if options.what == "tables":
        print(capacity.users_table(HITS), capacity.cost_table(HITS), sep="\n\n")
    elif options.what == "simulate":
        simulate()
    else:
        validate(options.minutes, options.load)


if __name__ == "__main__":
    main()
