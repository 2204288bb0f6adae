"""Calls over WebSockets of other protocols: Twilio, Telnyx, Plivo, and pipecat's evaluation harness.

Which of them it is shows in its first messages. Phones send 8 kHz mu-law or A-law; it is heard at 16 kHz.
"""

from __future__ import annotations

from typing import Any

from fastapi import WebSocket
from pipecat.evals.fastapi_transport import EvalFastAPIWebsocketTransport
from pipecat.evals.serializer import EvalConnectionFlags, EvalSerializer
from pipecat.evals.transport import EvalTransportParams
from pipecat.runner.utils import parse_telephony_websocket
from pipecat.serializers.base_serializer import FrameSerializer
from pipecat.serializers.plivo import PlivoFrameSerializer
from pipecat.serializers.telnyx import TelnyxFrameSerializer
from pipecat.serializers.twilio import TwilioFrameSerializer
from pipecat.transports.base_transport import BaseTransport
from pipecat.transports.websocket.fastapi import FastAPIWebsocketParams, FastAPIWebsocketTransport

from vermilion.errors import BadRequest

PHONE_RATE = 8_000
"""Samples per second on a phone."""


async def open_line(socket: WebSocket) -> tuple[BaseTransport, bool]:
    """The transport of an accepted WebSocket, and whether a phone is at its end. Raises BadRequest."""
    try:
        kind, data = await parse_telephony_websocket(socket)
    except ValueError as error:
        raise BadRequest(f"The line closed before it said what it is: {error}.") from None
    if kind == "eval":
        params = EvalTransportParams(
            audio_in_enabled=True, audio_out_enabled=True, serializer=EvalSerializer()
        )
        flags = EvalConnectionFlags.model_validate(data.body)
        return EvalFastAPIWebsocketTransport(socket, params, flags), False
    serializer = _serializer(kind, data)
    phone = FastAPIWebsocketParams(audio_in_enabled=True, audio_out_enabled=True, serializer=serializer)
    return FastAPIWebsocketTransport(socket, phone), True


def _serializer(kind: str, data: Any) -> FrameSerializer:
    """Ending the stream ends the call, since the provider has nothing more to do; so no credentials here."""
    if kind == "twilio":
        settings = TwilioFrameSerializer.InputParams(auto_hang_up=False)
        return TwilioFrameSerializer(data.stream_id, data.call_id, params=settings)
    if kind == "telnyx":
        settings = TelnyxFrameSerializer.InputParams(auto_hang_up=False)
        encoding = data.outbound_encoding or "PCMU"
        return TelnyxFrameSerializer(data.stream_id, encoding, encoding, params=settings)
    if kind == "plivo":
        settings = PlivoFrameSerializer.InputParams(auto_hang_up=False)
        return PlivoFrameSerializer(data.stream_id, data.call_id, params=settings)
    raise BadRequest(f"A line of the kind {kind!r} is not known; known: twilio, telnyx, plivo.")
