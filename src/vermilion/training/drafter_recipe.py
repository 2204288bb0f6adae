"""A recipe of `vermilion convert` with method "drafter": two layers that guess for a frozen base."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from vermilion.errors import ConfigError
from vermilion.training.drafter_loss import DrafterLoss


@dataclass(frozen=True, slots=True)
class DrafterRecipe:
    """A recipe. The same settings and data give the same drafter, but for a limit in minutes."""

    base: str
    """A name of `vermilion models`, or a folder in Hugging Face layout; a denoiser beside it is kept."""
    output: Path
    sources: tuple[Path, ...]
    """JSON Lines of the base's own answers (`vermilion data answers`), or corpus folders."""
    method: Literal["drafter"] = "drafter"
    states: Path | None = None
    """Where the base's hidden states are kept, 7 kB a token for a base of 576; None: OUTPUT/states."""
    adapter: Path | None = None
    """A folder with a drafter to go on from."""
    num_layers: int = 2
    block_length: int = 5
    """Tokens that are guessed at a time."""
    rank: int = 256
    """Of the head that reads the token before."""
    window: int = 512
    """Positions before a block that it sees; 0: all. Texts are mostly shorter."""
    vocabulary: int = 16_384
    """Tokens that can be guessed: those that the sources hold most often."""
    loss: DrafterLoss = field(default_factory=DrafterLoss)
    anchors_every: int = 5
    """A block is drawn in each run of so many tokens."""
    max_length: int = 1000
    """Longer texts are cut."""
    held_out: int = 50
    """One text of so many is kept for validation."""
    max_held_out: int = 24
    """Texts of each source that are validated on."""
    texts: int = 8
    """Of one optimiser step."""
    steps: int = 0
    epochs: float = 0.0
    minutes: float = 0.0
    learning_rate: float = 1.2e-3
    warmup_steps: int = 20
    decay_share: float = 0.5
    """Last share of the run, over which the learning rate falls linearly to zero."""
    clip_norm: float = 1.0
    validate_every: int = 100
    save_every: int = 100
    seed: int = 0
    device: str = "auto"
    autocast: bool = True
    """bfloat16 products over fp32 weights."""
    threads: int = 1
    plot: bool = True

    def __post_init__(self) -> None:
        if max(self.steps, self.minutes, self.epochs) <= 0:
            raise ConfigError("steps, epochs, minutes: give at least one of them, above 0.")
        if not self.sources:
            raise ConfigError("sources: give at least one file of the base's own texts.")
        if not 1 <= self.block_length <= 16:
            raise ConfigError(f"block_length: {self.block_length} is not allowed; allowed: 1 to 16.")
        least = {"num_layers": 1, "rank": 1, "vocabulary": 16, "anchors_every": 1, "texts": 1, "held_out": 2}
        least |= {"validate_every": 1, "save_every": 1, "max_length": 16, "max_held_out": 1, "window": 0}
        for name, lowest in least.items():
            if getattr(self, name) < lowest:
                raise ConfigError(f"{name}: {getattr(self, name)} is too small; the least is {lowest}.")


DRAFTER_MAY_CHANGE = frozenset(
    {"steps", "epochs", "minutes", "validate_every", "save_every", "plot"}
    | {"device", "threads", "states", "window"}
)
"""Settings with which a run may be taken up again."""
