"""Models without an autoregressive base, served whole: a real engine under the real application."""

from __future__ import annotations

import json
from pathlib import Path
from unittest.mock import patch

import openai
import pytest
from typer.testing import CliRunner

from serving import toy as service
from vermilion.cli.commands import app
from vermilion.config import EngineConfig
from vermilion.engine.llm import LLM
from vermilion.engine.loading import load_model
from vermilion.training import toy
from vermilion.training.convert import convert
from vermilion.training.corruption import CorruptionConfig
from vermilion.training.objectives import ObjectiveConfig
from vermilion.training.recipe import Recipe, Stage
from vermilion.types import Sampling, Text

pytestmark = pytest.mark.anyio
KINDS = {
    "block": {"context": "block", "objective": ObjectiveConfig(next_token=1.0, teacher=0.0)},
    "full": {
        "context": "full",
        "shift": False,
        "objective": ObjectiveConfig(teacher=0.0, weighting="inverse_rate"),
        "corruption": CorruptionConfig(full=0, prefix=0, random=0, linear=1),
    },
}
MESSAGES = [{"role": "user", "content": "count from one"}]


@pytest.fixture(scope="module", params=KINDS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of two layers, converted in a few steps by method tied."""
    folder: Path = tmp_path_factory.mktemp(request.param)
    with patch.object(toy, "_NUMBERS", service.WORDS), patch.object(toy, "_STEPS", 20):
        settings = {"method": "tied", "steps": 60, "rows": 8, "micro_rows": 8, "learning_rate": 4e-3}
        shape = {"stages": (Stage(1.0, 4),), "plot": False, **KINDS[request.param]}
        return convert(Recipe("toy", folder, **settings, **shape))[0]  # type: ignore[arg-type]


def loaded(model: Path) -> LLM:
    """As the service loads it."""
    return LLM(loaded=load_model(str(model), EngineConfig(kv_tokens=2048, threads=1, dtype="float32")))


async def test_it_is_listed_and_asked_with_presets_of_its_own(model: Path, tmp_path: Path) -> None:
    llm = loaded(model)
    (wanted,) = llm.generate([llm.chat_prompt(MESSAGES)], Sampling(max_tokens=24))
    assert wanted.text and wanted.usage.passes > 0
    async with service.serving(model, tmp_path) as client:
        row = (await client.models.list()).data[0]
        assert row.model_extra is not None
        assert (row.id, row.model_extra["default_preset"]) == ("model", "balanced")
        assert row.model_extra["supported_features"] == ["tools"]
        assert row.model_extra["presets"] == {
            "quality": "schedule",
            "balanced": "threshold",
            "fast": "threshold",
        }
        ask = {"model": "model", "messages": MESSAGES, "max_tokens": 24, "temperature": 0}
        reply = await client.chat.completions.create(**ask)  # type: ignore[call-overload]
        assert reply.choices[0].message.content == wanted.text
        for preset in row.model_extra["presets"]:
            stream = await client.chat.completions.create(  # type: ignore[call-overload]
                **ask, stream=True, extra_body={"preset": preset}
            )
            pieces = [chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices]
            whole = await client.chat.completions.create(**ask, extra_body={"preset": preset})  # type: ignore[call-overload]
            assert "".join(pieces) == whole.choices[0].message.content
        for preset in ("lossless", "ar"):
            with pytest.raises(openai.BadRequestError) as refused:
                await client.chat.completions.create(**ask, extra_body={"preset": preset})  # type: ignore[call-overload]
            assert refused.value.param == "preset"
            assert "needs an autoregressive base to verify tokens, and model has none" in str(refused.value)


async def test_its_canvas_is_streamed_and_a_gap_is_filled(model: Path, tmp_path: Path) -> None:
    async with service.serving(model, tmp_path) as client:
        stream = await client.chat.completions.create(
            model="model", messages=MESSAGES, max_tokens=24, stream=True, extra_body={"diffusing": True}
        )
        canvases = [chunk async for chunk in stream]
        assert len(canvases) > 2
        body = {
            "model": "model",
            "prompt": "one two ",
            "suffix": " four five",
            "max_tokens": 8,
            "temperature": 0,
        }
        filled = await client.post("/fim/completions", body=body, cast_to=object)
        llm = loaded(model)
        stream = llm.stream("one two ", Sampling(max_tokens=8), suffix=" four five")
        wanted = "".join(event.text for event in stream if isinstance(event, Text))
        assert filled["choices"][0]["text"] == wanted  # type: ignore[index]
        for effort in ("low", "medium", "high"):
            reply = await client.chat.completions.create(
                model="model", messages=MESSAGES, max_tokens=8, reasoning_effort=effort
            )
            assert reply.choices[0].finish_reason in ("stop", "length")


def test_it_answers_at_the_terminal_with_its_default_preset(model: Path) -> None:
    llm = LLM(loaded=load_model(str(model), EngineConfig(dtype="float32")))
    wanted = "".join(
        event.text
        for event in llm.stream(llm.chat_prompt(MESSAGES), Sampling(max_tokens=16))
        if isinstance(event, Text)
    )
    options = ["--model", str(model), "--max-tokens", "16", "--dtype", "float32", "--json"]
    ran = CliRunner().invoke(app, ["run", "count from one", *options])
    assert json.loads(ran.stdout)["text"] == wanted, ran.output
    talked = CliRunner().invoke(app, ["chat", *options], input="count from one\n")
    assert json.loads(talked.stdout)["text"] == wanted, talked.output
    refused = CliRunner().invoke(app, ["run", "count from one", *options, "--preset", "lossless"])
    assert refused.exit_code != 0
