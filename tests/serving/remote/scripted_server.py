"""A server with OpenAI's API that says what a test tells it to, on a thread."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

DONE = "[DONE]"


def chunk(delta: dict[str, Any] | None = None, reason: str | None = None, **more: Any) -> str:
    choice = {"index": 0, "delta": delta or {}, "finish_reason": reason}
    return json.dumps({"id": "x", "choices": [choice], **more})


def usage(prompt: int, completion: int, cached: int = 0) -> str:
    told = {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "prompt_tokens_details": {"cached_tokens": cached},
    }
    return json.dumps({"id": "x", "choices": [], "usage": told})


SAID = (chunk({"role": "assistant", "content": ""}), chunk({"content": "Hel"}), chunk({"content": "lo"}))
ANSWER = (*SAID, chunk({}, "stop"), usage(7, 3, 2), DONE)


@dataclass
class Script:
    """What it answers, and what it was asked."""

    model: str = "big"
    owner: str = "vllm"
    status: int = 200
    body: Any = None
    """Of a refusal."""
    says: Sequence[str] = ANSWER
    """Data of its server-sent events."""
    asked: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    keys: set[str | None] = field(default_factory=set)
    url: str = ""


@contextmanager
def scripted(script: Script) -> Iterator[Script]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            script.keys.add(self.headers.get("authorization"))
            row = {"id": script.model, "owned_by": script.owner, "max_model_len": 4096}
            self._whole(200, {"object": "list", "data": [row]})

        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers["content-length"]))
            script.asked.append((self.path, json.loads(content)))
            if script.status != 200:
                self._whole(script.status, script.body)
                return
            self.send_response(200)
            self.send_header("content-type", "text/event-stream")
            self.send_header("connection", "close")
            self.end_headers()
            for data in script.says:
                self.wfile.write(f"data: {data}\n\n".encode())
            self.close_connection = True

        def _whole(self, status: int, body: Any) -> None:
            content = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *words: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    script.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield script
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
