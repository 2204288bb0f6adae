"""Audio in the ledger: a tenth of a second is a token, and so is a character that is spoken."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import httpx
import numpy as np
import pytest
import sqlalchemy as sa

from accounts.conftest import until
from serving.audio.fake_speech import Hummer, ToneRecognizer, audio_client, audio_service, tone, wav
from vermilion.accounts import organisations, reports
from vermilion.accounts.database import Database
from vermilion.accounts.gate import Accounts
from vermilion.accounts.keys import RateLimits
from vermilion.accounts.organisations import NewKey, Secret
from vermilion.speech.recognizer import SAMPLE_RATE

pytest.importorskip("av")
pytestmark = pytest.mark.anyio
HEAR, SPEAK = "/v1/audio/transcriptions", "/v1/audio/speech"
SPEECH = wav(tone(440, 1.95, SAMPLE_RATE))
TEXT = "Hello there, you. How are things?"
Open = Callable[..., AbstractAsyncContextManager[httpx.AsyncClient]]


@pytest.fixture
def recognizer() -> ToneRecognizer:
    return ToneRecognizer()


@pytest.fixture
def hummer() -> Hummer:
    return Hummer()


@pytest.fixture
def opened(store: Database, recognizer: ToneRecognizer, hummer: Hummer) -> Open:
    @asynccontextmanager
    async def opening(token: str) -> AsyncIterator[httpx.AsyncClient]:
        accounts = Accounts(store)
        try:
            async with audio_client(audio_service(recognizer, hummer, accounts)) as client:
                client.headers["authorization"] = f"Bearer {token}"
                yield client
        finally:
            await asyncio.to_thread(accounts.writer.close)

    return opening


async def test_both_ways_are_charged_to_the_picodollar(
    opened: Open, ledger: Callable[[], list[Any]], secret: Secret, store: Database
) -> None:
    organisations.change_organisation(store, secret.key.organisation_id, plan="paid")
    with store.writing() as connection:
        connection.execute(sa.text("UPDATE meters SET granted_tokens = 0"))
    # A cent a minute is 600 tokens: 10,000,000,000 picodollars.
    reports.set_price(store, "stt-tones", (16_666_667, 0, 0))
    reports.set_price(store, "tts-hummer", (15_000_000, 0, 2_000_000))
    async with opened(secret.text) as client:
        assert (await client.post(HEAR, files={"file": ("a.wav", SPEECH)})).status_code == 200
        assert (await client.post(SPEAK, json={"input": TEXT})).status_code == 200
    heard, spoken = ledger()
    assert (heard.model, heard.route, heard.outcome) == ("stt-tones", HEAR, "finished")
    assert (heard.prompt_tokens, heard.completion_tokens, heard.amount) == (20, 0, 20 * 16_666_667)
    assert (spoken.model, spoken.prompt_tokens, spoken.completion_tokens) == ("tts-hummer", len(TEXT), 34)
    assert spoken.amount == len(TEXT) * 15_000_000 + 34 * 2_000_000


async def test_a_repetition_of_a_transcript_is_answered_from_the_ledger(
    opened: Open, ledger: Callable[[], list[Any]], secret: Secret, recognizer: ToneRecognizer
) -> None:
    async with opened(secret.text) as client:
        headers = {"idempotency-key": "one"}
        form = {"response_format": "verbose_json"}
        replies = [
            await client.post(HEAR, files={"file": ("a.wav", SPEECH)}, data=form, headers=headers)
            for _ in range(2)
        ]
        other = await client.post(
            HEAR, files={"file": ("a.wav", wav(tone(880, 1, SAMPLE_RATE)))}, data=form, headers=headers
        )
    assert replies[0].json() == replies[1].json() and replies[1].headers["idempotent-replayed"] == "true"
    assert other.json()["error"]["code"] == "idempotency_key_reused"
    assert len(ledger()) == len(recognizer.asked) == 1


async def test_who_leaves_is_charged_for_what_was_done(
    opened: Open, ledger: Callable[[], list[Any]], secret: Secret, recognizer: ToneRecognizer, hummer: Hummer
) -> None:
    recognizer.held, hummer.held = threading.Event(), threading.Event()
    quiet = tone(440, 1, SAMPLE_RATE) // 1000
    long = wav(np.concatenate([tone(440, 19, SAMPLE_RATE), quiet] * 2))
    async with opened(secret.text) as client:
        hearing = asyncio.create_task(client.post(HEAR, files={"file": ("a.wav", long)}))
        await until(lambda: len(recognizer.asked) == 2)
        hearing.cancel()
        speaking = asyncio.create_task(client.post(SPEAK, json={"input": TEXT}))
        await until(lambda: len(hummer.said) == 1)
        await asyncio.sleep(0.1)
        speaking.cancel()
        await asyncio.gather(hearing, speaking, return_exceptions=True)
        recognizer.held.set()
        hummer.held.set()
    heard, spoken = ledger()
    assert heard.outcome == spoken.outcome == "aborted"
    assert 190 <= heard.prompt_tokens <= 200
    assert (spoken.prompt_tokens, spoken.completion_tokens) == (len("Hello there, you. "), 18)


async def test_limits_and_scopes_hold(
    opened: Open, ledger: Callable[[], list[Any]], secret: Secret, store: Database
) -> None:
    organisation = secret.key.organisation_id
    limited = organisations.create_key(store, organisation, NewKey(limits=RateLimits(tokens_per_minute=19)))
    reader = organisations.create_key(store, organisation, NewKey(scopes=frozenset(("manage",))))
    async with opened(limited.text) as client:
        refused = await client.post(HEAR, files={"file": ("a.wav", SPEECH)})
        assert refused.status_code == 429 and "19 tokens a minute" in refused.text
        assert (await client.post(SPEAK, json={"input": "x" * 20})).status_code == 429
        assert (await client.post(SPEAK, json={"input": "Hello."})).status_code == 200
    async with opened(reader.text) as client:
        for path in (HEAR, SPEAK):
            assert (await client.post(path, json={"input": "hi"})).status_code == 403
    async with opened("wrong") as client:
        assert (await client.post(SPEAK, json={"input": "hi"})).status_code == 401
    assert [row.prompt_tokens for row in ledger()] == [6]
