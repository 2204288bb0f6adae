"""Infill for models whose clean rows are an autoregressive model: the base writes, the right side decides.

The base's own continuation, grown as any other text is (`Speculative`), is the strongest guess at a middle.
It grows to the line's end, and over lines where the gap begins with a line break. One more pass then runs the
suffix's head behind every place where it may end, and the middle ends where the head is likeliest. In the
first pass the denoiser fills short canvases whose right edge holds the suffix's first tokens; within a line
such a bridge replaces the continuation where the base finds it clearly better, suffix included.

The middle reads on from the prompt's last token as it stands: a word cut by the cursor is not spelled anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from vermilion.decoding.decoders import DECODERS
from vermilion.decoding.drafting import DraftBudget
from vermilion.decoding.filling import overlap
from vermilion.decoding.passes import Pass, Read, Reading, Segment
from vermilion.decoding.program import Open, Program, Task
from vermilion.decoding.speculative import Speculative
from vermilion.gap_template import GapTemplate, open_prompt
from vermilion.models.families import Traits
from vermilion.text import Tokenizer
from vermilion.types import Decoding, Sampling

REACH = 16
"""Most tokens written before the suffix is tried; where it fits best behind the last, as many follow."""
HEAD = 4
"""Most suffix tokens that the base scores."""
RIGHT = 6
"""Most suffix tokens at the right edge of a bridge's canvas."""
BRIDGES = (1, 2)
"""Their lengths; from 3 on, one pass of the present denoiser fills none that the base would take."""
CHOICES = 8
"""Likeliest fills of a bridge of one token that are tried; of longer ones, the likeliest alone."""
MARGIN = 4.0
"""Nats by which a bridge must beat the continuation; calibrated by `bench/infill.py` on gaps of seed 1."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A middle: the first `kept` tokens of the continuation, or a bridge from the gap's start."""

    kept: int
    bridge: tuple[int, ...] = ()


def line_decoding(decoding: Decoding) -> Decoding:
    """How the continuation is written: block decoders leave that to `lossless`."""
    return decoding if DECODERS[decoding.decoder].needs_base else replace(decoding, decoder="lossless")


def continued(task: Task, template: GapTemplate, tokenizer: Tokenizer, context_length: int) -> Task:
    """The gap as a text that goes on, for the adapter that the template belongs to. The answer begins with
    the blank that `open_prompt` took off."""
    before, _ = open_prompt(tokenizer, task.prompt)
    prompt = template.prompt(before, task.suffix, context_length - task.max_tokens)
    eos = task.eos and task.eos | {template.marks[3]}
    return replace(task, prompt=prompt, suffix=(), eos=eos, decoding=line_decoding(task.decoding))


def sampled_as(sampling: Sampling, template: GapTemplate) -> Sampling:
    """How a middle is sampled: it has at least a token, for who asks for one wants one, and its end is as
    likely as the template says, unless the request says so itself."""
    bias = {template.marks[3]: template.end_bias, **sampling.logit_bias}
    return replace(sampling, min_tokens=max(1, sampling.min_tokens), logit_bias=bias)


def bridge_lengths(task: Task) -> list[int]:
    """Within a line only, where a gap is short; `ar` asks the base alone."""
    within = task.suffix[0] not in task.breaks and task.decoding.decoder != "ar"
    return [length for length in BRIDGES if within and length <= task.max_tokens]


def candidates(
    task: Task, before: Sequence[int], line: Sequence[int], fills: Sequence[Sequence[int]]
) -> list[Candidate]:
    """Middles to try: `line` follows the settled `before`. None ends as the suffix begins, and none is empty
    unless the base has nothing to say."""
    first = 0 if before or not line else 1
    ends = [kept for kept in range(first, len(line) + 1) if not overlap((*before, *line[:kept]), task.suffix)]
    bridges = [
        tuple(fill) for fill in fills if not task.breaks.intersection(fill) and not overlap(fill, task.suffix)
    ]
    return [*(Candidate(kept) for kept in ends or [0]), *(Candidate(0, bridge) for bridge in bridges)]


