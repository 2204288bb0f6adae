"""Calls whose requests come to a process that does not hold them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from aiortc import RTCPeerConnection, RTCSessionDescription

from tests.voice.scripted_model import ScriptedModel
from tests.voice.speaking import ear, listening, mouth, until
from vermilion.voice.call import Agent
from vermilion.voice.other_processes import OtherProcesses
from vermilion.voice.persona import Persona
from vermilion.voice.voice_app import create_voice_app

pytestmark = pytest.mark.voice


@asynccontextmanager
async def two_processes() -> AsyncIterator[tuple[list[Any], list[httpx.AsyncClient]]]:
    """As far as a call can tell: two applications that know of each other, and a client of each."""
    model = ScriptedModel(["Yes."])
    async with listening(model.app) as model_port:
        agent = Agent(ear(), mouth(), Persona(greeting=""), f"http://127.0.0.1:{model_port}/v1", "scripted")
        urls: list[list[str]] = [[], []]
        apps = [create_voice_app(agent, others=OtherProcesses(of)) for of in urls]
        async with listening(apps[0]) as one, listening(apps[1]) as other:
            addresses = [f"http://127.0.0.1:{port}" for port in (one, other)]
            urls[0].append(addresses[1])
            urls[1].append(addresses[0])
            async with (
                httpx.AsyncClient(base_url=addresses[0], timeout=20) as to_one,
                httpx.AsyncClient(base_url=addresses[1], timeout=20) as to_other,
            ):
                yield [app.state.switchboard for app in apps], [to_one, to_other]


def test_a_webrtc_call_goes_on_whichever_process_its_requests_come_to() -> None:
    async def main() -> None:
        async with two_processes() as (boards, (one, other)):
            peer = RTCPeerConnection()
            peer.addTransceiver("audio", direction="sendrecv")
            await peer.setLocalDescription(await peer.createOffer())
            offered = {"sdp": peer.localDescription.sdp, "type": peer.localDescription.type}
            answer = (await one.post("/api/offer", json=offered)).json()
            await peer.setRemoteDescription(RTCSessionDescription(answer["sdp"], answer["type"]))
            await until(lambda: boards[0].running)

            candidates = {"pc_id": answer["pc_id"], "candidates": []}
            for process in (one, other):
                assert (await process.patch("/api/offer", json=candidates)).json() == {"status": "success"}
            again = (await other.post("/api/offer", json={**offered, "pc_id": answer["pc_id"]})).json()
            assert again["pc_id"] == answer["pc_id"]
            assert [len(board.running) for board in boards] == [1, 0]
            for process in (one, other):
                status = (await process.get("/api/status")).json()
                assert (status["calls"], status["processes"]) == (1, 2)
                assert len((await process.get("/api/calls")).json()) == 1
            unknown = {"pc_id": "nobody's", "candidates": []}
            assert (await other.patch("/api/offer", json=unknown)).status_code == 404
            await peer.close()

    asyncio.run(main())


def test_a_process_that_is_gone_is_left_out() -> None:
    async def main() -> None:
        async with two_processes() as (_, (one, other)):
            assert (await one.get("/api/status")).json()["processes"] == 2
            gone = OtherProcesses(["http://127.0.0.1:9"])
            assert await gone.everywhere("/api/status") == []
            assert await gone.hand_on("PATCH", "/api/offer", {"pc_id": "x"}) is None
            assert (await other.get("/api/status", params={"own": "true"})).json().get("processes") is None

    asyncio.run(main())
