"""The range and meaning of every numeric setting of a request: one table for the engine and every protocol.

The bounds keep arithmetic finite in float32. Past them a setting has no use: at a temperature of 10 text is
noise, at a repetition penalty of 10 no token is used twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from vermilion.errors import BadParameter
from vermilion.types import Decoding, Sampling


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
LOGIT_BIAS = Knob(-100, 100, "added to a token's logit")
MAX_LOGPROBS = 20

DECODING: Mapping[str, Knob] = MappingProxyType(
    {
        "threshold": Knob(0, 100, "least confidence; of `entropy` most nats of entropy to settle at once"),
        "block_length": Knob(1, 64, "rows of one canvas", integer=True),
        "first_block": Knob(0, 64, "rows of the first canvas; 0 for the block length", integer=True),
        "max_steps": Knob(0, 64, "most denoise passes a block; 0 for its length", integer=True),
        "revise_below": Knob(0, 1, "mask a token again where the base finds it less likely; 0 never"),
        "max_revisions": Knob(0, 8, "most rounds of revision a block", integer=True),
        "draft_nodes": Knob(1, 256, "most drafted tokens that one pass verifies", integer=True),
        "branches": Knob(0, 64, "outcomes of a verification to draft behind in the same pass", integer=True),
        "lookup": Knob(0, 64, "most tokens to draft by prompt lookup", integer=True),
        "accept_above": Knob(0, 1, "least share of the chosen token's probability that a draft needs"),
    }
)
DECODERS = ("ar", "lossless", "relaxed", "threshold", "schedule", "entropy", "cumulative")


def check_sampling(sampling: Sampling, vocab_size: int) -> None:
    """Raises `BadParameter` for a value out of range."""
    for name, knob in SAMPLING.items():
        knob.checked(name, getattr(sampling, name))
    for token, bias in sampling.logit_bias.items():
        if not 0 <= token < vocab_size:
            raise BadParameter("logit_bias", token, f"token ids from 0 to {vocab_size - 1}")
        LOGIT_BIAS.checked(f"logit_bias.{token}", bias)
    if sampling.logprobs is not None and not 0 <= sampling.logprobs <= MAX_LOGPROBS:
        raise BadParameter("logprobs", sampling.logprobs, f"0 to {MAX_LOGPROBS}")


def check_decoding(decoding: Decoding) -> None:
    """Raises `BadParameter` for an unknown decoder or a value out of range."""
    if decoding.decoder not in DECODERS:
        raise BadParameter("decoding.decoder", decoding.decoder, ", ".join(DECODERS))
    for name, knob in DECODING.items():
        knob.checked(f"decoding.{name}", getattr(decoding, name))
    if decoding.decoder in ("threshold", "cumulative") and decoding.threshold > 1:
        raise BadParameter("decoding.threshold", decoding.threshold, "0 to 1: it is a probability")
