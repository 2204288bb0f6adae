"""What the base's word on guesses comes to: what is reopened, drafted and accepted. Pure functions on plain
numbers; `rules.py` has those of a denoise step.

Positions are indexes into the argument lists. Ties go to the leftmost, so that a decision never depends on
a sort's internals.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import field, replace

from vermilion.decoding.passes import Choices, Reading
from vermilion.frozen import frozen

_MAX_MATCH = 16


def reopen(base_logprobs: Sequence[float], below: float) -> tuple[int, ...]:
    """Positions whose base probability is lower than `below`."""
    if below <= 0:
        return ()
    bound = math.log(below)
    return tuple(i for i, logprob in enumerate(base_logprobs) if logprob < bound)


@frozen
class Node:
    """One drafted token in a tree; `parent` -1 stands right behind the settled text."""

    token: int
    parent: int
    depth: int
    logprob: float
    """Joint, of the path that ends here."""


@frozen
class Level:
    """What may stand at one depth of a tree of drafts."""

    choices: Choices
    """Whatever stands before."""
    given: Mapping[int, Choices] = field(default_factory=dict)
    """Behind certain tokens."""

    def behind(self, token: int | None) -> Choices:
        return self.choices if token is None else self.given.get(token, self.choices)


def draft_tree(
    levels: Sequence[Level], size: int, root: int | None = None, least: float = -math.inf
) -> tuple[Node, ...]:
    """The `size` likeliest paths through `levels`, parents before children, of those with a joint
    log-probability of `least` or more; `root` is the token before.

    The guesses of one denoise pass depend on no other's token, with a draft head on the one before it, so
    the chance of a path is a product and best-first search finds the set that maximises the expected number
    of accepted drafts (as in Medusa, arXiv 2401.10774).
    """
    nodes: list[Node] = []
    # (-joint, order of discovery, parent, rank, choices there); the order makes ties deterministic.
    heap: list[tuple[float, int, int, int, Choices]] = []
    order = itertools.count()

    def offer(parent: int, rank: int, choices: Choices) -> None:
        if rank < len(choices):
            joint = (nodes[parent].logprob if parent >= 0 else 0.0) + choices[rank][1]
            if joint >= least:
                heapq.heappush(heap, (-joint, next(order), parent, rank, choices))

    offer(-1, 0, levels[0].behind(root) if levels else ())
    while heap and len(nodes) < size:
        cost, _, parent, rank, choices = heapq.heappop(heap)
        depth = nodes[parent].depth + 1 if parent >= 0 else 0
        nodes.append(Node(choices[rank][0], parent, depth, -cost))
        offer(parent, rank + 1, choices)
        if depth + 1 < len(levels):
            offer(len(nodes) - 1, 0, levels[depth + 1].behind(choices[rank][0]))
    return tuple(nodes)


def copied(existing: Sequence[int], answer: Sequence[int], size: int) -> tuple[int, ...]:
    """Up to `size` tokens of `existing`, from where the answer has got to in it.

    That is behind the longest match of the answer's last tokens; of equal ones the first at or after the
    place that the answer's length suggests, else the last before it (prompt lookup decoding).
    """
    best, at = 0, -1
    for place in range(1, len(existing) + 1):
        length = 0
        while (
            length < min(_MAX_MATCH, place, len(answer))
            and existing[place - 1 - length] == answer[-1 - length]
        ):
            length += 1
        if length > best or (length == best and length and at < len(answer)):
            best, at = length, place
    if not best:
        return ()
    return tuple(existing[at : at + size])


def chained(tokens: Sequence[int]) -> tuple[Node, ...]:
    """A tree without branches."""
    return tuple(Node(token, depth - 1, depth, 0.0) for depth, token in enumerate(tokens))


def likeliest_ends(nodes: Sequence[Node], count: int) -> tuple[int, ...]:
    """The `count` likeliest places for verification to stop: node indexes, -1 for none accepted.

    A path's draft probability stands for its chance to be accepted.
    """
    chances = [1.0, *(math.exp(node.logprob) for node in nodes)]
    ends = list(chances)
    for node, chance in zip(nodes, chances[1:], strict=True):
        ends[node.parent + 1] -= chance
    order = sorted(range(len(ends)), key=lambda i: (-ends[i], i))
    return tuple(sorted(i - 1 for i in order[:count]))


def ancestors(nodes: Sequence[Node], index: int) -> tuple[int, ...]:
    """Node indexes from the first draft down to `index`; empty for -1."""
    path: list[int] = []
    while index >= 0:
        path.append(index)
        index = nodes[index].parent
    return tuple(reversed(path))


def accepted_child(
    nodes: Sequence[Node], parent: int, reading: Reading, share: float
) -> tuple[int, Reading] | None:
    """Which child of `parent` the base accepts, and its reading; None where it goes on alone.

    `reading` is the base's, with the children as targets. The base's own choice always passes; with `share`
    below 1 so does the child it likes best, if at least `share` times as likely as that choice.
    """
    children = [i for i, node in enumerate(nodes) if node.parent == parent]
    for child in children:
        if nodes[child].token == reading.token:
            return child, reading
    if share >= 1.0 or not children:
        return None
    best = max(range(len(children)), key=lambda i: (reading.target_logprobs[i], -i))
    logprob = reading.target_logprobs[best]
    # A token that may not be chosen is never good enough.
    if logprob == -math.inf or logprob < reading.logprob + (math.log(share) if share > 0 else -math.inf):
        return None
    child = children[best]
    return child, replace(reading, token=nodes[child].token, logprob=logprob)
