"""Angles of rotary embedding: against their definition, and against transformers for every scaling."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from vermilion.models.families import Rope, RopeScaling
from vermilion.models.rotary import rotate, turn

SCALINGS: dict[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "factor": 4.0},
    "llama3": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128},
    "yarn-by-length": {"rope_type": "yarn", "factor": None, "original_max_position_embeddings": 64},
    "yarn-mscale": {
        "rope_type": "yarn", "factor": 16.0, "mscale": 0.7, "mscale_all_dim": 1.1, "beta_fast": 16,
    },
    "yarn-given": {"rope_type": "yarn", "factor": 2.0, "attention_factor": 0.8, "truncate": False},
    "partial": {"rope_type": "linear", "factor": 2.0, "partial_rotary_factor": 0.5},
    "proportional": {"rope_type": "proportional", "partial_rotary_factor": 0.25},
}  # fmt: skip


@pytest.mark.parametrize("name", SCALINGS)
def test_scalings_equal_those_of_transformers(name: str) -> None:
    transformers = pytest.importorskip("transformers")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    given = SCALINGS[name]
    config = transformers.LlamaConfig(hidden_size=128, num_attention_heads=4, max_position_embeddings=512)
    original = {"original_max_position_embeddings": 512}
    config.rope_parameters = {"rope_theta": 1e4, **original, **given}
    wanted, magnitude = ROPE_INIT_FUNCTIONS[given["rope_type"]](config, "cpu")
    numbers = {key: value for key, value in given.items() if isinstance(value, int | float)}
    scaling = RopeScaling(given["rope_type"], numbers)
    rope = Rope(32, 1e4, given.get("partial_rotary_factor", 1.0), scaling, 512)
    np.testing.assert_allclose(rope.inverse_frequencies(), wanted.double().numpy(), rtol=2e-6, atol=0)
    assert rope.magnitude == pytest.approx(magnitude)


@pytest.mark.parametrize("fraction", [1.0, 0.5, 0.25])
def test_rotary_turns_pairs_of_the_leading_share_by_their_angle(fraction: float) -> None:
    size, theta = 16, 100.0
    x = torch.randn(4, 3, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    positions = torch.tensor([0, 1, 7, 49])
    turned = rotate(x, turn(Rope(size, theta, fraction), positions, torch.float64))
    rotated = int(size * fraction)
    wanted = x.clone()
    for n, position in enumerate(positions.tolist()):
        for pair in range(rotated // 2):
            angle = position / theta ** (2 * pair / rotated)
            turning = complex(math.cos(angle), math.sin(angle))
            for head in range(3):
                a, b = x[n, head, pair].item(), x[n, head, pair + rotated // 2].item()
                point = complex(a, b) * turning
                wanted[n, head, pair], wanted[n, head, pair + rotated // 2] = point.real, point.imag
    torch.testing.assert_close(turned, wanted, atol=1e-12, rtol=0)
