"""A base that is trained once and read by many tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from vermilion.training import toy

WORDS = ["one", "two", "three", "four", "five"]


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy that has learnt eight short answers by heart."""
    folder = tmp_path_factory.mktemp("base")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(toy, "_NUMBERS", WORDS)
        patch.setattr(toy, "_STEPS", 120)
        toy.make(folder, 0)
    return folder
