"""A request names its adapter on every face; adapters are listed, loaded, unloaded, refused with a reason."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import httpx
import openai
import pytest

from serving.fake import MODEL, FakeBackend, fake_service, served
from serving.running import running
from vermilion.cli.launch import settings_of
from vermilion.cli.options import ServeOptions
from vermilion.errors import BadParameter
from vermilion.serving.generation.model_names import MERCURY_NAMES
from vermilion.serving.http.app import create_app
from vermilion.serving.model_pool import ModelPool
from vermilion.serving.service_state import ServiceState

pytestmark = pytest.mark.anyio
QUESTION = {"messages": [{"role": "user", "content": "hi"}]}
BASE = MODEL.id


@pytest.fixture
def backend() -> FakeBackend:
    return FakeBackend(model=replace(MODEL, adapters=("legal", "ft:tiny-diffusion:support:1a")))


ASKED = {
    "/v1/chat/completions": QUESTION,
    "/v1/completions": {"prompt": "hi"},
    "/v1/fim/completions": {"prompt": "a(", "suffix": ")"},
    "/v1/messages": {**QUESTION, "max_tokens": 9},
    "/api/chat": {**QUESTION, "stream": False},
    "/api/generate": {"prompt": "hi", "stream": False},
}


@pytest.mark.parametrize("path", ASKED)
async def test_every_face_takes_an_adapter_by_its_name(
    client: httpx.AsyncClient, backend: FakeBackend, path: str
) -> None:
    for name, adapter in (
        ("legal", "legal"),
        (f"{BASE}:legal", "legal"),
        ("ft:tiny-diffusion:support:1a", "ft:tiny-diffusion:support:1a"),
        (BASE, ""),
        ("mercury", ""),
    ):
        reply = await client.post(path, json={**ASKED[path], "model": name})
        assert reply.status_code == 200, reply.text
        assert backend.requests[-1].adapter == adapter
        if not path.startswith("/api"):
            assert reply.json()["model"] == (adapter or BASE)
    unknown = await client.post(path, json={**ASKED[path], "model": f"{BASE}:other"})
    assert unknown.status_code == 404


async def test_an_alias_may_mean_an_adapter(open_client, backend: FakeBackend) -> None:
    async with open_client(aliases={"lawyer": "legal"}) as client:
        assert (await client.post("/v1/chat/completions", json={**QUESTION, "model": "lawyer"})).is_success
        listed = [row["id"] for row in (await client.get("/v1/models")).json()["data"]]
    assert backend.requests[-1].adapter == "legal"
    assert listed[:4] == [BASE, "legal", "ft:tiny-diffusion:support:1a", "lawyer"]
    assert set(listed[4:]) == set(MERCURY_NAMES)


async def test_openais_client_lists_and_deletes_adapters() -> None:
    backend = FakeBackend(model=replace(MODEL, adapters=("legal", "ft:tiny-diffusion:support:1a")))
    async with (
        running(backend) as server,
        openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as client,
    ):
        names = [BASE, *backend.model.adapters, *MERCURY_NAMES]
        assert [model.id async for model in client.models.list()] == names
        assert (await client.models.retrieve("legal")).model_extra["parent"] == BASE  # type: ignore[index]
        assert (await client.models.delete("ft:tiny-diffusion:support:1a")).deleted
        assert [model.id async for model in client.models.list()] == [BASE, "legal", *MERCURY_NAMES]
        with pytest.raises(openai.NotFoundError):
            await client.models.delete("ft:tiny-diffusion:support:1a")
        with pytest.raises(openai.BadRequestError, match="allowed: legal"):
            await client.models.delete(BASE)


async def test_adapters_are_loaded_only_from_the_operators_folder(
    open_client, backend: FakeBackend, tmp_path: Path
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "adapter_config.json").write_text("{}")
    body = {"lora_name": "new", "lora_path": "mine"}
    async with open_client() as client:
        closed = await client.post("/v1/load_lora_adapter", json=body)
        assert closed.status_code == 400 and "adapter_folder" in closed.json()["error"]["message"]
    async with open_client(adapter_folder=tmp_path) as client:
        assert (await client.post("/v1/load_lora_adapter", json=body)).json()["loaded"]
        assert (await client.post("/v1/chat/completions", json={**QUESTION, "model": "new"})).is_success
        for wrong in ("../x", "/etc", "missing"):
            reply = await client.post("/v1/load_lora_adapter", json={**body, "lora_path": wrong})
            assert (reply.status_code, reply.json()["error"]["param"]) == (400, "lora_path")
        for name in (BASE, "mercury", "a b"):
            reply = await client.post("/v1/load_lora_adapter", json={**body, "lora_name": name})
            assert (reply.status_code, reply.json()["error"]["param"]) == (400, "adapter")
        assert (await client.post("/v1/unload_lora_adapter", json={"lora_name": "new"})).is_success
        assert (await client.post("/v1/chat/completions", json={**QUESTION, "model": "new"})).is_error


def test_the_command_line_names_adapters(tmp_path: Path) -> None:
    file = tmp_path / "serve.toml"
    file.write_text('[adapters]\nlegal = "a"\nold = "b"\n')
    options = ServeOptions(config=file, adapter=["v1.5=c", "legal=/d/e=f"])
    paths = {"legal": Path("/d/e=f"), "old": Path("b"), "v1.5": Path("c")}
    assert settings_of(options).adapters == paths
    for wrong in ("legal", "=x", "mercury=x", "two words=x"):
        with pytest.raises(BadParameter):
            settings_of(ServeOptions(adapter=[wrong]))


def two_models(tmp_path: Path) -> tuple[ServiceState, FakeBackend, FakeBackend]:
    first, second = FakeBackend(), FakeBackend(model=replace(MODEL, id="other"))
    service = fake_service(first, adapter_folder=tmp_path)
    service.models = ModelPool.of(served(first), served(second))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "adapter_config.json").write_text("{}")
    return service, first, second


async def test_an_adapter_is_of_the_model_that_is_named(tmp_path: Path) -> None:
    service, first, second = two_models(tmp_path)
    transport = httpx.ASGITransport(create_app(service))
    body = {"lora_name": "new", "lora_path": "mine"}
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        loaded = await client.post("/v1/load_lora_adapter", json={**body, "model": "other"})
        assert loaded.json()["parent"] == "other"
        assert (first.model.adapters, second.model.adapters) == ((), ("new",))
        assert (await client.post("/v1/chat/completions", json={**QUESTION, "model": "new"})).is_success
        assert [request.adapter for request in second.requests] == ["new"] and not first.requests
        clash = await client.post("/v1/load_lora_adapter", json=body)
        assert (clash.status_code, clash.json()["error"]["param"]) == (400, "adapter")
        unknown = await client.post("/v1/load_lora_adapter", json={**body, "model": "third"})
        assert unknown.status_code == 404
        assert (await client.post("/v1/unload_lora_adapter", json={"lora_name": "new"})).is_success
        assert second.model.adapters == ()
        assert (await client.post("/v1/load_lora_adapter", json={**body, "model": "other"})).is_success
        assert (await client.delete("/v1/models/new")).json()["deleted"]
        assert second.model.adapters == ()
