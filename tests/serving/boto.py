"""boto3's clients of a service, and the service they ask."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import boto3
from botocore.config import Config

KEY_ID, SECRET = "AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
"""Any pair: a service without accounts asks for none, but boto3 signs with one."""
ARN = "arn:aws:bedrock:us-east-1:123456789012:inference-profile/us.inception.mercury-2-v1:0"
QUESTION = [{"role": "user", "content": [{"text": "hi"}]}]
TOOL = {
    "toolSpec": {
        "name": "f",
        "description": "Does it.",
        "inputSchema": {"json": {"type": "object", "properties": {"x": {"type": "integer"}}}},
    }
}


def amazon(service: str, url: str, key_id: str = KEY_ID, secret: str = SECRET) -> Any:
    """A client of `bedrock-runtime` or `sagemaker-runtime`, which never tries twice."""
    return boto3.client(
        service,
        endpoint_url=url,
        region_name="us-east-1",
        aws_access_key_id=key_id,
        aws_secret_access_key=secret,
        config=Config(retries={"total_max_attempts": 1}, read_timeout=20),
    )


def chunks(stream: Iterable[Any]) -> list[Any]:
    """The objects of an invoke stream."""
    return [json.loads(event["chunk"]["bytes"]) for event in stream]


def conversed(stream: Iterable[Any]) -> tuple[str, dict[str, str], dict[str, Any]]:
    """(text, input by tool, the fields of the last events) of a Converse stream."""
    text, inputs, ended, name = "", dict[str, str](), dict[str, Any](), ""
    for event in stream:
        ((kind, told),) = event.items()
        if kind == "contentBlockStart":
            name = told["start"]["toolUse"]["name"]
        elif kind == "contentBlockDelta":
            text += told["delta"].get("text", "")
            if "toolUse" in told["delta"]:
                inputs[name] = inputs.get(name, "") + told["delta"]["toolUse"]["input"]
        elif kind in ("messageStop", "metadata"):
            ended |= told
    return text, inputs, ended
