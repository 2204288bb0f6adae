"""Which request computes what in the next forward: admission, budgets, memory, preemption. No torch.

The order of admission is the order of rights: an older request never waits for memory that a younger one
holds, so the oldest always advances and nothing starves.
"""

from __future__ import annotations

import logging
import math
import sys
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from vermilion.decoding.draft_record import DraftRecord
from vermilion.decoding.drafting import DraftBudget, RowCosts
from vermilion.decoding.passes import Pass
from vermilion.decoding.penalties import Penalties
from vermilion.decoding.program import Program
from vermilion.decoding.speculative import Speculative
from vermilion.engine.cache import Digest, PageCache
from vermilion.engine.output import Output
from vermilion.frozen import frozen
from vermilion.types import Request

_MAX_OVERTAKEN = 4
_OWN_ROWS = 64
"""Tokens to store of a request that answers: what its last pass settled. One with more was preempted."""
_MIN_PROMPT_ROWS = 16
"""Of a step, however dear rows are, so that prompts get on beside any number of answers."""
_MIN_SHARE = 256
"""Rows that a request's guesses may take of a step, whatever the budget of a step is."""

log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class Sequence:
    """One request inside the engine."""

    request: Request
    program: Program
    output: Output
    pages: list[int] = field(default_factory=list)
    named: int = 0
    """Leading pages whose content the cache has been told."""
    digest: Digest = b""
    admitted_before: bool = False
    served: int = 0
    """Number of the last step that ran rows of this request."""
    penalties: Penalties | None = None
    """Kept for a request whose logits are changed."""
    overtaken: int = 0
    """How many realtime requests were queued before it though they came later."""
    adapter: str = ""
    """The adapter it goes through, under the name of that one loading of it."""

    @property
    def cache_salt(self) -> str:
        """Under what its keys are stored and found again."""
        also = (self.request.cache_salt, self.program.traits.cached_as)
        return "\0".join((self.adapter, *also)) if any(also) else self.adapter


@dataclass(frozen=True, slots=True)
class Limits:
    """Budgets of one engine; see `config.EngineConfig`."""

    max_rows: int
    prefill_chunk: int
    max_running: int
    max_pause_ms: float = math.inf
    """Longest step that prompts may make of one that brings answers on, unless that took half as long
    without them."""

    @property
    def max_draft_rows(self) -> int:
        """Most rows that one request's guesses may add to a step."""
        return max(self.max_rows, _MIN_SHARE)


@frozen
class Work:
    """What one sequence does in a step. `prefill` stores tokens and reads nothing."""

    sequence: Sequence
    rows: Pass
    prefill: bool


