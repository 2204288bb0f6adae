"""One block's contents and what its decoder has seen of it, decided on step by step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from vermilion.decoding.canvas import step_cap, wanted_places
from vermilion.decoding.decoders import DECODERS, Decoder, settle
from vermilion.decoding.editing import EditStep
from vermilion.decoding.passes import Reading
from vermilion.decoding.rules import Step, earlier_leaders
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
    past: dict[int, list[Reading]] = field(default_factory=dict)

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
        others = (token for i, token in enumerate(self.ids) if i >= self.settled and i != place)
        wanted = earlier_leaders(self.past.get(place, [])) if self.decoder.top else ()
        return Question(
            place,
            tuple(token for token in others if token is not None),
            wanted,
            "max_divergence" in self.decoder.knobs,
            "delete_token_id" in self.decoder.needs,
        )

    def _edit(self, end: int, readings: dict[int, Reading], left: int) -> None:
        assert self.decoder.edit is not None
        old = tuple(self.ids[:end])
        tokens = (self.traits.mask_token_id, self.traits.delete_token_id, self.traits.split_token_id)
        step = EditStep(
            self.decoding, old, readings, left, self.number, frozenset(self.fixed), self.start, self.seed,
            self.memory, *tokens,
        )  # fmt: skip
        edit = self.decoder.edit(step)
        self.ids[:end] = edit.ids
        self.edits += edit.taken_back(old)
        self.memory, self.done = edit.memory, edit.done
