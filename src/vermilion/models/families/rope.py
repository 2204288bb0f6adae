"""The angles of rotary position embedding, plain or stretched. No torch: every backend asks here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the family table is read at the edge, which starts without numpy
    import numpy as np
    from numpy.typing import NDArray

SCALINGS = ("yarn", "llama3", "linear", "dynamic", "proportional")


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """How angles are stretched for contexts longer than the first training's (YaRN: arXiv 2309.00071)."""

    kind: str
    """As config.json calls it: yarn, llama3, linear, ..."""
    parameters: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Rope:
    """One rotary embedding: which angle each pair of a head's dimensions turns by at each position."""

    head_dim: int
    theta: float
    fraction: float = 1.0
    """Leading share of each head that is rotated."""
    scaling: RopeScaling | None = None
    context_length: int = 0
    backwards: bool = False
    """Angles fall with the position (SmolDLM)."""

    @property
    def size(self) -> int:
        """How many leading dimensions of a head are rotated, as two halves."""
        proportional = self.scaling is not None and self.scaling.kind == "proportional"
        return self.head_dim if proportional else int(self.head_dim * self.fraction)

    def inverse_frequencies(self) -> NDArray[np.float64]:
        """[size / 2]: radians that a step of one position turns each pair by."""
        import numpy as np

        size, scaling = self.size, self.scaling
        if self.backwards:
            return -replace(self, backwards=False).inverse_frequencies()
        plain = 1.0 / self.theta ** (np.arange(0, size, 2, dtype=np.float64) / size)
        if scaling is None:
            return plain
        given = scaling.parameters
        if scaling.kind == "linear":
            return plain / given["factor"]
        if scaling.kind == "llama3":
            return _llama3(plain, given)
        if scaling.kind == "yarn":
            return _yarn(plain, self.theta, size, given, self.context_length)
        if scaling.kind == "proportional":
            # The share is taken of the pairs: the others stand still (Gemma 4).
            plain[int(self.fraction * size // 2) :] = 0.0
            return plain / given.get("factor", 1.0)
        # `dynamic` stretches behind the context length, which is as far as a text goes here.
        return plain

    @property
    def magnitude(self) -> float:
        """What rotated queries and keys are multiplied by (YaRN's attention factor)."""
        if self.scaling is None or self.scaling.kind != "yarn":
            return 1.0
        given, factor = self.scaling.parameters, _yarn_factor(self.scaling.parameters, self.context_length)
        if "attention_factor" in given:
            return given["attention_factor"]
        if given.get("mscale") and given.get("mscale_all_dim"):
            return _mscale(factor, given["mscale"]) / _mscale(factor, given["mscale_all_dim"])
        return _mscale(factor, 1.0)


def _mscale(factor: float, weight: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0


def _yarn_factor(given: Mapping[str, float], context_length: int) -> float:
    original = given.get("original_max_position_embeddings", context_length)
    return given.get("factor") or context_length / original


def _yarn(
    plain: NDArray[np.float64], theta: float, size: int, given: Mapping[str, float], context_length: int
) -> NDArray[np.float64]:
    """Pairs that turn often keep their angle, those that turn seldom are stretched, a ramp between them."""
    import numpy as np

    original = given.get("original_max_position_embeddings", context_length)

    def pair(turns: float) -> float:
        """The pair that makes so many turns in the original context."""
        return size * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = pair(given.get("beta_fast") or 32), pair(given.get("beta_slow") or 1)
    if given.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, size - 1)
    if low == high:
        high += 0.001
    stretched = np.clip((np.arange(size // 2, dtype=np.float64) - low) / (high - low), 0, 1)
    factor = _yarn_factor(given, context_length)
    return plain / factor * stretched + plain * (1 - stretched)


def _llama3(plain: NDArray[np.float64], given: Mapping[str, float]) -> NDArray[np.float64]:
    """Waves longer than the original context are stretched, short ones not, a ramp between them."""
    import numpy as np

    factor, low, high = given["factor"], given["low_freq_factor"], given["high_freq_factor"]
    turns = given["original_max_position_embeddings"] * plain / (2 * math.pi)
    kept = np.clip((turns - low) / (high - low), 0, 1)
    return plain / factor * (1 - kept) + plain * kept