def bridges_of(fill: Sequence[Reading]) -> list[tuple[int, ...]]:
    """What one canvas proposes, from the readings of its masks."""
    if len(fill) == 1:
        return [(token,) for token, _ in fill[0].top[:CHOICES]]
    return [tuple(reading.token for reading in fill)]


def chosen(
    tried: Sequence[Candidate], line: Sequence[float], scores: Sequence[Sequence[float]], within: bool
) -> int:
    """The index of the middle to take.

    `line`: log-probabilities of the continuation's tokens; `scores`: per candidate, those of its bridge and
    of the suffix's head behind it. `within` a line all compare by their joint with the head, a bridge with
    a handicap. Where the suffix starts a line, ends compare by the head alone: that the base wrote on is no
    reason to end early.
    """
    ends = [i for i, candidate in enumerate(tried) if not candidate.bridge]
    bridges = [i for i, candidate in enumerate(tried) if candidate.bridge]
    weight = 1.0 if within else 0.0
    end = max(ends, key=lambda i: (weight * sum(line[: tried[i].kept]) + sum(scores[i]), -i))
    bridge = max(bridges, key=lambda i: (sum(scores[i]), -i), default=end)
    joint = sum(line[: tried[end].kept]) + sum(scores[end])
    return bridge if sum(scores[bridge]) > joint + MARGIN else end


