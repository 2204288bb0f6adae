"""The service in front of other servers: another Vermilion, and scripted ones that do and fail as told."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from serving.fake import MODEL, FakeBackend, sse
from serving.remote.scripted_server import DONE, SAID, Script, chunk, scripted, usage
from serving.running import running, until
from serving.threaded import threaded
from vermilion.accounts import database as stores
from vermilion.accounts import organisations
from vermilion.accounts.gate import Accounts
from vermilion.accounts.organisations import NewOrganisation
from vermilion.cli import launch
from vermilion.cli.options import ServeOptions
from vermilion.errors import ConfigError, ModelNotFound
from vermilion.serving.http.app import create_app
from vermilion.serving.remote.remote_backend import remote_model
from vermilion.serving.remote.upstream_config import UPSTREAM_KEY, UpstreamConfig
from vermilion.serving.serve_config import ServeConfig
from vermilion.serving.service_state import ServiceState

pytestmark = pytest.mark.anyio
CHAT = "/v1/chat/completions"
QUESTION: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}]}
NOWHERE = "http://127.0.0.1:9"
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
CALL = '<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>'


@asynccontextmanager
async def fronting(
    *urls: str, accounts: Accounts | None = None, **settings: Any
) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a service in front of the servers at `urls`."""
    config = UpstreamConfig(urls, probe_s=0.05, **settings)
    async with remote_model(config) as served:
        app = create_app(ServiceState(ServeConfig(), served, accounts))
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url="http://localhost"
        ) as client:
            yield client


@pytest.fixture
def backend() -> FakeBackend:
    return FakeBackend(model=replace(MODEL, context_length=4096))


@pytest.fixture
def vermilion(backend: FakeBackend) -> Iterator[str]:
    """The address of another Vermilion."""
    with threaded(backend) as url:
        while httpx.get(f"{url}/ready").status_code != httpx.codes.OK:
            pass
        yield url


@pytest.fixture
def script() -> Iterator[Script]:
    with scripted(Script()) as script:
        yield script


async def test_another_vermilion_answers_whole_streamed_and_as_a_canvas(
    vermilion: str, backend: FakeBackend
) -> None:
    async with fronting(vermilion) as client:
        listed = (await client.get("/v1/models")).json()["data"][0]
        assert (listed["id"], listed["context_length"]) == (MODEL.id, 4096)
        assert listed["presets"] == {name: one.decoder for name, one in MODEL.presets.items()}
        asked = {
            **QUESTION,
            "preset": "fast",
            "max_tokens": 9,
            "stop": ["END"],
            "temperature": 0.5,
            "seed": 3,
        }
        whole = (await client.post(CHAT, json=asked)).json()
        assert whole["choices"][0]["message"]["content"] == "Hello, world!"
        used = whole["usage"]
        counted = len(backend.requests[-1].prompt)
        assert (used["prompt_tokens"], used["completion_tokens"], used["cached_input_tokens"]) == (
            counted,
            4,
            4,
        )
        assert used["diffusion"]["passes"] == 4
        sampling = backend.requests[-1].sampling
        assert (sampling.max_tokens, sampling.stop, sampling.seed) == (9, ("END",), 3)
        assert backend.requests[-1].decoding == MODEL.presets["fast"]
        chunks = sse((await client.post(CHAT, json={**QUESTION, "stream": True})).text)
        assert "".join(one["choices"][0]["delta"].get("content", "") for one in chunks) == "Hello, world!"
        frames = sse((await client.post(CHAT, json={**QUESTION, "stream": True, "diffusing": True})).text)
        shown = [one["choices"][0]["delta"].get("content") for one in frames if "diffusion_meta" in one]
        assert (shown[0], shown[-1]) == ("Hello~", "Hello, world!")
        assert frames[0]["diffusion_meta"]["masked"] == [[5, 6]]


