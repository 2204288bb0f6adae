"""Whole calls over a WebSocket with a scripted model: real ears, a real mouth, failures on purpose."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import numpy as np
import pytest

from tests.voice.scripted_model import ScriptedModel
from tests.voice.speaking import ear, heard, listening, mouth, speech, until
from vermilion.voice import simulated_caller
from vermilion.voice.call import Agent
from vermilion.voice.persona import Persona, find_persona
from vermilion.voice.simulated_caller import SimulatedCaller
from vermilion.voice.voice_app import Switchboard, create_voice_app

pytestmark = pytest.mark.voice

QUIET = Persona(greeting="", max_tokens=400)
STORY = " ".join(["Once there was a small brown dog who lived near a quiet river."] * 12)
MOST_CANCEL_S = 0.4
"""From the caller's first sound to the end of the request."""


@asynccontextmanager
async def calling(
    model: ScriptedModel, persona: Persona = QUIET, *, hung_up: bool = False
) -> AsyncIterator[tuple[SimulatedCaller, Switchboard]]:
    async with listening(model.app) as model_port:
        agent = Agent(ear(), mouth(), persona, f"http://127.0.0.1:{model_port}/v1", "scripted")
        app = create_voice_app(agent)
        async with listening(app) as port, simulated_caller.call(f"ws://127.0.0.1:{port}/ws") as caller:
            yield caller, app.state.switchboard


async def ask(caller: SimulatedCaller, question: str) -> str:
    """Says it and returns what was heard back."""
    caller.forget()
    answer = await caller.answer(await caller.speak(speech(question)))
    return heard(answer.samples, answer.sample_rate)


def contents(body: dict[str, Any]) -> list[tuple[str, str]]:
    return [(message["role"], message.get("content") or "") for message in body["messages"]]


def test_a_question_is_heard_asked_and_answered_aloud() -> None:
    async def main() -> None:
        model = ScriptedModel(["The capital of France is Paris."])
        async with calling(model) as (caller, board):
            assert "paris" in await ask(caller, "What is the capital of France?")
            await until(lambda: any(call.record.latencies for call in board.running))
            (call,) = board.running
        assert contents(model.bodies[0])[-1] == ("user", "What is the capital of France?")
        assert model.bodies[0]["realtime"] is True
        latency = call.record.latencies[0]
        assert {"endpointing", "transcription", "first_text", "synthesis"} <= latency.stages_ms.keys()
        assert sum(latency.stages_ms.values()) == pytest.approx(latency.total_ms, abs=20)

    asyncio.run(main())


def test_the_greeting_is_spoken_and_the_conversation_is_kept_over_turns() -> None:
    async def main() -> None:
        model = ScriptedModel(["Her name is Daisy.", "She likes to swim in the river."])
        async with calling(model, Persona(greeting="Good morning, this is the zoo.")) as (caller, _):
            greeting = await caller.answer(caller.began_at)
            assert "zoo" in heard(greeting.samples, greeting.sample_rate)
            await ask(caller, "What is the name of the elephant?")
            assert "river" in await ask(caller, "And what does she like?")
        kept = contents(model.bodies[1])
        assert [role for role, _ in kept] == ["system", "assistant", "user", "assistant", "user"]
        assert kept[3] == ("assistant", "Her name is Daisy.")

    asyncio.run(main())


def test_barge_in_cancels_the_request_and_the_next_question_is_answered() -> None:
    async def main() -> None:
        model = ScriptedModel([STORY, "The capital of France is Paris."])
        async with calling(model) as (caller, board):
            said_at = await caller.speak(speech("Tell me a long story about a dog."))
            await until(lambda: caller.heard_since(said_at))
            await asyncio.sleep(0.8)
            assert not model.cancelled_at, "the answer must still be coming"
            question = speech("What is the capital of France?")
            onset_s = np.flatnonzero(np.abs(question) > 500)[0] / 16_000
            caller.forget()
            began_at = time.monotonic() + onset_s
            answer = await caller.answer(await caller.speak(question))
            assert "paris" in heard(answer.samples, answer.sample_rate)
            assert [call.record.interruptions for call in board.running] == [1]
        assert model.cancelled_at[0] - began_at < MOST_CANCEL_S
        assert 0 < caller.interrupted_at - began_at < MOST_CANCEL_S + 0.1

    asyncio.run(main())


def test_a_model_that_fails_is_apologised_for_and_asked_again_at_the_next_turn() -> None:
    async def main() -> None:
        model = ScriptedModel([400, "The capital of France is Paris."])
        async with calling(model) as (caller, board):
            assert "sorry" in await ask(caller, "What is the capital of France?")
            assert "paris" in await ask(caller, "What is the capital of France?")
            assert [len(call.record.errors) for call in board.running] == [1]

    asyncio.run(main())


