"""What an operator sees: liveness, readiness, metrics, settings, the reference page, the import graph."""

from __future__ import annotations

import re
import subprocess
import sys

import httpx
import pytest

from serving.fake import FakeBackend, served, sse
from vermilion.errors import ConfigError
from vermilion.serving.generation.model_names import MERCURY_NAMES
from vermilion.serving.http.app import ROUTES, create_app
from vermilion.serving.http.routes import RouteTable
from vermilion.serving.model_pool import ModelPool
from vermilion.serving.serve_config import ServeConfig
from vermilion.serving.service_state import ServiceState

pytestmark = pytest.mark.anyio
GET_ROUTES = {
    "/v1/models",
    "/v1/models/{id}",
    "/v1/chat/completions/models",
    "/v1/fim/completions/models",
    "/v1/edit/completions/models",
    "/api/version",
    "/api/tags",
    "/api/v0/models",
    "/api/v0/models/{id}",
    "/health",
    "/ready",
    "/metrics",
}
POST_ROUTES = {
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/fim/completions",
    "/v1/edit/completions",
    "/v1/apply/completions",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/v1/tokenize",
    "/v1/detokenize",
    "/v1/decisions",
    "/v1/infill",
    "/api/show",
    "/api/chat",
    "/api/generate",
    "/api/v0/chat/completions",
    "/api/v0/completions",
    "/infill",
}
ADAPTER_ROUTES = {"/v1/load_lora_adapter", "/v1/unload_lora_adapter"}
"""Their examples need a folder of adapters."""
QUESTION = {"messages": [{"role": "user", "content": "hi"}]}


def test_the_service_never_imports_torch() -> None:
    code = (
        "import sys, pkgutil, importlib, vermilion.serving as package\n"
        "for module in pkgutil.iter_modules(package.__path__):\n"
        "    importlib.import_module(f'vermilion.serving.{module.name}')\n"
        "heavy = {'torch', 'transformers', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run(
        [sys.executable, "-c", code], check=True, timeout=60, env={"PYTHONPATH": ":".join(sys.path)}
    )


@pytest.mark.parametrize(
    ("path", "canonical"),
    [
        ("/v1/chat/completions", "/v1/chat/completions"),
        ("/chat/completions/", "/v1/chat/completions"),
        ("/v1/completions//", "/v1/completions"),
        ("/models", "/v1/models"),
        ("/models/a/b", "/v1/models/a/b"),
        ("/v1/health", "/health"),
        ("/metrics/", "/metrics"),
        ("/fim/completions", "/v1/fim/completions"),
        ("/messages", "/v1/messages"),
        ("/tokenize", "/v1/tokenize"),
        ("/v1/infill/", "/v1/infill"),
        ("/infill/", "/infill"),
        ("/api/tags/", "/api/tags"),
        ("/v1", "/"),
        ("/", "/"),
        ("/v1x/models", "/v1x/models"),
        ("/openai/deployments/m/chat/completions", "/v1/chat/completions"),
        ("/openai/deployments/m/completions/", "/v1/completions"),
        ("/openai/v1/models", "/v1/models"),
        ("/openai/", "/openai"),
    ],
)
def test_every_spelling_of_an_address_is_one_route(path: str, canonical: str) -> None:
    assert RouteTable(ROUTES).canonical(path) == canonical


async def test_a_model_in_azures_path_wins_over_the_bodys(client: httpx.AsyncClient) -> None:
    body = {"messages": [{"role": "user", "content": "hi"}], "model": None}
    path = "/openai/deployments/{}/chat/completions?api-version=2024-10-21"
    assert (await client.post(path.format("tiny-diffusion"), json=body)).status_code == 200
    reply = await client.post(path.format("other"), json={**body, "model": "tiny-diffusion"})
    assert reply.status_code == 404
    assert "'other'" in reply.json()["error"]["message"]


@pytest.mark.parametrize("path", ["/v1/models", "/models", "/models/", "/v1/models/"])
async def test_models_are_listed_for_openai_and_mercury_clients(client: httpx.AsyncClient, path: str) -> None:
    listed = (await client.get(path)).json()
    assert listed["object"] == "list"
    model, *aliases = listed["data"]
    assert [alias["id"] for alias in aliases] == list(MERCURY_NAMES)
    assert (model["id"], model["object"], model["owned_by"], model["created"]) == (
        "tiny-diffusion",
        "model",
        "vermilion",
        1,
    )
    assert model["context_length"] == 256
    assert {"temperature", "stop", "preset"} <= set(model["supported_sampling_parameters"])
    assert (await client.get("/v1/models/tiny-diffusion")).json() == model


async def test_an_unknown_model_is_a_404(client: httpx.AsyncClient) -> None:
    reply = await client.get("/v1/models/none")
    assert reply.status_code == 404
    assert reply.json()["error"]["code"] == "model_not_found"


async def test_readiness_follows_the_model_and_the_drain_while_health_stays() -> None:
    service = ServiceState(ServeConfig())
    transport = httpx.ASGITransport(create_app(service))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:

        async def statuses() -> tuple[int, int, str]:
            reply = await client.post("/v1/chat/completions", json=QUESTION)
            ready, health = await client.get("/ready"), await client.get("/health")
            assert health.status_code == 200
            code = reply.json().get("error", {}).get("code")
            if code:
                assert int(reply.headers["retry-after"]) > 0
            return ready.status_code, reply.status_code, code

        assert await statuses() == (503, 503, "model_loading")
        service.models = ModelPool.of(served(FakeBackend()))
        assert await statuses() == (200, 200, None)
        await service.drain(timeout_s=0)
        assert await statuses() == (503, 503, "service_draining")


