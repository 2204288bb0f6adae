"""Tests of calls need the extra, the weights of speech, and `-m voice`; the others run anywhere."""

from __future__ import annotations

import importlib
import warnings
from importlib.util import find_spec

import pytest

from vermilion.speech import speech_models

if find_spec("pipecat") is None:
    collect_ignore = [
        "test_calls.py",
        "test_lines.py",
        "test_livekit.py",
        "test_clauses.py",
        "test_early_transcripts.py",
        "test_memory.py",
        "test_model_calls.py",
        "test_mouths.py",
        "test_other_processes.py",
        "test_words.py",
    ]
else:
    with warnings.catch_warnings():
        # pipecat warns of itself while it is imported.
        warnings.simplefilter("ignore", DeprecationWarning)
        importlib.import_module("vermilion.voice.voice_app")
    # It reports every frame.
    importlib.import_module("loguru").logger.remove()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = [name for name in ("whisper-base", "piper-joe") if not speech_models.is_pulled(name)]
    for item in items:
        if missing and item.get_closest_marker("voice"):
            item.add_marker(pytest.mark.skip(reason="run: vermilion voice pull"))
