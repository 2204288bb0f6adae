"""The range and meaning of the numbers of a `Sampling` and a `Decoding`, for the engine and every protocol.

The bounds keep arithmetic finite in float32. Past them a setting has no use: at a temperature of 10 text is
noise, at a repetition penalty of 10 no token is used twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from vermilion.errors import BadParameter
from vermilion.models.families.family_presets import MAX_BLOCK_LENGTH, MAX_WHOLE_LENGTH
from vermilion.types import Sampling


@dataclass(frozen=True, slots=True)
class Knob:
    """A number from `low` to `high`, both included."""

    low: float
    high: float
    meaning: str
    integer: bool = False

    @property
    def allowed(self) -> str:
        if self.integer:
            return f"an integer from {int(self.low)} to {int(self.high)}"
        return f"a number from {self.low:g} to {self.high:g}"

    def checked(self, param: str, value: object) -> int | float:
        """`value` as a number of the knob's kind. Raises `BadParameter`, also for NaN and for booleans."""
        kinds = int if self.integer else (int, float)
        if isinstance(value, bool) or not isinstance(value, kinds) or not self.low <= value <= self.high:
            raise BadParameter(param, value, self.allowed)
        return value if self.integer else float(value)


SAMPLING: Mapping[str, Knob] = MappingProxyType(
    {
        "temperature": Knob(0, 2, "0 takes the likeliest token; higher is more varied"),
        "top_p": Knob(0, 1, "sample from the likeliest tokens that hold this share of probability"),
        "top_k": Knob(0, 2**31 - 1, "sample from so many likeliest tokens; 0 for no limit", integer=True),
        "min_p": Knob(0, 1, "leave out tokens less likely than this share of the likeliest"),
        "seed": Knob(0, 2**63 - 1, "same seed, same answer", integer=True),
        "repetition_penalty": Knob(0.1, 10, "divides the logits of tokens already used; 1 is none"),
        "presence_penalty": Knob(-2, 2, "subtracted from the logits of tokens already used"),
        "frequency_penalty": Knob(-2, 2, "subtracted per earlier use"),
        "min_tokens": Knob(0, 2**31 - 1, "do not end before so many tokens", integer=True),
    }
)
KNOBS: Mapping[str, Knob] = MappingProxyType(
    {
        "threshold": Knob(
            0, 100, "least confidence to settle; where entropy is what counts, most nats to settle at"
        ),
        "block_length": Knob(
            1,
            MAX_WHOLE_LENGTH,
            f"rows of one canvas; above {MAX_BLOCK_LENGTH} where all is seen",
            integer=True,
        ),
        "first_block": Knob(0, 64, "rows of the first canvas; 0 for the block length", integer=True),
        "max_steps": Knob(0, 1024, "most denoise passes a block; 0 for its length", integer=True),
        "revise_below": Knob(0, 1, "mask a token again where the base finds it less likely; 0 never"),
        "max_revisions": Knob(0, 8, "most rounds of revision a block", integer=True),
        "draft_nodes": Knob(1, 256, "most drafted tokens that one pass verifies", integer=True),
        "branches": Knob(0, 64, "outcomes of a verification to draft behind in the same pass", integer=True),
        "lookup": Knob(0, 64, "most tokens to draft by prompt lookup", integer=True),
        "accept_above": Knob(0, 1, "least share of the chosen token's probability that a draft needs"),
        "min_threshold": Knob(0, 1, "least confidence of a position that something else speaks for"),
        "factor": Knob(0, 100, "what may be risked when positions settle together"),
        "radius": Knob(1, 64, "how far from a confident position the lower threshold counts", integer=True),
        "sub_block": Knob(0, 64, "positions of a block that settle before others; 0 for all", integer=True),
        "eos_last": Knob(0, 1, "1: what ends the text settles when nothing else can", integer=True),
        "position_temperature": Knob(0, 10, "above 0: draw which positions settle; 0 takes the best"),
        "max_divergence": Knob(0, 100, "most nats a distribution may have moved since the last pass"),
        "stable_passes": Knob(1, 16, "for how many passes it must not have moved more", integer=True),
        "credit_weight": Knob(0, 10, "how much credit from earlier passes counts"),
        "credit_decay": Knob(0, 1, "what is left of it after a pass"),
        "credit_power": Knob(0, 10, "power of the probability that a pass adds to it"),
        "edit_threshold": Knob(0, 1, "least confidence of a token that replaces another"),
        "keep_threshold": Knob(0, 1, "least probability of a filled token, itself unseen, to stay"),
        "soft_tokens": Knob(
            0,
            8,
            "likeliest tokens that a filled position is a mixture of; 0 for its token alone",
            integer=True,
        ),
        "post_steps": Knob(0, 64, "most passes of edits once a block is full", integer=True),
        "max_temperature": Knob(0.01, 10, "what logits are divided by in a canvas's first pass"),
        "min_temperature": Knob(0.01, 10, "what logits are divided by towards its last pass"),
        "stop_entropy": Knob(0, 100, "mean nats below which a canvas is done; 0 runs all its passes"),
        "stable_steps": Knob(0, 16, "passes for which its likeliest tokens must stay the same", integer=True),
        "distance_penalty": Knob(0, 10, "nats added per position behind the first mask"),
        "first_length": Knob(1, 1024, "masks that an answer of unknown length begins with", integer=True),
        "growth": Knob(2, 64, "masks added at a time", integer=True),
        "end_confidence": Knob(0, 1, "mean probability of ends at the tail that shows room enough to begin"),
        "last_growth": Knob(0, 1, "mean probability of ends at the tail above which nothing is added"),
        "end_window": Knob(1, 256, "places at the tail that are looked at for ends", integer=True),
        "remask": Knob(0, 1, "how readily a filled position is masked again"),
        "guidance": Knob(0, 10, "how much more the given text counts than without guidance"),
        "cache_window": Knob(0, 1024, "positions beside a block that every pass computes", integer=True),
        "refresh_every": Knob(0, 1024, "passes after which all is computed again; 0 for never", integer=True),
        "warm_steps": Knob(0, 64, "passes of a block that compute all at first", integer=True),
    }
)
"""Of a `Decoding`."""
LOGIT_BIAS = Knob(-100, 100, "added to a token's logit")
MAX_LOGPROBS = 20


def check_sampling(sampling: Sampling, vocab_size: int, max_logprobs: int = MAX_LOGPROBS) -> None:
    """Raises `BadParameter` for a value out of range."""
    for name, knob in SAMPLING.items():
        knob.checked(name, getattr(sampling, name))
    for token, bias in sampling.logit_bias.items():
        if not 0 <= token < vocab_size:
            raise BadParameter("logit_bias", token, f"token ids from 0 to {vocab_size - 1}")
        LOGIT_BIAS.checked(f"logit_bias.{token}", bias)
    if sampling.logprobs is not None and not 0 <= sampling.logprobs <= max_logprobs:
        raise BadParameter("logprobs", sampling.logprobs, f"0 to {max_logprobs}")
