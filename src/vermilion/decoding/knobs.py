"""The range and meaning of the numbers of a `Sampling`: one table for the engine and every protocol.

The bounds keep arithmetic finite in float32. Past them a setting has no use: at a temperature of 10 text is
noise, at a repetition penalty of 10 no token is used twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from vermilion.errors import BadParameter
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
