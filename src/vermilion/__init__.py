"""Vermilion: diffusion language models to run, serve, read and train.

`LLM` and `Answer` load torch on first use; the value types do not.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from vermilion.types import Canvas, Decoding, Finish, Request, Sampling, Text, Usage

if TYPE_CHECKING:
    from vermilion.engine.llm import LLM, Answer

__version__ = "0.1.0"

__all__ = [
    "LLM",
    "Answer",
    "Canvas",
    "Decoding",
    "Finish",
    "Request",
    "Sampling",
    "Text",
    "Usage",
]


def __getattr__(name: str) -> object:
    if name in ("LLM", "Answer"):
        return getattr(import_module("vermilion.engine.llm"), name)
    raise AttributeError(f"module 'vermilion' has no attribute {name!r}")
