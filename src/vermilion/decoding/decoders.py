"""The decoders, one row each: what they need, which settings they read and the rule that settles positions.

Validation, `/docs`, docs/DECODING.md, `/v1/models` and the command line are made from this table. A new
decoder of the canvas kind is a rule in `decoding/rules.py`, or in `decoding/editing.py` if it takes back what
it has settled, and a row here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Literal

from vermilion.decoding import editing, growing, rules
from vermilion.decoding.caches import CACHES
from vermilion.decoding.editing import EditRule
from vermilion.decoding.knobs import KNOBS
from vermilion.decoding.rules import Rule
from vermilion.errors import BadParameter
from vermilion.models.families import Traits
from vermilion.types import Decoding

ProgramKind = Literal["speculative", "blocks", "filling", "renoising", "reordering"]


@dataclass(frozen=True, slots=True)
class Decoder:
    """`rule` is what settles the positions of a canvas of masks, for the program `blocks`; `edit` does so and
    takes back what is settled."""

    meaning: str
    knobs: tuple[str, ...] = ()
    rule: Rule | None = None
    edit: EditRule | None = None
    source: str = ""
    """The paper or the sampler that it comes from."""
    max_threshold: float = 1.0
    program: ProgramKind = "blocks"
    uses_entropy: bool = False
    top: int = 0
    """How many of the likeliest tokens it looks at."""
    keeps_past: bool = False
    """Whether it looks at a position's earlier readings, which a canvas that slides on would lose."""
    needs: tuple[str, ...] = ()
    """Tokens of `Traits` that a model must have."""
    reads_filled: bool = False
    """Whether it looks at filled positions too."""
    defaults: Mapping[str, float] = field(default_factory=dict)
    """Settings where they differ from those of `Decoding`, for a request that names only the decoder."""

    @property
    def needs_base(self) -> bool:
        """Whether it verifies drafts, which takes an autoregressive base."""
        return self.program == "speculative"

    leaves_out: bool = False
    """Whether it looks at each filled position as if its token were not there, in rows besides."""

    @property
    def grows(self) -> bool:
        """Whether it finds out how long its canvas, the whole answer, is to be; for models that see all of
        it."""
        return self.program == "filling"

    @property
    def stands(self) -> bool:
        """Whether its canvas must stay where it is until it is full."""
        return self.edit is not None or self.keeps_past

    def fits(self, traits: Traits) -> bool:
        """Whether it is defined for models that denoise so."""
        if self.program == "speculative":
            return traits.has_next_token
        if not traits.denoises:
            return False
        if self.program == "renoising":
            return traits.noise == "uniform"
        if self.program == "reordering":
            return traits.canvas == "causal" and not traits.shift
        masks = traits.noise == "mask" and traits.canvas == "bidirectional"
        if (self.grows and traits.context != "full") or (self.leaves_out and traits.shift):
            return False
        slides = self.stands and traits.has_next_token and not (traits.next_token and self.edit is None)
        return masks and not slides and all(getattr(traits, name) >= 0 for name in self.needs)

    @property
    def drafts(self) -> bool:
        return "draft_nodes" in self.knobs


