"""POST /v1/fim/completions and /infill: Mercury's and llama.cpp's ways to fill a gap."""

from __future__ import annotations

import json

import httpx
import pytest

from serving.fake import FakeBackend, sse

pytestmark = pytest.mark.anyio
GAP = {"prompt": "a(", "suffix": ")"}


def codes(text: str) -> tuple[int, ...]:
    return tuple(map(ord, text))


async def test_fim_has_mercurys_defaults(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    reply = await client.post("/v1/fim/completions", json={"model": "tiny-diffusion", **GAP})
    (request,) = backend.requests
    assert (request.prompt, request.suffix) == (codes("a("), codes(")"))
    assert request.sampling.stop == ("\n\n", "\n \n")
    assert request.sampling.presence_penalty == 1.5
    assert request.sampling.max_tokens == 256 - 3
    body = reply.json()
    assert (body["object"], body["choices"][0]["text"]) == ("text_completion", "Hello, world!")
    assert {"reasoning_tokens", "cached_input_tokens"} <= set(body["usage"])


async def test_fim_takes_what_is_given_over_the_defaults(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    given = {"stop": [], "presence_penalty": 0, "temperature": 0, "top_k": -1, "max_tokens": 32000}
    assert (await client.post("/fim/completions", json={**GAP, **given})).status_code == 200
    sampling = backend.requests[0].sampling
    assert (sampling.stop, sampling.presence_penalty, sampling.top_k) == ((), 0, 0)


async def test_fim_chunks_carry_their_text_twice(client: httpx.AsyncClient) -> None:
    reply = await client.post("/v1/fim/completions", json={**GAP, "stream": True})
    choices = [chunk["choices"][0] for chunk in sse(reply.text)]
    assert "".join(choice["text"] for choice in choices) == "Hello, world!"
    assert all(choice["delta"] == {"content": choice["text"]} for choice in choices)


@pytest.mark.parametrize("route", ["/v1/fim/completions", "/v1/completions"])
async def test_continues_blank_suffix_is_none(
    client: httpx.AsyncClient, backend: FakeBackend, route: str
) -> None:
    await client.post(route, json={"prompt": "a", "suffix": "<|endoftext|>"})
    assert backend.requests[0].suffix == ()


async def test_infill_reads_llama_cpps_fields(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    body = {
        "input_prefix": "a",
        "input_suffix": "z",
        "prompt": "b",
        "input_extra": [{"filename": "f", "text": "F"}, {"text": "G"}],
        "n_predict": 3,
        "seed": -1,
        "repeat_penalty": 1.5,
        "samplers": ["top_k"],
        "t_max_predict_ms": 500,
    }
    reply = (await client.post("/infill", json=body)).json()
    (request,) = backend.requests
    assert request.prompt == codes("--- f ---\nF\n\n---  ---\nG\n\nab")
    assert request.suffix == codes("z")
    assert (request.sampling.max_tokens, request.sampling.repetition_penalty) == (3, 1.5)
    assert (reply["content"], reply["stop"], reply["stop_type"]) == ("Hello, world", True, "limit")
    assert (reply["tokens_predicted"], reply["tokens_evaluated"]) == (3, len(request.prompt))
    assert reply["timings"]["predicted_n"] == 3
    assert reply["timings"]["prompt_n"] == len(request.prompt) - 4


@pytest.mark.parametrize("n_predict", [8, -1])
async def test_infill_leaves_out_the_first_pieces_for_room(
    client: httpx.AsyncClient, backend: FakeBackend, n_predict: int
) -> None:
    extra = [{"filename": name, "text": name * 50} for name in "abc"]
    body = {"input_prefix": "p", "input_suffix": "s", "input_extra": extra, "n_predict": n_predict}
    assert (await client.post("/infill", json=body)).status_code == 200
    (request,) = backend.requests
    prompt = "".join(map(chr, request.prompt))
    assert prompt.startswith("--- b ---") and prompt.endswith("p")
    assert request.sampling.max_tokens == (8 if n_predict == 8 else 256 - len(prompt) - 1)


@pytest.mark.parametrize("stream", [False, True])
async def test_infill_of_nothing_only_readies_the_prompt(
    client: httpx.AsyncClient, backend: FakeBackend, stream: bool
) -> None:
    reply = await client.post("/infill", json={"input_prefix": "a", "n_predict": 0, "stream": stream})
    assert backend.requests[0].sampling.max_tokens == 1
    assert json.loads(reply.text.removeprefix("data: "))["content"] == ""


async def test_infill_streams_pieces_then_the_figures(client: httpx.AsyncClient) -> None:
    reply = await client.post("/infill", json={"input_prefix": "a", "stream": True})
    frames = [json.loads(line.removeprefix("data: ")) for line in reply.text.split("\n\n") if line]
    assert "".join(frame["content"] for frame in frames) == "Hello, world!"
    assert [frame["stop"] for frame in frames] == [False] * 4 + [True]
    assert frames[-1]["timings"]["predicted_n"] == 4


async def test_infill_answers_in_an_empty_file(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    assert (await client.post("/infill", json={})).status_code == 200
    assert backend.requests[0].prompt == codes("\n")


@pytest.mark.parametrize(
    "prompt",
    [
        "<|fim_prefix|>ab<|fim_suffix|>c<|fim_middle|>",
        "ab<|fim_suffix|>c<|fim_middle|>\n",
        "<fim_prefix>ab<fim_suffix>c<fim_middle>",
    ],
)
async def test_a_gap_written_in_another_models_template_is_a_gap(
    client: httpx.AsyncClient, backend: FakeBackend, prompt: str
) -> None:
    assert (await client.post("/v1/completions", json={"prompt": prompt})).status_code == 200
    assert backend.requests[0].prompt == (97, 98)
    assert backend.requests[0].suffix == (99,)


async def test_text_about_such_a_template_is_left_alone(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    prompt = "The mark <|fim_suffix|> begins"
    await client.post("/v1/completions", json={"prompt": prompt})
    assert backend.requests[0].prompt == tuple(map(ord, prompt))
