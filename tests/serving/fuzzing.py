"""How many requests a fuzz makes, and that they are the same every time."""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, Phase, settings

FEW, MANY = 20, 400
"""Of each operation, in every run and in an exhaustive one."""


def bounded(examples: int) -> Any:
    return settings(
        max_examples=examples,
        derandomize=True,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