class Scheduler:
    """Waiting and running sequences over one page cache."""

    def __init__(self, limits: Limits, cache: PageCache, costs: RowCosts | None = None) -> None:
        self.limits = limits
        self.cache = cache
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.costs = costs
        self.preemptions = 0
        self.prefix_hit_tokens = 0
        self.on_release: Callable[[str], None] = lambda request: None
        """Called with a request whose pages are given back: finished, aborted or preempted."""
        self._step = 0
        self._failed: list[Sequence] = []
        self._separate: list[Sequence] = []
        self._records = {constrained: DraftRecord() for constrained in (False, True)}
        """What drafts of requests without and with a grammar have been worth."""

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence, a realtime one before others, none of which it keeps waiting for ever; one of the
        background behind all that are not."""
        at = len(self.waiting) if sequence.request.background else self._num_waiting_live()
        while sequence.request.realtime and at:
            before = self.waiting[at - 1]
            if before.request.realtime or before.program.settled or before.overtaken >= _MAX_OVERTAKEN:
                break
            before.overtaken += 1
            at -= 1
        self.waiting.insert(at, sequence)
        program = sequence.program
        if isinstance(program, Speculative) and program.lossless:
            program.record = DraftRecord(self._records[program.task.constraint is not None])

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence, finished or aborted; its pages go back."""
        if sequence in self.running:
            self.running.remove(sequence)
        else:
            self.waiting.remove(sequence)
        if sequence in self._separate:
            self._separate.remove(sequence)
        self._give_back(sequence)

    def take_failed(self) -> list[Sequence]:
        """Sequences that the last `plan` could not plan for; they still hold their place."""
        failed, self._failed = self._failed, []
        return failed

    def separate(self, sequences: list[Sequence]) -> None:
        """Take back a step that failed as a whole: all memory is given up, for it may be damaged, and the
        next steps run one of `sequences` each, to find which one it is that fails."""
        for sequence in reversed(list(self.running)):
            self._preempt(sequence)
        self._separate = [s for s in self.waiting if s in sequences]

    def plan(self) -> list[Work]:
        """The next step's work, at most one item per sequence; empty only when there is nothing to do."""
        self._step += 1
        self._admit()
        live = [s for s in self.running if not s.request.background] or self.running
        self._separate = [s for s in self._separate if s in self.running]
        live = self._separate[:1] or live
        room = self._prompt_rows(live)
        chunk = min(self.limits.prefill_chunk, room - _MIN_PROMPT_ROWS)
        ready = [s for s in live if self._pending(s) <= chunk]
        prefilling = [s for s in live if self._pending(s) > chunk]
        left = _MIN_PROMPT_ROWS if prefilling else 0  # short prompts that keep coming starve no long one
        room -= left
        # Longest unserved first, so that no request is passed over twice when not all fit.
        ready.sort(key=lambda sequence: sequence.served)
        reserve = min(chunk, self.limits.max_rows // 2) if prefilling else 0
        budget = self._budget(ready)
        work: dict[int, Work] = {}
        rows = 0
        for sequence in ready:
            pending = self._pending(sequence)
            reads = self._reads_prompt(sequence)
            if reads and pending > room:
                continue
            planned = self._planned(sequence, budget)
            if planned is None:
                continue
            if work and rows + planned.num_rows > self.limits.max_rows - reserve:
                continue
            placed = self._place(work, sequence, planned, prefill=False)
            rows += placed
            if placed and reads:
                room -= pending
            if budget is not None and placed:
                budget = budget.plus(placed - pending - 1)
        room += left
        for sequence in prefilling:
            count = min(self.limits.prefill_chunk, self._pending(sequence), room)
            count = min(count, max(self.limits.max_rows - rows, 0))
            grid = max(1, sequence.program.traits.block_grid)
            count -= count % grid
            if not work:
                # However small the budgets, a step does something.
                count = max(count, grid)
            if count <= 0 or sequence not in self.running:
                continue
            placed = self._place(work, sequence, sequence.program.prefill(count), prefill=True)
            rows += placed
            room -= placed
        if self._separate and not work and not self._failed:
            # The one whose turn it is waits for memory that its elders hold.
            self._separate = []
            return self.plan()
        return list(work.values())

    def plan_drafts(self) -> list[Work]:
        """What the drafter should run before the next step's plan, which verifies its guesses."""
        live = [s for s in self.running if s.request.background is False] or self.running
        ready = [s for s in live if self._pending(s) <= self.limits.prefill_chunk]
        budget, size = self._budget(ready), self.cache.page_size
        asked: list[Work] = []
        for sequence in ready:
            program = sequence.program
            if not isinstance(program, Speculative):
                continue
            try:
                rows = program.ask_drafter(len(sequence.pages) * size, budget if program.lossless else None)
            except Exception:
                log.exception("a request could not ask for drafts")
                self._failed.append(sequence)
                continue
            if rows is not None:
                asked.append(Work(sequence, rows, prefill=False))
        return asked

    def applied(self, work: Work) -> None:
        """Take note of what a step stored: whole pages of final tokens become shareable."""
        sequence = work.sequence
        program = sequence.program
        if work.prefill:
            program.cached += work.rows.num_rows
        elif sequence in self._separate:
            self._separate.remove(sequence)
        size = self.cache.page_size
        while (sequence.named + 1) * size <= program.cached:
            tokens = program.tokens[sequence.named * size : (sequence.named + 1) * size]
            page = sequence.pages[sequence.named]
            sequence.digest = self.cache.remember(page, sequence.digest, tokens)
            sequence.named += 1

    def note_cost(self, ready: list[Work], reading: bool, ms: float) -> None:
        """A step took so long, from its planning to its events; `reading`: some rows were of prompts."""
        costs, num_rows = self.costs, sum(work.rows.num_rows for work in ready)
        if costs is not None and reading:
            costs.note_reading(num_rows, ms)
        elif costs is not None:
            noisy = sum(len(one.ids) for work in ready for one in work.rows.segments if one.noisy)
            costs.note(num_rows, noisy, ms)
        for constraint in (work.sequence.program.task.constraint for work in ready):
            if costs is not None and constraint is not None:
                costs.note_masks(*constraint.take_mask_times())

    def note_asking(self, asked: list[Work], ms: float) -> None:
        """Asking the drafter took so long."""
        constrained = {work.sequence.program.task.constraint is not None for work in asked}
        if self.costs is not None and len(constrained) == 1:
            self.costs.note_asking(sum(work.rows.num_rows for work in asked), constrained.pop(), ms)

    def _prompt_rows(self, live: list[Sequence]) -> int:
        """Most rows of prompts that a step may have beside the answers among `live`, which they make wait."""
        answers = [s for s in live if not self._reads_prompt(s)]
        if self.costs is None or not answers or len(answers) == len(live):
            return sys.maxsize
        own = sum(self._pending(s) + 1 for s in answers)
        room = self.costs.within(max(self.limits.max_pause_ms, 2 * self.costs.at(own)))
        room -= own + len(live) - len(answers)  # each that reads has a row for its first token
        return max(room, 2 * _MIN_PROMPT_ROWS)

    def _reads_prompt(self, sequence: Sequence) -> bool:
        """Whether it has no text yet, or has lost what it had stored."""
        return not sequence.program.settled or self._pending(sequence) > _OWN_ROWS

    def _pending(self, sequence: Sequence) -> int:
        """Tokens that could be stored before the program's own next pass."""
        return max(0, sequence.program.cacheable - sequence.program.cached)

    def _planned(self, sequence: Sequence, budget: DraftBudget | None) -> Pass | None:
        """The program's next pass; None where it failed, which ends this request alone."""
        program = sequence.program
        budgeted = isinstance(program, Speculative) and program.lossless
        try:
            return program.plan(budget if budgeted else None)
        except Exception:
            log.exception("a request could not be planned")
            self._failed.append(sequence)
            return None

    def _budget(self, ready: list[Sequence]) -> DraftBudget | None:
        """What drafts cost in a step over `ready`, each with its own clean rows; None where no costs are
        known."""
        if self.costs is None or not ready:
            return None
        return DraftBudget(self.costs, sum(self._pending(s) + 1 for s in ready), len(ready))

    def _num_waiting_live(self) -> int:
        """How many of the waiting are not of the background; they come first."""
        return next((i for i, s in enumerate(self.waiting) if s.request.background), len(self.waiting))

    def _gave_way(self, sequence: Sequence) -> bool:
        """Whether something of the background was put off for `sequence`."""
        behind = [s for s in self.running if s.request.background]
        if sequence.request.background or not behind:
            return False
        self._preempt(behind[-1])
        return True

    def _admit(self) -> None:
        while self.waiting:
            sequence = self.waiting[0]
            program = sequence.program
            if len(self.running) >= self.limits.max_running and not self._gave_way(sequence):
                return
            if sequence.request.background and any(not s.request.background for s in self.running):
                return
            sequence.pages, sequence.digest = self.cache.match(
                program.tokens, program.cacheable, sequence.cache_salt
            )
            needed = -(-(len(program.tokens) + 1) // self.cache.page_size) - len(sequence.pages)
            if self.running and needed > self.cache.num_available:
                self.cache.release(sequence.pages)
                sequence.pages = []
                if self._gave_way(sequence):
                    continue
                return
            self.waiting.popleft()
            sequence.named = len(sequence.pages)
            program.cached = sequence.named * self.cache.page_size
            self.prefix_hit_tokens += program.cached
            if not sequence.admitted_before:
                sequence.output.cached_tokens = program.cached
                sequence.admitted_before = True
            self.running.append(sequence)

    def _place(self, work: dict[int, Work], sequence: Sequence, planned: Pass, *, prefill: bool) -> int:
        """Add the work if memory can be found for it; returns the rows it adds to the step."""
        if sequence not in self.running or not self._reserve(work, sequence, planned):
            return 0
        sequence.served = self._step
        work[id(sequence)] = Work(sequence, planned, prefill)
        return planned.num_rows

    def _reserve(self, work: dict[int, Work], sequence: Sequence, planned: Pass) -> bool:
        """Pages for all slots of the pass, taken from younger sequences where they must be."""
        size = self.cache.page_size
        missing = -(-planned.num_slots // size) - len(sequence.pages)
        if missing <= 0:
            return True
        last = sequence.pages[-1] if sequence.pages else -1
        final = len(sequence.request.prompt) + sequence.request.sampling.max_tokens
        expect = -(-final // size) - len(sequence.pages)
        while True:
            pages = self.cache.allocate(missing, after=last, expect=expect)
            if pages is not None:
                sequence.pages += pages
                return True
            if self.running == [sequence]:
                log.error("a pass of %d slots can never fit the memory", planned.num_slots)
                self._failed.append(sequence)
                return False
            victim = next((s for s in reversed(self.running) if s.request.background), self.running[-1])
            work.pop(id(victim), None)
            self._preempt(victim)
            if victim is sequence:
                return False

    def _preempt(self, sequence: Sequence) -> None:
        """Give up a sequence's memory; it keeps its tokens and its canvas and comes back first."""
        self.preemptions += 1
        self.running.remove(sequence)
        self._give_back(sequence)
        sequence.program.forget()
        self.waiting.insert(self._num_waiting_live() if sequence.request.background else 0, sequence)

    def _give_back(self, sequence: Sequence) -> None:
        self.cache.release(sequence.pages)
        sequence.pages = []
        self.on_release(sequence.request.id)
