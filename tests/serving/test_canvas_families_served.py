"""Families with a program of their own, served whole: read from a folder, asked over HTTP, streamed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import openai
import pytest

from serving import toy as service
from tests.goldens import write_checkpoint
from vermilion.training import toy

pytestmark = pytest.mark.anyio
MESSAGES = [{"role": "user", "content": "count from one"}]
SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-6,
}
GEMMA = {
    **SIZES,
    "global_head_dim": 32,
    "num_global_key_value_heads": 1,
    "sliding_window": 16,
    "num_experts": 4,
    "top_k_experts": 2,
    "moe_intermediate_size": 32,
    "hidden_activation": "gelu_pytorch_tanh",
    "tie_word_embeddings": True,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "wedlm": {**SIZES, "model_type": "wedlm", "qk_norm": True, "attention_bias": False},
    "diffusion-gemma": {"model_type": "diffusion_gemma", "canvas_length": 16, "text_config": GEMMA},
}
CONFIGS["nemotron-labs-diffusion"] = {
    **SIZES,
    "model_type": "nemotron_labs_diffusion",
    "rope_parameters": {
        "rope_type": "yarn",
        "rope_theta": 1e6,
        "factor": 8.0,
        "original_max_position_embeddings": 128,
        "llama_4_scaling_beta": 0.1,
    },
}
DIT = {"hidden_dim": 64, "n_blocks": 2, "n_heads": 4, "cond_dim": 16, "model_length": 1024}
CONFIGS["bd3lm"] = {**DIT, "model_type": "bd3lm", "cross_attn": True, "block_size": 4}
CONFIGS["mdlm"] = {**DIT, "model_type": "mdlm"}
DECODERS = {
    "bd3lm": {"first-hitting", "threshold"},
    "mdlm": {"first-hitting", "threshold"},
    "wedlm": {"reorder"},
    "diffusion-gemma": {"renoise"},
    "nemotron-labs-diffusion": {"ar", "lossless", "threshold", "bound"},
}
NO_BASE: dict[str, dict[str, Any]] = {
    "preset": {"extra_body": {"preset": "lossless"}},
    "decoder": {"extra_body": {"decoding": {"decoder": "threshold"}}},
}
REFUSED: dict[str, dict[str, dict[str, Any]]] = {
    "bd3lm": {"preset": NO_BASE["preset"]},
    "mdlm": {"preset": NO_BASE["preset"]},
    "wedlm": NO_BASE,
    "diffusion-gemma": {**NO_BASE, "logprobs": {"logprobs": True}},
    "nemotron-labs-diffusion": {
        "revision": {"extra_body": {"preset": "balanced", "decoding": {"revise_below": 0.1}}},
        "decoder": {"extra_body": {"decoding": {"decoder": "renoise"}}},
    },
}


@pytest.fixture(scope="module", params=CONFIGS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in the published layout: random weights, and a tokenizer of bytes."""
    folder: Path = tmp_path_factory.mktemp("families") / request.param
    folder.mkdir()
    vocab_size = toy._write_texts(folder).vocab_size
    ids = {"vocab_size": vocab_size, "eos_token_id": 0}
    config = dict(CONFIGS[request.param])
    if "text_config" in config:
        config["text_config"] = {**config["text_config"], **ids}
    else:
        config |= {**ids, "mask_token_id": 3}
    return write_checkpoint(config, folder)


async def asked(client: openai.AsyncOpenAI, model: Path, **more: Any) -> Any:
    body = {"model": model.name, "messages": MESSAGES, "max_tokens": 40, "seed": 7, **more}
    return await client.chat.completions.create(**body)


async def test_it_answers_streams_and_shows_its_canvas(model: Path, tmp_path: Path) -> None:
    async with service.serving(model, tmp_path, dtype="float64") as client:
        row = (await client.models.list()).data[0]
        assert row.model_extra is not None
        assert set(row.model_extra["presets"].values()) == DECODERS[model.name]
        whole = await asked(client, model, temperature=0.8)
        text = whole.choices[0].message.content
        assert text
        assert (await asked(client, model, temperature=0.8)).choices[0].message.content == text
        assert (await asked(client, model, temperature=0.8, seed=8)).choices[0].message.content != text
        for preset in row.model_extra["presets"]:
            chosen = {"temperature": 0, "extra_body": {"preset": preset}}
            answer = (await asked(client, model, **chosen)).choices[0].message.content
            chunks = [chunk async for chunk in await asked(client, model, stream=True, **chosen)]
            pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
            assert "".join(pieces) == answer
        frames = [c async for c in await asked(client, model, stream=True, extra_body={"diffusing": True})]
        assert len(frames) > 3
        knobs = {"threshold": 0.5, "block_length": 4}
        more = await asked(client, model, temperature=0.8, extra_body={"decoding": knobs})
        assert more.choices[0].message.content
        schema = {"type": "json_schema", "json_schema": {"name": "said", "schema": {"enum": ["yes", "no"]}}}
        held = await asked(client, model, temperature=0.8, response_format=schema)
        assert json.loads(held.choices[0].message.content) in ("yes", "no")


async def test_what_it_cannot_honour_is_refused_with_the_reason(model: Path, tmp_path: Path) -> None:
    refused = {
        "range": {"extra_body": {"decoding": {"block_length": 5000}}},
        **REFUSED[model.name],
    }
    async with service.serving(model, tmp_path, dtype="float64") as client:
        for name, wrong in refused.items():
            with pytest.raises(openai.BadRequestError) as error:
                await asked(client, model, **wrong)
            assert len(json.dumps(error.value.body)) > 40, name
        body = {"model": model.name, "prompt": "one ", "suffix": " three", "max_tokens": 8}
        if model.name not in ("wedlm", "diffusion-gemma"):
            await client.post("/fim/completions", body=body, cast_to=object)
            return
        with pytest.raises(openai.BadRequestError, match="fills no gaps"):
            await client.post("/fim/completions", body=body, cast_to=object)
