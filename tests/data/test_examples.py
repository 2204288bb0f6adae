"""Examples from JSON Lines: what is taken, and that every bad line is named with its reason."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from serving.fake import FakeBackend
from vermilion.data import examples
from vermilion.data.examples import parse, read_answers
from vermilion.errors import ConfigError
from vermilion.models import catalog
from vermilion.serving.backend import Served
from vermilion.serving.generation.chat import chat_tokens, toolbox
from vermilion.serving.serve_config import ServeConfig
from vermilion.serving.wire.openai_bodies import ChatBody
from vermilion.training import toy

GOOD = b'{"prompt": "a", "response": "b"}'
BAD = {
    b'{"prompt": "hi"': "not JSON",
    b"[1]": "not a JSON object",
    b'{"prompt": "hi"}': "needs prompt and response",
    b'{"prompt": "hi", "response": 3}': "response must be text",
    b'{"prompt": "hi", "completion": " "}': "completion is empty",
    b'{"messages": []}': "not empty",
    b'{"prefix": "", "response": "b"}': "prefix is empty",
    b'{"messages": [{"role": "user", "content": "hi"}]}': "last message must be the assistant's",
    b'{"messages": [{"role": "assistant", "content": "hi"}]}': "nothing before the answer",
    b'{"messages": [{"role": "user"}]}': "messages[0]: needs a role and a content",
    b'{"messages": [{"role": "bot", "content": "hi"}]}': "messages[0]: role 'bot'",
    b'{"prompt": "\xff", "response": "b"}': "not UTF-8 text (byte 13)",
    b"[" * 100_000: "nested too deeply",
    b'{"prompt": "a\\ud800", "response": "b"}': "prompt holds half of a character",
    b'{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}': "'image_url' is no text",
    b'{"messages": [{"role": "user", "content": "a", "weight": 1}]}': "weight must be 0 or 1",
    b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 0}]}': (
        "no message of the assistant has a weight of 1"
    ),
    b'{"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "["}}]}]}': (
        "the arguments of 'f' are no JSON object"
    ),
    b'{"tools": 3, "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}': (
        "tools must be a list of functions"
    ),
    b'{"prompt": "a", "response": "b", "n": ' + b"9" * 5000 + b"}": "thousands of digits",
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> catalog.ModelFiles:
    folder = tmp_path_factory.mktemp("texts")
    toy._write_texts(folder)
    return catalog.ModelFiles("folder", "toy", folder, None)


def test_every_bad_line_is_refused_with_its_number_and_reason() -> None:
    lines = [GOOD, b"", *BAD, GOOD]
    found, refusals = parse(b"\n".join(lines))
    assert [example.line for example in found] == [1, len(lines)]
    assert [refusal.line for refusal in refusals] == list(range(3, 3 + len(BAD)))
    for refusal, reason in zip(refusals, BAD.values(), strict=True):
        assert reason in refusal.reason


def test_the_error_lists_all_lines_up_to_a_limit(
    tmp_path: Path, base: catalog.ModelFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(examples, "MAX_REPORTED", 4)
    file = tmp_path / "answers.jsonl"
    file.write_bytes(b"\n".join([GOOD, *BAD]))
    with pytest.raises(ConfigError) as caught:
        read_answers(file, catalog.tokenizer_of(base), catalog.chat_template_of(base))
    said = str(caught.value).splitlines()
    assert f"{len(BAD)} of {len(BAD) + 1} lines" in said[0]
    assert [line.split(":")[0].strip() for line in said[1:5]] == [f"line {n}" for n in range(2, 6)]
    assert said[5].strip() == f"and {len(BAD) - 4} more" and len(said) == 6


def test_a_missing_and_an_empty_file_are_refused(tmp_path: Path, base: catalog.ModelFiles) -> None:
    tokenizer, template = catalog.tokenizer_of(base), catalog.chat_template_of(base)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_answers(tmp_path / "none.jsonl", tokenizer, template)
    (tmp_path / "empty.jsonl").write_text("\n\n")
    with pytest.raises(ConfigError, match="no example"):
        read_answers(tmp_path / "empty.jsonl", tokenizer, template)


def test_completion_is_another_name_for_response() -> None:
    (one,), (other,) = (
        parse(json.dumps({"prompt": "a", name: "b"}).encode())[0] for name in ("response", "completion")
    )
    assert one == other


def test_a_byte_order_mark_is_no_mistake_and_an_array_is_one() -> None:
    found, refusals = parse(b"\xef\xbb\xbf" + GOOD + b"\r\n" + GOOD)
    assert [example.line for example in found] == [1, 2] and not refusals
    found, refusals = parse(b"[\n" + GOOD + b",\n" + GOOD + b"\n]")
    assert not found and [str(one) for one in refusals] == [
        "line 1: the file is one JSON array; write each of its objects on a line of its own"
    ]


def test_a_prompt_that_leaves_no_room_for_its_answer_is_refused(
    tmp_path: Path, base: catalog.ModelFiles
) -> None:
    file = tmp_path / "answers.jsonl"
    file.write_bytes(GOOD + b'\n{"prompt": "' + b"a" * 300 + b'", "response": "b"}\n')
    texts = catalog.tokenizer_of(base), catalog.chat_template_of(base)
    assert len(read_answers(file, *texts)) == 2
    with pytest.raises(ConfigError, match=r"1 of 2 lines.*\n  line 2: .* tokens of a row's 256"):
        read_answers(file, *texts, 256)


FUNCTION = {"name": "weather", "description": "Of a city", "parameters": {"type": "object"}}
CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}
WRITTEN = '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
CHAT = [
    {
        "role": "user",
        "content": [{"type": "text", "text": "How is it "}, {"type": "text", "text": "in Oslo?"}],
    },
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "c1", "content": "rain"},
    {"role": "assistant", "content": [{"type": "text", "text": "It rains."}]},
]


def parsed(**row: object) -> list[examples.Example]:
    found, refusals = parse(json.dumps(row).encode())
    assert not refusals
    return found


def test_calls_and_content_parts_are_read() -> None:
    (example,) = parsed(messages=CHAT, tools=[{"type": "function", "function": FUNCTION}])
    assert [said.text for said in example.messages] == ["How is it in Oslo?", WRITTEN, "rain"]
    assert (example.answer, list(example.functions)) == ("It rains.", [FUNCTION])
    (example,) = parsed(messages=CHAT[:2], functions=[FUNCTION])
    assert (example.answer, list(example.functions)) == (WRITTEN, [FUNCTION])
    earlier = {"role": "assistant", "content": "Let me see.", "function_call": CALL["function"]}
    (example,) = parsed(messages=[CHAT[0], earlier])
    assert example.answer == f"Let me see.\n{WRITTEN}"


def test_weights_say_which_answers_are_learnt() -> None:
    def weighed(*weights: int | None) -> list[str]:
        turns = [
            dict(CHAT[0]),
            {"role": "assistant", "content": "A"},
            CHAT[0],
            {"role": "assistant", "content": "B"},
        ]
        for turn, weight in zip(turns[1::2], weights, strict=True):
            turn.update({} if weight is None else {"weight": weight})
        return [example.answer for example in parsed(messages=turns)]

    assert weighed(None, None) == ["B"]
    assert weighed(1, 1) == weighed(1, None) == ["A", "B"]
    assert weighed(0, 1) == weighed(0, None) == ["B"]
    assert weighed(1, 0) == ["A"]


def test_a_line_with_several_answers_is_one_line_and_only_its_last_may_be_cut() -> None:
    turns = [CHAT[0], {"role": "assistant", "content": "A", "weight": 1}, CHAT[0], CHAT[3]]
    row = json.dumps({"messages": turns, "finish_reason": "length"}).encode()
    found, refusals = parse(row + b"\n" + GOOD + b"\n{")
    assert [(example.line, example.ends) for example in found] == [(1, True), (1, False), (2, True)]
    assert examples.num_lines_of(found, refusals) == 3


def test_training_meets_what_the_service_tells_the_model(tmp_path: Path, base: catalog.ModelFiles) -> None:
    """Of the same conversation, through the same template."""
    tokenizer, template = catalog.tokenizer_of(base), catalog.chat_template_of(base)
    file = tmp_path / "answers.jsonl"
    tools = [{"type": "function", "function": FUNCTION}]
    file.write_text(json.dumps({"messages": CHAT, "tools": tools}))
    (document,) = read_answers(file, tokenizer, template)
    backend = FakeBackend()
    served = Served(backend, tokenizer, template)
    body = ChatBody.model_validate({"messages": CHAT[:-1], "tools": tools})
    box = toolbox(body, ServeConfig())
    told = asyncio.run(chat_tokens(body, served, box))
    assert list(document.ids[: document.num_prompt]) == told
    assert "weather" in tokenizer.decode(told)
