"""The decision of one denoise step: which masked positions settle now. Pure functions on plain numbers.

Positions are indexes into the argument lists. Ties go to the leftmost, so that a decision never depends on
a sort's internals.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from vermilion.decoding.passes import Choices, Reading
from vermilion.types import Decoding

_MAX_MATCH = 16


def surest(readings: Sequence[Reading]) -> list[int]:
    """Indexes by falling confidence."""
    return sorted(range(len(readings)), key=lambda i: (-readings[i].logprob, i))


def confident(
    decoding: Decoding, readings: Sequence[Reading], forced: Reading | None, steps_left: int
) -> list[int]:
    """All of at least the threshold's confidence (Fast-dLLM, arXiv 2505.22618)."""
    bound = math.log(decoding.threshold) if decoding.threshold > 0 else -math.inf
    return [i for i, reading in enumerate(readings) if reading.logprob >= bound]


def scheduled(
    decoding: Decoding, readings: Sequence[Reading], forced: Reading | None, steps_left: int
) -> list[int]:
    """Equal shares of what is left over the steps that are left (LLaDA, arXiv 2502.09992)."""
    already = 0 if forced is None else 1
    quota = math.ceil((len(readings) + already) / steps_left) - already
    return surest(readings)[:quota]


def entropy_bounded(
    decoding: Decoding, readings: Sequence[Reading], forced: Reading | None, steps_left: int
) -> list[int]:
    """Largest set by rising entropy whose entropies sum, the largest left out, to at most the threshold.

    That sum bounds the dependence ignored by settling them independently (EB-sampler, arXiv 2505.24857).
    """
    order = sorted(range(len(readings)), key=lambda i: (readings[i].entropy, i))
    total = 0.0 if forced is None else forced.entropy
    largest = total
    chosen: list[int] = []
    for i in order:
        total += readings[i].entropy
        largest = max(largest, readings[i].entropy)
        if total - largest > decoding.threshold:
            break
        chosen.append(i)
    return chosen


def least_dependent(entropies: Sequence[float], bound: float) -> list[int]:
    """Indexes, by rising entropy, of the positions before which the entropies sum to at most `bound` nats.

    The first always is one of them. For positions that are all decided anew in each step (DiffusionGemma).
    """
    total = 0.0
    chosen: list[int] = []
    for i in sorted(range(len(entropies)), key=lambda i: (entropies[i], i)):
        if total > bound:
            break
        chosen.append(i)
        total += entropies[i]
    return chosen


def near_and_sure(
    entropies: Sequence[float], distances: Sequence[int], threshold: float, penalty: float
) -> list[int]:
    """Indexes of the masks whose entropy plus `penalty` nats for each position from the first mask is below
    `threshold`; the lowest such sum where none is (WeDLM, arXiv 2512.22737)."""
    sums = [entropy + penalty * far for entropy, far in zip(entropies, distances, strict=True)]
    chosen = [i for i, total in enumerate(sums) if total < threshold]
    return chosen or [min(range(len(sums)), key=lambda i: (sums[i], i))]


def cumulative(
    decoding: Decoding, readings: Sequence[Reading], forced: Reading | None, steps_left: int
) -> list[int]:
    """Longest prefix by falling confidence whose joint probability stays at or above the threshold."""
    bound = math.log(decoding.threshold) if decoding.threshold > 0 else -math.inf
    total = 0.0 if forced is None else forced.logprob
    chosen: list[int] = []
    for i in surest(readings):
        total += readings[i].logprob
        if total < bound:
            break
        chosen.append(i)
    return chosen


def reopen(base_logprobs: Sequence[float], below: float) -> tuple[int, ...]:
    """Positions whose base probability is lower than `below`."""
    if below <= 0:
        return ()
    bound = math.log(below)
    return tuple(i for i, logprob in enumerate(base_logprobs) if logprob < bound)


@dataclass(frozen=True, slots=True)
class Node:
    """One drafted token in a tree; `parent` -1 stands right behind the settled text."""

    token: int
    parent: int
    depth: int
    logprob: float
    """Joint, of the path that ends here."""


@dataclass(frozen=True, slots=True)
class Level:
    """What may stand at one depth of a tree of drafts."""

    choices: Choices
    """Whatever stands before."""
    given: Mapping[int, Choices] = field(default_factory=dict)
    """Behind certain tokens."""

    def behind(self, token: int | None) -> Choices:
        return self.choices if token is None else self.given.get(token, self.choices)


def draft_tree(levels: Sequence[Level], size: int, root: int | None = None) -> tuple[Node, ...]:
    """The `size` likeliest paths through `levels`, parents before children; `root` is the token before.

    The guesses of one denoise pass depend on no other's token, with a draft head on the one before it, so
    the chance of a path is a product and best-first search finds the set that maximises the expected number
    of accepted drafts (as in Medusa, arXiv 2401.10774).
    """
    nodes: list[Node] = []
    # (-joint, order of discovery, parent, depth, rank); the order makes ties deterministic.
    heap: list[tuple[float, int, int, int, int]] = []
    found = 0

    def choices(parent: int, depth: int) -> Choices:
        return levels[depth].behind(nodes[parent].token if parent >= 0 else root)

    def offer(parent: int, depth: int, rank: int) -> None:
        nonlocal found
        if depth < len(levels) and rank < len(choices(parent, depth)):
            before = nodes[parent].logprob if parent >= 0 else 0.0
            heapq.heappush(heap, (-(before + choices(parent, depth)[rank][1]), found, parent, depth, rank))
            found += 1

    offer(-1, 0, 0)
    while heap and len(nodes) < size:
        cost, _, parent, depth, rank = heapq.heappop(heap)
        nodes.append(Node(choices(parent, depth)[rank][0], parent, depth, -cost))
        offer(parent, depth, rank + 1)
        offer(len(nodes) - 1, depth + 1, 0)
    return tuple(nodes)


def copied(existing: Sequence[int], answer: Sequence[int], size: int) -> tuple[Node, ...]:
    """Up to `size` tokens of `existing` as a chain of drafts, from where the answer has got to in it.

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
    return chained(existing[at : at + size])


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
