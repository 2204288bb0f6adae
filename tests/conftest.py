"""Skips what this machine cannot run: `model` without the embedded model on disk, `gpu` without CUDA."""

from __future__ import annotations

from functools import cache

import pytest
from hypothesis import settings

# The same examples every time: a failure is a finding, not the luck of the day.
settings.register_profile("repeatable", derandomize=True, deadline=None, max_examples=60)
settings.load_profile("repeatable")


@cache
def _model_on_disk() -> bool:
    from vermilion.models import catalog

    return any(entry.pulled for entry in catalog.available() if entry.name == catalog.DEFAULT_MODEL)


@cache
def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("model") and not _model_on_disk():
            item.add_marker(pytest.mark.skip(reason="run: vermilion pull smollm2-135m-diffusion"))
        if item.get_closest_marker("gpu") and not _has_gpu():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
