"""Calls with the embedded model behind a running service: what the engine sees of an interruption."""

from __future__ import annotations

import asyncio
import time

import httpx
import numpy as np
import pytest

from tests.voice.speaking import ear, heard, listening, mouth, speech, until
from vermilion.cli.demo import wait_until_ready
from vermilion.voice import model_service, simulated_caller
from vermilion.voice.call import Agent
from vermilion.voice.persona import Persona
from vermilion.voice.voice_app import create_voice_app

pytestmark = [pytest.mark.voice, pytest.mark.model]

TALKATIVE = Persona(greeting="", max_tokens=600, temperature=0.0)
MOST_FREE_S = 0.5
"""From the caller's first sound to a row that is free: 400 ms to the end of the request, and a pass."""


@pytest.fixture(scope="module")
def service_url() -> object:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    with model_service.started(url, "smollm2-135m-diffusion") as pid:
        wait_until_ready(url, 300, pid)
        yield url


def gauge(url: str, name: str) -> float:
    lines = httpx.get(f"{url}/metrics").text.splitlines()
    return sum(float(line.split()[1]) for line in lines if line.split()[0] == name)


def test_the_row_of_an_interrupted_answer_is_free_at_once(service_url: str) -> None:
    async def main() -> None:
        agent = Agent(ear(), mouth(), TALKATIVE, f"{service_url}/v1", "smollm2-135m-diffusion")
        agent.warm()
        question = speech("What is the capital of France?")
        onset_s = np.flatnonzero(np.abs(question) > 500)[0] / 16_000
        async with (
            listening(create_voice_app(agent)) as port,
            simulated_caller.call(f"ws://127.0.0.1:{port}/ws") as caller,
        ):
            cancelled = gauge(service_url, "vermilion_cancellations_total")
            said_at = await caller.speak(speech("Tell me a very long story about a dog and a cat."))
            await until(lambda: caller.heard_since(said_at))
            assert gauge(service_url, "vermilion_running_requests") == 1, "the answer must still be coming"
            caller.forget()
            talking = asyncio.create_task(caller.speak(question))
            began_at = time.monotonic() + onset_s
            running = 1.0
            async with httpx.AsyncClient() as client:
                while running:
                    text = (await client.get(f"{service_url}/metrics")).text
                    found = [
                        line for line in text.splitlines() if line.startswith("vermilion_running_requests ")
                    ]
                    running = float(found[0].split()[1])
            assert time.monotonic() - began_at < MOST_FREE_S
            answer = await caller.answer(await talking)
            assert "paris" in heard(answer.samples, answer.sample_rate)
        assert gauge(service_url, "vermilion_cancellations_total") == cancelled + 1

    asyncio.run(main())
