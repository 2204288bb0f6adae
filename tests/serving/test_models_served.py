"""Three small models in one real service within the memory of one, pulled from a hub on this machine."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import httpx
import openai
import pytest

from serving import toy as service
from serving.test_families_served import KINDS
from tests.models.hub_server import Hub, Repository, serving
from vermilion.config import EngineConfig
from vermilion.engine.llm import LLM
from vermilion.engine.loading import describe_model, load_model
from vermilion.models import hub
from vermilion.serving.local_models import local_models
from vermilion.serving.serve_config import ServeConfig
from vermilion.serving.settings import Settings
from vermilion.training import toy
from vermilion.training.convert import convert
from vermilion.training.recipe import Recipe, Stage
from vermilion.types import Sampling

pytestmark = pytest.mark.anyio
ENGINE = {"kv_tokens": 2048, "threads": 1, "dtype": "float32"}
MESSAGES = [{"role": "user", "content": "count from one"}]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    with patch.object(toy, "_NUMBERS", service.WORDS), patch.object(toy, "_STEPS", 60):
        shape = {"stages": (Stage(1.0, 4),), "plot": False, "steps": 10, "rows": 8, "micro_rows": 8}
        block = convert(Recipe("toy", root / "b", method="tied", **shape, **KINDS["block"]))[0]  # type: ignore[arg-type]
    causal = service.make(root / "a")
    made = {"causal": shutil.move(causal, root / "causal"), "block": shutil.move(block, root / "block")}
    return {
        **{name: Path(path) for name, path in made.items()},
        "copy": Path(shutil.copytree(made["block"], root / "copy")),
    }


def wanted(folder: Path) -> str:
    llm = LLM(loaded=load_model(str(folder), EngineConfig(**ENGINE)))  # type: ignore[arg-type]
    (answer,) = llm.generate([llm.chat_prompt(MESSAGES)], Sampling(max_tokens=12))
    return answer.text


async def said(client: openai.AsyncOpenAI, model: str) -> str:
    reply = await client.chat.completions.create(
        model=model,
        messages=MESSAGES,
        max_tokens=12,
        temperature=0,
        timeout=60,  # type: ignore[arg-type]
    )
    return reply.choices[0].message.content or ""


async def test_models_answer_as_alone_while_they_make_room_for_each_other(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    answers = {name: wanted(folder) for name, folder in folders.items()}
    assert answers["causal"] != answers["block"] == answers["copy"]
    sizes = [describe_model(str(folder), EngineConfig(**ENGINE))[1] for folder in folders.values()]  # type: ignore[arg-type]
    budget = f"{(max(sizes) + 1e6) / 1e6:.0f}MB"
    engine = EngineConfig(**ENGINE, memory_budget=budget)  # type: ignore[arg-type]
    config = ServeConfig(port=0, data_folder=tmp_path)
    first, *others = map(str, folders.values())
    settings = Settings(first, config, engine, models=tuple(others))
    async with service.client_of(config, lambda: local_models(settings)) as client:
        listed = {row.id: row.model_extra for row in (await client.models.list()).data}
        assert [listed[name]["state"] for name in folders] == ["loaded", "on_disk", "on_disk"]  # type: ignore[index]
        assert listed["block"]["default_preset"] == "balanced"  # type: ignore[index]
        for name in (*folders, *folders):
            assert await said(client, name) == answers[name]
        names = ["causal", "block", "copy"] * 4
        assert await asyncio.gather(*(said(client, name) for name in names)) == [answers[n] for n in names]
        states = [row.model_extra["state"] for row in (await client.models.list()).data if row.id in folders]  # type: ignore[index]
        assert sorted(states) == ["loaded", "on_disk", "on_disk"]


@pytest.fixture
def published(folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setenv("VERMILION_HOME", str(tmp_path / "home"))
    for name in (
        "HF_TOKEN",
        "HF_HUB_OFFLINE",
        "TRANSFORMERS_OFFLINE",
        "HTTP_PROXY",
        "http_proxy",
        "ALL_PROXY",
    ):
        monkeypatch.delenv(name, raising=False)
    files = {
        path.relative_to(folders["block"]).as_posix(): path.read_bytes()
        for path in folders["block"].rglob("*")
        if path.is_file()
    }
    with serving(Hub({"lab/counts": Repository(files)})) as one:
        monkeypatch.setenv("HF_ENDPOINT", one.url)
        yield one


async def test_a_model_of_the_hub_is_pulled_and_served_while_the_service_runs(
    folders: dict[str, Path], published: Hub, tmp_path: Path
) -> None:
    config = ServeConfig(port=0, data_folder=tmp_path / "data")
    settings = Settings(str(folders["causal"]), config, EngineConfig(**ENGINE))  # type: ignore[arg-type]
    async with service.client_of(config, lambda: local_models(settings)) as client:
        with pytest.raises(openai.NotFoundError):
            await said(client, "lab/counts")
        http = httpx.AsyncClient(base_url=str(client.base_url), timeout=60)
        pulled = await http.post("models/pull", json={"model": "lab/counts"})
        lines = [line.removeprefix("data: ") for line in pulled.text.splitlines() if line]
        assert lines.pop() == "[DONE]"
        told = [json.loads(line) for line in lines]
        assert [row["status"] for row in told] == ["pulling"] * (len(told) - 1) + ["success"]
        assert hub.pulled(hub.HubModel("lab/counts", "lab/counts")) is not None
        row = (await client.models.retrieve("lab/counts")).model_extra
        assert row is not None and row["state"] == "on_disk" and row["memory_bytes"] > 0
        assert await said(client, "lab/counts") == wanted(folders["block"])
        catalogue = (await http.get("catalogue")).json()
        listed = {row["name"]: row for row in catalogue["data"]}
        assert listed["lab/counts"]["state"] == "loaded" and listed["lab/counts"]["supported"]
        assert listed["sdar:1.7b"]["state"] == "not_pulled" and not listed["sdar:1.7b"]["served"]
        assert catalogue["machine"]["used_bytes"] > row["memory_bytes"]
        missing = await http.post("models/pull", json={"model": "lab/nothing"})
        assert missing.status_code == 200 and "lab/nothing is no repository" in missing.text
        refused = await http.post("models/pull", json={"model": "lab/nothing", "stream": False})
        assert (
            refused.status_code == 502
            and "lab/nothing is no repository" in refused.json()["error"]["message"]
        )
        await http.aclose()
