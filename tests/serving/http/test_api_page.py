"""The examples of docs/API.md run, and the replies beside them have the fields of the real ones."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from serving.fake import MODEL, FakeBackend
from vermilion.serving.admin.answer_log import AnswerLog
from vermilion.types import Finish, Request, Usage

pytestmark = pytest.mark.anyio
DOCS = Path(__file__).resolve().parents[3] / "docs"
PAGE = "".join(
    page.read_text(encoding="utf-8") for page in [DOCS / "API.md", *sorted((DOCS / "api").glob("*.md"))]
)
ANOTHER = (Path(__file__).resolve().parents[3] / "docs" / "FINE_TUNING.md").read_text(encoding="utf-8")
"""Whose examples tests/serving/test_tuning_page.py runs."""
EXAMPLES = re.findall(r"```sh\n(.+?)```\n```(json|text)\n(.+?)```", PAGE, re.DOTALL)
FREE = {"supported_sampling_parameters", "decoders", "presets", "settled", "masked", "edited", "tokens"} | {
    "settings",
    "sampling",
}
"""Fields whose values differ between models and texts in their own shape."""


def shape(value: Any) -> Any:
    """Names and kinds without the values."""
    if isinstance(value, dict):
        return {key: None if key in FREE else shape(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [shape(value[0])] if value else []
    return (
        "number" if isinstance(value, int | float) and not isinstance(value, bool) else type(value).__name__
    )


def loads(line: str) -> Any:
    content = line.removeprefix("data: ")
    return content if content == "[DONE]" else shape(json.loads(content))


@pytest.mark.parametrize("example", EXAMPLES, ids=[f"example{i}" for i in range(len(EXAMPLES))])
async def test_an_example_of_the_page_gives_what_the_page_says(
    open_client, backend: FakeBackend, monkeypatch, example: tuple[str, str, str]
) -> None:
    command, kind, documented = example
    backend.model = replace(MODEL, id="smollm2-135m-diffusion", context_length=4096)
    answered = AnswerLog()
    answered.add(Request("cmpl-5e1d-0", (5,)), backend.model.id, Finish("stop", Usage()))
    monkeypatch.setattr("vermilion.serving.service_state.AnswerLog", lambda: answered)
    words = [word for word in shlex.split(command) if word != "-N"]
    assert words[0] == "curl"
    path = words[1].removeprefix("localhost:8000")
    async with open_client() as client:
        if len(words) == 2:
            reply = await client.get(path)
        else:
            assert words[2] == "--json"
            reply = await client.post(path, json=json.loads(words[3]))
    refused = 501 if path == "/v1/embeddings" else 400
    assert reply.status_code == (refused if '"error": {' in documented else 200), reply.text
    if kind == "json":
        assert shape(reply.json()) == shape(json.loads(documented))
    else:
        heard = [loads(line) for line in reply.text.splitlines() if line]
        assert all(loads(line) in heard for line in documented.splitlines())


async def test_the_page_has_an_example_of_every_route(client: httpx.AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()
    shown = set(re.findall(r"localhost:8000(/[^\s'\"`]+)", PAGE + ANOTHER))
    # Their streams are binary: tests/serving/wire/test_clouds_page.py runs the examples of docs/CLOUDS.md.
    binary = {
        "/model/{id}/converse-stream",
        "/model/{id}/invoke-with-response-stream",
        "/endpoints/{name}/invocations-response-stream",
    }
    told = {"/v1/models", "/v1/models/{id}", "/v1/chat/completions/models", "/v1/edit/completions/models"}
    named = {
        path
        for path in document["paths"]
        if path.startswith(("/model/", "/endpoints/"))
        and any(re.fullmatch(re.sub(r"{\w+}", "[^/]+", path), one) for one in shown)
    }
    unshown = set(document["paths"]) - shown - told - binary - named
    assert unshown == {"/api/v0/models/{id}", "/metrics"}
