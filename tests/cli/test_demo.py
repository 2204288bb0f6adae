"""`vermilion demo` against a service that answers from a script."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pytest

from vermilion import cli


def vermilion(*arguments: str) -> int:
    """The exit status of a command line."""
    try:
        return cli.main(arguments)
    except SystemExit as end:
        return int(end.code or 0)


class Service(BaseHTTPRequestHandler):
    """Answers as the HTTP service does."""

    lines: ClassVar[list[str]]
    status: ClassVar[int]
    prompts: ClassVar[list[str]]

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        Service.prompts.append(body["messages"][0]["content"])
        self.send_response(Service.status)
        self.end_headers()
        for line in Service.lines:
            self.wfile.write(f"{line}\n\n".encode())

    def log_message(self, format: str, *arguments: object) -> None:
        """Keeps the test's output clean."""


@pytest.fixture
def service_url() -> Iterator[str]:
    Service.lines, Service.status, Service.prompts = [], 200, []
    with ThreadingHTTPServer(("127.0.0.1", 0), Service) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def delta(text: str) -> str:
    return "data: " + json.dumps({"choices": [{"delta": {"content": text}}]})


def test_demo_prints_the_answer_its_figures_and_the_client_line(
    service_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    usage = {"choices": [], "usage": {"completion_tokens": 6, "diffusion": {"passes": 3}}}
    Service.lines = [
        delta("The sky"),
        ": alive",
        delta(" is blue."),
        f"data: {json.dumps(usage)}",
        "data: [DONE]",
    ]
    assert vermilion("demo", "--url", f"{service_url}/v1/", "--prompt", "Why?") == 0
    answer, blank, figures, client = capsys.readouterr().out.splitlines()
    assert (answer, blank) == ("The sky is blue.", "")
    assert "tokens/s" in figures and "2.00 tokens per pass" in figures and "first text after" in figures
    assert client == f'OpenAI(base_url="{service_url}/v1", api_key="unused")'
    assert Service.prompts == ["Why?"]


@pytest.mark.parametrize(
    ("lines", "status", "said"),
    [
        ([delta("half")], 200, "broke the answer off"),
        (["data: [DONE]"], 200, "no text"),
        (['{"error": {"message": "full"}}'], 429, "429"),
        (['data: {"error": {"message": "a step failed"}}'], 200, "a step failed"),
    ],
)
def test_demo_fails_where_no_whole_answer_came(
    lines: list[str], status: int, said: str, service_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Service.lines, Service.status = lines, status
    assert vermilion("demo", "--url", service_url) == 1
    assert said in capsys.readouterr().err


def test_demo_gives_up_when_the_service_has_ended(capsys: pytest.CaptureFixture[str]) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    assert vermilion("demo", "--url", "http://127.0.0.1:9", "--pid", str(ended.pid)) == 1
    assert "ended before it was ready" in capsys.readouterr().err
