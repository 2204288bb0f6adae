"""Several processes at one address: all of them answer, and one that ends is begun again."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from urllib.error import URLError
from urllib.request import urlopen

import pytest

from vermilion.errors import EngineFailure
from vermilion.voice import call_processes
from vermilion.voice.call_processes import CallProcess, answer_in_processes


class Page(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(str(os.getpid()).encode())

    def log_message(self, format: str, *values: object) -> None:
        pass


def answer(place: CallProcess) -> None:
    """Tells its process id at the shared address."""
    assert [each.getsockname()[0] for each in place.listeners] == ["127.0.0.1"] * 2
    assert len(place.others) == 1
    server = HTTPServer(("127.0.0.1", 0), Page, bind_and_activate=False)
    server.socket = place.listeners[0]
    place.ready.set()
    server.serve_forever()


def fail(place: CallProcess) -> None:
    raise SystemExit(3)


def at_address(check: Callable[[str], None]) -> list[Exception]:
    """Runs two processes and `check` of their address beside them; what it raised."""
    raised: list[Exception] = []
    listener = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"

    def look() -> None:
        try:
            check(url)
        except Exception as error:
            raised.append(error)
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    try:
        answer_in_processes(2, listener, answer, threading.Thread(target=look).start)
    finally:
        signal.signal(signal.SIGTERM, before)
        listener.close()
    with pytest.raises(URLError):
        urlopen(url, timeout=2)
    return raised


def told(url: str, number: int, besides: frozenset[int] = frozenset()) -> frozenset[int]:
    """Process ids that answer, once there are so many that are not `besides`."""
    found: set[int] = set()
    deadline = time.monotonic() + 60
    while len(found - besides) < number and time.monotonic() < deadline:
        with suppress(OSError), urlopen(url, timeout=2) as reply:
            found.add(int(reply.read()))
    assert len(found - besides) >= number
    return frozenset(found)


def test_all_answer_at_one_address_and_one_that_ends_is_begun_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def check(url: str) -> None:
        first = told(url, 2)
        assert os.getpid() not in first
        os.kill(min(first), signal.SIGKILL)
        told(url, 1, besides=first)

    monkeypatch.setattr(call_processes, "_AT_START_S", 0.0)
    assert at_address(check) == []


def test_one_that_ends_at_its_start_ends_all() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        pytest.raises(EngineFailure, match="ended at its start, with status 3"),
    ):
        answer_in_processes(2, listener, fail, lambda: None)