_DRAFTING = ("block_length", "first_block", "draft_nodes", "branches")
_SIZES = ("block_length", "first_block", "max_steps")
_MASKED = (*_SIZES, "guidance")
_CANVAS = (*_MASKED, "revise_below", "max_revisions", "eos_last", "sub_block")
_STANDING = (*_MASKED, "eos_last", "sub_block")
_RENOISING = ("max_temperature", "min_temperature", "stop_entropy", "stable_steps")
_DREAM = (*_MASKED, "eos_last", "position_temperature")
_GROWING = (
    "block_length", "max_steps", "first_length", "growth", "end_confidence", "last_growth", "end_window",
    "guidance",
)  # fmt: skip

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
            "settle all positions of enough confidence",
            ("threshold", *_CANVAS),
            rules.confident,
            source="Fast-dLLM, arXiv 2505.22618",
        ),
        "schedule": Decoder(
            "settle equal shares of a block over its passes",
            _CANVAS,
            rules.scheduled,
            source="LLaDA, arXiv 2502.09992",
        ),
        "entropy": Decoder(
            "settle together what sums to at most so much entropy",
            ("threshold", *_CANVAS),
            rules.entropy_bounded,
            source="EB-sampler, arXiv 2505.24857",
            max_threshold=100.0,
            uses_entropy=True,
        ),
        "cumulative": Decoder(
            "settle together what keeps a joint probability", ("threshold", *_CANVAS), rules.cumulative
        ),
        "renoise": Decoder(
            "decide every position of a canvas of random tokens anew in each pass, and draw noise where it "
            "depends on others",
            ("threshold", *_SIZES, *_RENOISING),
            source="DiffusionGemma",
            max_threshold=100.0,
            program="renoising",
            uses_entropy=True,
        ),
        "reorder": Decoder(
            "a window of masks behind what is settled, in causal attention: settle what has few nats for its "
            "distance",
            ("threshold", "block_length", "distance_penalty"),
            source="WeDLM, arXiv 2512.22737",
            max_threshold=100.0,
            program="reordering",
            uses_entropy=True,
        ),
        "first-hitting": Decoder(
            "settle one position a pass, in a random order",
            _STANDING,
            rules.first_hit,
            source="arXiv 2409.02908; BD3-LM, arXiv 2503.09573",
            keeps_past=True,
        ),
        "dynamic": Decoder(
            "settle all positions of enough confidence, at least the schedule's share",
            ("threshold", *_CANVAS),
            rules.dynamic,
            source="SDAR, arXiv 2510.06303; LLaDA2.0, arXiv 2512.15745",
        ),
        "factor": Decoder(
            "settle the largest set that a bound on its joint error allows",
            ("factor", *_CANVAS),
            rules.factored,
            source="Fast-dLLM, arXiv 2505.22618",
        ),
        "bound": Decoder(
            "settle what is confident, or confident enough for its rank",
            ("threshold", "min_threshold", "factor", *_CANVAS),
            rules.bounded,
            source="Nemotron-Labs-Diffusion",
            defaults={"factor": 2.0},
        ),
        "entropy-surest": Decoder(
            "the bound of `entropy`, in the order of confidence",
            ("threshold", *_CANVAS),
            rules.entropy_bounded_surest,
            source="RND1",
            max_threshold=100.0,
            uses_entropy=True,
        ),
        "sequential": Decoder(
            "settle the schedule's share from the left",
            _CANVAS,
            rules.leftmost,
            source="SDAR, arXiv 2510.06303",
        ),
        "prefix": Decoder(
            "settle from the left up to the first position without enough confidence",
            ("threshold", *_CANVAS),
            rules.confident_prefix,
            source="DMax",
        ),
        "hierarchical": Decoder(
            "settle the best of every run of masks, and all of enough confidence",
            ("threshold", "min_threshold", *_CANVAS),
            rules.hierarchical,
            source="dInfer, arXiv 2510.08666",
        ),
        "near": Decoder(
            "settle all of enough confidence, and with less those near them",
            ("threshold", "min_threshold", "radius", *_CANVAS),
            rules.near_anchors,
            source="LocalLeap, arXiv 2510.07081",
            defaults={"min_threshold": 0.5},
        ),
        "stable": Decoder(
            "settle all of enough confidence whose distribution stands still",
            ("threshold", "max_divergence", "stable_passes", *_STANDING),
            rules.stable,
            source="KLASS, arXiv 2511.05664",
            keeps_past=True,
        ),
        "credit": Decoder(
            "settle all of enough confidence, where having led in earlier passes counts",
            ("threshold", "credit_weight", "credit_decay", "credit_power", *_STANDING),
            rules.confident,
            source="dInfer, arXiv 2510.08666",
            top=1,
            keeps_past=True,
        ),
        "dream-confidence": Decoder(
            "settle by Dream's time schedule, surest first (`maskgit_plus`)",
            _DREAM,
            rules.timed_by_confidence,
            source="Dream, arXiv 2508.15487",
            keeps_past=True,
        ),
        "dream-margin": Decoder(
            "settle by Dream's time schedule, largest lead over the second token first (`topk_margin`)",
            _DREAM,
            rules.timed_by_margin,
            source="Dream, arXiv 2508.15487",
            top=2,
            keeps_past=True,
        ),
        "dream-entropy": Decoder(
            "settle by Dream's time schedule, lowest entropy first (`entropy`)",
            _DREAM,
            rules.timed_by_entropy,
            source="Dream, arXiv 2508.15487",
            uses_entropy=True,
            keeps_past=True,
        ),
        "dream-origin": Decoder(
            "settle each position at a random time (`origin`)",
            (*_MASKED, "eos_last"),
            rules.at_random_times,
            source="MDLM, arXiv 2406.07524; Dream, arXiv 2508.15487",
            keeps_past=True,
        ),
        "joint": Decoder(
            "settle all of enough confidence, and replace a filled token where another is as sure",
            ("threshold", "edit_threshold", "post_steps", *_MASKED),
            edit=editing.joint,
            reads_filled=True,
            source="LLaDA2.1, arXiv 2602.08676",
        ),
        "soft-parallel": Decoder(
            "fill from the left what is sure, and decide every filled position anew; the next pass sees it "
            "as a mixture of its likeliest tokens and the mask",
            ("threshold", "soft_tokens", *_MASKED),
            edit=editing.soft_parallel,
            source="DMax, arXiv 2604.08302",
            top=1,
            reads_filled=True,
            defaults={"threshold": 0.5},
        ),
        "indel": Decoder(
            "`joint` with tokens that delete and insert positions",
            ("threshold", "edit_threshold", "post_steps", *_MASKED),
            edit=editing.indel,
            reads_filled=True,
            source="LLaDA2.2",
            top=8,
            needs=("delete_token_id", "split_token_id"),
        ),
        "wino": Decoder(
            "settle what has a little confidence, and mask again what its surroundings alone do not confirm",
            ("threshold", "keep_threshold", *_SIZES),
            edit=editing.wino,
            source="WINO, arXiv 2507.18578",
            reads_filled=True,
            leaves_out=True,
            defaults={"threshold": 0.6},
        ),
        "dreamon": Decoder(
            "fill one position a pass of a text whose length is not known: one token makes two masks of its "
            "place, an end takes out its place and the masks behind it",
            ("first_length", "max_steps", "guidance"),
            edit=growing.dreamon,
            source="DreamOn, arXiv 2602.01326",
            uses_entropy=True,
            program="filling",
            needs=("expand_token_id",),
            defaults={"first_length": 4},
        ),
        "daedal": Decoder(
            "find the answer's length by how sure its end is, then settle all of enough confidence block by "
            "block, and make room where a position has little",
            ("threshold", "min_threshold", *_GROWING),
            edit=growing.daedal,
            source="DAEDAL, arXiv 2508.00819",
            program="filling",
            reads_filled=True,
            defaults={"block_length": 32, "min_threshold": 0.1},
        ),
        "remdm-cap": Decoder(
            "mask filled positions again with a probability of at most `remask`",
            ("remask", *_MASKED),
            edit=editing.remask_capped,
            source="ReMDM, arXiv 2503.00307",
        ),
        "remdm-rescale": Decoder(
            "mask filled positions again with a share of what the noise schedule allows",
            ("remask", *_MASKED),
            edit=editing.remask_rescaled,
            source="ReMDM, arXiv 2503.00307",
            defaults={"remask": 0.015},
        ),
        "remdm-conf": Decoder(
            "mask filled positions again, the less sure the likelier",
            _MASKED,
            edit=editing.remask_by_confidence,
            source="ReMDM, arXiv 2503.00307",
        ),
        "remdm-loop": Decoder(
            "fill most, then mask and fill again for a while, then fill the rest",
            ("remask", *_MASKED),
            edit=editing.remask_in_loop,
            source="ReMDM, arXiv 2503.00307",
        ),
    }
)


