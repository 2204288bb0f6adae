"""The service behind a call: found where it runs, refused where it cannot be started."""

from __future__ import annotations

import socket
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from vermilion.errors import BadParameter
from vermilion.voice import model_service


class Loading(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(503)
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


def test_a_service_that_still_loads_is_not_started_again() -> None:
    with HTTPServer(("127.0.0.1", 0), Loading) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        assert model_service.answers(f"http://127.0.0.1:{server.server_port}")
        server.shutdown()
        thread.join()


def test_nobody_at_a_port_is_no_service() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    assert not model_service.answers(f"http://127.0.0.1:{port}")


def test_a_service_elsewhere_is_not_started_here() -> None:
    with (
        pytest.raises(BadParameter, match="address of a running service"),
        model_service.started("http://10.0.0.1:8000", "any"),
    ):
        pass
