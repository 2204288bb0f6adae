"""A real server on a loopback socket: disconnects, draining, keep-alives, and the official client."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import textwrap
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import openai
import pytest

from serving.fake import FakeBackend, sse
from serving.running import QUESTION, Running, cancellations, running, until, until_ready
from vermilion.errors import ConfigError
from vermilion.serving.backend import Served
from vermilion.serving.http.server import serve
from vermilion.serving.serve_config import ServeConfig

pytestmark = pytest.mark.anyio


async def test_closing_a_stream_cancels_its_request_within_a_step() -> None:
    backend = FakeBackend(endless=True, step_s=0.01)
    async with running(backend) as server:
        body = {**QUESTION, "stream": True, "n": 2}
        async with server.client.stream("POST", "/v1/chat/completions", json=body) as reply:
            async for line in reply.aiter_lines():
                if "Hello" in line:
                    break
            assert backend.running == 2
        await until(lambda: backend.cancelled == 2, timeout_s=0.5)
        assert backend.running == 0
        assert await cancellations(server.client) == 2
        # What was settled for nobody was computed all the same.
        metrics = (await server.client.get("/metrics")).text
        num_tokens = float(re.search(r"^vermilion_completion_tokens_total (.+)$", metrics, re.M)[1])
        assert num_tokens >= 2


@pytest.mark.parametrize("stream", [False, True])
async def test_leaving_before_anything_came_back_cancels_the_request(stream: bool) -> None:
    backend = FakeBackend(step_s=60)
    async with running(backend) as server:
        ask = server.client.post("/v1/chat/completions", json={**QUESTION, "stream": stream})
        asking = asyncio.create_task(ask)
        await until(lambda: backend.running == 1)
        asking.cancel()
        await until(lambda: backend.cancelled == 1, timeout_s=0.5)
        assert await cancellations(server.client) == 1
        metrics = (await server.client.get("/metrics")).text
        assert 'vermilion_requests_total{route="/v1/chat/completions",status="499"} 1.0' in metrics


async def test_a_client_that_leaves_in_the_middle_of_its_body_is_forgotten() -> None:
    async with running(FakeBackend()) as server:
        address = server.url.removeprefix("http://").split(":")
        _, writer = await asyncio.open_connection(address[0], int(address[1]))
        writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\n{")
        await writer.drain()
        writer.close()
        line = 'route="/v1/chat/completions",status="499"} 1.0'
        await until(lambda: server.client.get("/metrics"), lambda reply: line in reply.text)


async def test_a_reply_does_not_wait_for_the_acknowledgement_of_its_head() -> None:
    async with running(FakeBackend()) as server:
        times_ms = []
        for _ in range(20):
            began_s = time.perf_counter()
            await server.client.get("/health")
            times_ms.append((time.perf_counter() - began_s) * 1000)
            # The client's kernel acknowledges at once while a connection is new or busy.
            await asyncio.sleep(0.02)
        assert statistics.quantiles(times_ms, n=4)[0] < 30  # Nagle's algorithm: 40 and more


async def test_a_silent_stream_is_kept_alive_with_comments() -> None:
    async with running(FakeBackend(step_s=0.2), keep_alive_s=0.05) as server:
        reply = await server.client.post("/v1/chat/completions", json={**QUESTION, "stream": True})
        assert reply.text.startswith(": keep-alive\n\n")
        assert reply.text.count(": keep-alive\n\n") >= 4
        chunks = sse(reply.text)
        assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == "Hello, world!"


async def test_the_port_is_open_before_the_model_is_loaded() -> None:
    async with running(FakeBackend(), loading_s=0.2) as server:
        assert (await server.client.get("/health")).status_code == 200
        assert (await server.client.get("/ready")).status_code == 503
        reply = await server.client.get("/v1/models")
        assert reply.json()["error"]["code"] == "model_loading"
        await until_ready(server.client)
        assert (await server.client.get("/v1/models")).status_code == 200


async def test_stopping_while_the_model_loads_does_not_wait_for_it() -> None:
    async with running(FakeBackend(), loading_s=60) as server:
        assert (await server.client.get("/health")).status_code == 200
        server.stop.set()
        await asyncio.wait_for(server.ended, 3)


async def test_a_model_that_cannot_be_loaded_ends_the_service_with_its_error() -> None:
    @asynccontextmanager
    async def load() -> AsyncIterator[Served]:
        raise ConfigError("No such model.")
        yield

    with pytest.raises(ConfigError, match="No such model"):
        await asyncio.wait_for(serve(ServeConfig(port=0), load, asyncio.Event()), 5)


async def test_a_taken_port_is_explained() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        config = ServeConfig(port=taken.getsockname()[1])
        with pytest.raises(ConfigError, match="--port"):
            await serve(config, lambda: pytest.fail("loaded"), asyncio.Event())


async def test_a_drain_refuses_new_requests_and_finishes_running_ones() -> None:
    backend = FakeBackend(step_s=0.15)
    async with running(backend) as server:
        asking = asyncio.create_task(server.client.post("/v1/chat/completions", json=QUESTION))
        await until(lambda: backend.running == 1)
        server.stop.set()
        await until(lambda: server.client.get("/ready"), lambda reply: reply.status_code == 503)
        refused = await server.client.post("/v1/chat/completions", json=QUESTION)
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "service_draining"
        assert refused.headers["retry-after"] == "5"
        assert (await server.client.get("/health")).status_code == 200
        assert (await asking).json()["choices"][0]["message"]["content"] == "Hello, world!"
        await asyncio.wait_for(server.ended, 3)


async def test_a_drain_cuts_short_what_outlasts_it() -> None:
    backend = FakeBackend(endless=True, step_s=0.01)
    async with running(backend, drain_timeout_s=0.1) as server:
        asks = [
            asyncio.create_task(
                server.client.post("/v1/chat/completions", json={**QUESTION, "stream": stream})
            )
            for stream in (False, True)
        ]
        await until(lambda: backend.running == 2)
        server.stop.set()
        whole, stream = await asyncio.gather(*asks)
        assert whole.status_code == 503
        assert "stopped before" in whole.json()["error"]["message"]
        assert sse(stream.text)[-1]["error"]["code"] == "service_draining"
        await asyncio.wait_for(server.ended, 5)
    assert backend.running == 0


async def test_a_client_that_never_reads_does_not_hold_up_the_end(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("vermilion.serving.service_state._LAST_FRAMES_S", 0.1)
    monkeypatch.setattr("vermilion.serving.http.server._LAST_FRAMES_S", 0.1)
    backend = FakeBackend(words=("x" * 200_000,) * 100)
    async with running(backend, drain_timeout_s=0.1) as server:
        host, port = server.url.removeprefix("http://").split(":")
        _, writer = await asyncio.open_connection(host, int(port), limit=1000)
        body = json.dumps({**QUESTION, "stream": True}).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        await until(lambda: backend.requests and not backend.running)
        server.stop.set()
        await asyncio.wait_for(server.ended, 3)
        writer.close()
    assert "Traceback" not in caplog.text


SCRIPT = """
    import asyncio, sys
    from contextlib import asynccontextmanager
    from serving.fake import FakeBackend, served
    from vermilion.serving.serve_config import ServeConfig
    from vermilion.serving.http.server import run

    @asynccontextmanager
    async def load():
        yield served(BACKEND)
        print("closed", flush=True)

    run(ServeConfig(port=0, drain_timeout_s=5), load, lambda url: print(url, flush=True))
