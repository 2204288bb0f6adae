"""Requests in, events out, one forward per step. No torch here: the worker is handed in.

`submit` and `abort` take effect between two steps. Not thread-safe: `engine/service.py` gives it a thread.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence as Listing
from dataclasses import replace
from functools import cached_property
from typing import Protocol

from vermilion.decoding.between import Between
from vermilion.decoding.blocks import Blocks
from vermilion.decoding.grammar import Constraint, Grammars
from vermilion.decoding.infill import Infill
from vermilion.decoding.jobs import Job, Wanted
from vermilion.decoding.passes import Reading
from vermilion.decoding.penalties import adjustments, needed
from vermilion.decoding.presets import resolve
from vermilion.decoding.program import Program, Task
from vermilion.decoding.seeded import Seeded
from vermilion.decoding.speculative import SPECULATIVE, Speculative
from vermilion.engine.adapters import Adapters, Holder
from vermilion.engine.output import Output
from vermilion.engine.scheduler import Scheduler, Sequence, Work
from vermilion.errors import BadParameter, BadRequest, ContextLengthExceeded
from vermilion.models.families import Traits
from vermilion.text import Tokenizer
from vermilion.types import EngineStats, Event, Finish, ModelInfo, Request

_CLOSING_TOKENS = 32
"""Last tokens of a constrained answer that are spent on closing what is open."""

log = logging.getLogger(__name__)


class Runner(Holder, Protocol):
    """What the engine needs of a worker."""

    def run(self, jobs: Listing[Job]) -> list[list[Reading]]: ...


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
        self.grammars = Grammars(tokenizer, model.vocab_size)
        self._sequences: dict[str, Sequence] = {}
        self.adapters = Adapters(worker)

    @property
    def has_work(self) -> bool:
        return bool(self._sequences)

    def check(self, request: Request) -> None:
        """Raise the error that `submit` would; reads nothing that a step changes. A grammar is compiled
        here, and kept."""
        if not request.prompt:
            raise BadRequest("The prompt is empty; give at least one token.", param="prompt")
        highest = max(request.prompt)
        if highest >= self.model.vocab_size or min(request.prompt) < 0:
            raise BadParameter("prompt", highest, f"token ids from 0 to {self.model.vocab_size - 1}")
        if request.decoding.decoder not in self.model.decoders:
            raise BadParameter(
                "decoding.decoder", request.decoding.decoder, ", ".join(self.model.decoders),
                f"{self.model.id} has no other.",
            )  # fmt: skip
        total = len(request.prompt) + len(request.suffix)
        if total >= self.model.context_length:
            raise ContextLengthExceeded(self.model.context_length, total)
        room = self.model.context_length - total
        foreign = [token for token in request.sampling.logit_bias if not 0 <= token < self.model.vocab_size]
        if foreign:
            # The logits have no such column: the whole step would fail, and every request in it.
            raise BadParameter("logit_bias", foreign[0], f"token ids from 0 to {self.model.vocab_size - 1}")
        if not 1 <= request.sampling.max_tokens <= room:
            raise BadParameter("max_tokens", request.sampling.max_tokens, f"1 to {room} for this prompt")
        self.adapters.check(request.adapter)
        self._check_grammar(request)
        self._check_seeds(request)
        self._check_canvas(request, total + request.sampling.max_tokens)

    def _check_grammar(self, request: Request) -> None:
        if request.grammar is None:
            return
        if request.suffix:
            raise BadRequest("A text that fills a gap cannot be held to a grammar.", "response_format")
        if not self.traits.has_next_token:
            raise BadRequest(
                f"{self.model.id} predicts no next token, so it cannot be held to a grammar.",
                "response_format",
                "unsupported_parameter",
            )
        self.grammars.constraint(request.grammar)

    def _check_seeds(self, request: Request) -> None:
        if request.seeds is None:
            return
        ids, model = request.seeds.ids, self.model
        if request.suffix or request.grammar or None not in ids:
            raise BadRequest("A seeded canvas needs an open place, no suffix and no grammar.", "prompt")
        num_rows = len(request.prompt) + len(ids)
        slots = self.scheduler.cache.num_pages * self.scheduler.cache.page_size
        if num_rows > min(model.context_length, slots):
            raise ContextLengthExceeded(min(model.context_length, slots), num_rows)

    def _check_canvas(self, request: Request, text: int) -> None:
        """Drafts and branches lie behind the text in memory; what can never fit would wait for ever."""
        decoding = request.decoding
        branches = max(1, min(decoding.branches, decoding.draft_nodes + 1))
        rows = max(decoding.draft_nodes, decoding.lookup) + branches * decoding.block_length
        slots = self.scheduler.cache.num_pages * self.scheduler.cache.page_size
        if decoding.decoder in ("lossless", "relaxed") and text + rows > slots:
            raise BadParameter(
                "decoding.draft_nodes", decoding.draft_nodes,
                f"with branches and block_length, at most {max(0, slots - text)} rows beside this text",
                f"These ask for {rows}.",
            )  # fmt: skip

    def submit(self, request: Request) -> Program:
        """Queue a request; its events come out of `step`. Raises `BadRequest` and its kinds.

        The returned program is for looking at, not for touching.
        """
        self.check(request)
        if request.id in self._sequences:
            raise BadRequest(f"A request with id {request.id!r} is already running.", param="id")
        output = Output(request, self.tokenizer)
        program = self._program(request)
        sequence = Sequence(request, program, output, adapter=self.adapters.take(request.adapter))
        self._sequences[request.id] = sequence
        self.scheduler.add(sequence)
        return sequence.program

    def _program(self, request: Request) -> Program:
        eos = frozenset() if request.sampling.ignore_eos else frozenset(self.model.eos_token_ids)
        sampling = request.sampling
        sampled = sampling.temperature > 0
        task = Task(request.prompt, sampling.max_tokens, request.decoding, eos, request.suffix, sampled)
        task = replace(task, existing=request.existing, seeds=request.seeds)
        if request.seeds is not None:
            return Seeded(task, self.traits)
        if request.suffix and self.tokenizer.decode(request.suffix).strip():
            if not self.traits.has_next_token:
                return Between(task, self.traits)
            return Infill(replace(task, breaks=self.line_breaks), self.traits)
        if request.grammar is not None:
            return self._constrained(task, request)
        kind = Speculative if request.decoding.decoder in SPECULATIVE else Blocks
        return kind(task, self.traits)

    def _constrained(self, task: Task, request: Request) -> Program:
        """A grammar decides from left to right, as verified drafting does; other decoders fall back to it."""
        assert request.grammar is not None
        decoding = task.decoding
        if decoding.decoder not in SPECULATIVE:
            decoding = resolve("lossless", None)
        # The grammar says where the answer may end, whatever `ignore_eos` asks for.
        eos = frozenset(self.model.eos_token_ids)
        constraint = self.grammars.constraint(request.grammar)
        return Speculative(replace(task, eos=eos, decoding=decoding, constraint=constraint), self.traits)

    @cached_property
    def line_breaks(self) -> frozenset[int]:
        """Tokens that hold a line break."""
        known = range(self.model.vocab_size)
        return frozenset(token for token in known if b"\n" in self.tokenizer.token_bytes(token))

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

    def _give_up(self, sequence: Sequence, message: str) -> Finish:
        del self._sequences[sequence.request.id]
        self._remove(sequence)
        return sequence.output.finish(sequence.program, "error", message)

    def _remove(self, sequence: Sequence) -> None:
        self.scheduler.remove(sequence)
        self.adapters.give_back(sequence.adapter)

    def step(self) -> list[tuple[str, Event]]:
        """Run one forward; the events it caused, by request id."""
        planned = self.scheduler.plan()
        if not planned:
            return []
        answers = self.worker.run([self._job(work) for work in planned])
        self.steps += 1
        events: list[tuple[str, Event]] = []
        for work, readings in zip(planned, answers, strict=True):
            sequence = work.sequence
            if not work.prefill:
                sequence.program.apply(readings)
            self.scheduler.applied(work)
            if work.prefill:
                continue
            name = sequence.request.id
            constraint = sequence.program.task.constraint
            if constraint is not None and constraint.error:
                finish = self._give_up(sequence, "The grammar became too complex to follow.")
                events.append((name, finish))
                continue
            events += [(name, event) for event in sequence.output.take(sequence.program)]
            if sequence.program.finish is not None:
                del self._sequences[name]
                self._remove(sequence)
        return events

    def _job(self, work: Work) -> Job:
        return Job(work.sequence.pages, work.rows, self._wanted(work), work.sequence.adapter)

    def _wanted(self, work: Work) -> list[Wanted]:
        sequence = work.sequence
        sampling, task = sequence.request.sampling, sequence.program.task
        entropy = task.decoding.decoder == "entropy"
        top = sampling.logprobs or 0
        if task.constraint is not None:
            return self._wanted_by_grammar(work, task.constraint)
        if not needed(sampling):
            return [
                Wanted(sampling, r.position, r.targets, (), entropy, max(top, r.top)) for r in work.rows.reads
            ]
        start = len(task.prompt)
        answer = Counter(sequence.program.tokens[start:])
        wanted = []
        for r in work.rows.reads:
            banned = task.eos if r.position < start + sampling.min_tokens else ()
            changes = adjustments(sampling, task.prompt, answer, r.history, banned)
            wanted.append(Wanted(sampling, r.position, r.targets, changes, entropy, max(top, r.top)))
        return wanted

    def _wanted_by_grammar(self, work: Work, constraint: Constraint) -> list[Wanted]:
        """As `_wanted`; the base may choose only what the grammar allows behind each path of drafts."""
        sampling, task = work.sequence.request.sampling, work.sequence.program.task
        answer = Counter(work.sequence.program.tokens[len(task.prompt) :])
        # Close to the limit a text is brought to its end, so that what is cut short is seldom broken.
        limit, reserve = work.sequence.program.limit, min(_CLOSING_TOKENS, task.max_tokens // 2)
        wanted = []
        for r in work.rows.reads:
            changes = adjustments(sampling, task.prompt, answer, r.history, ()) if needed(sampling) else ()
            closing = limit - r.position <= reserve
            allowed = constraint.allowed(r.history, closing) if r.purpose == "next" else b""
            top = max(sampling.logprobs or 0, r.top)
            wanted.append(Wanted(sampling, r.position, r.targets, changes, False, top, allowed))
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
        )
