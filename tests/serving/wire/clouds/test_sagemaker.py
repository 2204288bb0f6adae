"""SageMaker: what its container contract asks of us, and boto3's client of its runtime, unmodified."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import httpx
import pytest
from botocore.exceptions import ClientError, EventStreamError

from serving.boto import amazon
from serving.fake import MODEL, FakeBackend, sse
from vermilion.errors import EngineFailure, Overloaded

CHAT = {"messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture
def runtime(url: str) -> Iterator[Any]:
    with closing(amazon("sagemaker-runtime", url)) as runtime:
        yield runtime


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (CHAT, "chat.completion"),
        ({"prompt": "Once"}, "text_completion"),
        ({"prompt": "a(", "suffix": ")"}, "text_completion"),
        ({"input": "hi"}, "response"),
        ({**CHAT, "anthropic_version": "any", "max_tokens": 9}, None),
    ],
)
def test_a_container_tells_routes_by_their_bodies(url: str, body: dict[str, Any], kind: str | None) -> None:
    reply = httpx.post(f"{url}/invocations", json=body)
    assert (reply.status_code, reply.json().get("object")) == (200, kind)


def test_a_container_streams_and_refuses_as_the_route_does(url: str) -> None:
    streamed = sse(httpx.post(f"{url}/invocations", json={**CHAT, "stream": True}).text)
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in streamed) == "Hello, world!"
    for body, code in (({}, "missing_required_parameter"), ({**CHAT, "model": "other"}, "model_not_found")):
        assert httpx.post(f"{url}/invocations", json=body).json()["error"]["code"] == code


def test_an_endpoint_answers_whole_and_in_parts(runtime: Any) -> None:
    reply = runtime.invoke_endpoint(
        EndpointName=MODEL.id, Body=json.dumps(CHAT), ContentType="application/json"
    )
    assert (reply["ContentType"], reply["InvokedProductionVariant"]) == ("application/json", "AllTraffic")
    assert json.loads(reply["Body"].read())["choices"][0]["message"]["content"] == "Hello, world!"
    streamed = runtime.invoke_endpoint_with_response_stream(
        EndpointName="mercury", Body=json.dumps({**CHAT, "stream": True, "diffusing": True})
    )
    content = b"".join(event["PayloadPart"]["Bytes"] for event in streamed["Body"]).decode()
    assert streamed["ContentType"] == "text/event-stream"
    assert sse(content)[-2]["choices"][0]["delta"]["content"] == "Hello, world!"
    whole = runtime.invoke_endpoint_with_response_stream(EndpointName=MODEL.id, Body=json.dumps(CHAT))
    (part,) = whole["Body"]
    assert whole["ContentType"] == "application/json"
    assert json.loads(part["PayloadPart"]["Bytes"])["object"] == "chat.completion"


def test_one_endpoint_may_name_a_model_behind_it(runtime: Any) -> None:
    asked = {"EndpointName": "any-name", "Body": json.dumps(CHAT)}
    assert runtime.invoke_endpoint(**asked, TargetModel=MODEL.id)["Body"].read()
    assert runtime.invoke_endpoint(**asked, InferenceComponentName=MODEL.id)["Body"].read()


def test_what_the_model_refuses_is_a_model_error(runtime: Any) -> None:
    with pytest.raises(ClientError) as error:
        runtime.invoke_endpoint(EndpointName=MODEL.id, Body=json.dumps({**CHAT, "temperature": 5}))
    told = error.value.response
    assert (told["Error"]["Code"], told["OriginalStatusCode"]) == ("ModelError", 400)
    assert json.loads(told["OriginalMessage"])["error"]["param"] == "temperature"


@pytest.mark.parametrize(
    ("name", "failure", "kind", "status"),
    [
        ("other", None, "ValidationError", 400),
        (MODEL.id, Overloaded("The queue is full."), "ThrottlingException", 429),
        (MODEL.id, EngineFailure("A step failed."), "ModelError", 424),
        (MODEL.id, RuntimeError("a bug"), "InternalFailure", 500),
    ],
)
def test_what_goes_wrong_is_said_in_sagemakers_words(
    runtime: Any, backend: FakeBackend, name: str, failure: Exception | None, kind: str, status: int
) -> None:
    backend.failure = failure
    with pytest.raises(ClientError) as error:
        runtime.invoke_endpoint(EndpointName=name, Body=json.dumps(CHAT))
    reply = error.value.response
    assert (reply["Error"]["Code"], reply["ResponseMetadata"]["HTTPStatusCode"]) == (kind, status)


def test_a_stream_that_fails_ends_with_an_error_event(runtime: Any, backend: FakeBackend) -> None:
    backend.failure = EngineFailure("A step failed.")
    streamed = runtime.invoke_endpoint_with_response_stream(
        EndpointName=MODEL.id, Body=json.dumps({**CHAT, "stream": True})
    )
    with closing(streamed["Body"]) as stream, pytest.raises(EventStreamError, match="ModelStreamError"):
        list(stream)
