"""A first request to a running service, over plain HTTP: prints the answer as it arrives, then its cost."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import OpenerDirector, ProxyHandler, Request, build_opener

from vermilion.errors import EngineFailure

PROMPT = "Explain in two sentences why the sky is blue."
MAX_TOKENS = 128
TIMEOUT_S = 120.0
POLL_S = 0.2


@dataclass(frozen=True, slots=True)
class DemoResult:
    """The cost of the request, by the client's clock."""

    tokens: int
    passes: int | None
    """Forward passes, where the service reports them."""
    seconds: float
    first_text_s: float

    def __str__(self) -> str:
        parts = [f"{self.tokens / max(self.seconds, 1e-9):.1f} tokens/s"]
        if self.passes:
            parts.append(f"{self.tokens / self.passes:.2f} tokens per pass")
        return " · ".join([*parts, f"first text after {self.first_text_s:.2f} s"])


def wait_until_ready(url: str, timeout_s: float, pid: int | None = None) -> None:
    """Returns once GET /ready answers 200.

    Raises EngineFailure after `timeout_s`, or at once when process `pid`, the service, is gone.
    """
    deadline_s = time.monotonic() + timeout_s
    opener = _opener()
    loading = False
    while True:
        try:
            with opener.open(f"{url}/ready", timeout=5):
                return
        except HTTPError:
            loading = True
        except (URLError, OSError):
            pass
        if pid is not None and not _alive(pid):
            raise EngineFailure("The service ended before it was ready.")
        if time.monotonic() > deadline_s:
            state = "still loads its model" if loading else "does not answer; is the service running?"
            raise EngineFailure(f"After {timeout_s:.0f} s {url} {state}")
        time.sleep(POLL_S)


def ask(url: str, prompt: str, show: Callable[[str], None]) -> DemoResult:
    """One streamed chat answer; `show` gets its text piece by piece.

    Raises EngineFailure when the service refuses, breaks off or sends no text.
    """
    started_s = time.monotonic()
    first_text_s: float | None = None
    usage: dict[str, Any] = {}
    for chunk in _chunks(url, prompt):
        if "error" in chunk:
            raise EngineFailure(f"The service failed: {chunk['error'].get('message', chunk['error'])}")
        usage = chunk.get("usage") or usage
        for choice in chunk.get("choices", []):
            text = choice.get("delta", {}).get("content") or ""
            if text and first_text_s is None:
                first_text_s = time.monotonic() - started_s
            show(text)
    if first_text_s is None:
        raise EngineFailure("The service sent no text.")
    seconds = time.monotonic() - started_s
    return DemoResult(usage.get("completion_tokens", 0), _passes(usage), seconds, first_text_s)


def client_line(url: str) -> str:
    """The line that makes an OpenAI client use this service."""
    return f'OpenAI(base_url="{url}/v1", api_key="unused")'


def _chunks(url: str, prompt: str) -> Iterator[dict[str, Any]]:
    """The JSON of each server-sent event up to [DONE]."""
    body = {
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": MAX_TOKENS,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    request = Request(
        f"{url}/v1/chat/completions",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json", "Authorization": "Bearer unused"},
    )
    try:
        with _opener().open(request, timeout=TIMEOUT_S) as response:
            for line in response:
                data = line.decode().strip().removeprefix("data: ")
                if data == "[DONE]":
                    return
                if data.startswith("{"):
                    yield json.loads(data)
    except HTTPError as error:
        detail = error.read(2000).decode(errors="replace")
        raise EngineFailure(f"{url} answered {error.code}: {detail}") from None
    except (URLError, OSError, ValueError) as error:
        raise EngineFailure(f"{url}: {error}") from None
    raise EngineFailure("The service broke the answer off.")


def _opener() -> OpenerDirector:
    """Ignores the environment's proxies: the service is on this machine."""
    return build_opener(ProxyHandler({}))


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True


def _passes(usage: dict[str, Any]) -> int | None:
    passes = (usage.get("diffusion") or {}).get("passes")
    return passes if isinstance(passes, int) else None
