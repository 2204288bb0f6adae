"""POST /v1/chat/completions: what reaches the engine, and what comes back."""

from __future__ import annotations

import threading
from dataclasses import replace

import httpx
import pytest

from serving.fake import MODEL, FakeBackend, FakeTemplate, served, sse
from vermilion.errors import EngineFailure
from vermilion.models.families.family_presets import WITH_BASE
from vermilion.serving.http.app import create_app
from vermilion.serving.serve_config import ServeConfig
from vermilion.serving.service_state import ServiceState
from vermilion.types import Finish, Sampling, Usage

pytestmark = pytest.mark.anyio
QUESTION = {"messages": [{"role": "user", "content": "hi"}]}


async def ask(client: httpx.AsyncClient, **fields: object) -> httpx.Response:
    return await client.post("/v1/chat/completions", json={**QUESTION, **fields})


async def test_reply_has_openai_shape_with_both_styles_of_usage(client: httpx.AsyncClient) -> None:
    reply = (await ask(client, model="tiny-diffusion")).json()
    assert reply["id"].startswith("chatcmpl-")
    assert reply["object"] == "chat.completion"
    assert reply["model"] == "tiny-diffusion"
    (choice,) = reply["choices"]
    assert choice["message"] == {"role": "assistant", "content": "Hello, world!", "refusal": None}
    assert choice["finish_reason"] == "stop"
    assert reply["usage"] == {
        "prompt_tokens": 8,
        "completion_tokens": 4,
        "total_tokens": 12,
        "prompt_tokens_details": {"cached_tokens": 4},
        "completion_tokens_details": {"reasoning_tokens": 0},
        "cached_input_tokens": 4,
        "reasoning_tokens": 0,
        "diffusion": {
            "passes": 4,
            "tokens_per_pass": 1.0,
            "edits": 1,
            "drafted_tokens": 0,
            "accepted_tokens": 0,
        },
    }


