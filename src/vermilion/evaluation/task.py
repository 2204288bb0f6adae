"""A task makes requests and grades the answers; its figures go into one row of results."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from vermilion.evaluation.sampler import Ask, Reply, Sampler

Grade = Mapping[str, float | bool | None]
"""Figures of one reply; their means go into the row, None left out."""


class Watch(Protocol):
    """Receives the progress of a task."""

    def begin(self, total: int) -> None: ...

    def step(self) -> None: ...


class Silent:
    """Nobody."""

    def begin(self, total: int) -> None:
        pass

    def step(self) -> None:
        pass


@dataclass(frozen=True, slots=True)
class Setting:
    """How much of a task to run, and on what."""

    limit: int = 8
    """Most requests or texts of a task; groups of a task come in turn, so that a small part is a fair one."""
    seed: int = 0
    max_tokens: int = 96
    """Of free answers; tasks with a known answer give what it needs."""
    block_length: int = 8
    """In the training's sense: the settled token that a block starts with included."""
    held_out: tuple[Path, ...] = ()
    """Corpus folders, or folders or files of text, that no training saw."""
    watch: Watch = field(default_factory=Silent)


@dataclass(frozen=True, slots=True)
class EvalTask:
    """One thing to measure."""

    name: str
    about: str
    measure: Callable[[Sampler, Setting], dict[str, Any]]
    of_model: bool = False
    """Whether the figures depend on the model alone, however it is decoded."""


def asked(
    sampler: Sampler, asks: Sequence[Ask], grade: Callable[[Sampler, Ask, Reply], Grade], watch: Watch
) -> dict[str, Any]:
    """Send every ask, one after the other, grade the replies, and sum up, over all and by group."""
    watch.begin(len(asks))
    graded: list[tuple[str, Reply, Grade]] = []
    for ask in asks:
        reply = sampler.answer(ask)
        graded.append((ask.group, reply, grade(sampler, ask, reply)))
        watch.step()
    figures = _summed(graded)
    groups = list(dict.fromkeys(group for group, _, _ in graded if group))
    if len(groups) > 1:
        figures["by_group"] = {name: _summed([one for one in graded if one[0] == name]) for name in groups}
    return figures


def _summed(graded: Sequence[tuple[str, Reply, Grade]]) -> dict[str, Any]:
    """Means of the grades, and what the answers cost together."""
    tokens = sum(reply.usage.completion_tokens for _, reply, _ in graded)
    passes = sum(reply.usage.passes for _, reply, _ in graded)
    wall_s = sum(reply.wall_s for _, reply, _ in graded)
    names = list(dict.fromkeys(name for _, _, grade in graded for name in grade))
    means: dict[str, Any] = {}
    for name in names:
        values = [float(value) for _, _, grade in graded if (value := grade.get(name)) is not None]
        if values:
            means[name] = round(statistics.fmean(values), 4)
    return {
        "count": len(graded),
        **means,
        "tokens": tokens,
        "passes": passes,
        "tokens_per_pass": round(tokens / max(1, passes), 4),
        "tokens_per_s": round(tokens / max(1e-9, wall_s), 2),
        "first_text_s": round(statistics.median(reply.first_text_s for _, reply, _ in graded), 4),
        "whole_answer_s": round(statistics.median(reply.wall_s for _, reply, _ in graded), 4),
    }
