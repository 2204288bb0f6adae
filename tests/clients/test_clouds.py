"""The clients of the clouds, Amazon's and Azure's, against the embedded model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import azure.ai.inference
import boto3
import pytest
from azure.ai.inference import ChatCompletionsClient
from azure.ai.inference import models as azure_models
from azure.core.credentials import AzureKeyCredential

from clients.conftest import Proven
from clients.running import MODEL, Running
from serving.boto import amazon, chunks, conversed

pytestmark = [pytest.mark.model, pytest.mark.slow]
ASKED = "What is the capital of France? Answer in one short sentence."
QUESTION = [{"role": "user", "content": [{"text": ASKED}]}]
LEVEL = {
    "type": "object",
    "properties": {"level": {"type": "integer", "enum": [1, 2, 3]}},
    "required": ["level"],
    "additionalProperties": False,
}
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


@pytest.fixture(scope="module")
def bedrock(service: Running) -> Iterator[Any]:
    with closing(amazon("bedrock-runtime", service.url)) as client:
        yield client


def test_converse_answers_streams_calls_and_keeps_to_a_schema(bedrock: Any, proven: Proven) -> None:
    asked: dict[str, Any] = {
        "modelId": MODEL,
        "messages": QUESTION,
        "inferenceConfig": {"maxTokens": 24, "temperature": 0.0},
    }
    whole = bedrock.converse(**asked)
    (said,) = whole["output"]["message"]["content"]
    assert "Paris" in said["text"]
    text, _, ended = conversed(bedrock.converse_stream(**asked)["stream"])
    assert (text, ended["stopReason"]) == (said["text"], whole["stopReason"])
    assert ended["usage"]["outputTokens"] == whole["usage"]["outputTokens"]
    counted = bedrock.count_tokens(modelId=MODEL, input={"converse": {"messages": QUESTION}})["inputTokens"]
    assert counted == whole["usage"]["inputTokens"] + whole["usage"]["cacheReadInputTokens"]

    asked["inferenceConfig"]["maxTokens"] = 64
    spec = {"name": "set_volume", "description": "Set the volume.", "inputSchema": {"json": LEVEL}}
    tools = {"tools": [{"toolSpec": spec}], "toolChoice": {"tool": {"name": "set_volume"}}}
    called = bedrock.converse(**asked, toolConfig=tools)
    assert called["stopReason"] == "tool_use"
    assert called["output"]["message"]["content"][-1]["toolUse"]["input"]["level"] in (1, 2, 3)
    _, inputs, _ = conversed(bedrock.converse_stream(**asked, toolConfig=tools)["stream"])
    assert json.loads(inputs["set_volume"])["level"] in (1, 2, 3)

    form = {"type": "json_schema", "structure": {"jsonSchema": {"schema": json.dumps(CITY)}}}
    shaped = bedrock.converse(**asked, outputConfig={"textFormat": form})
    assert "city" in json.loads(shaped["output"]["message"]["content"][0]["text"])
    proven("boto3, bedrock-runtime", boto3.__version__, "converse whole and streamed, a tool, a schema")


def test_invoke_shows_the_canvas_and_fills_gaps(service: Running, bedrock: Any, proven: Proven) -> None:
    body = {"messages": [{"role": "user", "content": ASKED}], "max_tokens": 24, "diffusing": True}
    streamed = bedrock.invoke_model_with_response_stream(
        modelId=MODEL, body=json.dumps({**body, "preset": "fast"})
    )
    *frames, last = chunks(streamed["body"])
    shown = [one["choices"][0]["delta"]["content"] for one in frames]
    assert len(shown) > 2 and shown[-1].startswith("The capital")
    assert last["amazon-bedrock-invocationMetrics"]["outputTokenCount"] > 0
    gap = {"prompt": "def add(a, b):\n    return ", "suffix": "\n", "max_tokens": 8}
    filled = bedrock.invoke_model(modelId=MODEL, body=json.dumps(gap))
    assert json.loads(filled["body"].read())["choices"][0]["text"].strip()
    proven("boto3, bedrock-runtime", boto3.__version__, "invoke: canvases in a stream, a gap")
    with closing(amazon("sagemaker-runtime", service.url)) as runtime:
        reply = runtime.invoke_endpoint(EndpointName=MODEL, Body=json.dumps({**body, "diffusing": False}))
        assert "Paris" in json.loads(reply["Body"].read())["choices"][0]["message"]["content"]
    proven("boto3, sagemaker-runtime", boto3.__version__, "invoke_endpoint")


def test_azure_ais_client_answers_streams_and_keeps_to_a_schema(service: Running, proven: Proven) -> None:
    question = [azure_models.UserMessage(ASKED)]
    with ChatCompletionsClient(f"{service.url}/models", AzureKeyCredential("any")) as client:
        assert client.get_model_info().model_name == MODEL
        whole = client.complete(messages=question, max_tokens=24, temperature=0)
        answer = whole.choices[0].message.content
        assert "Paris" in answer
        updates = client.complete(messages=question, max_tokens=24, temperature=0, stream=True)
        told = [choice.delta.content or "" for update in updates for choice in update.choices]
        assert "".join(told) == answer
        form = azure_models.JsonSchemaFormat(name="place", schema=CITY, strict=False)
        shaped = client.complete(messages=question, max_tokens=64, response_format=form)
        assert "city" in json.loads(shaped.choices[0].message.content)
    version = azure.ai.inference.__version__
    proven("azure-ai-inference", version, "complete whole and streamed, a schema, model info")