async def test_messages_of_every_role_and_kind_of_content_reach_the_template(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    messages = [
        {"role": "developer", "content": "d"},
        {"role": "system", "content": [{"type": "text", "text": "s"}, {"type": "text", "text": "t"}]},
        {"role": "assistant", "content": None, "tool_calls": []},
        {"role": "user", "content": "u"},
        {"role": "user", "content": "v"},
        {"role": "tool", "content": "w", "tool_call_id": "1"},
    ]
    assert (await ask(client, messages=messages)).status_code == 200
    prompt = "".join(map(chr, backend.requests[0].prompt))
    assert (
        prompt
        == "system:d\nsystem:st\nassistant:\nuser:u\nuser:v\nuser:<tool_response>\nw\n</tool_response>\n"
    )


async def test_sampling_fields_reach_the_engine(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    await ask(
        client,
        temperature=0.7,
        top_p=0.9,
        top_k=40,
        min_p=0.05,
        seed=7,
        stop=["a", "b"],
        repetition_penalty=1.1,
        presence_penalty=0.5,
        frequency_penalty=-0.5,
        logit_bias={"3": -100},
        max_tokens=9,
        max_completion_tokens=5,
        min_tokens=2,
        ignore_eos=True,
        logprobs=True,
        top_logprobs=3,
    )
    assert backend.requests[0].sampling == Sampling(
        temperature=0.7,
        top_p=0.9,
        top_k=40,
        min_p=0.05,
        seed=7,
        stop=("a", "b"),
        repetition_penalty=1.1,
        presence_penalty=0.5,
        frequency_penalty=-0.5,
        logit_bias={3: -100.0},
        max_tokens=5,
        min_tokens=2,
        ignore_eos=True,
        logprobs=3,
    )


async def test_null_fields_take_their_defaults_and_unknown_ones_are_ignored(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    names = ("model", "temperature", "top_p", "top_k", "stop", "n", "max_tokens", "stream", "logit_bias")
    reply = await ask(client, **dict.fromkeys(names), extra_body={"a": 1}, nextEdit=[1], mode="chat")
    assert reply.status_code == 200
    sampling = backend.requests[0].sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.stop) == (0.0, 1.0, 0, ())


async def test_a_fresh_seed_is_drawn_for_each_request_without_one(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    await ask(client)
    await ask(client)
    first, second = (request.sampling.seed for request in backend.requests)
    assert first != second


@pytest.mark.parametrize("value", [-1, 0])
async def test_top_k_off_in_both_spellings(
    client: httpx.AsyncClient, backend: FakeBackend, value: int
) -> None:
    await ask(client, top_k=value)
    assert backend.requests[0].sampling.top_k == 0


async def test_length_is_cut_to_the_context(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    assert (await ask(client, max_tokens=100_000, min_tokens=50_000)).status_code == 200
    sampling = backend.requests[0].sampling
    assert sampling.max_tokens == sampling.min_tokens == 256 - 8


async def test_too_long_a_prompt_is_refused_in_openai_words(client: httpx.AsyncClient) -> None:
    reply = await ask(client, messages=[{"role": "user", "content": "x" * 300}])
    assert reply.status_code == 400
    error = reply.json()["error"]
    assert "This model's maximum context length is 256 tokens" in error["message"]
    assert (error["code"], error["param"]) == ("context_length_exceeded", "messages")


async def test_several_choices_run_with_successive_seeds_and_share_the_prompt(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    reply = (await ask(client, n=3, seed=2**63 - 2)).json()
    assert [choice["index"] for choice in reply["choices"]] == [0, 1, 2]
    assert [request.sampling.seed for request in backend.requests] == [2**63 - 2, 2**63 - 1, 0]
    assert len({request.id for request in backend.requests}) == 3
    assert reply["usage"]["prompt_tokens"] == 8
    assert reply["usage"]["completion_tokens"] == 12


async def test_preset_and_single_knobs_choose_the_decoding(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    await ask(client)
    await ask(client, preset="fast", decoding={"block_length": 3})
    default, chosen = (request.decoding for request in backend.requests)
    assert default == WITH_BASE["lossless"]
    assert chosen == replace(WITH_BASE["fast"], block_length=3)


@pytest.mark.parametrize(
    ("fields", "param", "fragment"),
    [
        ({"temperature": 2.5}, "temperature", "2"),
        ({"temperature": "hot"}, "temperature", "number"),
        ({"temperature": True}, "temperature", "number"),
        ({"max_tokens": 0}, "max_tokens", "1"),
        ({"max_completion_tokens": -2}, "max_completion_tokens", "1"),
        ({"n": 9}, "n", "8"),
        ({"n": 1.5}, "n", "integer"),
        ({"stop": ["x"] * 65}, "stop", "64"),
        ({"stop": [1]}, "stop[0]", "string"),
        ({"stop": 3}, "stop", "list"),
        ({"logit_bias": {"3": 101}}, "logit_bias.3", "100"),
        ({"logit_bias": {"x": 1}}, "logit_bias", "digits"),
        ({"logit_bias": {"1114112": 1}}, "logit_bias", "1114111"),
        ({"logit_bias": {"٣": 1}}, "logit_bias", "digits"),
        ({"top_logprobs": 2}, "top_logprobs", "logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "20"),
        ({"min_tokens": 6, "max_tokens": 5}, "min_tokens", "max_tokens"),
        ({"seed": 2**63}, "seed", "9223372036854775808"),
        ({"preset": "slow"}, "preset", "lossless"),
        ({"decoding": {"thresold": 1}}, "decoding.thresold", "threshold"),
        ({"decoding": {"decoder": "schedule"}}, "decoding.decoder", "cannot run"),
        ({"messages": []}, "messages", "1"),
        ({"messages": [{"role": "robot", "content": ""}]}, "messages[0].role", "developer"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content", "text"),
        ({"messages": "hi"}, "messages", "list"),
        ({"stream_options": {"include_usage": 1}}, "stream_options.include_usage", "boolean"),
    ],
)
async def test_a_wrong_field_is_named_in_one_sentence(
    client: httpx.AsyncClient, backend: FakeBackend, fields: dict[str, object], param: str, fragment: str
) -> None:
    reply = await ask(client, **fields)
    assert reply.status_code == 400
    error = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    assert fragment in error["message"]
    assert "\n" not in error["message"]
    assert backend.requests == []


async def test_a_missing_field_is_called_missing(client: httpx.AsyncClient) -> None:
    reply = await client.post("/v1/chat/completions", json={})
    assert reply.status_code == 400
    assert reply.json()["error"] == {
        "message": "messages: this field is required.",
        "type": "invalid_request_error",
        "param": "messages",
        "code": "missing_required_parameter",
    }


async def test_models_are_known_by_id_and_alias(open_client, backend: FakeBackend) -> None:
    aliases = {"mercury": "tiny-diffusion", "other": "elsewhere"}
    async with open_client(aliases=aliases) as client:
        assert (await ask(client, model="mercury")).json()["model"] == "tiny-diffusion"
        for unknown in ("gpt-4", "other"):
            reply = await ask(client, model=unknown)
            assert reply.status_code == 404
            assert reply.json()["error"]["code"] == "model_not_found"
        listed = (await client.get("/v1/models")).json()["data"]
        assert [model["id"] for model in listed][:3] == ["tiny-diffusion", "mercury", "mercury-2"]
        assert (await client.get("/v1/models/mercury")).status_code == 200


async def test_logprobs_carry_confidence_and_pass(client: httpx.AsyncClient) -> None:
    reply = (await ask(client, logprobs=True, top_logprobs=2)).json()
    tokens = reply["choices"][0]["logprobs"]["content"]
    assert [token["token"] for token in tokens] == ["Hello", ", ", "world", "!"]
    assert [token["pass"] for token in tokens] == [1, 2, 3, 4]
    assert tokens[0]["confidence"] == 0.5
    assert tokens[0]["logprob"] == pytest.approx(-0.6931, abs=1e-4)
    assert tokens[0]["bytes"] == list(b"Hello")
    assert tokens[0]["top_logprobs"][1] == {"token": "t1", "logprob": -2.0, "bytes": [116, 49]}


async def test_stream_appends_and_ends_with_usage(client: httpx.AsyncClient) -> None:
    reply = await ask(client, stream=True, stream_options={"include_usage": True})
    assert reply.headers["content-type"] == "text/event-stream; charset=utf-8"
    first, *content, closing, usage = sse(reply.text)
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(chunk["choices"][0]["delta"]["content"] for chunk in content) == "Hello, world!"
    assert closing["choices"][0] == {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}
    assert usage["choices"] == []
    assert usage["usage"]["total_tokens"] == 12
    assert {chunk["id"] for chunk in (first, *content, closing, usage)} == {first["id"]}


async def test_a_stream_reads_the_same_as_the_reply(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    backend.words = ('"quoted"', "\n\r\u2028", "é\U0001f600", "\\", "\x00")
    whole = (await ask(client, logprobs=True)).json()["choices"][0]
    chunks = sse((await ask(client, logprobs=True, stream=True)).text)
    deltas = [chunk["choices"][0] for chunk in chunks]
    assert "".join(delta["delta"].get("content", "") for delta in deltas) == whole["message"]["content"]
    tokens = [token for delta in deltas if delta["logprobs"] for token in delta["logprobs"]["content"]]
    assert tokens == whole["logprobs"]["content"]


async def test_streams_of_several_choices_are_told_apart_by_index(client: httpx.AsyncClient) -> None:
    chunks = sse((await ask(client, stream=True, n=2, stream_options={"include_usage": True})).text)
    texts = ["", ""]
    for chunk in chunks[:-1]:
        (choice,) = chunk["choices"]
        texts[choice["index"]] += choice["delta"].get("content", "")
    assert texts == ["Hello, world!"] * 2
    assert chunks[-1]["usage"]["completion_tokens"] == 8


async def test_frames_tell_of_each_token_that_is_not_as_before(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    frames = [
        chunk["diffusion_meta"]["tokens"]
        for chunk in sse((await ask(client, stream=True, diffusing="tokens")).text)
        if "diffusion_meta" in chunk
    ]
    assert backend.requests[0].canvas_tokens
    assert frames[0] == {"from": 0, "rows": [[0, 5, "filled", 0.75, 1], [5, 6, "masked", 0.25, 1]]}
    assert frames[1] == {
        "from": 0,
        "rows": [[0, 5, "settled", 0.5, 1], [5, 7, "filled", 0.75, 2], [7, 8, "masked", 0.25, 2]],
    }
    assert frames[-2]["from"] == 2
    tokens: list[object] = []
    for frame in frames:
        tokens = [*tokens[: frame["from"]], *frame["rows"]]
    assert [row[:2] for row in tokens] == [[0, 5], [5, 7], [7, 12], [12, 13]]


async def test_a_plain_completion_shows_its_canvas(client: httpx.AsyncClient) -> None:
    body = {"prompt": "hi", "stream": True, "diffusing": True, "logprobs": 0}
    chunks = sse((await client.post("/v1/completions", json=body)).text)
    assert [chunk["choices"][0]["text"] for chunk in chunks[:2]] == ["Hello~", "Hello, ~"]
    *_, last, closing = chunks
    assert last["object"] == "text_completion" and last["choices"][0]["text"] == "Hello, world!"
    assert last["choices"][0]["logprobs"]["pass"] == [1, 2, 3, 4]
    assert closing["choices"][0] == {"index": 0, "text": "", "finish_reason": "stop"}
    diffs = sse((await client.post("/v1/completions", json={**body, "diffusing": "diff"})).text)
    assert diffs[1]["choices"][0]["text"] == "" and diffs[1]["diffusion_meta"]["diff"] == [5, 5, ", "]


async def test_diffusing_replaces_the_whole_text_with_every_pass(client: httpx.AsyncClient) -> None:
    reply = await ask(
        client, stream=True, diffusing=True, logprobs=True, stream_options={"include_usage": True}
    )
    *canvases, last, closing, usage = sse(reply.text)
    assert [frame["choices"][0]["delta"]["content"] for frame in canvases] == [
        "Hello~",
        "Hello, ~",
        "Hello, world~",
        "Hello, world!~",
    ]
    assert canvases[1]["diffusion_meta"] == {
        "diffusion_content": True,
        "diffusion_progress": 0.2,
        "settled": [[0, 5]],
        "masked": [[7, 8]],
        "edited": [],
        "pass": 2,
    }
    assert last["choices"][0]["delta"]["content"] == "Hello, world!"
    assert last["choices"][0]["finish_reason"] == "stop"
    assert len(last["choices"][0]["logprobs"]["content"]) == 4
    assert last["diffusion_meta"]["diffusion_progress"] == 1.0
    assert last["diffusion_meta"]["settled"] == [[0, 13]]
    assert closing["choices"] == [{"index": 0, "delta": {}, "finish_reason": "stop"}]
    assert "diffusion_meta" not in closing
    assert usage["usage"]["diffusion"]["passes"] == 4


async def test_overload_and_failures_before_the_first_text_have_a_status(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    backend.capacity = 1
    for stream in (False, True):
        reply = await ask(client, n=2, stream=stream)
        assert reply.status_code == 429
        assert reply.headers["retry-after"] == "1"
        assert reply.json()["error"]["type"] == "rate_limit_error"
    assert backend.running == 0


@pytest.mark.parametrize(
    ("failure", "shown"),
    [(EngineFailure("The step failed."), "The step failed."), (KeyError("secret"), "internal error")],
)
async def test_an_error_in_a_begun_stream_is_a_frame_and_done(
    client: httpx.AsyncClient, backend: FakeBackend, failure: Exception, shown: str
) -> None:
    backend.failure = failure
    reply = await ask(client, stream=True)
    assert reply.status_code == 200
    frames = sse(reply.text)
    assert frames[1]["choices"][0]["delta"]["content"] == "Hello"
    assert shown in frames[-1]["error"]["message"]
    assert "secret" not in reply.text


async def test_an_unknown_error_is_a_500_that_shows_only_an_id(
    client: httpx.AsyncClient, backend: FakeBackend, caplog: pytest.LogCaptureFixture
) -> None:
    backend.failure = KeyError("secret")
    reply = await ask(client)
    assert reply.status_code == 500
    assert reply.headers["x-request-id"] in reply.json()["error"]["message"]
    assert reply.headers["x-request-id"] in caplog.text
    assert "secret" not in reply.text
    assert backend.running == 0


@pytest.mark.parametrize("reason", ["error", "abort"])
async def test_an_answer_the_engine_gave_up_is_an_error(
    client: httpx.AsyncClient, backend: FakeBackend, reason: str
) -> None:
    backend.finish = Finish(reason, Usage(8, 0, 1, 1), "Out of memory.")
    reply = await ask(client)
    assert reply.status_code == 500
    assert reply.json()["error"]["code"] == "engine_failure"
    assert "Out of memory." in reply.json()["error"]["message"]


async def test_length_is_the_reason_when_the_limit_ended_it(client: httpx.AsyncClient) -> None:
    assert (await ask(client, max_tokens=2)).json()["choices"][0]["finish_reason"] == "length"


async def test_a_base_model_refuses_chats_and_says_what_it_can_do(backend: FakeBackend) -> None:
    service = ServiceState(ServeConfig(), served(backend, template=None))
    transport = httpx.ASGITransport(create_app(service))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        reply = await ask(client)
        assert reply.status_code == 400
        assert "/v1/completions" in reply.json()["error"]["message"]
        assert (await client.post("/v1/completions", json={"prompt": "a"})).status_code == 200


async def test_a_long_prompt_is_tokenised_beside_the_event_loop(backend: FakeBackend) -> None:
    threads = []

    class Template(FakeTemplate):
        def encode(self, *arguments: object) -> list[int]:
            threads.append(threading.current_thread())
            return super().encode(*arguments)

    backend.model = replace(MODEL, context_length=200_000)
    service = ServiceState(ServeConfig(), served(backend, template=Template()))
    transport = httpx.ASGITransport(create_app(service))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        await ask(client)
        await ask(client, messages=[{"role": "user", "content": "x" * 100_000}])
    assert threads[0] is threading.main_thread() is not threads[1]


async def test_top_p_of_0_still_leaves_the_likeliest_token(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    await ask(client, top_p=0)
    assert 0 < backend.requests[0].sampling.top_p < 1e-3


async def test_realtime_answers_begin_with_short_canvases(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    for more in ({}, {"realtime": True}, {"realtime": True, "decoding": {"first_block": 7}}):
        body = {"messages": [{"role": "user", "content": "hi"}], **more}
        assert (await client.post("/v1/chat/completions", json=body)).status_code == 200
    assert [request.decoding.first_block for request in backend.requests] == [0, 4, 7]
    assert [request.realtime for request in backend.requests] == [False, True, True]