"""


def start(backend: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(SCRIPT).replace("BACKEND", backend)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_drains_the_process_and_it_exits_with_0(number: signal.Signals) -> None:
    process = start("FakeBackend(step_s=0.1)")
    try:
        url = (await asyncio.to_thread(process.stdout.readline)).strip()
        async with httpx.AsyncClient(base_url=url, timeout=20) as client:
            await until_ready(client)
            body = {**QUESTION, "stream": True}
            async with client.stream("POST", "/v1/chat/completions", json=body) as reply:
                lines = reply.aiter_lines()
                await anext(lines)
                process.send_signal(number)
                rest = [line async for line in lines]
            assert rest[-2] == "data: [DONE]"
            assert any('"finish_reason":"stop"' in line for line in rest)
        output, _ = await asyncio.to_thread(process.communicate, timeout=10)
        assert (process.returncode, output) == (0, "closed\n")
    finally:
        process.kill()
        process.communicate()


async def test_a_second_signal_does_not_wait_for_the_drain() -> None:
    process = start("FakeBackend(endless=True, step_s=0.1)")
    try:
        url = (await asyncio.to_thread(process.stdout.readline)).strip()
        async with httpx.AsyncClient(base_url=url, timeout=20) as client:
            await until_ready(client)
            asking = asyncio.create_task(client.post("/v1/chat/completions", json=QUESTION))
            running = "vermilion_running_requests 1.0"
            await until(lambda: client.get("/metrics"), lambda reply: running in reply.text)
            process.send_signal(signal.SIGTERM)
            await until(lambda: client.get("/ready"), lambda reply: reply.status_code == 503)
            process.send_signal(signal.SIGTERM)
            await asyncio.to_thread(process.wait, 3)
            with pytest.raises(httpx.HTTPError):
                await asking
        assert process.returncode == -signal.SIGTERM
    finally:
        process.kill()
        process.communicate()


@asynccontextmanager
async def official(server: Running) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as client:
        yield client


async def test_the_official_client_chats_streams_completes_and_lists() -> None:
    async with running(FakeBackend()) as server, official(server) as client:
        messages = [{"role": "user", "content": "hi"}]
        whole = await client.chat.completions.create(
            model="tiny-diffusion", messages=messages, logprobs=True, extra_body={"preset": "fast"}
        )
        assert whole.choices[0].message.content == "Hello, world!"
        assert whole.usage.prompt_tokens_details.cached_tokens == 4
        assert whole.choices[0].logprobs.content[0].token == "Hello"
        assert whole._request_id.startswith("req-")

        text, usage = "", None
        async for chunk in await client.chat.completions.create(
            model="tiny-diffusion", messages=messages, stream=True, stream_options={"include_usage": True}
        ):
            text += chunk.choices[0].delta.content or "" if chunk.choices else ""
            usage = chunk.usage or usage
        assert (text, usage.total_tokens) == ("Hello, world!", 12)

        async with client.chat.completions.stream(model="tiny-diffusion", messages=messages) as stream:
            final = await stream.get_final_completion()
        assert final.choices[0].message.content == "Hello, world!"

        completion = await client.completions.create(
            model="tiny-diffusion", prompt="a", suffix="b", logprobs=1
        )
        assert completion.choices[0].text == "Hello, world!"
        chunks = await client.completions.create(model="tiny-diffusion", prompt="a", stream=True)
        assert "".join([chunk.choices[0].text async for chunk in chunks]) == "Hello, world!"

        assert (await client.models.list()).data[0].id == "tiny-diffusion"
        assert (await client.models.retrieve("tiny-diffusion")).owned_by == "vermilion"


async def test_the_official_client_knows_our_errors() -> None:
    backend = FakeBackend()
    async with running(backend) as server, official(server) as client:

        async def ask(**fields: object) -> None:
            await client.chat.completions.create(
                **{"model": "tiny-diffusion", "messages": [{"role": "user", "content": "x"}], **fields}
            )

        with pytest.raises(openai.NotFoundError) as missing:
            await ask(model="gpt-4")
        assert missing.value.code == "model_not_found"
        with pytest.raises(openai.BadRequestError) as wrong:
            await ask(temperature=3)
        assert wrong.value.param == "temperature"
        backend.capacity = 0
        with pytest.raises(openai.RateLimitError):
            await ask()
        backend.capacity, backend.failure = 1, KeyError("x")
        with pytest.raises(openai.InternalServerError):
            await ask()
        with pytest.raises(openai.APIError, match="internal error"):
            stream = await client.chat.completions.create(
                model="tiny-diffusion", messages=[{"role": "user", "content": "x"}], stream=True
            )
            async for _ in stream:
                pass


async def test_many_connections_at_once_are_all_answered() -> None:
    async with running(FakeBackend(step_s=0.01)) as server:
        bodies = [{**QUESTION, "stream": number % 2 == 0, "seed": number} for number in range(60)]
        replies = await asyncio.gather(
            *(server.client.post("/v1/chat/completions", json=body) for body in bodies)
        )
        assert {reply.status_code for reply in replies} == {200}
