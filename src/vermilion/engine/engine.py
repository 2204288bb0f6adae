"""Requests in, events out, one forward per step. No torch here: the worker is handed in.

`submit` and `abort` take effect between two steps. Not thread-safe: `engine/service.py` gives it a thread.
"""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Sequence as Listing
from dataclasses import replace
from functools import cached_property
from typing import Protocol

from vermilion.decoding.decoders import DECODERS
from vermilion.decoding.filling import GapFilling
from vermilion.decoding.forward_jobs import Job, Wanted
from vermilion.decoding.grammar import Grammars
from vermilion.decoding.infill import Infill, continued, sampled_as
from vermilion.decoding.passes import Pass, Read, Reading, Segment
from vermilion.decoding.penalties import Penalties, bans, needed
from vermilion.decoding.program import CLOSING_TOKENS, Program, Task
from vermilion.decoding.programs import constrained, program_of
from vermilion.decoding.speculative import Speculative
from vermilion.engine.checks import check_memory, check_mixing, check_request
from vermilion.engine.loaded_adapters import FIM, Adapters, Holder
from vermilion.engine.output import Output
from vermilion.engine.row_costs import measure
from vermilion.engine.scheduler import Scheduler, Sequence, Work
from vermilion.errors import BadRequest, ProcessLost
from vermilion.gap_template import LINE_TOKENS, GapTemplate, is_open_line
from vermilion.models.families import Traits
from vermilion.text import Tokenizer
from vermilion.types import (
    EngineInfo,
    EngineStats,
    Event,
    Finish,
    ModelInfo,
    Request,
    Sampling,
    Timing,
    Usage,
)

_FAILED = "The engine failed while working on this request."
_DEAD_END = (
    "response_format: the grammar cannot be followed any further: it became too complex, or nothing may "
    "follow the text so far."
)

log = logging.getLogger(__name__)


class Runner(Holder, Protocol):
    """What the engine needs of a worker."""

    @property
    def timing(self) -> Timing:
        """Of all forwards so far."""

    def run(self, jobs: Listing[Job]) -> list[list[Reading]]: ...

    def draft(self, jobs: Listing[Job]) -> list[list[Reading]]:
        """The jobs' rows through the model's drafter."""

    def info(self) -> EngineInfo: ...

    def release(self, request: str) -> None:
        """Free what is kept for a request between its jobs; it has ended, or lost its pages."""


