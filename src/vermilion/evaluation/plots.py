"""Rows of results as plots, in SVG; nothing is drawn that no row holds."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vermilion.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Row = Mapping[str, Any]
_BASE, _OTHER = "#888888", "#d9381e"
_WIDTH = 7.0
_KINDS = ("chat", "code", "prose")


def figure(size: tuple[float, float], panels: int, draw: Callable[[list[Axes]], None]) -> str:
    """An SVG element of `size` inches with `panels` plots in a row. Raises ConfigError without matplotlib."""
    try:
        import matplotlib
    except ModuleNotFoundError:
        raise ConfigError("matplotlib is missing; run: pip install 'vermilion[eval]'") from None
    from matplotlib.figure import Figure

    # Text stays text, and the same rows give the same file.
    style: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": "vermilion",
        "font.size": 9.0,
        "axes.axisbelow": True,
    }
    with matplotlib.rc_context(style):
        made = Figure(figsize=size, layout="constrained")
        axes = [made.add_subplot(1, panels, i + 1) for i in range(panels)]
        for one in axes:
            one.grid(alpha=0.3)
            one.spines[["top", "right"]].set_visible(False)
        draw(axes)
        file = io.StringIO()
        made.savefig(file, format="svg", metadata={"Date": None})
    text = file.getvalue()
    return text[text.index("<svg") :]


def quality_curve(rows: Sequence[Row]) -> str:
    """Tokens per pass against the base's likelihood of the text, and against repetition."""
    points = [row for row in rows if row["task"] == "quality" and "base_nll" in row["figures"]]
    names = (
        ("base_nll", "nats per token, by the base (lower is likelier)"),
        ("distinct_3", "different 3-token runs"),
    )

    def draw(axes: list[Axes]) -> None:
        for one, (name, label) in zip(axes, names, strict=True):
            for row in points:
                figures = row["figures"]
                colour = _BASE if row["sampler"].endswith("ar") else _OTHER
                one.plot(figures["tokens_per_pass"], figures[name], "o", color=colour)
                one.annotate(
                    short(row["sampler"]), (figures["tokens_per_pass"], figures[name]),
                    xytext=(4, 3), textcoords="offset points", fontsize=6.5,
                )  # fmt: skip
            one.set_xlabel("tokens per pass")
            one.set_ylabel(label)
            one.margins(0.18, 0.1)

    return figure((10.0, 4.0), 2, draw) if points else ""


def agreement(rows: Sequence[Row]) -> str:
    """How often the denoiser's guess is the base's own token, by offset in the block."""
    lines: list[tuple[str, list[float]]] = []
    for row in rows:
        if row["task"] == "drafting":
            block = f"block_{row['block_length']}"
            groups = row["figures"].get(block, {}).get("by_group", {})
            lines += [(f"{row['weights'][:6]} {name}", one["agreement"]) for name, one in groups.items()]

    def draw(axes: list[Axes]) -> None:
        for name, values in lines:
            axes[0].plot(range(1, len(values) + 1), values, "o-", label=name)
        axes[0].set_xlabel("offset in a fully masked block")
        axes[0].set_ylabel("agreement with the base")
        axes[0].set_ylim(0, 1)
        axes[0].legend()

    return figure((_WIDTH, 3.2), 1, draw) if lines else ""


def latency(rows: Sequence[Row]) -> tuple[str, str]:
    """Two plots, first settled text and whole answers, each sampler beside the base of the same minutes."""
    mine = [row for row in rows if row["task"] == "latency"]

    def draw(name: str) -> Callable[[list[Axes]], None]:
        def one(axes: list[Axes]) -> None:
            values = [
                (f"{short(row['sampler'])}, {group}", figures[f"{name}_ar_s"], figures[f"{name}_s"])
                for row in mine
                for group, figures in row["figures"].get("by_group", {"": row["figures"]}).items()
            ]
            pairs(axes[0], values, "seconds")

        return one

    if not mine:
        return "", ""
    height = 0.8 + 0.45 * sum(len(row["figures"].get("by_group", {"": 0})) for row in mine)
    return tuple(figure((_WIDTH, height), 1, draw(name)) for name in ("first_text", "whole_answer"))  # type: ignore[return-value]


