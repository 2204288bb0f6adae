"""Every route of our own OpenAPI document, asked with what its schema allows and what it forbids."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from typing import Any

import pytest
import schemathesis
from schemathesis import GenerationMode

from serving.fake import MODEL, FakeBackend, fake_service
from serving.fuzzing import FEW, MANY, bounded
from serving.http.test_malformed import check_error
from vermilion.serving.http.app import create_app

MOST_S = 5.0
"""No reply takes longer; the fake engine answers at once."""

app = create_app(fake_service(FakeBackend(model=replace(MODEL, context_length=4096)), allowed_hosts=("*",)))
document = schemathesis.openapi.from_asgi("/openapi.json", app)
document.config.generation.update(modes=[GenerationMode.POSITIVE, GenerationMode.NEGATIVE])


@pytest.fixture(autouse=True)
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing listens there, so that nothing is asked of the world."""
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")


def ask(case: Any) -> None:
    if case.operation.path.startswith(("/model/", "/endpoints/")):
        # Other names come no further than their 404.
        case.path_parameters = dict.fromkeys(case.path_parameters, MODEL.id)
    started_s = time.perf_counter()
    reply = case.call()
    assert time.perf_counter() - started_s < MOST_S
    if reply.status_code == 502:
        # What cannot be reached is said to be the hub's fault.
        assert case.operation.path == "/v1/models/pull"
    elif reply.status_code in (501, 503):
        # Nothing here trains or has accounts; a service that could would not say so.
        assert reply.json()["error"]
    else:
        assert reply.status_code < 500, f"{reply.status_code}: {reply.text[:500]}"
    path = case.operation.path
    if reply.status_code >= 400 and reply.status_code != 405:
        check_error(path, json.loads(reply.content))
    assert reply.headers.get("x-request-id")


@document.parametrize()
@bounded(FEW)
def test_no_request_breaks_the_service(case: Any) -> None:
    ask(case)


@pytest.mark.exhaustive
@document.parametrize()
@bounded(MANY)
def test_no_request_of_many_breaks_the_service(case: Any) -> None:
    ask(case)
