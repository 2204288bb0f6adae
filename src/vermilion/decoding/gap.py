"""The search for the text of a gap, on plain numbers: which middles are in play and which one joins best.

A middle m between prefix p and suffix s is worth log P(m | p) + log P(head of s | p, m), both by the base
model: the posterior of the gap's text given both sides, up to a constant. Middles are paths of one tree. The
base proposes its own continuations, ended wherever the suffix may begin; the denoiser proposes bridges that
it fills with the suffix in sight. Whoever proposed a path, the base scores it, so they compete on equal
terms.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from vermilion.decoding.passes import Reading

ROOT = 0
TOP = 8
"""Likeliest tokens asked of every base row."""


def repeats(middle: Sequence[int], suffix: Sequence[int]) -> int:
    """By how many tokens the middle ends as the suffix begins; one counts only if the suffix is one."""
    longest, shortest = min(len(middle), len(suffix)), min(2, len(suffix))
    sizes = range(longest, shortest - 1, -1)
    return next((size for size in sizes if tuple(middle[-size:]) == tuple(suffix[:size])), 0)


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is tried. `bench/infill.py` measures it."""

    head: int = 12
    """Most suffix tokens that the base scores."""
    lines: int = 2
    """Continuations grown side by side; 1 follows the base's own choice alone."""
    openings: int = 4
    """Most continuations ever begun since the last settled token."""
    bridges: tuple[int, ...] = (2, 4)
    """Lengths the denoiser fills in one pass, between the leading line and the suffix."""
    window: int = 8
    """Rows of such a canvas, the anchor and the visible part of the suffix included."""
    join_above: float = 0.01
    """Least probability of the suffix's first token for a middle to be scored with the suffix behind it."""
    slack: float = 2.0
    """Nats: how much better than at the best join so far the suffix may still come to fit."""
    probes: int = 2
    """Most middles scored with the suffix in one pass."""
    neutral: float = 0.5
    """Share of the likeliest token's log-probability that is taken off each token's own: at 0 a middle is
    worth its posterior, at 1 length costs nothing and only departing from the base's own choice does."""
    patience: int = 3
    """Passes without a better join after which the best one stands."""
    nodes: int = 64
    """Tokens in play; past it the leading line's first half is settled."""


@dataclass(slots=True)
class Node:
    """One token of one middle. The root, index 0, is the last settled token."""

    token: int
    parent: int
    depth: int
    """Tokens of the middle that ends here."""
    worth: float = -math.inf
    """Sum over the path from the root; see `Effort.neutral`."""
    logprob: float = 0.0
    """Log-probability of this token alone."""
    reading: Reading | None = None
    """What the base expects next."""
    score: float | None = None
    """Joint of the path and the suffix's head behind it."""


@dataclass(frozen=True, slots=True)
class Bridge:
    """A canvas of `length` masks behind a node, and the start of the suffix behind them."""

    node: int
    length: int


@dataclass(frozen=True, slots=True)
class Question:
    """What one pass asks: the base at `nodes`, the head behind `probes`, the denoiser in `bridges`."""

    nodes: tuple[int, ...]
    probes: tuple[int, ...]
    bridges: tuple[Bridge, ...]


