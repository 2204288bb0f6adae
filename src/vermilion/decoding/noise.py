"""Noise as a function of where it is wanted, so that no request's depends on another's. No torch."""

from __future__ import annotations

_WORD = 2**64 - 1


def mixed(seed: int, position: int) -> int:
    """One 63-bit key per (seed, position), by splitmix64's finaliser: neighbours get unrelated streams."""
    word = (seed * 0x9E3779B97F4A7C15 + position + 1) & _WORD
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        word = ((word ^ (word >> shift)) * factor) & _WORD
    return (word ^ (word >> 31)) >> 1


def uniform(seed: int, position: int, draw: int) -> float:
    """A number in [0, 1) for the `draw`-th time that a position is sampled."""
    return (mixed(mixed(seed, position), 2 * draw) >> 10) / 2**53


def uniform_token(seed: int, position: int, draw: int, vocab_size: int) -> int:
    """A token id for the `draw`-th time that a position is filled with noise, each as likely as any other."""
    return mixed(mixed(seed, position), 2 * draw + 1) * vocab_size >> 63
