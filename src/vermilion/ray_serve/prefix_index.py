"""Which replica has seen which beginnings of prompts, so that it still has their keys and values."""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence

from vermilion.types import Request

STEP = 32
"""Tokens of a prompt that count together."""

_MOST_LINKS = 200_000


class PrefixIndex:
    """A chain of hashes stands for each beginning of a prompt; each link knows the replicas that have it.

    The first link is the adapter and whose the request is, which is why a replica that has read an adapter is
    asked again for it.
    """

    def __init__(self, imbalance: int, capacity: int = _MOST_LINKS) -> None:
        self._imbalance = imbalance
        self._capacity = capacity
        self._holders: OrderedDict[int, set[str]] = OrderedDict()

    def rank(self, links: Sequence[int], loads: Mapping[str, int]) -> list[str]:
        """The replicas of `loads` (their requests), the best first: the longest beginning in common unless it
        has far more requests than the one with the fewest, then the fewest requests, then by chance."""
        shared = dict.fromkeys(loads, 0)
        for length, link in enumerate(links, 1):
            holders = self._holders.get(link)
            if not holders:
                break
            shared |= dict.fromkeys(holders & loads.keys(), length)
        limit = min(loads.values(), default=0) + self._imbalance
        return sorted(
            loads,
            key=lambda one: (loads[one] > limit, -shared[one], loads[one], random.random()),
        )

    def add(self, links: Sequence[int], replica: str) -> None:
        """`replica` will have what `links` stand for."""
        for link in links:
            self._holders.setdefault(link, set()).add(replica)
            self._holders.move_to_end(link)
        while len(self._holders) > self._capacity:
            self._holders.popitem(last=False)

    def keep(self, replicas: Iterable[str]) -> None:
        """Forgets all others."""
        kept = set(replicas)
        for link, holders in list(self._holders.items()):
            holders.intersection_update(kept)
            if not holders:
                del self._holders[link]


def links_of(request: Request) -> list[int]:
    """From the shortest beginning to the longest."""
    link = hash((request.cache_salt, request.adapter))
    links = [link] if request.adapter else []
    for start in range(0, len(request.prompt) - STEP + 1, STEP):
        link = hash((link, request.prompt[start : start + STEP]))
        links.append(link)
    return links
