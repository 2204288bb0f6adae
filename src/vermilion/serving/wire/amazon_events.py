"""Amazon's event streams: binary messages of headers and a payload, each with two checksums.

A message is its length and that of its headers (32 bits each, big-endian), the CRC-32 of these eight bytes,
the headers, the payload, and the CRC-32 of everything before. A header is its name behind one byte of length,
the byte 7 for text, and the text behind two bytes of length.
"""

from __future__ import annotations

import struct
from functools import cache
from zlib import crc32

AMAZON_EVENT_STREAM = "application/vnd.amazon.eventstream"
_TEXT = 7
_OVERHEAD_BYTES = 16


def event_message(kind: str, payload: bytes, content_type: str = "application/json") -> bytes:
    return _message(_headers("event", kind, content_type), payload)


def exception_message(kind: str, payload: bytes) -> bytes:
    """How a stream ends that cannot go on."""
    return _message(_headers("exception", kind, "application/json"), payload)


def _message(headers: bytes, payload: bytes) -> bytes:
    prelude = struct.pack(">II", _OVERHEAD_BYTES + len(headers) + len(payload), len(headers))
    begun = prelude + struct.pack(">I", crc32(prelude)) + headers + payload
    return begun + struct.pack(">I", crc32(begun))


@cache
def _headers(message_type: str, kind: str, content_type: str) -> bytes:
    return b"".join(
        _header(name, value)
        for name, value in (
            (f":{message_type}-type", kind),
            (":content-type", content_type),
            (":message-type", message_type),
        )
    )


def _header(name: str, value: str) -> bytes:
    return (
        struct.pack(">B", len(name)) + name.encode() + struct.pack(">BH", _TEXT, len(value)) + value.encode()
    )
