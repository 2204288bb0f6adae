"""The voice process: one HTTP application for the page, WebRTC, WebSockets and phone lines."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import BackgroundTasks, FastAPI, HTTPException, Request, WebSocket
from fastapi.staticfiles import StaticFiles
from pipecat.pipeline.worker import PipelineParams
from pipecat.serializers.protobuf import ProtobufFrameSerializer
from pipecat.transports.base_transport import BaseTransport, TransportParams
from pipecat.transports.smallwebrtc.connection import SmallWebRTCConnection
from pipecat.transports.smallwebrtc.request_handler import (
    IceCandidate,
    SmallWebRTCPatchRequest,
    SmallWebRTCRequest,
    SmallWebRTCRequestHandler,
)
from pipecat.transports.smallwebrtc.transport import SmallWebRTCTransport
from pipecat.transports.websocket.fastapi import FastAPIWebsocketParams, FastAPIWebsocketTransport

from vermilion.errors import BadRequest, ConfigError
from vermilion.speech.recognizer import SAMPLE_RATE
from vermilion.voice.call import Agent, Call, CallRecord
from vermilion.voice.other_processes import OtherProcesses, together
from vermilion.voice.page_check import PageCheck
from vermilion.voice.phone_line import PHONE_RATE, open_line

PAGE = Path(__file__).parent / "page"
_MOST_RECORDS = 200
_NOT_FOUND = 404
_POLICY_VIOLATION, _MOST_REASON_BYTES = 1008, 120
"""Of a WebSocket that is closed (RFC 6455)."""

_log = logging.getLogger(__name__)


class Switchboard:
    """The calls of this process."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self.running: set[Call] = set()
        self.finished: list[CallRecord] = []

    async def answer(self, transport: BaseTransport, params: PipelineParams, *, watched: bool) -> None:
        """Takes one call and returns when it ends."""
        call = Call(self.agent, transport, params, watched=watched)
        self.running.add(call)
        try:
            await call.run()
        finally:
            self.running.discard(call)
            self.finished = [*self.finished[1 - _MOST_RECORDS :], call.record]

    def status(self) -> dict[str, Any]:
        agent = self.agent
        records = [*self.finished, *(call.record for call in self.running)]
        return {
            "service_url": agent.base_url,
            "model": agent.model,
            "persona": agent.persona.name,
            "recognizer": agent.recognizer.name,
            "synthesizer": agent.synthesizer.name,
            "sample_rate_in": SAMPLE_RATE,
            "sample_rate_out": agent.synthesizer.sample_rate,
            "calls": len(self.running),
            "calls_finished": len(self.finished),
            "turns": sum(len(record.latencies) for record in records),
            "interruptions": sum(record.interruptions for record in records),
            "errors": sum(len(record.errors) for record in records),
        }

    def calls(self) -> list[dict[str, Any]]:
        """What was measured of each call, the last ones; nothing of what was said."""
        return [
            {
                "turns": [
                    {"total_ms": turn.total_ms, "stages_ms": turn.stages_ms} for turn in record.latencies
                ],
                "interruptions": record.interruptions,
                "errors": record.errors,
            }
            for record in [*self.finished, *(call.record for call in self.running)]
        ]