class Infill(Program):
    """Fills the gap between `task.prompt` and `task.suffix`; nothing settles before the suffix was tried."""

    def __init__(self, task: Task, traits: Traits) -> None:
        super().__init__(task, traits)
        self._breaks = task.breaks
        self._lengths = bridge_lengths(task)
        self._fills: list[tuple[int, ...]] = []
        self._tried: list[Candidate] = []
        self._line = self._new_line()

    def _new_line(self) -> Speculative:
        """A continuation behind all tokens so far. It shares them: what it writes, penalties count."""
        ends = frozenset((*self.traits.eos_token_ids, *self._breaks))
        room = min(REACH, self.limit - len(self.tokens))
        decoding = line_decoding(self.task.decoding)
        task = replace(
            self.task,
            prompt=tuple(self.tokens),
            max_tokens=room,
            eos=ends,
            suffix=(),
            decoding=decoding,
            stop_repetition=False,
        )
        line = Speculative(task, self.traits)
        line.tokens, line.record = self.tokens, self.record
        return line

    @property
    def _written(self) -> list[int]:
        """The middle so far."""
        return self.tokens[len(self.task.prompt) :]

    @property
    def max_draft_rows(self) -> int:
        bridges = sum(1 + length + RIGHT for length in BRIDGES)
        # An end behind each token of the line, and each way to fill a bridge.
        ends = (REACH + 1) * HEAD
        fills = CHOICES * (HEAD + 1) + sum(length + HEAD for length in BRIDGES[1:])
        return max(self._line.max_draft_rows + bridges, ends + fills)

    @property
    def max_slots(self) -> int:
        return self.limit + self.max_draft_rows

    @property
    def cacheable(self) -> int:
        # Between two passes only the owner changes `cached`, and only where no keys wait to be moved.
        self._line.cached = self.cached
        return self._line.cacheable

    def forget(self) -> None:
        super().forget()
        self._line.forget()

    def plan(self, budget: DraftBudget | None = None) -> Pass:
        self._line.cached = self.cached
        if self._line.finish is not None:
            return self._probes()
        planned = self._line.plan(budget)
        return planned if self._begun else self._with_bridges(planned)

    def _with_bridges(self, planned: Pass) -> Pass:
        """An anchor, masks and the suffix's start, all in sight of one another, per length."""
        at, mask, right = len(self.tokens) - 1, self.traits.mask_token_id, self.task.suffix[:RIGHT]
        segments, reads = list(planned.segments), list(planned.reads)
        row, slot = planned.num_rows, planned.num_slots
        for length in self._lengths:
            ids = (self.tokens[at], *([mask] * length), *right)
            masked = tuple(0 < i <= length for i in range(len(ids)))
            segments.append(Segment(ids, at, slot, sees=at, span=0, noisy=True, masked=masked))
            first = row + self.traits.unread_masks
            reads += [Read(first + i, at + 1 + i, "mask", top=CHOICES) for i in range(length)]
            row, slot = row + len(ids), slot + len(ids)
        return Pass(tuple(segments), tuple(reads), planned.moves)

    def _probes(self) -> Pass:
        """Per candidate, causal rows over its bridge and the suffix's head, behind the token before them."""
        line, head = self._line, self.task.suffix[:HEAD]
        start = len(self.tokens) - len(line.settled)
        self._tried = candidates(
            self.task, self.tokens[len(self.task.prompt) : start], self.tokens[start:], self._fills
        )
        segments = [self._clean(self.tokens, len(self.tokens))] if self.cached < len(self.tokens) else []
        reads: list[Read] = []
        row, slot = sum(len(segment.ids) for segment in segments), len(self.tokens)
        for candidate in self._tried:
            at = start + candidate.kept - 1
            text = (*candidate.bridge, *head)
            ids = (self.tokens[at], *text[:-1])
            segments.append(Segment(ids, at, slot, sees=at, span=1))
            reads += [Read(row + i, at + 1 + i, "check", (token,)) for i, token in enumerate(text)]
            row, slot = row + len(ids), slot + len(ids)
        return Pass(tuple(segments), tuple(reads))

    def apply(self, readings: Sequence[Reading]) -> None:
        begun, line = self._begun, self._line
        self._count_pass()
        if line.finish is not None:
            self.cached = len(self.tokens)
            self._judge(readings)
            return
        bridges = 0 if begun else sum(self._lengths)
        if bridges:
            rest = iter(readings[len(readings) - bridges :])
            canvases = [[next(rest) for _ in range(length)] for length in self._lengths]
            self._fills = [bridge for fill in canvases for bridge in bridges_of(fill)]
        edits = line.edits
        line.apply(readings[: len(readings) - bridges])
        self.cached, self.edits = line.cached, self.edits + line.edits - edits
        self._close(line)

    def _close(self, line: Speculative) -> None:
        """Take back the end that stopped the line; a break that opens the gap stands, and lines follow."""
        if line.finish != "stop":
            return
        if len(self._written) == 1 and self.tokens[-1] in self._breaks:
            self._breaks = frozenset()
            if len(self.tokens) < self.limit:
                self._line = self._new_line()
                self._line.settled += line.settled
            return
        line.settled.pop()
        self.tokens.pop()
        self.cached = min(self.cached, len(self.tokens))

    def _judge(self, readings: Sequence[Reading]) -> None:
        line, parts = self._line, iter(readings)
        head = self.task.suffix[:HEAD]
        checks = [[next(parts) for _ in (*candidate.bridge, *head)] for candidate in self._tried]
        scores = [[check.target_logprobs[0] for check in some] for some in checks]
        within = self.task.suffix[0] not in self.task.breaks
        best = chosen(self._tried, [done.reading.logprob for done in line.settled], scores, within)
        winner = self._tried[best]
        full = line.finish == "length" and winner.kept == len(line.settled)
        kept = line.settled[: winner.kept]
        del self.tokens[len(self.tokens) - len(line.settled) + winner.kept :]
        self.settled += [replace(done, pass_number=self.passes) for done in kept]
        for token, check in zip(winner.bridge, checks[best], strict=False):
            self._settle(replace(check, token=token, logprob=check.target_logprobs[0]))
        if len(self.tokens) >= self.limit:
            self.finish = "length"
        elif full:
            # The line goes on from the last token, whose row has to be run again for it.
            self.cached = min(self.cached, len(self.tokens) - 1)
            self._fills = []
            self._line = self._new_line()
        else:
            self.finish = "stop"

    def canvas(self) -> list[Open]:
        """The continuation and its drafts."""
        if self.finish is not None:
            return []
        held = self._written[len(self.settled) :]
        drafts = self._line.canvas() if self._line.finish is None else []
        return [*(Open(token, masked=False) for token in held), *drafts]