async def test_what_every_protocol_asks_reaches_another_vermilion(
    vermilion: str, backend: FakeBackend
) -> None:
    schema = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}}
    async with fronting(vermilion) as client:
        await client.post(CHAT, json={**QUESTION, "response_format": schema})
        assert backend.requests[-1].grammar.kind == "json_schema"
        await client.post(CHAT, json={**QUESTION, "response_format": {"type": "regex", "value": "a+"}})
        assert backend.requests[-1].grammar.text == "a+"
        gap = {"prompt": "a(", "suffix": ")", "logprobs": 1}
        filled = (await client.post("/v1/completions", json=gap)).json()["choices"][0]
        assert (filled["text"], len(filled["logprobs"]["tokens"])) == ("Hello, world!", 4)
        assert "".join(map(chr, backend.requests[-1].suffix)) == ")"
        begun = {"role": "assistant", "content": "Once"}
        body = {"max_tokens": 9, "messages": [*QUESTION["messages"], begun]}
        assert (await client.post("/v1/messages", json=body)).json()["content"][0]["text"] == "Hello, world!"
        assert "".join(map(chr, backend.requests[-1].prompt)).endswith("Once")
        reply = await client.post(
            f"/model/{MODEL.id}/converse", json={"messages": [{"role": "user", "content": [{"text": "hi"}]}]}
        )
        assert reply.json()["output"]["message"]["content"] == [{"text": "Hello, world!"}]
        told = (await client.post(CHAT, json={**QUESTION, "logprobs": True, "top_logprobs": 1})).json()
        row = told["choices"][0]["logprobs"]["content"][0]
        assert (row["token"], row["pass"], len(row["top_logprobs"])) == ("Hello", 1, 1)


@pytest.mark.parametrize("choice", ["auto", "required", {"type": "function", "function": {"name": "f"}}])
async def test_tools_are_called_by_another_vermilion(
    vermilion: str, backend: FakeBackend, choice: object
) -> None:
    backend.words = ("Well. ", *CALL) if choice == "auto" else tuple(CALL)
    asked = {**QUESTION, "tools": [TOOL], "tool_choice": choice, "max_tokens": 512}
    async with fronting(vermilion) as client:
        reply = (await client.post(CHAT, json=asked)).json()["choices"][0]
        assert (reply["finish_reason"], len(reply["message"]["tool_calls"])) == ("tool_calls", 1)
        call = reply["message"]["tool_calls"][0]
        assert json.loads(call["function"]["arguments"]) == {"x": 1}
        assert (backend.requests[-1].grammar is None) == (choice == "auto")
        result = {"role": "tool", "tool_call_id": call["id"], "content": "<42>"}
        await client.post(CHAT, json={**asked, "messages": [*QUESTION["messages"], reply["message"], result]})
        assert "<42>" in "".join(map(chr, backend.requests[-1].prompt))


async def test_another_servers_answer_and_its_calls_are_read(script: Script) -> None:
    first = {"index": 0, "id": "a", "function": {"name": "f", "arguments": ""}}
    pieces = ['{"x": "</tool', '_call>"}']
    second = {"index": 1, "id": "b", "function": {"name": "g", "arguments": ""}}
    deltas = [{"tool_calls": [first]}]
    deltas += [{"tool_calls": [{"index": 0, "function": {"arguments": piece}}]} for piece in pieces]
    script.says = (
        chunk({"content": "Well."}),
        *map(chunk, [*deltas, {"tool_calls": [second]}]),
        chunk({}, "tool_calls"),
        usage(7, 3, 2),
        DONE,
    )
    tools = [TOOL, {"type": "function", "function": {"name": "g"}}]
    async with fronting(script.url) as client:
        for stream in (False, True):
            for choice in ("auto", "required"):
                asked = {**QUESTION, "tools": tools, "tool_choice": choice, "parallel_tool_calls": True}
                reply = await client.post(CHAT, json={**asked, "stream": stream})
                if stream:
                    named, arguments = list[str](), ["", ""]
                    for one in sse(reply.text):
                        for call in one["choices"][0]["delta"].get("tool_calls", ()):
                            named += [call["function"]["name"]] if "name" in call["function"] else []
                            arguments[call["index"]] += call["function"].get("arguments", "")
                else:
                    calls = reply.json()["choices"][0]["message"]["tool_calls"]
                    named = [call["function"]["name"] for call in calls]
                    arguments = [call["function"]["arguments"] for call in calls]
                assert (named, list(map(json.loads, arguments))) == (["f", "g"], [{"x": "</tool_call>"}, {}])
    path, body = script.asked[-1]
    assert path == CHAT
    assert (body["model"], body["messages"], body["tool_choice"]) == ("big", QUESTION["messages"], "required")
    assert (body["temperature"], body["stream_options"]) == (0.0, {"include_usage": True})
    assert [tool["function"]["name"] for tool in body["tools"]] == ["f", "g"]
    assert "preset" not in body and "seed" not in body


