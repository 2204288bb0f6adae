"""LiteLLM with its two Inception providers: chat, a stream, a schema, a tool, a gap. Prints JSON.

Where the service is it learns from INCEPTION_API_BASE, as its documentation says.
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import version

import litellm

(model,) = sys.argv[1:]
asked = {
    "model": f"inception/{model}",
    "max_tokens": 24,
    "messages": [
        {"role": "user", "content": "What is the capital of France? Answer in one short sentence."},
    ],
}
schema = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
level = {"type": "integer", "enum": [1, 2, 3]}
parameters = {"type": "object", "properties": {"level": level}, "required": ["level"]}
tool = {"type": "function", "function": {"name": "set_volume", "parameters": parameters}}
gap = {"prompt": "def add(a, b):\n    return ", "suffix": "\n", "max_tokens": 8}

whole = litellm.completion(**asked, reasoning_effort="medium")
stream = litellm.completion(**asked, stream=True)
shaped = litellm.completion(
    **asked, response_format={"type": "json_schema", "json_schema": {"name": "capital", "schema": schema}}
)
called = litellm.completion(**{**asked, "max_tokens": 64}, tools=[tool], tool_choice="required")
filled = litellm.text_completion(**gap, model=f"text-completion-inception/{model}")
print(
    json.dumps(
        {
            "version": version("litellm"),
            "answer": whole.choices[0].message.content,
            "tokens": whole.usage.total_tokens,
            "streamed": "".join(chunk.choices[0].delta.content or "" for chunk in stream),
            "shaped": json.loads(shaped.choices[0].message.content),
            "call": json.loads(called.choices[0].message.tool_calls[0].function.arguments),
            "filled": filled.choices[0].text,
        }
    )
)
