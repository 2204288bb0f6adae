"""boto3's client of Bedrock, unmodified, over a socket: what it asks, what it reads, every error."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any

import anthropic
import httpx
import pytest
from botocore.exceptions import ClientError, EventStreamError

from serving.boto import ARN, KEY_ID, QUESTION, SECRET, TOOL, amazon, chunks, conversed
from serving.fake import MODEL, FakeBackend
from vermilion.errors import EngineFailure, Overloaded
from vermilion.types import Finish, Usage

NAME = MODEL.id
CALL = '<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>'


@pytest.fixture
def bedrock(url: str) -> Iterator[Any]:
    with closing(amazon("bedrock-runtime", url)) as bedrock:
        yield bedrock


def refusal(error: pytest.ExceptionInfo[ClientError]) -> tuple[str, int, str]:
    """(type, status, message)."""
    reply = error.value.response
    told = reply["Error"]
    return told["Code"], reply["ResponseMetadata"]["HTTPStatusCode"], told["Message"]


def prompt(backend: FakeBackend) -> str:
    return "".join(map(chr, backend.requests[-1].prompt))


@pytest.mark.parametrize(
    "id",
    [NAME, ARN, f"inception.{NAME}-v1:0", "mercury-2.5", f"arn:aws:sagemaker:eu-west-1:1:endpoint/{NAME}"],
)
def test_a_model_answers_to_its_name_and_to_every_arn_of_it(bedrock: Any, id: str) -> None:
    reply = bedrock.converse(modelId=id, messages=QUESTION)
    assert reply["output"]["message"] == {"role": "assistant", "content": [{"text": "Hello, world!"}]}
    assert reply["stopReason"] == "end_turn"
    usage = reply["usage"]
    assert (usage["outputTokens"], usage["cacheReadInputTokens"]) == (4, 4)
    assert usage["totalTokens"] == usage["inputTokens"] + 4 + 4
    assert reply["metrics"]["latencyMs"] >= 0
    assert reply["ResponseMetadata"]["RequestId"].startswith("req-")


def test_everything_that_is_asked_for_reaches_the_engine(bedrock: Any, backend: FakeBackend) -> None:
    reply = bedrock.converse(
        modelId=NAME,
        system=[{"text": "Be brief."}, {"cachePoint": {"type": "default"}}],
        messages=[
            {
                "role": "user",
                "content": [
                    {"text": "Read this."},
                    {"document": {"name": "notes", "format": "md", "source": {"bytes": b"# Title"}}},
                    {"guardContent": {"text": {"text": "Carefully."}}},
                ],
            },
            {
                "role": "assistant",
                "content": [{"reasoningContent": {"reasoningText": {"text": "hm"}}}, {"text": "Y"}],
            },
            *QUESTION,
        ],
        inferenceConfig={"maxTokens": 2, "temperature": 0.5, "topP": 0.9, "stopSequences": ["END"]},
        additionalModelRequestFields={"preset": "fast", "top_k": 5, "seed": 7, "unknown": 1},
        additionalModelResponseFieldPaths=["/usage/diffusion/passes", "/nothing"],
        performanceConfig={"latency": "optimized"},
        requestMetadata={"team": "a"},
    )
    assert reply["stopReason"] == "max_tokens"
    assert reply["additionalModelResponseFields"] == {"usage": {"diffusion": {"passes": 2}}}
    request = backend.requests[-1]
    sampling = request.sampling
    assert (sampling.max_tokens, sampling.temperature, sampling.top_p) == (2, 0.5, 0.9)
    assert (sampling.stop, sampling.top_k, sampling.seed, request.realtime) == (("END",), 5, 7, True)
    assert request.decoding == replace(MODEL.presets["fast"], first_block=4)
    said = prompt(backend)
    assert "Be brief." in said and "# Title" in said and "Carefully." in said and "hm" not in said


def test_tools_are_called_streamed_and_their_results_read(bedrock: Any, backend: FakeBackend) -> None:
    backend.words = ("Well. ", *CALL)
    config = {"tools": [TOOL], "toolChoice": {"auto": {}}}
    reply = bedrock.converse(modelId=NAME, messages=QUESTION, toolConfig=config)
    text, used = reply["output"]["message"]["content"]
    assert (text, reply["stopReason"]) == ({"text": "Well."}, "tool_use")
    assert (used["toolUse"]["name"], used["toolUse"]["input"]) == ("f", {"x": 1})
    stream = bedrock.converse_stream(modelId=NAME, messages=QUESTION, toolConfig=config)["stream"]
    told, inputs, ended = conversed(stream)
    assert (told.strip(), inputs, ended["stopReason"]) == ("Well.", {"f": '{"x": 1}'}, "tool_use")
    result = {"toolUseId": used["toolUse"]["toolUseId"], "content": [{"json": {"y": 2}}, {"text": "!"}]}
    turns = [
        *QUESTION,
        {"role": "assistant", "content": [text, used]},
        {"role": "user", "content": [{"toolResult": result}]},
    ]
    bedrock.converse(modelId=NAME, messages=turns, toolConfig=config)
    assert '{"y": 2}!' in prompt(backend) and '"name": "f"' in prompt(backend)
    assert backend.requests[-1].grammar is None
    for choice in ({"any": {}}, {"tool": {"name": "f"}}):
        bedrock.converse(modelId=NAME, messages=QUESTION, toolConfig={**config, "toolChoice": choice})
        assert backend.requests[-1].grammar is not None


def test_a_schema_holds_the_answer_and_a_beginning_is_gone_on_from(
    bedrock: Any, backend: FakeBackend
) -> None:
    schema = json.dumps({"type": "object", "properties": {"city": {"type": "string"}}})
    form = {"type": "json_schema", "structure": {"jsonSchema": {"schema": schema, "name": "place"}}}
    bedrock.converse(modelId=NAME, messages=QUESTION, outputConfig={"textFormat": form})
    assert backend.requests[-1].grammar.kind == "json_schema"
    bedrock.converse(
        modelId=NAME, messages=[*QUESTION, {"role": "assistant", "content": [{"text": "Once "}]}]
    )
    assert prompt(backend).endswith("Once")


def test_a_stream_tells_settled_text_and_how_it_ended(bedrock: Any, backend: FakeBackend) -> None:
    asked = {"modelId": NAME, "messages": QUESTION, "additionalModelRequestFields": {"diffusing": True}}
    events = list(bedrock.converse_stream(**asked)["stream"])
    assert [next(iter(event)) for event in events] == [
        "messageStart",
        *["contentBlockDelta"] * 4,
        "contentBlockStop",
        "messageStop",
        "metadata",
    ]
    text, _, ended = conversed(events)
    assert (text, ended["stopReason"], ended["usage"]["outputTokens"]) == ("Hello, world!", "end_turn", 4)
    backend.finish = Finish("stop", Usage(9, 4, 1, 1), stop_string="END")
    stopped = bedrock.converse_stream(**asked, additionalModelResponseFieldPaths=["/stop_sequence"])["stream"]
    ended = conversed(stopped)[2]
    assert (ended["stopReason"], ended["additionalModelResponseFields"]) == (
        "stop_sequence",
        {"stop_sequence": "END"},
    )


def test_invoke_takes_and_gives_each_routes_own_form(bedrock: Any, backend: FakeBackend) -> None:
    def invoked(**body: Any) -> tuple[Any, dict[str, str]]:
        reply = bedrock.invoke_model(modelId=NAME, body=json.dumps(body))
        return json.loads(reply["body"].read()), reply["ResponseMetadata"]["HTTPHeaders"]

    messages = [{"role": "user", "content": "hi"}]
    whole, headers = invoked(messages=messages)
    assert whole["choices"][0]["message"]["content"] == "Hello, world!"
    counts = [
        headers[f"x-amzn-bedrock-{name}-token-count"] for name in ("input", "output", "cache-read-input")
    ]
    assert counts == [str(whole["usage"]["prompt_tokens"] - 4), "4", "4"]
    assert int(headers["x-amzn-bedrock-invocation-latency"]) >= 0
    assert invoked(prompt="Once")[0]["choices"][0]["text"] == "Hello, world!"
    assert invoked(prompt="a(", suffix=")")[0]["object"] == "text_completion"
    assert backend.requests[-1].suffix
    asked = {"anthropic_version": "bedrock-2023-05-31", "max_tokens": 9, "messages": messages}
    answer, headers = invoked(**asked)
    assert (answer["type"], answer["content"][0]["text"]) == ("message", "Hello, world!")
    assert headers["x-amzn-bedrock-output-token-count"] == "4"
    region = "<|code_to_edit|>\nx<|cursor|>\n<|/code_to_edit|>"
    tagged = f"<|current_file_content|>\n{region}\n<|/current_file_content|>"
    edited = invoked(
        messages=[{"role": "user", "content": f"{tagged}\n<|edit_diff_history|>\n<|/edit_diff_history|>"}]
    )
    assert edited[0]["object"] == "edit.completion"
    decided = invoked(state="Thanks!", questions={"kind": {"type": "noul"}})
    assert 0 <= decided[0]["answers"]["kind"]["noul"] <= 1


def test_canvases_come_through_the_invoke_stream(bedrock: Any) -> None:
    body = json.dumps({"messages": [{"role": "user", "content": "hi"}], "diffusing": True})
    reply = bedrock.invoke_model_with_response_stream(modelId=ARN, body=body)
    assert reply["contentType"] == "application/json"
    *frames, last = chunks(reply["body"])
    texts = [frame["choices"][0]["delta"]["content"] for frame in frames]
    assert texts[0] == "Hello~" and texts[-1] == "Hello, world!"
    assert frames[-1]["diffusion_meta"]["diffusion_progress"] == 1.0
    measured = last["amazon-bedrock-invocationMetrics"]
    assert (measured["outputTokenCount"], last["choices"][0]["finish_reason"]) == (4, "stop")
    assert measured["firstByteLatency"] <= measured["invocationLatency"]
    body = json.dumps({"state": "Thanks!", "questions": {"kind": {"type": "noul"}}})
    (decided,) = chunks(bedrock.invoke_model_with_response_stream(modelId=ARN, body=body)["body"])
    assert "kind" in decided["answers"]


def test_tokens_are_counted_as_they_are_used(bedrock: Any) -> None:
    system = [{"text": "Be brief."}]
    counted = bedrock.count_tokens(
        modelId=NAME, input={"converse": {"messages": QUESTION, "system": system}}
    )["inputTokens"]
    usage = bedrock.converse(modelId=NAME, messages=QUESTION, system=system)["usage"]
    assert counted == usage["inputTokens"] + usage["cacheReadInputTokens"]
    chat = {"messages": [{"role": "user", "content": "hi"}]}
    bodies = [chat, {**chat, "anthropic_version": "bedrock-2023-05-31", "max_tokens": 9}]
    told = [
        bedrock.count_tokens(modelId=NAME, input={"invokeModel": {"body": json.dumps(body)}})["inputTokens"]
        for body in [*bodies, {"prompt": "four"}]
    ]
    assert told == [len("user:hi\n"), len("user:hi\n"), 4]


def test_anthropics_client_of_bedrock_asks_and_streams(url: str, backend: FakeBackend) -> None:
    key = {"aws_access_key": KEY_ID, "aws_secret_key": SECRET, "aws_region": "us-east-1"}
    asked: dict[str, Any] = {
        "model": "anthropic.claude-sonnet-4-5-20250929-v1:0",
        "max_tokens": 64,
        "messages": [{"role": "user", "content": "hi"}],
    }
    with anthropic.AnthropicBedrock(base_url=url, **key, max_retries=0) as client:
        message = client.messages.create(**asked)
        assert (message.content[0].text, message.stop_reason) == ("Hello, world!", "end_turn")
        with client.messages.stream(**asked) as stream:
            assert "".join(stream.text_stream) == "Hello, world!"
            assert stream.get_final_message().usage.output_tokens == 4
        with pytest.raises(anthropic.NotFoundError):
            client.messages.create(**{**asked, "model": "other"})


@pytest.mark.parametrize(
    ("changed", "kind", "status", "words"),
    [
        ({"modelId": "other"}, "ResourceNotFoundException", 404, "'other' not found"),
        ({"messages": []}, "ValidationException", 400, "messages"),
        (
            {"inferenceConfig": {"temperature": 5.0}},
            "ValidationException",
            400,
            "inferenceConfig.temperature",
        ),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"image": {"format": "png", "source": {"bytes": b"x"}}}]}
                ]
            },
            "ValidationException",
            400,
            "only text",
        ),
        (
            {"messages": [{"role": "user", "content": [{"text": "x" * 5000}]}]},
            "ValidationException",
            400,
            "Input is too long for requested model",
        ),
        (
            {"additionalModelRequestFields": {"preset": 3}},
            "ValidationException",
            400,
            "additionalModelRequestFields.preset",
        ),
        (
            {"guardrailConfig": {"guardrailIdentifier": "abc", "guardrailVersion": "1"}},
            "ValidationException",
            400,
            "no guardrails",
        ),
        ({"promptVariables": {"a": {"text": "b"}}}, "ValidationException", 400, "promptVariables"),
        (
            {
                "outputConfig": {
                    "textFormat": {"type": "json_schema", "structure": {"jsonSchema": {"schema": "["}}}
                }
            },
            "ValidationException",
            400,
            "jsonSchema.schema",
        ),
        (
            {"toolConfig": {"tools": [TOOL], "toolChoice": {"tool": {"name": "g"}}}},
            "ValidationException",
            400,
            "tool_choice",
        ),
    ],
)
def test_what_is_wrong_is_said_in_amazons_words(
    bedrock: Any, changed: dict[str, Any], kind: str, status: int, words: str
) -> None:
    asked = {"modelId": NAME, "messages": QUESTION, **changed}
    for call in (bedrock.converse, bedrock.converse_stream):
        with pytest.raises(ClientError) as error:
            call(**asked)
        assert refusal(error)[:2] == (kind, status)
        assert words in refusal(error)[2]


def test_a_full_queue_throttles_and_a_failure_is_the_models(bedrock: Any, backend: FakeBackend) -> None:
    asked = {"modelId": NAME, "messages": QUESTION}
    for failure, kind, status in (
        (Overloaded("The queue is full."), "ThrottlingException", 429),
        (EngineFailure("A step failed."), "ModelErrorException", 424),
        (RuntimeError("a bug"), "InternalServerException", 500),
    ):
        backend.failure = failure
        with pytest.raises(ClientError) as error:
            bedrock.converse(**asked)
        assert refusal(error)[:2] == (kind, status)
        body = json.dumps({"messages": [{"role": "user", "content": "hi"}]})
        streams = (
            bedrock.converse_stream(**asked)["stream"],
            bedrock.invoke_model_with_response_stream(modelId=NAME, body=body)["body"],
        )
        for stream in streams:
            with closing(stream), pytest.raises(EventStreamError, match=r"Exception|exception"):
                list(stream)


def test_other_mistakes_of_invoke_are_told(bedrock: Any, url: str) -> None:
    for body, words in (
        (b"{", "not valid JSON"),
        (b"[]", "JSON object"),
        (b"{}", "must have one of the fields messages"),
        (b'{"messages": []}', "messages"),
    ):
        with pytest.raises(ClientError) as error:
            bedrock.invoke_model(modelId=NAME, body=body)
        assert refusal(error)[:2] == ("ValidationException", 400)
        assert words in refusal(error)[2]
    with pytest.raises(ClientError, match="no guardrails"):
        bedrock.invoke_model(modelId=NAME, body=b"{}", guardrailIdentifier="abc", guardrailVersion="1")
    for given, words in (("{", "base64"), (base64.b64encode(b"{").decode(), "not valid JSON")):
        reply = httpx.post(
            f"{url}/model/{NAME}/count-tokens", json={"input": {"invokeModel": {"body": given}}}
        )
        assert (reply.status_code, reply.headers["x-amzn-errortype"]) == (400, "ValidationException")
        assert words in reply.json()["message"]
    unknown = httpx.post(f"{url}/model/{NAME}/nothing", json={})
    assert (unknown.status_code, unknown.headers["x-amzn-errortype"]) == (404, "UnknownOperationException")