@pytest.mark.parametrize(
    ("route", "body", "param"),
    [
        ("/v1/completions", {"prompt": "a", "suffix": "b"}, "suffix"),
        (CHAT, {**QUESTION, "stream": True, "diffusing": True}, "diffusing"),
        (CHAT, {**QUESTION, "decoding": {"decoder": "lossless"}}, "decoding"),
        (CHAT, {**QUESTION, "response_format": {"type": "lark", "value": 'start: "a"'}}, "response_format"),
        ("/v1/decisions", {"state": "a", "questions": {"q": {"type": "noul"}}}, "model"),
        ("/v1/tokenize", {"prompt": "a"}, "model"),
        ("/v1/messages/count_tokens", QUESTION, "model"),
    ],
)
async def test_what_an_upstream_cannot_do_is_refused_with_the_reason(
    script: Script, route: str, body: dict[str, Any], param: str
) -> None:
    async with fronting(script.url) as client:
        reply = await client.post(route, json=body)
        assert reply.status_code == 501, reply.text
        assert reply.headers["x-should-retry"] == "false"
        error = reply.json()["error"]
        if route.startswith("/v1/messages"):
            assert "not known here" in error["message"]
        else:
            assert (error["code"], error["param"]) == ("unsupported_by_upstream", param)
        named = await client.post(CHAT, json={**QUESTION, "preset": "fast"})
        assert (named.status_code, named.json()["error"]["param"]) == (400, "preset")
    assert not script.asked


async def test_an_upstreams_refusal_is_passed_on_and_costs_it_nothing(script: Script) -> None:
    script.status = 400
    script.body = {"error": {"message": "too long", "code": "context_length_exceeded", "param": "messages"}}
    async with fronting(script.url) as client:
        reply = await client.post(CHAT, json=QUESTION)
        assert (reply.status_code, reply.json()["error"]["code"]) == (400, "context_length_exceeded")
        assert "refuses this: too long" in reply.json()["error"]["message"]
        script.status = 200
        assert (await client.post(CHAT, json=QUESTION)).status_code == 200


@pytest.mark.parametrize("failure", ["nowhere", 500, 401, 404, 429, "cut"])
async def test_another_upstream_answers_where_one_fails_before_its_first_word(
    script: Script, failure: str | int
) -> None:
    with scripted(Script(says=())) as broken:
        broken.status = failure if isinstance(failure, int) else 200
        broken.body = {"error": {"message": "no"}}
        async with AsyncExitStack() as stack:
            client = await stack.enter_async_context(fronting(broken.url, script.url))
            if failure == "nowhere":
                broken.url = NOWHERE
            for _ in range(4):
                reply = await client.post(CHAT, json={**QUESTION, "stream": True})
                told = [one["choices"][0]["delta"].get("content", "") for one in sse(reply.text)]
                assert "".join(told) == "Hello"
    assert len(script.asked) == 4


async def test_an_answer_that_was_begun_ends_with_an_error(script: Script) -> None:
    script.says = SAID
    async with fronting(script.url) as client:
        reply = await client.post(CHAT, json={**QUESTION, "stream": True})
        assert '"content":"lo"' in reply.text and '"code": "engine_failure"' in reply.text
        await until(lambda: client.get("/v1/models"), lambda reply: reply.status_code == 200)
        script.says = (*SAID, json.dumps({"error": {"message": "out of memory"}}))

        async def whole() -> httpx.Response:
            return await client.post(CHAT, json=QUESTION)

        await until(whole, lambda reply: reply.status_code == 500)


async def test_a_failed_upstream_is_set_aside_and_found_again(script: Script) -> None:
    async with fronting(script.url) as client:
        script.status, script.body = 500, {}
        reply = await client.post(CHAT, json=QUESTION)
        assert (reply.status_code, reply.json()["error"]["code"]) == (503, "upstream_unavailable")
        assert reply.headers["retry-after"] == "5"
        asked = len(script.asked)
        script.status = 200

        async def again() -> httpx.Response:
            return await client.post(CHAT, json=QUESTION)

        await until(again, lambda reply: reply.status_code == 200)
        assert len(script.asked) == asked + 1


async def test_busy_upstreams_are_overloaded_and_not_broken(script: Script) -> None:
    async with fronting(script.url) as client:
        script.status, script.body = 429, {"error": {"message": "full"}}
        reply = await client.post(CHAT, json=QUESTION)
        assert (reply.status_code, reply.json()["error"]["code"]) == (429, "engine_overloaded")
        script.status = 200
        assert (await client.post(CHAT, json=QUESTION)).status_code == 200


async def test_requests_are_spread_over_the_upstreams(script: Script) -> None:
    with scripted(Script()) as other:
        async with fronting(script.url, other.url) as client:
            for _ in range(6):
                await client.post(CHAT, json=QUESTION)
        assert (len(script.asked), len(other.asked)) == (3, 3)