def check_decoding(decoding: Decoding) -> None:
    """Raises `BadParameter` for an unknown decoder or a value out of range."""
    decoder = DECODERS.get(decoding.decoder) if isinstance(decoding.decoder, str) else None
    if decoder is None:
        raise BadParameter("decoding.decoder", decoding.decoder, ", ".join(DECODERS))
    for name, knob in KNOBS.items():
        knob.checked(f"decoding.{name}", getattr(decoding, name))
    if not isinstance(decoding.cache, str) or decoding.cache not in CACHES:
        raise BadParameter("decoding.cache", decoding.cache, ", ".join(CACHES))
    if "threshold" in decoder.knobs and decoding.threshold > decoder.max_threshold:
        raise BadParameter("decoding.threshold", decoding.threshold, "0 to 1: it is a probability")


def checked(name: str, value: object) -> object:
    """A setting as a request gave it; the decoder's name is checked with the whole. Raises `BadParameter`."""
    if name in ("decoder", "cache"):
        return value
    if name not in KNOBS:
        known = ", ".join(field.name for field in fields(Decoding))
        raise BadParameter(f"decoding.{name}", value, f"the settings {known}")
    return KNOBS[name].checked(f"decoding.{name}", value)


def available(traits: Traits) -> tuple[str, ...]:
    """Names of the decoders that a model can run."""
    return tuple(name for name, decoder in DECODERS.items() if decoder.fits(traits))


def readers(name: str) -> list[str]:
    """The decoders that read a setting; none for those of a cache."""
    return [decoder for decoder, row in DECODERS.items() if name in row.knobs]


def described() -> str:
    """The table as one paragraph, for the pages that explain a request's fields."""
    decoders = "; ".join(f"`{name}`: {decoder.meaning}" for name, decoder in DECODERS.items())
    knobs = "; ".join(
        f"`{name}` ({knob.low:g} to {knob.high:g}): {knob.meaning}, for "
        + (", ".join(readers(name)) or "`cache`")
        for name, knob in KNOBS.items()
    )
    caches = "; ".join(f"`{name}`: {meaning}" for name, meaning in CACHES.items())
    return (
        f"Single settings over the preset. `decoder` is one of: {decoders}. Its settings: {knobs}. "
        f"`cache`, of models that see everything, is one of: {caches}."
    )
