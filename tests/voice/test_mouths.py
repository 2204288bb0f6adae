"""Calls that are spoken by the other synthesisers."""

from __future__ import annotations

import asyncio
import shutil
from importlib.util import find_spec

import pytest

from tests.voice.scripted_model import ScriptedModel
from tests.voice.speaking import ear, heard, listening, speech
from vermilion.speech import speech_models
from vermilion.speech.synthesizer import find_synthesizer
from vermilion.voice import simulated_caller
from vermilion.voice.call import Agent
from vermilion.voice.persona import Persona
from vermilion.voice.voice_app import create_voice_app

pytestmark = pytest.mark.voice


@pytest.mark.parametrize("name", ["flite", "kokoro"])
def test_an_answer_is_heard_in_the_voice_that_was_chosen(name: str) -> None:
    if name == "flite" and shutil.which("flite") is None:
        pytest.skip("run: apt-get install flite")
    if name == "kokoro" and not (find_spec("kokoro_onnx") and speech_models.is_pulled("kokoro")):
        pytest.skip("run: pip install 'vermilion[kokoro]'; vermilion voice pull --tts kokoro")

    async def main() -> None:
        model = ScriptedModel(["It is Paris."])
        async with listening(model.app) as model_port:
            service = f"http://127.0.0.1:{model_port}/v1"
            agent = Agent(ear(), find_synthesizer(name), Persona(greeting=""), service, "scripted")
            app = create_voice_app(agent)
            async with listening(app) as port, simulated_caller.call(f"ws://127.0.0.1:{port}/ws") as caller:
                said_at = await caller.speak(speech("What is the capital of France?"))
                answer = await caller.answer(said_at, timeout_s=90.0)
                assert answer.sample_rate == agent.synthesizer.sample_rate
                assert "paris" in heard(answer.samples, answer.sample_rate)
                assert [call.record.errors for call in app.state.switchboard.running] == [[]]

    asyncio.run(main())
