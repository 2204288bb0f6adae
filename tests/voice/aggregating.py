"""Answers through the aggregator, letter by letter as a stream brings them."""

from __future__ import annotations

import asyncio

from vermilion.voice.clauses import ClauseAggregator


def pieces(*answers: str) -> list[list[str]]:
    """What would be spoken of each answer, one after another."""
    return asyncio.run(_pieces(answers))


async def _pieces(answers: tuple[str, ...]) -> list[list[str]]:
    aggregator, spoken = ClauseAggregator(), []
    for answer in answers:
        found = [piece.text async for piece in aggregator.aggregate(answer)]
        rest = await aggregator.flush()
        spoken.append(found + ([rest.text] if rest else []))
    return spoken
