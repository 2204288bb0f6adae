"""A canvas: consecutive positions between fixed text, some masked, that passes settle until none is.

What every way of using one shares is here: its noisy rows, the reads of its positions, what a pass settles
and the cap on passes. `blocks.py` opens one canvas behind the other; `filling.py` fills one between fixed
text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import exp

from vermilion.decoding.decoders import DECODERS
from vermilion.decoding.editing import EditStep
from vermilion.decoding.left_edge import edge
from vermilion.decoding.passes import Choices, Read, Reading, Segment
from vermilion.decoding.program import Open, Task
from vermilion.decoding.rules import Step, earlier_leaders
from vermilion.decoding.settling import settle
from vermilion.models.families import Traits
from vermilion.types import Decoding

UNREAD = Reading(token=-1, logprob=0.0)
"""Of a position that was never masked."""


def step_cap(decoding: Decoding, masked: int) -> int:
    """Most passes of a canvas of so many masks. With the passes of edits that may follow its last mask, and
    those that make it longer: each fills a place or adds one."""
    if DECODERS[decoding.decoder].grows:
        return decoding.max_steps or 2 * masked
    edits = "post_steps" in DECODERS[decoding.decoder].knobs
    return (decoding.max_steps or masked) + (decoding.post_steps + 1 if edits else 0)


def wanted_places(
    decoding: Decoding, ids: Sequence[int | None], fixed: frozenset[int], steps_left: int
) -> list[int]:
    """Which places of a canvas the next pass reads."""
    decoder = DECODERS[decoding.decoder]
    if decoder.reads_filled:
        return [i for i in range(len(ids)) if i not in fixed]
    masked = [i for i, token in enumerate(ids) if token is None]
    if not decoding.sub_block or "sub_block" not in decoder.knobs or steps_left <= 1 or not masked:
        return masked
    end = (masked[0] // decoding.sub_block + 1) * decoding.sub_block
    return [i for i in masked if i < end]


def banned_tokens(traits: Traits, decoding: Decoding, expands: bool) -> tuple[int, ...]:
    """What no position of a canvas may become: tokens that change the number of positions, unless the decoder
    follows them. `expands`: whether the canvas may grow now."""
    needs = DECODERS[decoding.decoder].needs
    return tuple(
        getattr(traits, name)
        for name in ("delete_token_id", "split_token_id", "expand_token_id")
        if getattr(traits, name) >= 0 and (name not in needs or (name == "expand_token_id" and not expands))
    )


def num_mixed(decoding: Decoding) -> int:
    """Of how many tokens a filled position is a mixture in the next pass; 0 where it is its token alone."""
    return decoding.soft_tokens if "soft_tokens" in DECODERS[decoding.decoder].knobs else 0


@dataclass(slots=True)
class MaskedCanvas:
    """Positions [start, start + len(ids)); those from `end` on are behind an EOS or the limit, or the turn of
    a later canvas of the same block."""

    start: int
    ids: list[int | None]
    """None is masked."""
    end: int = -1
    right: tuple[int | None, ...] = ()
    """Seen right of it: text, or masks that nobody reads."""
    readings: list[Reading] = field(default_factory=list)
    """Of each position that was ever masked, the latest."""
    steps: int = 0
    revisions: int = 0
    before: dict[int, int] = field(default_factory=dict)
    """Tokens that revision took back, by position."""
    edited: set[int] = field(default_factory=set)
    edits: int = 0
    """Filled positions that a rule changed."""
    past: dict[int, list[Reading]] = field(default_factory=dict)
    """Earlier readings by place, for rules that ask for them."""
    mixed: dict[int, Choices] = field(default_factory=dict)
    """By place, of filled ones that the next pass sees as mixtures."""
    memory: object = None
    """What an editing rule remembers."""
    done: bool = False
    """Whether an editing rule has come to its end."""
    given: tuple[int | None, ...] = ()
    """Its contents when it opened."""
    most: int = 0
    """How long it may become; 0: it keeps its length."""
    grown: int = 0
    """Places added so far."""
    final: int = 0
    """Leading places that no later step changes."""

    def __post_init__(self) -> None:
        self.end = len(self.ids) if self.end < 0 else self.end
        self.readings = self.readings or [UNREAD] * len(self.ids)
        self.given = self.given or tuple(self.ids)

    def masked(self) -> list[int]:
        return [i for i in range(self.end) if self.ids[i] is None]

    def filled(self) -> tuple[int, ...]:
        return tuple(token for token in self.ids if token is not None)

    def reopened(self) -> MaskedCanvas:
        """As it was when it opened."""
        return MaskedCanvas(self.start, list(self.given), right=self.right, most=self.most)

    @property
    def room(self) -> int:
        """Places that may be added: none beyond its greatest length, and never more than that in all, so that
        it comes to an end."""
        return max(0, self.most - max(len(self.ids), self.grown))

    def _fixed(self) -> frozenset[int]:
        return frozenset(i for i, token in enumerate(self.given) if token is not None)

    def _steps_left(self, decoding: Decoding, cap: int) -> int:
        return step_cap(decoding, cap) - self.steps

    def rows(self, traits: Traits, left: Sequence[int], slot: int) -> Segment:
        """Its noisy rows and those of what stands right of it, behind rows for the tokens `left` of it."""
        begin = self.start - len(left)
        noisy = [*self.ids, *self.right]
        return Segment(
            ids=(*left, *(traits.mask_token_id if token is None else token for token in noisy)),
            start=begin,
            slot=slot,
            sees=begin,
            span=0,
            noisy=True,
            masked=(*([False] * len(left)), *(token is None for token in noisy)),
            mixed=tuple(self.mixed.get(i, ()) for i in range(-len(left), len(noisy))) if self.mixed else (),
        )

    def changing(self) -> list[int]:
        """Its places that are not given."""
        fixed = self._fixed()
        return [i for i in range(self.end) if i not in fixed]

    def places(self, decoding: Decoding, cap: int) -> list[int]:
        """Which of its positions the next pass reads."""
        return wanted_places(decoding, self.ids[: self.end], self._fixed(), self._steps_left(decoding, cap))

    def reads(
        self, row: int, traits: Traits, history: tuple[int, ...], decoding: Decoding, cap: int
    ) -> list[Read]:
        """The reads of its next pass; `row` is that of its first position, `history` what counts for the
        penalties."""
        decoder = DECODERS[decoding.decoder]
        expands = self.room > 0 and self._steps_left(decoding, cap) > 1
        reads = [
            Read(
                row + i - int(traits.shift),
                self.start + i,
                "mask",
                targets=earlier_leaders(self.past.get(i, ())) if decoder.top else (),
                history=self._others(history, i),
                top=max(decoder.top, num_mixed(decoding)),
                divergence="max_divergence" in decoder.knobs,
                may_mask="delete_token_id" in decoder.needs,
                banned=banned_tokens(traits, decoding, expands),
            )
            for i in self.places(decoding, cap)
        ]
        if not decoder.leaves_out:
            return reads
        first = row + len(self.ids) + len(self.right)
        tokens = [self.ids[read.position - self.start] for read in reads]
        return [
            read if token is None else replace(read, row=first + k, targets=(token,))
            for k, (read, token) in enumerate(zip(reads, tokens, strict=True))
        ]

    def _others(self, history: tuple[int, ...], place: int) -> tuple[int, ...]:
        """`history` without the token that stands at a place: a token is not repeated by itself."""
        token = self.ids[place]
        if token is None or place < self.final or token not in history:
            return history
        at = history.index(token)
        return (*history[:at], *history[at + 1 :])

    def begin(self, first: Reading) -> None:
        """Give it its first token, which is the base's: no rule takes it back."""
        self.ids[0], self.readings[0] = first.token, first
        self.given = (first.token, *self.given[1:])

    def fill(
        self,
        task: Task,
        traits: Traits,
        readings: Sequence[Reading],
        cap: int,
        forced: Reading | None = None,
    ) -> None:
        """Take in one pass: the readings of its places, the first of which is not among them if `forced`
        gives it. `cap` is how many masks set the most passes it takes."""
        places = self.places(task.decoding, cap)
        if forced is not None:
            self.ids[0], self.readings[0] = forced.token, forced
            places = places[1:]
        by_place = dict(zip(places, readings, strict=True))
        if DECODERS[task.decoding.decoder].edit is not None:
            self._edit(task, traits, by_place, cap)
        else:
            block = len(self.ids) if traits.block_grid else 0
            self._settle(task, by_place, self._steps_left(task.decoding, cap), block, forced)
        self.steps += 1

    def _settle(
        self,
        task: Task,
        by_place: Mapping[int, Reading],
        steps_left: int,
        block: int,
        forced: Reading | None,
    ) -> None:
        places, readings = list(by_place), list(by_place.values())
        step = Step(
            task.decoding,
            readings,
            steps_left,
            forced,
            places,
            opened=self.given.count(None),
            block=block,
            number=self.steps,
            start=self.start,
            seed=task.seed,
            past=[self.past.get(i, ()) for i in places],
            ends=task.eos,
        )
        for place, reading in by_place.items():
            self.readings[place] = reading
        chosen = settle(step)
        if task.constraint is not None:
            chosen = edge(chosen, readings, task.constraint)
        for index, reading in chosen.items():
            self.readings[places[index]], self.ids[places[index]] = reading, reading.token
        if DECODERS[task.decoding.decoder].keeps_past:
            for place, reading in by_place.items():
                self.past.setdefault(place, []).append(reading)

    def _edit(self, task: Task, traits: Traits, by_place: Mapping[int, Reading], cap: int) -> None:
        rule = DECODERS[task.decoding.decoder].edit
        assert rule is not None
        old = tuple(self.ids[: self.end])
        edit = rule(
            EditStep(
                task.decoding,
                old,
                by_place,
                self._steps_left(task.decoding, cap),
                self.steps,
                self._fixed(),
                self.start,
                task.seed,
                self.memory,
                traits.mask_token_id,
                traits.delete_token_id,
                traits.split_token_id,
                traits.expand_token_id,
                traits.eos_token_ids,
                self.room,
            )
        )
        sources = edit.sources or tuple(range(len(edit.ids)))
        stood = [UNREAD if source is None else self.readings[source] for source in sources]
        for place, source in enumerate(sources):
            reading = by_place.get(source) if source is not None else None
            if reading is not None and (edit.ids[place] in (None, reading.token)):
                stood[place] = reading
            if source is not None and old[source] is not None and edit.ids[place] != old[source]:
                self.edited.add(self.start + place)
        self.edits += edit.taken_back(old)
        self.ids[: self.end], self.readings[: self.end] = edit.ids, stood
        self.end += len(edit.ids) - len(old)
        self.grown += max(0, len(edit.ids) - len(old))
        self.final = edit.final
        self.memory, self.done = edit.memory, edit.done
        if count := num_mixed(task.decoding):
            filled = (place for place in by_place if self.ids[place] is not None)
            self.mixed = {place: by_place[place].top[:count] for place in filled}

    def view(self, first: int = 0) -> list[Open]:
        """Its positions from `first` on for a preview; guesses where it is masked."""
        return [
            Open(
                self.readings[i].token if token is None else token,
                masked=token is None,
                edited=self.start + i in self.edited,
                confidence=min(1.0, exp(self.readings[i].logprob)),
            )
            for i, token in enumerate(self.ids[: self.end])
            if i >= first
        ]
