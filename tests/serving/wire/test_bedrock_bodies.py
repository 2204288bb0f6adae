"""What can be wrong with a body of Converse is refused in its own terms, whatever is in it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.fuzzing import MANY, bounded
from vermilion.errors import BadRequest
from vermilion.serving.http.parsing import parse
from vermilion.serving.wire.bedrock_bodies import ConverseBody
from vermilion.serving.wire.body_dispatch import AnyBody, route_of
from vermilion.serving.wire.openai_bodies import ChatBody

_leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=4)
_NAMES = (
    "text toolUse toolResult document searchResult guardContent citationsContent reasoningContent cachePoint",
    "image name input toolUseId content json source bytes format title type",
    "toolSpec inputSchema auto any tool strict systemTool",
)
_names = st.sampled_from([name for line in _NAMES for name in line.split()])
_json = st.recursive(
    _leaves,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(_names, inner, max_size=2),
    max_leaves=6,
)
_blocks = st.lists(st.dictionaries(_names, _json, min_size=1, max_size=1) | _json, max_size=3)
_messages = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]), "content": _blocks | _json}),
    max_size=3,
)
_bodies = st.fixed_dictionaries(
    {"messages": _messages},
    optional={
        "system": _blocks | _json,
        "toolConfig": st.fixed_dictionaries({"tools": _blocks, "toolChoice": _json}) | _json,
        "additionalModelRequestFields": st.dictionaries(
            st.sampled_from(sorted(ChatBody.model_fields)), _json, max_size=3
        ),
    },
)


def chat_of(body: Any) -> ChatBody:
    """Raises `BadRequest`."""
    asked = parse(json.dumps(body).encode(), ConverseBody)
    return asked.chat(asked.messages_body)


@given(_bodies)
@bounded(MANY)
def test_every_body_is_read_or_refused(body: dict[str, Any]) -> None:
    try:
        chat_of(body)
    except BadRequest as error:
        assert str(error)


@given(
    st.dictionaries(st.sampled_from(["messages", "prompt", "suffix", "model", "input"]), _json, max_size=3)
)
@bounded(MANY)
def test_every_body_has_a_route_or_is_refused(body: dict[str, Any]) -> None:
    try:
        given = parse(json.dumps(body).encode(), AnyBody).given
        parse(json.dumps(given).encode(), route_of(given).body)
    except BadRequest as error:
        assert str(error)


def user(*blocks: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(blocks)}]}


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (user({"text": "a", "toolUse": {}}), "messages[0].content[0]: 'text, toolUse' is not allowed"),
        (user({}), "messages[0].content[0]"),
        (user({"video": {}}), "a part of type 'video' cannot be read"),
        (user({"document": {"format": "pdf", "name": "a", "source": {"bytes": "eA=="}}}), "'document (pdf)'"),
        (user({"document": {"format": "md", "name": "a", "source": {"bytes": "?"}}}), "base64"),
        (
            user({"toolResult": {"toolUseId": "t", "content": "x"}}),
            "messages[0].content[0].toolResult.content",
        ),
        (user({"text": 5}), "messages[0].content[0].text"),
        (
            {**user(), "additionalModelRequestFields": {"n": 2, "top_k": -5}},
            "additionalModelRequestFields.top_k",
        ),
    ],
)
def test_a_mistake_is_named_where_it_stands(body: dict[str, Any], words: str) -> None:
    with pytest.raises(BadRequest) as error:
        chat_of(body)
    assert words in str(error.value)


def test_pictures_in_the_history_become_a_few_words() -> None:
    picture = {"image": {"format": "png", "source": {"bytes": "eA=="}}}
    result = {"toolResult": {"toolUseId": "t", "content": [picture, {"text": "seen"}], "status": "success"}}
    turns = [{"role": "assistant", "content": [picture]}, {"role": "user", "content": [result]}]
    first, second = chat_of({"messages": [*user({"text": "a"})["messages"], *turns]}).messages[1:]
    assert "[image left out" in first.content and "[image left out" in second.content
    assert second.content.endswith("seen")