async def test_metrics_count_what_happened(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    await client.post("/v1/chat/completions", json=QUESTION)
    sse((await client.post("/chat/completions/", json={**QUESTION, "stream": True})).text)
    await client.post("/v1/chat/completions", json={})
    await client.get("/secret-path")
    metrics = (await client.get("/metrics")).text.splitlines()
    for line in (
        "vermilion_prompt_tokens_total 16.0",
        "vermilion_cached_tokens_total 8.0",
        "vermilion_completion_tokens_total 8.0",
        "vermilion_passes_total 8.0",
        "vermilion_edits_total 2.0",
        "vermilion_cancellations_total 0.0",
        'vermilion_requests_total{route="/v1/chat/completions",status="200"} 2.0',
        'vermilion_requests_total{route="/v1/chat/completions",status="400"} 1.0',
        'vermilion_requests_total{route="other",status="404"} 1.0',
        'vermilion_errors_total{code="missing_required_parameter"} 1.0',
        "vermilion_running_requests 0.0",
        "vermilion_waiting_requests 0.0",
        "vermilion_kv_pages_used 3.0",
        "vermilion_kv_pages_total 9.0",
        "vermilion_kv_pages_cached 2.0",
        "vermilion_engine_passes_total 5.0",
        "vermilion_tokens_per_pass_count 2.0",
        "vermilion_time_to_first_text_seconds_count 2.0",
        'vermilion_request_duration_seconds_count{route="/v1/chat/completions"} 3.0',
    ):
        assert line in metrics
    assert not any("secret-path" in line for line in metrics)


async def test_two_services_count_apart(open_client) -> None:
    async with open_client() as one, open_client() as other:
        await one.post("/v1/chat/completions", json=QUESTION)
        assert "vermilion_passes_total 0.0" in (await other.get("/metrics")).text


async def test_the_log_names_no_prompt(client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", logger="vermilion")
    messages = [{"role": "user", "content": "my-secret-prompt"}]
    await client.post("/v1/chat/completions", json={"messages": messages})
    await client.post("/v1/chat/completions", json={"messages": messages, "temperature": "my-secret-prompt"})
    assert "/v1/chat/completions 200" in caplog.text
    assert "my-secret-prompt" not in caplog.text


async def test_probes_may_leave_out_the_body(client: httpx.AsyncClient) -> None:
    for probe in ("/health", "/ready"):
        assert (await client.head(probe)).status_code == 200


async def test_probes_do_not_fill_the_log(
    client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="vermilion")
    for probe in ("/health", "/ready", "/ping", "/metrics"):
        assert (await client.get(probe)).status_code == 200
    await client.get("/v1/models")
    assert [record.getMessage().split()[2:4] for record in caplog.records] == [["/v1/models", "200"]]


@pytest.mark.parametrize(
    ("settings", "origin", "allowed"),
    [
        ({}, "http://localhost:3000", True),
        ({}, "vscode-webview://abc", True),
        ({}, "https://example.org", False),
        ({}, "https://localhost.example.org", False),
        ({"cors_origins": ("https://example.org",)}, "https://example.org", True),
        ({"cors_origins": ("*",)}, "https://anywhere.net", True),
    ],
)
async def test_browsers_may_call_from_local_pages_and_configured_origins(
    open_client, settings: dict[str, object], origin: str, allowed: bool
) -> None:
    asked = {
        "origin": origin,
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type,x-stainless-lang",
    }
    async with open_client(**settings) as client:
        preflight = await client.options("/v1/chat/completions", headers=asked)
        refused = await client.post("/v1/chat/completions", json={}, headers={"origin": origin})
    assert (preflight.status_code == 200) == allowed
    assert refused.status_code == 400
    assert ("access-control-allow-origin" in refused.headers) == allowed


async def test_the_reference_describes_every_route_and_field(client: httpx.AsyncClient) -> None:
    page = (await client.get("/docs")).text
    scripts = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert len(scripts) >= 2
    assert all(script.startswith("/") for script in scripts), "the page must work without a network"
    assert {(await client.get(script)).status_code for script in scripts} == {200}
    document = (await client.get("/openapi.json")).json()
    assert set(document["paths"]) >= GET_ROUTES | POST_ROUTES | ADAPTER_ROUTES
    schemas = document["components"]["schemas"]
    for route in POST_ROUTES:
        operation = document["paths"][route]["post"]
        content = operation["requestBody"]["content"]["application/json"]
        body = content["schema"]["$ref"].rpartition("/")[2]
        assert "422" not in operation["responses"]
        for example in content["examples"].values():
            fields = {
                **example["value"],
                **({"model": "tiny-diffusion"} if "model" in example["value"] else {}),
            }
            reply = await client.post(route, json=fields)
            assert reply.status_code == 200, reply.text
        bare = {"stream_options", "messages"}
        assert all("description" in f for n, f in schemas[body]["properties"].items() if n not in bare)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org", ""])
def test_listening_to_other_computers_must_be_meant(host: str) -> None:
    with pytest.raises(ConfigError, match="--open"):
        ServeConfig(host=host)
    assert ServeConfig(host=host, open=True).host == host


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_listening_to_this_computer_needs_no_leave(host: str) -> None:
    assert ServeConfig(host=host).host == host


@pytest.mark.parametrize(
    "settings",
    [{"port": 65536}, {"max_body_bytes": 0}, {"drain_timeout_s": -1.0}, {"default_preset": "slow"}],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings))):
        ServeConfig(**settings)