@dataclass(slots=True)
class Gap:
    """The tree of middles behind the settled text, `room` tokens long at the most."""

    suffix: tuple[int, ...]
    room: int
    banned: frozenset[int]
    """Tokens that no middle holds: the ends of text."""
    effort: Effort
    tree: list[Node] = field(default_factory=lambda: [Node(-1, -1, 0, 0.0)])
    lines: list[int] = field(default_factory=lambda: [ROOT])
    """Ends of the continuations being grown, the leading one first."""
    fresh: list[int] = field(default_factory=lambda: [ROOT])
    waiting: list[int] = field(default_factory=list)
    """Middles yet to be scored with the suffix."""
    begun: int = 1
    idle: int = 0
    """Passes since the best join was found."""
    fit: float = -math.inf
    """Best log-probability so far of the head's tokens behind its first."""

    @property
    def head(self) -> tuple[int, ...]:
        return self.suffix[: self.effort.head]

    def ask(self) -> Question:
        bridges: list[Bridge] = []
        for line in self.lines[:1]:
            # Only where the base is asked too: its reading scores the bridge's first token.
            if line in self.fresh:
                room = self.room - self.tree[line].depth
                bridges = [Bridge(line, length) for length in self.effort.bridges if length <= room]
        return Question(tuple(self.fresh), tuple(self.waiting[: self.effort.probes]), tuple(bridges))

    def targets(self, node: int) -> tuple[int, ...]:
        """Tokens whose probability behind `node` is wanted: the suffix's first and the children's."""
        children = (child.token for child in self.tree[node + 1 :] if child.parent == node)
        return (self.suffix[0], *children)

    def visible(self, bridge: Bridge) -> tuple[int, ...]:
        """The suffix tokens at the right edge of a canvas."""
        return self.suffix[: max(1, self.effort.window - 1 - bridge.length)]

    def path(self, node: int) -> list[int]:
        """Node indexes behind the root down to `node`."""
        found: list[int] = []
        while node != ROOT:
            found.append(node)
            node = self.tree[node].parent
        return found[::-1]

    def tokens(self, node: int) -> tuple[int, ...]:
        return tuple(self.tree[i].token for i in self.path(node))

    # -- what the answers change -------------------------------------------------------------------

    def learn(
        self,
        question: Question,
        base: Sequence[Reading],
        heads: Sequence[Sequence[Reading]],
        fills: Sequence[Sequence[Reading]],
    ) -> None:
        """`base`: one reading per node asked; `heads`: per probe, readings of the head's tokens behind its
        first; `fills`: per bridge, readings of its masks."""
        best = self.best_score
        for node, reading in zip(question.nodes, base, strict=True):
            self._score(node, reading)
        for node, checks in zip(question.probes, heads, strict=True):
            self._join(node, self.fitness(checks))
        self.waiting = self.waiting[len(question.probes) :]
        self.fresh = []
        for node in question.nodes:
            self._consider(node)
        self.lines = [grown for line in self.lines if (grown := self._grown(line)) is not None]
        for bridge, fill in zip(question.bridges, fills, strict=True):
            self._propose(bridge, fill)
        self._open()
        self.idle = 0 if self.best_score > best or best == -math.inf else self.idle + 1

    def _score(self, node: int, reading: Reading) -> None:
        here = self.tree[node]
        here.reading = reading
        children = [child for child in self.tree[node + 1 :] if child.parent == node]
        for child, logprob in zip(children, reading.target_logprobs[1:], strict=True):
            child.worth = here.worth + self._worth(logprob, reading)
            child.logprob = logprob

    def _worth(self, logprob: float, reading: Reading) -> float:
        return logprob - self.effort.neutral * reading.top[0][1]

    def fitness(self, checks: Sequence[Reading]) -> float:
        """What the head's tokens behind its first are worth, from the base's readings of them."""
        return sum(self._worth(check.target_logprobs[0], check) for check in checks)

    def _join(self, node: int, rest: float) -> None:
        here = self.tree[node]
        assert here.reading is not None
        here.score = here.worth + self._worth(here.reading.target_logprobs[0], here.reading) + rest
        self.fit = max(self.fit, rest)

    def _consider(self, node: int) -> None:
        """Queue a middle whose next token may be the suffix's first."""
        reading = self.tree[node].reading
        assert reading is not None
        unlikely = reading.target_logprobs[0] < math.log(self.effort.join_above)
        if node == ROOT or unlikely or repeats(self.tokens(node), self.suffix):
            return
        if len(self.head) == 1:
            self._join(node, 0.0)
        elif self._bound(node, 0.0) > self.best_score:
            self.waiting.append(node)

    def _bound(self, node: int, logprob: float) -> float:
        """What a middle that goes on from `node` by a token of that log-probability can still be worth."""
        fit = min(self.fit + self.effort.slack, 0.0) if self.fit > -math.inf else 0.0
        return self.tree[node].worth + logprob + fit

    @property
    def best(self) -> int | None:
        """The best middle scored so far; the shorter one of equals."""
        joined = [i for i, node in enumerate(self.tree) if node.score is not None]
        return max(joined, key=lambda i: (self.tree[i].score or 0.0, -i), default=None)

    @property
    def best_score(self) -> float:
        best = self.best
        return -math.inf if best is None else (self.tree[best].score or 0.0)

    def _grown(self, line: int) -> int | None:
        """The line's new end: past the drafts the base agrees with, plus the base's own next token.

        None where it ends: at the room's end, or where nothing behind it can win.
        """
        while True:
            here = self.tree[line]
            reading = here.reading
            if reading is None:
                return line
            # The text goes on with the suffix, so where the base would end it its next choice counts.
            offers = [(reading.token, reading.logprob), *reading.top]
            token, logprob = next((offer for offer in offers if offer[0] not in self.banned), (-1, -math.inf))
            if here.depth >= self.room or self._bound(line, self._worth(logprob, reading)) <= self.best_score:
                return None
            line = self._child(line, token, logprob)

    def _child(self, parent: int, token: int, logprob: float | None) -> int:
        """The child of `parent` that holds `token`, made where there is none."""
        for index in range(parent + 1, len(self.tree)):
            child = self.tree[index]
            if child.parent == parent and child.token == token:
                return index
        above = self.tree[parent]
        joint = -math.inf
        if logprob is not None and above.reading is not None:
            joint = above.worth + self._worth(logprob, above.reading)
        self.tree.append(Node(token, parent, above.depth + 1, joint, logprob=logprob or 0.0))
        self.fresh.append(len(self.tree) - 1)
        return len(self.tree) - 1

    def _propose(self, bridge: Bridge, fill: Sequence[Reading]) -> None:
        """Add a bridge's tokens as drafts; those it ends with join the suffix if the base likes it."""
        reading = self.tree[bridge.node].reading
        assert reading is not None
        known = dict(reading.top)
        known[reading.token] = reading.logprob
        tokens = [guess.token for guess in fill]
        if tokens[0] not in known or self.banned.intersection(tokens):
            return
        if len(self.tree) + len(tokens) > self.effort.nodes:
            return
        node = self._child(bridge.node, tokens[0], known[tokens[0]])
        for token in tokens[1:]:
            node = self._child(node, token, None)

    def _open(self) -> None:
        """Begin further continuations at the likeliest tokens that the base did not choose."""
        while self.lines and len(self.lines) < self.effort.lines and self.begun < self.effort.openings:
            offers = [
                (node.worth + self._worth(logprob, node.reading), -index, token, logprob)
                for index, node in enumerate(self.tree)
                if node.reading is not None and node.depth < self.room
                for token, logprob in node.reading.top
                if token not in self.banned and token not in self._children(index)
            ]
            if not offers or len(self.tree) >= self.effort.nodes:
                return
            _, index, token, logprob = max(offers)
            self.lines.append(self._child(-index, token, logprob))
            self.begun += 1

    def _children(self, parent: int) -> set[int]:
        return {node.token for node in self.tree[parent + 1 :] if node.parent == parent}

    # -- what is decided ---------------------------------------------------------------------------

    @property
    def over(self) -> bool:
        """Whether nothing is left to try."""
        if self.best is not None and (self.idle >= self.effort.patience or self.crowded):
            return True
        return not self.lines and not self.waiting and not self.fresh

    @property
    def end(self) -> int:
        """The end of the middle to keep once the search is over: the best join, or else the longest path."""
        best = self.best
        if best is not None:
            return best
        return max(range(len(self.tree)), key=lambda i: (self.tree[i].depth, -i))

    @property
    def crowded(self) -> bool:
        """Whether part of the leading line must be settled to make room for more."""
        if not self.lines:
            return False
        full = len(self.tree) + sum(self.effort.bridges) >= self.effort.nodes
        return full or self.tree[self.lines[0]].depth > self.effort.nodes // 2

    @property
    def halfway(self) -> int:
        """The middle of the leading line: what `crowded` asks to settle."""
        path = self.path(self.lines[0])
        return path[(len(path) - 1) // 2]

    def reading(self, node: int) -> Reading:
        """The base's reading of a node's own token."""
        here = self.tree[node]
        above = self.tree[here.parent]
        assert above.reading is not None
        return replace(above.reading, token=here.token, logprob=here.logprob)

    def moved(self, node: int) -> Gap:
        """The same search behind `node`, once its path is settled: what does not pass through it is gone."""
        new = {node: ROOT}
        above = self.tree[node]
        tree = [Node(above.token, -1, 0, 0.0, reading=above.reading)]
        for index in range(node + 1, len(self.tree)):
            old = self.tree[index]
            if old.parent in new:
                new[index] = len(tree)
                tree.append(
                    replace(
                        old,
                        parent=new[old.parent],
                        depth=old.depth - above.depth,
                        worth=old.worth - above.worth,
                        score=None if old.score is None else old.score - above.worth,
                    )
                )
        return Gap(
            self.suffix,
            self.room - above.depth,
            self.banned,
            self.effort,
            tree,
            lines=[new[line] for line in self.lines if line in new],
            fresh=[new[index] for index in self.fresh if index in new],
            waiting=[new[index] for index in self.waiting if index in new],
            idle=self.idle,
            fit=self.fit,
        )
