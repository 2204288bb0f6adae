"""Answers that repeat themselves to their limit: the same few tokens again and again, hundreds of times.

Small models fall into this at temperature 0 and never leave it. The watch is conservative: a table of zeros
or a drawn line is shorter than what it stops.
"""

from __future__ import annotations

from collections import deque

MAX_PERIOD = 64
"""Tokens of what is repeated, at the most."""
MIN_TOKENS = 512
"""Tokens of a run before it is stopped."""
MIN_PERIODS = 16
"""How often it must have been said."""


class RepetitionWatch:
    """Sees the tokens of one answer in order; what it says depends on them alone."""

    def __init__(self) -> None:
        self._last: deque[int] = deque(maxlen=MAX_PERIOD)
        self._runs = [0] * MAX_PERIOD
        """Per period - 1: how many of the last tokens equal the one a period before."""

    def push(self, token: int) -> bool:
        """Whether the answer has become such a run with this token."""
        stop = False
        for index, before in enumerate(reversed(self._last)):
            if before != token:
                self._runs[index] = 0
                continue
            self._runs[index] += 1
            length = self._runs[index] + index + 1
            stop = stop or length >= max(MIN_TOKENS, MIN_PERIODS * (index + 1))
        self._last.append(token)
        return stop