async def test_a_client_that_leaves_cancels_the_upstreams_work(backend: FakeBackend) -> None:
    backend.endless, backend.step_s = True, 0.01
    async with running(backend) as upstream:
        config = UpstreamConfig((upstream.url,))
        async with remote_model(config) as served:
            service = ServiceState(ServeConfig(), served)
            async with asyncio.timeout(20):
                from vermilion.serving.generation.chat import chat_requests
                from vermilion.serving.generation.events import generate_events
                from vermilion.serving.wire.openai_bodies import ChatBody

                requests = await chat_requests(ChatBody.model_validate(QUESTION), served, service.config, "r")
                events = generate_events(service, served.backend, requests)
                heard = 0
                async for _ in events:
                    heard += 1
                    if heard == 3:
                        break
                await events.aclose()
                await until(lambda: backend.cancelled == 1)
    assert backend.running == 0


async def test_the_ledger_has_what_the_upstream_counted(script: Script, tmp_path: Path) -> None:
    store = stores.connect(str(tmp_path / "accounts.db"))
    stores.migrate(store)
    secret = organisations.create_organisation(store, NewOrganisation("Acme", "a@example.org"))[2]
    accounts = Accounts(store)

    def rows() -> list[Any]:
        with store.reading() as connection:
            columns = "model, outcome, prompt_tokens, cached_tokens, completion_tokens"
            return list(connection.execute(sa.text(f"SELECT {columns} FROM ledger ORDER BY id")))

    async with fronting(script.url, accounts=accounts) as client:
        client.headers["authorization"] = f"Bearer {secret.text}"
        assert (await client.post(CHAT, json=QUESTION)).status_code == 200
        assert rows() == [("big", "finished", 7, 2, 3)]
        script.status, script.body = 400, {"error": {"message": "no"}}
        assert (await client.post(CHAT, json=QUESTION)).status_code == 400
        script.status, script.says = 200, SAID
        assert (await client.post(CHAT, json=QUESTION)).status_code == 500
        await asyncio.to_thread(accounts.writer.close)
    assert [row[:2] for row in rows()] == [("big", "finished"), ("big", "failed")]
    assert rows()[1].completion_tokens == 1
    store.close()


async def test_only_its_own_key_and_addresses_go_to_an_upstream(
    script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(UPSTREAM_KEY, "theirs")
    monkeypatch.setenv("HTTP_PROXY", NOWHERE)
    async with fronting(f"{script.url}/v1/") as client:
        headers = {"authorization": "Bearer ours", "x-upstream": NOWHERE}
        asked = {**QUESTION, "base_url": NOWHERE, "upstream": NOWHERE}
        assert (await client.post(CHAT, json=asked, headers=headers)).status_code == 200
    assert script.keys == {"Bearer theirs"}
    assert NOWHERE not in json.dumps(script.asked)


async def test_a_model_that_no_upstream_serves_is_an_error_at_the_start(script: Script) -> None:
    with pytest.raises(ModelNotFound, match=r"'other' not found. Known models: big"):
        async with fronting(script.url, model="other"):
            pass


def test_upstreams_are_configured_by_options_and_files(tmp_path: Path) -> None:
    options = ServeOptions(upstream=["http://a:1", "https://b/v1/", "http://a:1/"], model="big")
    upstream = launch.settings_of(options).upstream
    assert (upstream.bases, upstream.model) == (("http://a:1/v1", "https://b/v1"), "big")
    file = tmp_path / "serve.toml"
    file.write_text('[upstream]\nurls = ["http://c:2"]\nmax_requests = 8\n')
    upstream = launch.settings_of(ServeOptions(config=file)).upstream
    assert (upstream.bases, upstream.max_requests, upstream.model) == (("http://c:2/v1",), 8, "")
    for wrong in ("ftp://a", "a:1", "http://", "http://a?x=1"):
        with pytest.raises(ConfigError, match="no address"):
            UpstreamConfig((wrong,))


async def test_places_on_an_upstream_are_limited(backend: FakeBackend) -> None:
    backend.endless, backend.step_s = True, 0.01
    async with running(backend) as upstream, fronting(upstream.url, max_requests=1) as client:
        first = asyncio.create_task(client.post(CHAT, json=QUESTION))
        await until(lambda: backend.running == 1)
        reply = await client.post(CHAT, json=QUESTION)
        assert (reply.status_code, reply.json()["error"]["code"]) == (429, "engine_overloaded")
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
