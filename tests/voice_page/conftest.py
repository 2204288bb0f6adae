"""Tests in a browser need the extra and scripts/test-voice-page; the others run anywhere."""

from __future__ import annotations

import importlib
import warnings
from importlib.util import find_spec

import pytest

from vermilion.speech.recognizer import Recognizer, find_recognizer
from vermilion.speech.synthesizer import Synthesizer, find_synthesizer

if find_spec("pipecat") is None:
    collect_ignore = ["test_voice_page_browser.py", "test_voice_page_model.py"]
else:
    with warnings.catch_warnings():
        # pipecat warns of itself while it is imported.
        warnings.simplefilter("ignore", DeprecationWarning)
        importlib.import_module("vermilion.voice.voice_app")
    # It reports every frame.
    importlib.import_module("loguru").logger.remove()


@pytest.fixture(scope="session")
def ear() -> Recognizer:
    return find_recognizer()


@pytest.fixture(scope="session")
def mouth() -> Synthesizer:
    return find_synthesizer("piper")
