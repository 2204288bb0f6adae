"""What one denoise step settles: the decoder's rule, and what holds for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from vermilion.decoding import rules
from vermilion.decoding.decoders import DECODERS
from vermilion.decoding.passes import Reading
from vermilion.decoding.rules import Step

NO_CONFIDENCE = -1e30
"""Log-probability that ranks a reading behind all others."""


def settle(step: Step) -> dict[int, Reading]:
    """Which of a step's readings to accept, by the decoder's rule, each as it settles.

    With a forced reading the rule may accept nothing more. Without it at least one position settles. In the
    last step everything does: no block outlives its cap.
    """
    if not step.readings:
        return {}
    decoding = step.decoding
    decoder = DECODERS[decoding.decoder]
    assert decoder.rule is not None
    readings = rules.credited(step) if decoding.decoder == "credit" else step.readings
    if step.steps_left <= 1:
        return dict(enumerate(readings))
    ranked = replace(step, readings=_ends_last(readings, step.ends) if decoding.eos_last else readings)
    chosen = decoder.rule(ranked)
    if not chosen and step.forced is None:
        chosen = rules.surest(ranked.readings)[:1]
    return {i: readings[i] for i in sorted(chosen)}


def _ends_last(readings: Sequence[Reading], ends: frozenset[int]) -> list[Reading]:
    """The readings, with no confidence in what would end the text."""
    return [
        replace(one, logprob=NO_CONFIDENCE, entropy=-NO_CONFIDENCE, top=((one.token, NO_CONFIDENCE),))
        if one.token in ends
        else one
        for one in readings
    ]
