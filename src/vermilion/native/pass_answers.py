"""What a pass of the kernels answers, as plain numbers."""

from __future__ import annotations

import ctypes
import math
import struct
from collections.abc import Iterator, Mapping, Sequence
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
        self._num_choices = wanted[4]
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
        given = self._all_given() if self.struct.num_given else None
        made: list[list[Reading]] = []
        first_target = first_top = index = 0
        for job in jobs:
            made.append([])
            for read, want in zip(job.rows.reads, job.wanted, strict=True):
                logprob, entropy, token, num_top = _ANSWER.unpack_from(self._answers, index * _ANSWER.size)
                end_target, end_top = first_target + len(want.targets), first_top + min(num_top, want.top)
                if math.isfinite(logprob):
                    reading = Reading(
                        token, logprob, entropy,
                        tuple(self._targets[first_target:end_target]) if want.targets else (),
                        self._choices(first_top, end_top) if want.top else (),
                        GivenChoices(index, *given) if given and read.purpose == "draft" else {},
                    )  # fmt: skip
                else:
                    reading = Reading(0, math.nan, target_logprobs=(math.nan,) * len(want.targets))
                made[-1].append(reading)
                first_target, first_top, index = end_target, first_top + want.top, index + 1
        return made

    def _all_given(self) -> tuple[bytes, bytes, bytes]:
        rows = ctypes.string_at(self._given, _GIVEN.size * self.struct.num_given)
        tokens = ctypes.string_at(self._given_tokens, 4 * self._num_choices)
        return rows, tokens, ctypes.string_at(self._given_logprobs, 8 * self._num_choices)

    def _choices(self, first: int, end: int) -> Choices:
        return tuple(zip(self._top_tokens[first:end], self._top_logprobs[first:end], strict=True))


class GivenChoices(Mapping[int, Choices]):
    """`Reading.given` of one draft, made when looked at: a tree of drafts needs few of a pass's hundreds of
    pairs."""

    def __init__(self, read: int, rows: bytes, tokens: bytes, logprobs: bytes) -> None:
        """`read` counts the pass's reads; the others are of all its drafts, as the library answers them."""
        self._read, self._rows, self._tokens, self._logprobs = read, rows, tokens, logprobs

    def _places(self) -> Iterator[tuple[int, int, int]]:
        rows = _GIVEN.iter_unpack(self._rows)
        return ((before, first, count) for read, before, first, count in rows if read == self._read)

    def __getitem__(self, before: int) -> Choices:
        for token, first, count in self._places():
            if token == before:
                tokens = struct.unpack_from(f"={count}i", self._tokens, 4 * first)
                logprobs = struct.unpack_from(f"={count}d", self._logprobs, 8 * first)
                return tuple(zip(tokens, logprobs, strict=True))
        raise KeyError(before)

    def __iter__(self) -> Iterator[int]:
        return (before for before, _, _ in self._places())

    def __len__(self) -> int:
        return sum(1 for _ in self)
