"""What a pass of the kernels answers, as plain numbers."""

from __future__ import annotations

import ctypes
import math
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np

from vermilion.decoding.forward_jobs import Job
from vermilion.decoding.passes import Choices, Reading
from vermilion.native.library import AnswersStruct

# The structures of kernels/interface.h that come in arrays.
_ANSWER = struct.Struct("=ddii")
_GIVEN = struct.Struct("=4i")
_BUFFERS = ("answers", "targets", "top_tokens", "top_logprobs", "given", "given_tokens", "given_logprobs")


class PassAnswers:
    """Room for what passes answer, kept from one to the next, and what it becomes."""

    def __init__(self) -> None:
        self.struct = AnswersStruct()
        self._sizes = [-1] * 5
        self.logits: Any = None
        self.signals: Any = None

    def make_room(self, wanted: Sequence[int], vocab_size: int = 0, signal_size: int = 0) -> None:
        """For a pass with so many reads, targets, tokens to list, tokens before drafts, choices behind these.
        `vocab_size` 0: logits are not wanted; `signal_size` 0: mean embeddings are not."""
        if any(size > room for size, room in zip(wanted, self._sizes, strict=True)):
            # Made for every pass they took it as long as listing its rows.
            self._sizes = [max(size, room, 8) for size, room in zip(wanted, self._sizes, strict=True)]
            self._grow()
        self.logits = np.empty((wanted[0], vocab_size), np.float32) if vocab_size else None
        self.signals = np.empty((wanted[0], signal_size), np.float32) if signal_size else None
        self.struct.logits = None if self.logits is None else self.logits.ctypes.data
        self.struct.signals = None if self.signals is None else self.signals.ctypes.data
        self.struct.tapped, self.struct.num_given = None, 0

    def _grow(self) -> None:
        reads, targets, top, given, choices = self._sizes
        self._answers = ctypes.create_string_buffer(_ANSWER.size * reads)
        self._targets = (ctypes.c_double * targets)()
        self._top_tokens = (ctypes.c_int32 * top)()
        self._top_logprobs = (ctypes.c_double * top)()
        self._given = ctypes.create_string_buffer(_GIVEN.size * given)
        self._given_tokens = (ctypes.c_int32 * choices)()
        self._given_logprobs = (ctypes.c_double * choices)()
        for name in _BUFFERS:
            setattr(self.struct, name, ctypes.addressof(getattr(self, f"_{name}")))

    def readings(self, jobs: Sequence[Job]) -> list[list[Reading]]:
        given = self._given_by_read() if self.struct.num_given else {}
        made: list[list[Reading]] = []
        first_target = first_top = index = 0
        for job in jobs:
            made.append([])
            for want in job.wanted:
                logprob, entropy, token, num_top = _ANSWER.unpack_from(self._answers, index * _ANSWER.size)
                end_target, end_top = first_target + len(want.targets), first_top + min(num_top, want.top)
                if math.isfinite(logprob):
                    reading = Reading(
                        token, logprob, entropy,
                        tuple(self._targets[first_target:end_target]) if want.targets else (),
                        self._choices(first_top, end_top) if want.top else (), given.get(index, {}),
                    )  # fmt: skip
                else:
                    reading = Reading(0, math.nan, target_logprobs=(math.nan,) * len(want.targets))
                made[-1].append(reading)
                first_target, first_top, index = end_target, first_top + want.top, index + 1
        return made

    def _choices(self, first: int, end: int) -> Choices:
        return tuple(zip(self._top_tokens[first:end], self._top_logprobs[first:end], strict=True))

    def _given_by_read(self) -> dict[int, dict[int, Choices]]:
        given: dict[int, dict[int, Choices]] = {}
        for row in range(self.struct.num_given):
            read, before, first, count = _GIVEN.unpack_from(self._given, row * _GIVEN.size)
            end = first + count
            given.setdefault(read, {})[before] = tuple(
                zip(self._given_tokens[first:end], self._given_logprobs[first:end], strict=True)
            )
        return given