def passes(rows: Sequence[Row]) -> str:
    """Tokens per pass by kind of text."""
    mine = [row for row in rows if row["task"] == "quality" and "by_group" in row["figures"]]

    def draw(axes: list[Axes]) -> None:
        for number, row in enumerate(mine):
            groups = row["figures"]["by_group"]
            values = [groups.get(kind, {}).get("tokens_per_pass", 0.0) for kind in _KINDS]
            places = [i + number * 0.8 / len(mine) for i in range(len(_KINDS))]
            axes[0].bar(places, values, width=0.8 / len(mine), label=short(row["sampler"]))
        axes[0].set_xticks([i + 0.4 for i in range(len(_KINDS))], _KINDS)
        axes[0].set_ylabel("tokens per pass")
        axes[0].legend(fontsize=6.5, ncols=2)

    return figure((_WIDTH, 3.4), 1, draw) if mine else ""


def scores(rows: Sequence[Row]) -> str:
    """Shares of right answers, by task and sampler."""
    wanted = {
        "humaneval": ("pass_at_1",), "infill": ("exact", "similarity", "parses"), "templated": ("exact",),
        "json": ("valid", "right"), "agent": ("right",),
    }  # fmt: skip
    values = [
        (f"{row['task']} {name.replace('_', ' ')}, {short(row['sampler'])}", float(row["figures"][name]))
        for row in rows
        for name in wanted.get(row["task"], ())
        if name in row["figures"]
    ]

    def draw(axes: list[Axes]) -> None:
        axes[0].barh([name for name, _ in values], [value for _, value in values], color=_OTHER)
        axes[0].set_xlim(0, 1)
        axes[0].invert_yaxis()
        axes[0].set_xlabel("share")

    return figure((_WIDTH, 0.8 + 0.22 * len(values)), 1, draw) if values else ""


def speed(rows: Sequence[Row]) -> str:
    """Tokens per second by preset and streams at once, from the rows of `vermilion bench`."""
    return _bars(rows, "tokens/s, all streams together", lambda row: row["tokens_per_s"])


def cost(rows: Sequence[Row], price_per_hour: float | None) -> str:
    """Cost of a million tokens: machine hours, or money if an hour has a price."""
    label = "machine hours per million tokens" if price_per_hour is None else "price per million tokens"
    factor = 1.0 if price_per_hour is None else price_per_hour
    return _bars(rows, label, lambda row: factor * 1e6 / 3600 / row["tokens_per_s"])


def _bars(rows: Sequence[Row], label: str, value: Callable[[Row], float]) -> str:
    values = [(f"{row['preset']}, {row['concurrency']} at once", value(row), row["preset"]) for row in rows]

    def draw(axes: list[Axes]) -> None:
        colours = [_BASE if preset == "ar" else _OTHER for _, _, preset in values]
        axes[0].barh([name for name, _, _ in values], [one for _, one, _ in values], color=colours)
        axes[0].invert_yaxis()
        axes[0].set_xlabel(label)

    return figure((_WIDTH, 0.8 + 0.25 * len(values)), 1, draw) if values else ""


def pairs(axes: Axes, values: Sequence[tuple[str, float, float]], label: str) -> None:
    """The base's bar and the sampler's under each name."""
    places = range(len(values))
    axes.barh(
        [i - 0.2 for i in places], [one[1] for one in values], 0.38, color=_BASE, label="autoregressive"
    )
    axes.barh([i + 0.2 for i in places], [one[2] for one in values], 0.38, color=_OTHER, label="diffusion")
    axes.set_yticks(list(places), [one[0] for one in values])
    axes.invert_yaxis()
    axes.set_xlabel(label)
    axes.legend(fontsize=7)


def short(name: str) -> str:
    """A sampler's name, shortened: `threshold .7`."""
    model, _, way = name.rpartition("@")
    kind, _, written = way.partition(":")
    knobs = dict(pair.partition("=")[::2] for pair in written.split(",") if pair)
    knobs.pop("block_length", None)
    knobs.pop("draft_nodes", None)
    shown = " ".join([kind, *(value.removeprefix("0") or "0" for value in knobs.values())])
    return f"{model.rpartition('/')[2]} {shown}" if model else shown