def create_voice_app(
    agent: Agent,
    host: str = "127.0.0.1",
    allowed_hosts: Sequence[str] = (),
    others: OtherProcesses | None = None,
) -> FastAPI:
    """Answers calls with `agent` on the address `host`; there is no login, but pages of other sites than this
    one and `allowed_hosts` are refused."""
    board, others = Switchboard(agent), others or OtherProcesses()
    webrtc = SmallWebRTCRequestHandler()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.gather(*(call.worker.cancel() for call in board.running))
        await webrtc.close()

    app = FastAPI(title="Vermilion voice", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.add_middleware(PageCheck, host=host, allowed_hosts=allowed_hosts)
    app.state.switchboard = board
    _add_reports(app, board, others)
    _add_webrtc(app, board, webrtc, others)
    _add_sockets(app, board)
    if PAGE.is_dir():
        app.mount("/", StaticFiles(directory=PAGE, html=True))
    return app


def _add_reports(app: FastAPI, board: Switchboard, others: OtherProcesses) -> None:
    @app.get("/api/status")
    async def status(own: bool = False) -> dict[str, Any]:
        return board.status() if own else together([board.status(), *await others.everywhere("/api/status")])

    @app.get("/api/calls")
    async def calls(own: bool = False) -> list[dict[str, Any]]:
        return board.calls() if own else sum(await others.everywhere("/api/calls"), board.calls())


def _add_webrtc(
    app: FastAPI, board: Switchboard, webrtc: SmallWebRTCRequestHandler, others: OtherProcesses
) -> None:
    async def of_another(request: Request, body: dict[str, Any], own: bool) -> Any | None:
        """The answer of the process that has the call, where that is another; 404 where it should be here."""
        if body.get("pc_id") in (None, *webrtc._pcs_map):
            return None
        if own:
            raise HTTPException(_NOT_FOUND, "no such call here")
        return await others.hand_on(request.method, request.url.path, body)

    @app.post("/api/offer")
    async def offer(request: Request, background: BackgroundTasks, own: bool = False) -> Any:
        body = await request.json()
        if (answered := await of_another(request, body, own)) is not None:
            return answered
        asked = SmallWebRTCRequest.from_dict(body)

        async def begin(connection: SmallWebRTCConnection) -> None:
            params = TransportParams(audio_in_enabled=True, audio_out_enabled=True)
            transport = SmallWebRTCTransport(webrtc_connection=connection, params=params)
            rates = _rates(SAMPLE_RATE, board.agent.synthesizer.sample_rate)
            background.add_task(board.answer, transport, rates, watched=True)

        return await webrtc.handle_web_request(asked, begin)

    @app.patch("/api/offer")
    async def candidates(request: Request, own: bool = False) -> Any:
        body = await request.json()
        if (answered := await of_another(request, body, own)) is not None:
            return answered
        found = [IceCandidate(**candidate) for candidate in body["candidates"]]
        await webrtc.handle_patch_request(SmallWebRTCPatchRequest(body["pc_id"], found))
        return {"status": "success"}


def _add_sockets(app: FastAPI, board: Switchboard) -> None:
    spoken_rate = board.agent.synthesizer.sample_rate

    @app.websocket("/ws")
    async def talk(socket: WebSocket, page: bool = False) -> None:
        await socket.accept()
        params = FastAPIWebsocketParams(
            audio_in_enabled=True, audio_out_enabled=True, serializer=ProtobufFrameSerializer()
        )
        transport = FastAPIWebsocketTransport(socket, params)
        await board.answer(transport, _rates(SAMPLE_RATE, spoken_rate), watched=page)

    @app.websocket("/line")
    async def line(socket: WebSocket) -> None:
        await socket.accept()
        try:
            transport, phone = await open_line(socket)
        except BadRequest as error:
            await socket.close(_POLICY_VIOLATION, str(error)[:_MOST_REASON_BYTES])
            return
        rate = PHONE_RATE if phone else spoken_rate
        await board.answer(transport, _rates(SAMPLE_RATE, rate), watched=not phone)


def listen(host: str, port: int) -> tuple[socket.socket, str]:
    """A socket that listens, and the page's address. Raises ConfigError for a taken port."""
    try:
        listener = socket.create_server(
            (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET
        )
    except OSError as error:
        raise ConfigError(
            f"Cannot listen on {host} port {port}: {error.strerror or error}. Choose another with --port."
        ) from None
    return listener, f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"


def serve(
    agent: Agent,
    host: str,
    allowed_hosts: Sequence[str],
    listeners: list[socket.socket],
    others: OtherProcesses | None = None,
) -> None:
    """Answers calls until a signal."""
    app = create_voice_app(agent, host, allowed_hosts, others)
    uvicorn.Server(uvicorn.Config(app, log_level=logging.WARNING)).run(listeners)


def _rates(heard: int, spoken: int) -> PipelineParams:
    return PipelineParams(audio_in_sample_rate=heard, audio_out_sample_rate=spoken, enable_metrics=True)