def test_a_voice_that_fails_is_apologised_for_with_sound_made_before(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        model = ScriptedModel(["The capital of France is Paris."])
        async with calling(model) as (caller, _):
            with monkeypatch.context() as broken:
                broken.setattr(type(mouth()), "speak", _broken)
                assert "sorry" in await ask(caller, "What is the capital of France?")
            assert "paris" in await ask(caller, "What is the capital of France?")

    question = "What is the capital of France?"
    speech(question)
    asyncio.run(main())


def test_an_ear_that_fails_is_apologised_for(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        model = ScriptedModel(["The capital of France is Paris."])
        async with calling(model) as (caller, _):
            with monkeypatch.context() as broken:
                broken.setattr(type(ear()), "transcribe", _broken)
                caller.forget()
                answer = await caller.answer(await caller.speak(speech("What is the capital of France?")))
            assert "sorry" in heard(answer.samples, answer.sample_rate)
            assert "paris" in await ask(caller, "What is the capital of France?")

    asyncio.run(main())


def test_a_question_is_answered_however_slow_the_ear_is(monkeypatch: pytest.MonkeyPatch) -> None:
    transcribe = type(ear()).transcribe

    def slow(*args: Any, **options: Any) -> Any:
        time.sleep(6)
        return transcribe(*args, **options)

    async def main() -> None:
        async with calling(ScriptedModel(["The capital of France is Paris."])) as (caller, board):
            with monkeypatch.context() as slowed:
                slowed.setattr(type(ear()), "transcribe", slow)
                caller.forget()
                answer = await caller.answer(await caller.speak(speech("What is the capital of France?")))
            assert "paris" in heard(answer.samples, answer.sample_rate)
            assert [call.record.errors for call in board.running] == [[]]

    asyncio.run(main())


def test_a_sentence_is_spoken_however_slow_the_voice_is(monkeypatch: pytest.MonkeyPatch) -> None:
    speak = type(mouth()).speak

    def slow(*args: Any, **options: Any) -> Any:
        time.sleep(4)
        yield from speak(*args, **options)

    async def main() -> None:
        async with calling(ScriptedModel(["The capital of France is Paris."])) as (caller, board):
            with monkeypatch.context() as slowed:
                slowed.setattr(type(mouth()), "speak", slow)
                assert "paris" in await ask(caller, "What is the capital of France?")
            assert [call.record.errors for call in board.running] == [[]]

    speech("What is the capital of France?")
    asyncio.run(main())


def _broken(*args: Any, **options: Any) -> Any:
    raise RuntimeError("broken on purpose")


def test_a_tool_is_called_and_its_result_is_spoken() -> None:
    async def main() -> None:
        wanted = {"day": "friday", "time": "20:00", "guests": 4, "name": "Smith"}
        model = ScriptedModel([{"name": "book_table", "arguments": wanted}])
        async with calling(model, find_persona("restaurant")) as (caller, _):
            await caller.answer(caller.began_at)
            assert "booked" in await ask(caller, "Please book a table for four on Friday at eight.")
        body = model.bodies[0]
        assert body["tool_choice"] == "required"
        assert [tool["function"]["strict"] for tool in body["tools"]] == [True, True]
        assert len(model.bodies) == 1

    asyncio.run(main())


def test_a_model_that_decides_for_itself_is_told_the_result_and_speaks_it() -> None:
    async def main() -> None:
        call = {"name": "find_tables", "arguments": {"day": "friday", "guests": 4}}
        model = ScriptedModel([call, "We have a table by the window."])
        persona = Persona(greeting="", tools="table_booking")
        async with calling(model, persona) as (caller, _):
            assert "window" in await ask(caller, "Is a table free on Friday for four people?")
        assert model.bodies[1]["messages"][-1]["role"] == "tool"
        assert "20:00" in model.bodies[1]["messages"][-1]["content"]

    asyncio.run(main())


def test_two_calls_in_one_process_do_not_hear_each_other() -> None:
    async def main() -> None:
        model = ScriptedModel(["The capital is Paris."])
        async with listening(model.app) as model_port:
            agent = Agent(ear(), mouth(), QUIET, f"http://127.0.0.1:{model_port}/v1", "scripted")
            app = create_voice_app(agent)
            async with listening(app) as port:
                url = f"ws://127.0.0.1:{port}"
                async with (
                    simulated_caller.call(f"{url}/ws") as one,
                    simulated_caller.call(f"{url}/ws") as two,
                ):
                    asked = "What is the capital of France?"
                    answers = await asyncio.gather(ask(one, asked), ask(two, asked))
                    assert all("paris" in answer for answer in answers)
                    async with httpx.AsyncClient() as client:
                        status = (await client.get(f"http://127.0.0.1:{port}/api/status")).json()
                    assert (status["calls"], status["model"]) == (2, "scripted")
                board = app.state.switchboard
                await until(lambda: not board.running)
                users = [[text for who, text in record.lines if who == "user"] for record in board.finished]
                assert users == [["What is the capital of France?"]] * 2

    asyncio.run(main())
