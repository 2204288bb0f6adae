"""LiveKit's agents, unmodified, on the routes of speech and chat; scripts/test-clients installs them."""

from __future__ import annotations

import os
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from serving.audio.fake_speech import wav
from serving.fake import MODEL, FakeBackend
from serving.threaded import threaded
from tests.voice.speaking import ear, speech
from vermilion.speech.audio_decoding import decode
from vermilion.speech.recognizer import SAMPLE_RATE

pytestmark = pytest.mark.voice
HERE = Path(__file__).parent
PYTHON = Path(os.environ.get("LIVEKIT_PYTHON", HERE.parents[1] / ".clients" / "livekit" / "bin" / "python"))


@pytest.mark.skipif(not PYTHON.exists(), reason="scripts/test-clients installs LiveKit's agents")
def test_an_agent_of_livekits_hears_a_question_and_answers_aloud(tmp_path: Path) -> None:
    question, answer = tmp_path / "question.wav", tmp_path / "answer.wav"
    asked = np.concatenate([np.zeros(SAMPLE_RATE, np.int16), speech("What is the capital of France?")])
    question.write_bytes(wav(asked))
    words = tuple(f"{word} " for word in ["The", "capital", "of", "France", "is", "Paris."])
    backend = FakeBackend(words=words, model=replace(MODEL, context_length=4096))
    with threaded(backend) as url:
        command = [PYTHON, HERE / "livekit_agent.py", f"{url}/v1", MODEL.id, question, answer]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "capital of france" in done.stdout.lower()
    assert backend.requests[-1].realtime
    with answer.open("rb") as file:
        assert "paris" in ear().transcribe(decode(file, 60)).text.lower()
