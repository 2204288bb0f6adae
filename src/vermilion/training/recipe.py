"""A conversion recipe: everything a run depends on, as a TOML file gives it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from vermilion.errors import ConfigError
from vermilion.training.corruption import CorruptionConfig
from vermilion.training.data import DataConfig
from vermilion.training.objectives import ObjectiveConfig


@dataclass(frozen=True, slots=True)
class Stage:
    """Part of the block curriculum."""

    until: float
    """Share of the run at which the stage ends."""
    block_length: int
    """Positions of a block, the settled token it starts with included."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """A conversion recipe."""

    base: str
    """A name of `vermilion models`, a folder in Hugging Face layout, or "toy"."""
    output: Path
    data: DataConfig = field(default_factory=DataConfig)
    corruption: CorruptionConfig = field(default_factory=CorruptionConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    stages: tuple[Stage, ...] = (Stage(0.1, 4), Stage(1.0, 8))
    mask_token_id: int = -1
    """-1: the one that the base's family has; needed for a base that has none."""
    rank: int = 64
    alpha: float = 128.0
    steps: int = 0
    """0: until the minutes are over."""
    minutes: float = 0.0
    """0: no limit. A run with a time limit is not repeatable to the bit: its schedule follows the clock."""
    rows: int = 16
    """Rows of one optimiser step."""
    micro_rows: int = 4
    """Rows that go through the model at once."""
    learning_rate: float = 1e-3
    warmup_steps: int = 20
    decay_share: float = 0.3
    """Last share of the run, over which the learning rate falls linearly to zero."""
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    validate_every: int = 50
    save_every: int = 100
    seed: int = 0
    device: str = "auto"
    autocast: bool = False
    """bfloat16 products over fp32 weights."""
    compile: bool = False
    recompute: bool = False
    adapter_dtype: Literal["float32", "bfloat16"] = "bfloat16"

    def __post_init__(self) -> None:
        if self.steps <= 0 and self.minutes <= 0:
            raise ConfigError("steps, minutes: give at least one of them, above 0.")
        ends = [stage.until for stage in self.stages]
        lengths = [stage.block_length for stage in self.stages]
        if not ends or ends != sorted(ends) or ends[-1] < 1 or min(lengths) < 2:
            raise ConfigError("stages: `until` must rise to 1.0, and every block_length be at least 2.")
        for name in ("rows", "micro_rows", "rank", "validate_every", "save_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: {getattr(self, name)} is too small; the least is 1.")
        if min(self.alpha, self.learning_rate, self.clip_norm) <= 0:
            raise ConfigError("alpha, learning_rate and clip_norm must be above 0.")
        if not 0 <= self.decay_share <= 1:
            raise ConfigError(f"decay_share: {self.decay_share} is not allowed; allowed: 0 to 1.")

    @property
    def longest_block(self) -> int:
        return max(stage.block_length for stage in self.stages)


MAY_CHANGE = frozenset(
    {"steps", "minutes", "validate_every", "save_every", "micro_rows", "device", "compile", "recompute"}
)
"""Settings with which a run may be taken up again."""