class Engine:
    """Continuous batching over one model."""

    def __init__(
        self, worker: Runner, scheduler: Scheduler, tokenizer: Tokenizer, model: ModelInfo, traits: Traits
    ) -> None:
        self.worker = worker
        self.scheduler = scheduler
        self.tokenizer = tokenizer
        self.model = model
        self.traits = traits
        self.steps = 0
        self.lost = ""
        """Why nothing can be answered any more; empty while it can."""
        self.grammars = Grammars(tokenizer, model.vocab_size)
        self._sequences: dict[str, Sequence] = {}
        self._drafted: Counter[str] = Counter()
        self._accepted: Counter[str] = Counter()
        self.adapters = Adapters(worker)
        self.gap_template: GapTemplate | None = None
        """Given where the adapter FIM fills gaps, those of requests that name no other adapter."""
        scheduler.on_release = worker.release

    def measure_costs(self) -> None:
        """Measure what the rows of a forward cost here; from then on lossless requests draft what is worth
        its rows. Only before the first request, for it writes into the cache's pages."""
        if self.traits.has_next_token:
            cache = self.scheduler.cache
            self.scheduler.costs = measure(
                self.worker,
                cache.page_size,
                cache.num_pages,
                denoises=self.traits.gated and not self.traits.drafter,
                drafts=bool(self.traits.drafter),
            )

    @property
    def has_work(self) -> bool:
        return bool(self._sequences)

    def check(self, request: Request) -> Program:
        """The program that will answer, its grammar compiled. Raises `BadRequest` and its kinds. It reads
        nothing that a step changes, so any thread may call it; `submit` then takes the result."""
        num_slots = self.scheduler.cache.num_slots
        check_request(request, self.model, self.traits, num_slots)
        check_mixing(request.decoding, lambda: self.worker.info().backend)
        self.adapters.check(request.adapter)
        program = self._program(request)
        check_memory(program, self.scheduler.limits.max_draft_rows, num_slots)
        return program

    def submit(self, request: Request, program: Program | None = None) -> Program:
        """Queue a request; its events come out of `step`. `program` is what `check` made of it; without,
        it is checked here. Raises `BadRequest` and its kinds.

        The returned program is for looking at, not for touching.
        """
        program = program or self.check(request)
        if request.id in self._sequences:
            raise BadRequest(f"A request with id {request.id!r} is already running.", param="id")
        gap = self._template_for(request)
        request = replace(request, sampling=sampled_as(request.sampling, gap)) if gap else request
        output = Output(request, self.tokenizer, before_suffix=bool(gap))
        handle = FIM if gap else self.adapters.take(request.adapter)
        sequence = Sequence(request, program, output, adapter=handle)
        if needed(request.sampling):
            sequence.penalties = Penalties(request.sampling, request.prompt, self.model.vocab_size)
        self._sequences[request.id] = sequence
        self.scheduler.add(sequence)
        return program

    def _program(self, request: Request) -> Program:
        sampling, ends = request.sampling, frozenset(self.model.eos_token_ids)
        eos = frozenset[int]() if sampling.ignore_eos else ends
        task = Task(request.prompt, sampling.max_tokens, request.decoding, eos, request.suffix)
        task = replace(
            task,
            existing=request.existing,
            given=request.given,
            seeds=request.seeds,
            sampled=not sampling.greedy,
            seed=sampling.seed,
            vocab_size=self.model.vocab_size,
            stop_repetition=sampling.stop_repetition and not sampling.ignore_eos and not request.existing,
        )
        if request.seeds is not None:
            return GapFilling(task, self.traits)
        if gap := self._template_for(request):
            return program_of(continued(task, gap, self.tokenizer, self.model.context_length), self.traits)
        if request.suffix and self.tokenizer.decode(request.suffix).strip():
            if not self.traits.has_next_token:
                return GapFilling(task, self.traits)
            return Infill(replace(task, breaks=self.line_breaks), self.traits)
        if (grammar := request.grammar) is not None:
            # The grammar says where the answer may end, whatever `ignore_eos` asks for.
            return constrained(replace(task, eos=ends), self.grammars.constraint(grammar), self.traits)
        return program_of(task, self.traits)

    def _template_for(self, request: Request) -> GapTemplate | None:
        parts = ((), ()) if request.adapter else (request.prompt[-LINE_TOKENS:], request.suffix)
        return self.gap_template if is_open_line(*map(self.tokenizer.decode, parts)) else None

    def prefilled(self, request_id: str) -> Usage:
        """What the prompt of a running request has cost so far; with it those named `request_id-...`. May be
        called from any thread."""
        prompt_tokens = cached_tokens = 0
        for name, sequence in list(self._sequences.items()):
            if name == request_id or name.startswith(f"{request_id}-"):
                num_given = len(sequence.request.prompt) + len(sequence.request.suffix)
                prompt_tokens += min(sequence.program.cached, num_given)
                cached_tokens += min(sequence.output.cached_tokens, num_given)
        return Usage(prompt_tokens, cached_tokens)

    @cached_property
    def line_breaks(self) -> frozenset[int]:
        """Tokens that hold a line break."""
        known = range(self.model.vocab_size)
        return frozenset(token for token in known if b"\n" in self.tokenizer.token_bytes(token))

    def read(self, rows: Pass) -> list[Reading]:
        """One forward of `rows` beside the requests, without penalties, over pages lent for the moment.

        Raises ValueError where they do not fit what is free. Only between two steps.
        """
        cache = self.scheduler.cache
        pages = cache.allocate(-(-rows.num_slots // cache.page_size))
        if pages is None:
            raise ValueError(f"{rows.num_slots} slots do not fit what is free of {cache.num_pages} pages")
        wanted = [Wanted(Sampling(), read.position, read.targets, top=read.top) for read in rows.reads]
        try:
            [readings] = self.worker.run([Job(pages, rows, wanted)])
        finally:
            cache.release(pages)
        return readings

    def score(self, prompt: Listing[int], answer: Listing[int]) -> list[Reading]:
        """The base's reading of each token of `answer` behind `prompt`: its own choice, and that token's
        log-probability. Raises ValueError where either is empty, both do not fit, or there is no base."""
        if not answer or not prompt or not self.traits.has_next_token:
            raise ValueError(f"cannot score {len(answer)} tokens behind {len(prompt)} with {self.model.id}")
        tokens = (*prompt, *answer)
        segment = Segment(tokens, start=0, slot=0, sees=0, span=1)
        reads = (Read(p - 1, p, "check", (tokens[p],)) for p in range(len(prompt), len(tokens)))
        return self.read(Pass((segment,), tuple(reads)))

    def flush(self) -> None:
        """Drop what is cached of finished requests."""
        self.scheduler.cache.flush()

    def info(self) -> EngineInfo:
        return replace(self.worker.info(), num_slots=self.scheduler.cache.num_slots)

    @property
    def timing(self) -> Timing:
        """Of all forwards so far; take a difference to measure some of them."""
        return self.worker.timing

    def abort(self, request_id: str) -> Finish | None:
        """End a request now; None if it has ended already."""
        sequence = self._sequences.pop(request_id, None)
        if sequence is None:
            return None
        self._remove(sequence)
        return sequence.output.finish(sequence.program, "abort")

    def fail_all(self, message: str) -> list[tuple[str, Event]]:
        """End every request with an error, after a step has failed."""
        events: list[tuple[str, Event]] = []
        for name, sequence in list(self._sequences.items()):
            self._remove(sequence)
            events.append((name, sequence.output.finish(sequence.program, "error", message)))
        self._sequences.clear()
        return events

    def _end(self, error: ProcessLost) -> list[tuple[str, Event]]:
        self.lost = str(error)
        return self.fail_all(self.lost)

    def _remove(self, sequence: Sequence) -> None:
        self.scheduler.remove(sequence)
        self._drafted += sequence.program.record.drafted
        self._accepted += sequence.program.record.accepted
        self.adapters.give_back(sequence.adapter)

    def _fail(self, sequence: Sequence, message: str, code: str = "") -> tuple[str, Event]:
        """End one request with an error; those beside it go on."""
        del self._sequences[sequence.request.id]
        self._remove(sequence)
        return sequence.request.id, sequence.output.finish(sequence.program, "error", message, code)

    def step(self) -> list[tuple[str, Event]]:
        """Run one forward; the events it caused, by request id.

        What fails in one request's planning, reading or text ends that request. A forward that fails is
        repeated request by request, so that only one which fails alone ends.
        """
        if self.traits.drafter:
            try:
                self._draft()
            except ProcessLost as error:
                return self._end(error)
        began = time.perf_counter()
        planned = self.scheduler.plan()
        events = [self._fail(sequence, _FAILED) for sequence in self.scheduler.take_failed()]
        jobs: list[Job] = []
        ready: list[Work] = []
        for work in planned:
            try:
                jobs.append(self._job(work))
                ready.append(work)
            except Exception:
                log.exception("a request could not be prepared")
                events.append(self._fail(work.sequence, _FAILED))
        if not jobs:
            return events
        try:
            answers = self.worker.run(jobs)
        except ProcessLost as error:
            return [*events, *self._end(error)]
        except Exception:
            log.exception("a forward of %d requests failed", len(jobs))
            if len(ready) == 1:
                return [*events, self._fail(ready[0].sequence, _FAILED)]
            self.scheduler.separate([work.sequence for work in ready])
            return events
        self.steps += 1
        reading = any(work.prefill or not work.sequence.program.settled for work in ready)
        for work, readings in zip(ready, answers, strict=True):
            try:
                events += self._applied(work, readings)
            except Exception:
                log.exception("a request could not take in its readings")
                events.append(self._fail(work.sequence, _FAILED))
        self.scheduler.note_cost(ready, reading, 1e3 * (time.perf_counter() - began))
        return events

    def _draft(self) -> None:
        """Let the drafter guess what this step's passes verify; without its guesses they are shorter."""
        began = time.perf_counter()
        if not (asked := self.scheduler.plan_drafts()):
            return
        try:
            answers = self.worker.draft([self._job(work) for work in asked])
        except ProcessLost:
            raise
        except Exception:
            # Their keys may be damaged: what was moved, and what was to be.
            log.exception("drafting for %d requests failed", len(asked))
            self.scheduler.separate([work.sequence for work in asked])
            return
        for work, readings in zip(asked, answers, strict=True):
            assert isinstance(work.sequence.program, Speculative)
            work.sequence.program.drafted(readings)
        self.scheduler.note_asking(asked, 1e3 * (time.perf_counter() - began))

    def _applied(self, work: Work, readings: Listing[Reading]) -> list[tuple[str, Event]]:
        """Take in what one request's rows said; its events."""
        sequence = work.sequence
        program, name = sequence.program, sequence.request.id
        if not all(math.isfinite(reading.logprob) for reading in readings):
            return [self._fail(sequence, "The model's numbers for this request are not finite.")]
        if not work.prefill:
            program.apply(readings)
        self.scheduler.applied(work)
        if work.prefill:
            return []
        constraint = program.task.constraint
        if constraint is not None and constraint.error:
            return [self._fail(sequence, _DEAD_END, "invalid_value")]
        events = [(name, event) for event in sequence.output.take(program)]
        if program.finish is not None:
            del self._sequences[name]
            self._remove(sequence)
        return events

    def _job(self, work: Work) -> Job:
        name = work.sequence.request.id
        return Job(work.sequence.pages, work.rows, self._wanted(work), work.sequence.adapter, name)

    def _wanted(self, work: Work) -> list[Wanted]:
        sequence, program = work.sequence, work.sequence.program
        sampling = sequence.request.sampling
        task, constraint, penalties = program.task, program.task.constraint, sequence.penalties
        start, first_end = len(task.prompt), len(task.prompt) + sampling.min_tokens
        # Close to the limit a text is brought to its end, so that what is cut short is seldom broken.
        grammar = sequence.request.grammar
        reserve = min(CLOSING_TOKENS, task.max_tokens // 2) if grammar and grammar.closes else 0
        if penalties is not None:
            penalties.follow(program.tokens[start:])
        wanted = []
        for read in work.rows.reads:
            changes, allowed = bans(read.banned) if read.banned else None, b""
            if penalties is not None:
                banned = task.eos if constraint is None and read.position < first_end else ()
                changes = penalties.at(read.history, (*banned, *read.banned))
            if constraint is not None and (path := read.grammar_path) is not None:
                allowed = constraint.allowed(path, program.limit - read.position <= reserve)
            wanted.append(
                Wanted(
                    sampling, read.position, read.targets, changes,
                    entropy=DECODERS[task.decoding.decoder].uses_entropy,
                    top=max(sampling.logprobs or 0, read.top),
                    allowed=allowed,
                    divisor=read.divisor,
                    draw=read.draw,
                    divergence=read.divergence,
                    may_mask=read.may_mask,
                )
            )  # fmt: skip
        return wanted

    def stats(self) -> EngineStats:
        scheduler = self.scheduler
        return EngineStats(
            running=len(scheduler.running),
            waiting=len(scheduler.waiting),
            pages_used=scheduler.cache.num_held,
            pages_total=scheduler.cache.num_pages,
            pages_cached=scheduler.cache.num_idle,
            passes=self.steps,
            preemptions=scheduler.preemptions,
            prefix_hit_tokens=scheduler.prefix_hit_tokens,
            drafted=dict(self._drafted),
            accepted=dict(self._accepted),
            timing=self.timing,
        )
