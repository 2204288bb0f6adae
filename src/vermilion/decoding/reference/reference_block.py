"""One block's contents and what its decoder has seen of it, decided on step by step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from vermilion.decoding.canvas import banned_tokens, step_cap, wanted_places
from vermilion.decoding.decoders import DECODERS, Decoder
from vermilion.decoding.editing import EditStep
from vermilion.decoding.passes import Choices, Reading
from vermilion.decoding.rules import Step, earlier_leaders
from vermilion.decoding.settling import settle
from vermilion.models.families import Traits
from vermilion.types import Decoding


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked of the model about one place of a block."""

    place: int
    history: tuple[int, ...]
    targets: tuple[int, ...] = ()
    moves: bool = False
    """Whether it is wanted how far the distribution has moved since the last pass."""
    may_mask: bool = False
    banned: tuple[int, ...] = ()
    unseen: bool = False
    """Whether the token that stands there is to be left out of sight."""


@dataclass
class ReferenceBlock:
    """`ids`: None is masked; those given at first never change."""

    decoding: Decoding
    traits: Traits
    ids: list[int | None]
    start: int
    seed: int
    ends: frozenset[int]
    forced: Reading | None = None
    """Of its first place, which the first step settles."""
    settled: int = 0
    """Leading places whose tokens the penalties know already."""
    number: int = 0
    edits: int = 0
    done: bool = False
    memory: object = None
    mixed: dict[int, Choices] = field(default_factory=dict)
    """Of filled places that the next pass sees as mixtures."""
    past: dict[int, list[Reading]] = field(default_factory=dict)
    most: int = 0
    """How long it may become."""
    grown: int = 0
    final: int = 0

    def __post_init__(self) -> None:
        self.opened = [i for i, token in enumerate(self.ids) if token is None]
        self.fixed = {i for i, token in enumerate(self.ids) if token is not None}
        self.cap = step_cap(self.decoding, len(self.ids))

    @property
    def decoder(self) -> Decoder:
        return DECODERS[self.decoding.decoder]

    def begin(self, first: Reading) -> None:
        """Give it its first token, for all steps to see."""
        self.ids[0] = first.token
        self.fixed.add(0)
        self.opened.remove(0)

    def step(self, end: int, ask: Callable[[Sequence[Question]], list[Reading]]) -> None:
        """One pass over the places before `end`."""
        left = self.cap - self.number
        places = wanted_places(self.decoding, self.ids[:end], frozenset(self.fixed), left)
        places = [i for i in places if not (i == 0 and self.forced)]
        readings = ask([self._question(i) for i in places])
        if self.forced is not None:
            self.ids[0] = self.forced.token
        if self.decoder.edit is not None:
            self._edit(end, dict(zip(places, readings, strict=True)), left)
        else:
            past = [tuple(self.past.get(i, ())) for i in places]
            step = Step(
                self.decoding, readings, left, self.forced, places, len(self.opened),
                len(self.ids) if self.traits.block_grid else 0, self.number,
                self.start, self.seed, past, self.ends,
            )  # fmt: skip
            for index, reading in settle(step).items():
                self.ids[places[index]] = reading.token
            for i, reading in zip(places, readings, strict=True):
                self.past.setdefault(i, []).append(reading)
        self.forced = None
        self.number += 1

    def _question(self, place: int) -> Question:
        settled = max(self.settled, self.final)
        others = (token for i, token in enumerate(self.ids) if i >= settled and i != place)
        token = self.ids[place]
        unseen = self.decoder.leaves_out and token is not None
        wanted = earlier_leaders(self.past.get(place, [])) if self.decoder.top else ()
        if unseen and token is not None:
            wanted = (token,)
        return Question(
            place,
            tuple(token for token in others if token is not None),
            wanted,
            "max_divergence" in self.decoder.knobs,
            "delete_token_id" in self.decoder.needs,
            banned_tokens(self.traits, self.decoding, self._room > 0 and self.cap - self.number > 1),
            unseen,
        )

    @property
    def _room(self) -> int:
        return max(0, self.most - max(len(self.ids), self.grown))

    def _edit(self, end: int, readings: dict[int, Reading], left: int) -> None:
        assert self.decoder.edit is not None
        old = tuple(self.ids[:end])
        traits = self.traits
        tokens = (
            traits.mask_token_id, traits.delete_token_id, traits.split_token_id, traits.expand_token_id,
        )  # fmt: skip
        step = EditStep(
            self.decoding, old, readings, left, self.number, frozenset(self.fixed), self.start, self.seed,
            self.memory, *tokens, traits.eos_token_ids, self._room,
        )  # fmt: skip
        edit = self.decoder.edit(step)
        self.ids[:end] = edit.ids
        self.grown += max(0, len(edit.ids) - len(old))
        self.final = edit.final
        self.edits += edit.taken_back(old)
        self.memory, self.done = edit.memory, edit.done
        if "soft_tokens" in self.decoder.knobs:
            count = self.decoding.soft_tokens
            self.mixed = {i: each.top[:count] for i, each in readings.items() if self.ids[i] is not None}
