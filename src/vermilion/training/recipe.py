"""A recipe of `vermilion convert` or `vermilion train`: all that a run depends on, as TOML gives it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from vermilion.data.packing import DataConfig
from vermilion.errors import ConfigError
from vermilion.training.corruption import CorruptionConfig
from vermilion.training.objectives import ObjectiveConfig


@dataclass(frozen=True, slots=True)
class Stage:
    """Part of the block curriculum."""

    until: float
    """Share of the run at which the stage ends."""
    block_length: int
    """Positions of a block, the settled token it starts with included."""


Method = Literal["adapter", "copy", "tied", "draft_head", "lora", "full"]
CONVERSIONS: tuple[Method, ...] = ("adapter", "copy", "tied", "draft_head")
TUNINGS: tuple[Method, ...] = ("lora", "full")
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True, slots=True)
class Recipe:
    """A recipe.

    What is trained, by `method`:

    adapter  a gated LoRA that only noisy rows run through, on the frozen base        (convert)
    copy     a second set of projections for noisy rows, beside the frozen base       (convert)
    tied     every weight; both streams share them                                    (convert)
    draft_head  a head that makes each draft depend on the one before, on a finished denoiser  (convert)
    lora     a LoRA that every row runs through, on a finished diffusion model        (train)
    full     every weight of a finished diffusion model, its denoiser included        (train)
    """

    base: str
    """A name of `vermilion models`, a folder in Hugging Face layout, or "toy"."""
    output: Path
    method: Method = "adapter"
    context: Literal["causal", "block", "full"] = "causal"
    """What clean rows see (`masks.py`); of a frozen base only `causal` makes sense."""
    shift: bool = True
    """Row i predicts token i + 1, as the base learnt it; otherwise a mask predicts itself."""
    data: DataConfig = field(default_factory=DataConfig)
    corruption: CorruptionConfig = field(default_factory=CorruptionConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    stages: tuple[Stage, ...] = (Stage(0.1, 4), Stage(1.0, 8))
    mask_token_id: int = -1
    """-1: the one that the base's family has; needed for a base that has none."""
    rank: int = 64
    """Of the LoRA; of a draft head the width of its bottleneck."""
    alpha: float = 128.0
    target_modules: tuple[str, ...] = PROJECTIONS
    """Projections that a `lora` is put on."""
    adapter: Path | None = None
    """A folder that a `lora` (PEFT's), an `adapter` or a `draft_head` (a denoiser's) goes on from; the rank
    and alpha in it hold. A `draft_head` without one takes the base's own denoiser."""
    merge: bool = False
    """Also write OUTPUT/model, in which the `lora` is part of the weights."""
    steps: int = 0
    """0: by epochs or minutes."""
    epochs: float = 0.0
    """Times that the examples are gone through, when there are no steps; 0: until the minutes are over."""
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
    patience: int = 0
    """Validations without a better figure after which the run ends; 0: never. What is written is then the
    best state instead of the last."""
    save_every: int = 100
    seed: int = 0
    device: str = "auto"
    autocast: bool = False
    """bfloat16 products over fp32 weights."""
    compile: bool = False
    recompute: bool = False
    """Drop activations and compute them again when going backward, one layer at a time."""
    attention: Literal["dense", "flex"] = "dense"
    """`flex`: FlexAttention with block masks; for GPUs."""
    tensorboard: bool = False
    """Also write OUTPUT/tensorboard; needs the `train` extra."""
    plot: bool = True
    """Draw OUTPUT/run.png at the end; needs the `train` extra."""
    adapter_dtype: Literal["float32", "bfloat16"] = "bfloat16"

    def __post_init__(self) -> None:
        if max(self.steps, self.minutes, self.epochs) <= 0:
            raise ConfigError("steps, epochs, minutes: give at least one of them, above 0.")
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
        unknown = sorted(set(self.target_modules) - set(PROJECTIONS))
        if unknown or not self.target_modules:
            raise ConfigError(
                f"target_modules: {', '.join(unknown) or 'none'}; allowed: any of {', '.join(PROJECTIONS)}."
            )
        self._check_objective()

    def _check_objective(self) -> None:
        if not self.trains_clean and (self.context != "causal" or self.objective.next_token):
            raise ConfigError(
                f"method {self.method} leaves the base frozen: context must be 'causal', and "
                "objective.next_token 0."
            )
        if self.objective.denoise == 0 and self.objective.next_token == 0:
            raise ConfigError("objective: denoise and next_token are both 0; nothing would be learnt.")
        if self.context != "causal" and (self.objective.teacher or self.objective.total_variation):
            raise ConfigError(
                f"objective: with context {self.context!r} the clean row before a token has seen it; set "
                "teacher and total_variation to 0."
            )
        if self.context == "full" and self.objective.next_token:
            raise ConfigError("objective.next_token: with context 'full' no row is an autoregressive one.")
        if self.objective.denoise == 0 and self.method in CONVERSIONS:
            raise ConfigError("objective.denoise: a conversion needs it above 0.")

    @property
    def trains_clean(self) -> bool:
        """Whether clean rows run through weights that are trained."""
        return self.method not in ("adapter", "copy", "draft_head")

    @property
    def longest_block(self) -> int:
        return max(stage.block_length for stage in self.stages)


MAY_CHANGE = frozenset(
    {
        "steps",
        "epochs",
        "minutes",
        "validate_every",
        "save_every",
        "micro_rows",
        "device",
        "compile",
        "recompute",
        "attention",
        "tensorboard",
        "plot",
        "merge",
    }
)
"""Settings with which a run may be taken up again."""
