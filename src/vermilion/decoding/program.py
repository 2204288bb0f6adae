"""The state of one answer between two forward passes, apart from any engine.

A program says what the next pass must compute (`plan`) and takes in what it read (`apply`). It knows token
ids and positions, nothing of tensors, pages or other requests, so what it decides cannot depend on them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from vermilion.decoding.draft_record import DraftRecord
from vermilion.decoding.drafting import DraftBudget
from vermilion.decoding.grammar import Constraint
from vermilion.decoding.passes import Pass, Reading, Segment
from vermilion.decoding.repetition import RepetitionWatch
from vermilion.frozen import frozen
from vermilion.models.families import Traits
from vermilion.types import Decoding, FinishReason, Seeds

CLOSING_TOKENS = 32
"""Last tokens of a constrained answer that are spent on closing what is open."""


@dataclass(frozen=True, slots=True)
class Task:
    """What a program has to produce: ids and limits, already checked."""

    prompt: tuple[int, ...]
    max_tokens: int
    decoding: Decoding
    eos: frozenset[int]
    suffix: tuple[int, ...] = ()
    sampled: bool = False
    """Whether the temperature is above 0."""
    breaks: frozenset[int] = frozenset()
    """Tokens that hold a line break; given for an infill."""
    existing: tuple[int, ...] = ()
    """Text that the answer is expected to repeat in great part."""
    given: tuple[int, ...] = ()
    """The answer, where it is only to be read."""
    seeds: Seeds | None = None
    """A canvas that is partly given, in place of an answer from left to right."""
    stop_repetition: bool = False
    """Whether an answer that only repeats itself is ended."""
    constraint: Constraint | None = None
    """The answer's place in its grammar, which settled tokens move on."""
    seed: int = 0
    vocab_size: int = 0
    """For programs that draw noise themselves."""


@frozen
class Settled:
    """One final token of the answer."""

    token: int
    reading: Reading
    pass_number: int


@frozen
class Open:
    """One position of the canvas that is not final: its token (a guess where masked)."""

    token: int
    masked: bool
    edited: bool = False
    confidence: float = 1.0
    """The probability that the model gives the token."""


class Program(ABC):
    """One answer in the making. Its owner raises `cached` after a prefix hit or a prefill."""

    def __init__(self, task: Task, traits: Traits) -> None:
        self.task = task
        self.traits = traits
        self.tokens: list[int] = list(task.prompt)
        """Prompt and settled answer."""
        self.settled: list[Settled] = []
        self.cached = 0
        """Leading tokens whose keys and values are stored."""
        self.passes = 0
        self.edits = 0
        self.cache = ""
        """Which cache its passes may read that makes it an approximation; empty for none."""
        self.cached_passes = 0
        self.record = DraftRecord()
        """What drafts came to; stays empty where nothing is drafted."""
        self.finish: FinishReason | None = None
        self.limit = len(task.prompt) + task.max_tokens
        self.repetition = False
        """Whether the answer has become a repetition, and was ended for it."""
        self._watch: RepetitionWatch | None = None
        self._begun = False

    @property
    @abstractmethod
    def max_slots(self) -> int:
        """Bound on the logical slots of any pass of this answer."""

    @property
    def max_draft_rows(self) -> int:
        """Bound on the rows that guesses add to one pass."""
        return 0

    @abstractmethod
    def plan(self, budget: DraftBudget | None = None) -> Pass:
        """The next pass. With a budget a lossless decoder drafts only what is worth its rows; without one, as
        much as its knobs allow."""

    @abstractmethod
    def apply(self, readings: Sequence[Reading]) -> None:
        """Take in the readings of the last planned pass, in the order of its reads."""

    @abstractmethod
    def canvas(self) -> list[Open]:
        """The positions right of the settled text, as far as they are known, for a preview."""

    @property
    def cacheable(self) -> int:
        """Leading tokens that prefill may store before the program's own next pass."""
        return len(self.tokens) - 1

    def forget(self) -> None:
        """The stored keys are gone; the next passes store them again."""
        self.cached = 0

    def _count_pass(self) -> None:
        # The first pass carries the prompt's last rows: it is the prefill, except for models that never
        # store the prompt.
        if self._begun or self.traits.context == "full":
            self.passes += 1
        self._begun = True

    def _settle(self, reading: Reading, token: int | None = None) -> None:
        """Make one more token of the answer final; ends the answer at EOS or at the limit."""
        chosen = reading.token if token is None else token
        self.tokens.append(chosen)
        self.settled.append(Settled(chosen, reading, self.passes))
        constraint = self.task.constraint
        # Text that a grammar forces may repeat itself as it likes.
        watch = None if constraint is not None and constraint.forced() is not None else self._watch
        if constraint is not None:
            constraint.settle(chosen)
        if chosen in self.task.eos or (constraint is not None and constraint.complete):
            self.finish = "stop"
        elif len(self.tokens) >= self.limit:
            self.finish = "length"
        elif watch is not None and watch.push(chosen):
            self._stop_repetition()

    def _stop_repetition(self) -> None:
        self.repetition, self._watch = True, None
        if self.task.constraint is None:
            self.finish = "length"
        else:
            # The end comes near, so what is open is closed.
            self.limit = min(self.limit, len(self.tokens) + CLOSING_TOKENS)

    def _clean(self, tokens: Sequence[int], stop: int) -> Segment:
        """Clean rows for the positions from `cached` up to `stop` of `tokens`."""
        grid = self.traits.block_grid if self.traits.context == "block" else 1
        start = self.cached
        return Segment(tuple(tokens[start:stop]), start=start, slot=start, sees=start, span=grid)

    def prefill(self, count: int) -> Pass:
        """A pass that only stores the next `count` tokens."""
        return Pass((self._clean(self.tokens, self.cached + count),))
