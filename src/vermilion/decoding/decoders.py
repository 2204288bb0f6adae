"""The decoders, one row each: what they need, which settings they read and the rule that settles positions.

Validation, `/docs`, `/v1/models` and the command line are made from this table. A new decoder of the canvas
kind is a rule in `decoding/commit.py` and a row here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Literal

from vermilion.decoding.commit import confident, cumulative, entropy_bounded, scheduled, surest
from vermilion.decoding.knobs import Knob
from vermilion.decoding.passes import Reading
from vermilion.errors import BadParameter
from vermilion.models.families import Traits
from vermilion.models.families.family_presets import MAX_BLOCK_LENGTH
from vermilion.types import Decoding

Rule = Callable[[Decoding, Sequence[Reading], Reading | None, int], list[int]]
"""(decoding, readings of the masked positions, the reading of a position that settles anyway, steps left) ->
indexes of the readings to accept."""


ProgramKind = Literal["speculative", "blocks", "renoising", "reordering"]


@dataclass(frozen=True, slots=True)
class Decoder:
    """`rule` is what settles the positions of a canvas of masks, for the program `blocks`."""

    meaning: str
    knobs: tuple[str, ...] = ()
    rule: Rule | None = None
    max_threshold: float = 1.0
    program: ProgramKind = "blocks"
    uses_entropy: bool = False

    @property
    def needs_base(self) -> bool:
        """Whether it verifies drafts, which takes an autoregressive base."""
        return self.program == "speculative"

    def fits(self, traits: Traits) -> bool:
        """Whether it is defined for models that denoise so."""
        if self.program == "speculative":
            return traits.has_next_token
        if not traits.denoises:
            return False
        if self.program == "blocks":
            return traits.noise == "mask" and traits.canvas == "bidirectional"
        return traits.noise == "uniform" if self.program == "renoising" else traits.canvas == "causal"

    @property
    def drafts(self) -> bool:
        return "draft_nodes" in self.knobs


KNOBS: Mapping[str, Knob] = MappingProxyType(
    {
        "threshold": Knob(
            0, 100, "least confidence to settle; of `entropy`, `renoise` and `reorder` most nats to settle at"
        ),
        "block_length": Knob(1, MAX_BLOCK_LENGTH, "rows of one canvas", integer=True),
        "first_block": Knob(0, 64, "rows of the first canvas; 0 for the block length", integer=True),
        "max_steps": Knob(0, 64, "most denoise passes a block; 0 for its length", integer=True),
        "revise_below": Knob(0, 1, "mask a token again where the base finds it less likely; 0 never"),
        "max_revisions": Knob(0, 8, "most rounds of revision a block", integer=True),
        "draft_nodes": Knob(1, 256, "most drafted tokens that one pass verifies", integer=True),
        "branches": Knob(0, 64, "outcomes of a verification to draft behind in the same pass", integer=True),
        "lookup": Knob(0, 64, "most tokens to draft by prompt lookup", integer=True),
        "accept_above": Knob(0, 1, "least share of the chosen token's probability that a draft needs"),
        "max_temperature": Knob(0.01, 10, "what logits are divided by in a canvas's first pass"),
        "min_temperature": Knob(0.01, 10, "what logits are divided by towards its last pass"),
        "stop_entropy": Knob(0, 100, "mean nats below which a canvas is done; 0 runs all its passes"),
        "stable_steps": Knob(0, 16, "passes for which its likeliest tokens must stay the same", integer=True),
        "distance_penalty": Knob(0, 10, "nats added per position behind the first mask"),
    }
)
_DRAFTING = ("block_length", "first_block", "draft_nodes", "branches")
_CANVAS = ("block_length", "first_block", "max_steps", "revise_below", "max_revisions")

DECODERS: Mapping[str, Decoder] = MappingProxyType(
    {
        "ar": Decoder("one token a pass, from the base model", program="speculative"),
        "lossless": Decoder(
            "drafts that the base verifies: its own text in fewer passes",
            (*_DRAFTING, "lookup"),
            program="speculative",
        ),
        "relaxed": Decoder(
            "the same, but a draft also stands if the base finds it nearly as good",
            (*_DRAFTING, "accept_above"),
            program="speculative",
        ),
        "threshold": Decoder(
            "settle all positions of enough confidence (arXiv 2505.22618)", ("threshold", *_CANVAS), confident
        ),
        "schedule": Decoder(
            "settle equal shares of a block over its passes (arXiv 2502.09992)", _CANVAS, scheduled
        ),
        "entropy": Decoder(
            "settle together what sums to at most so much entropy (arXiv 2505.24857)",
            ("threshold", *_CANVAS),
            entropy_bounded,
            max_threshold=100.0,
            uses_entropy=True,
        ),
        "cumulative": Decoder(
            "settle together what keeps a joint probability", ("threshold", *_CANVAS), cumulative
        ),
        "renoise": Decoder(
            "decide every position of a canvas of random tokens anew in each pass, and draw noise where it "
            "depends on others (DiffusionGemma)",
            (
                "threshold",
                "block_length",
                "first_block",
                "max_steps",
                "max_temperature",
                "min_temperature",
                "stop_entropy",
                "stable_steps",
            ),
            max_threshold=100.0,
            program="renoising",
            uses_entropy=True,
        ),
        "reorder": Decoder(
            "a window of masks behind what is settled, in causal attention: settle what has few nats for its "
            "distance (arXiv 2512.22737)",
            ("threshold", "block_length", "distance_penalty"),
            max_threshold=100.0,
            program="reordering",
            uses_entropy=True,
        ),
    }
)


def settle(
    decoding: Decoding, readings: Sequence[Reading], forced: Reading | None, steps_left: int
) -> tuple[int, ...]:
    """Which of `readings` (one per masked position) to accept, by the decoder's rule.

    `forced` is the reading of a position that settles in this step anyway (a block's first token, from the
    base); with it, the rule may accept nothing more. Without it at least one position settles. When
    `steps_left` is 1 everything does: no block outlives its cap.
    """
    if not readings:
        return ()
    if steps_left <= 1:
        return tuple(range(len(readings)))
    rule = DECODERS[decoding.decoder].rule
    assert rule is not None
    chosen = rule(decoding, readings, forced, steps_left)
    if not chosen and forced is None:
        chosen = surest(readings)[:1]
    return tuple(sorted(chosen))


def check_decoding(decoding: Decoding) -> None:
    """Raises `BadParameter` for an unknown decoder or a value out of range."""
    decoder = DECODERS.get(decoding.decoder) if isinstance(decoding.decoder, str) else None
    if decoder is None:
        raise BadParameter("decoding.decoder", decoding.decoder, ", ".join(DECODERS))
    for name, knob in KNOBS.items():
        knob.checked(f"decoding.{name}", getattr(decoding, name))
    if "threshold" in decoder.knobs and decoding.threshold > decoder.max_threshold:
        raise BadParameter("decoding.threshold", decoding.threshold, "0 to 1: it is a probability")


def checked(name: str, value: object) -> object:
    """A setting as a request gave it; the decoder's name is checked with the whole. Raises `BadParameter`."""
    if name == "decoder":
        return value
    if name not in KNOBS:
        known = ", ".join(field.name for field in fields(Decoding))
        raise BadParameter(f"decoding.{name}", value, f"the settings {known}")
    return KNOBS[name].checked(f"decoding.{name}", value)


def available(traits: Traits) -> tuple[str, ...]:
    """Names of the decoders that a model can run."""
    return tuple(name for name, decoder in DECODERS.items() if decoder.fits(traits))


def described() -> str:
    """The table as one paragraph, for the pages that explain a request's fields."""
    decoders = "; ".join(f"`{name}`: {decoder.meaning}" for name, decoder in DECODERS.items())
    knobs = "; ".join(
        f"`{name}` ({knob.low:g} to {knob.high:g}): {knob.meaning}, for "
        + ", ".join(decoder for decoder, row in DECODERS.items() if name in row.knobs)
        for name, knob in KNOBS.items()
    )
    return f"Single settings over the preset. `decoder` is one of: {decoders}. Its settings: {knobs}."
