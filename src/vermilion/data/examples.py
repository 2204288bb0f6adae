"""Prompts and answers from JSON Lines; every bad line is refused with its number and reason. No torch here.

A line is {"prompt": ..., "response": ...} ("completion" will do for "response"), {"messages": [...]} with a
role and a content each, the last the assistant's, or {"prefix": ..., "response": ...} for a raw text that
goes on. With "finish_reason": "length" the answer was cut, and no end is learnt from it.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vermilion.chat_template import ChatTemplate
from vermilion.data.corpus import Document
from vermilion.errors import BadRequest, ConfigError
from vermilion.text import Tokenizer

MAX_REPORTED = 100
"""Bad lines that an error lists; of the others it gives the number."""
_TOO_LONG = "what comes before the answer takes {} tokens of a row's {}; shorten it, or raise data.length"
_ROLES = ("system", "developer", "user", "assistant", "tool")

Messages = Sequence[Mapping[str, str]]


@dataclass(frozen=True, slots=True)
class Example:
    """A valid line."""

    line: int
    """Counted from 1."""
    messages: Messages
    """What comes before the answer; empty for a raw text."""
    prefix: str
    """The beginning of a raw text."""
    answer: str
    ends: bool
    """Whether the answer is whole."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """A refused line."""

    line: int
    reason: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.reason}"


def parse(data: bytes) -> tuple[list[Example], list[Refusal]]:
    """The examples of a JSON Lines file and what is wrong with its other lines; blank lines are neither."""
    data = data.removeprefix(codecs.BOM_UTF8)  # some editors begin a file with it
    examples, refusals = [], []
    if data.lstrip().startswith(b"[") and _is_array(data):
        return [], [Refusal(1, "the file is one JSON array; write each of its objects on a line of its own")]
    for number, line in enumerate(data.splitlines(), 1):
        if not line.strip():
            continue
        try:
            examples.append(_example(number, _row(line)))
        except ValueError as error:
            refusals.append(Refusal(number, str(error)))
    return examples, refusals


def report(name: str, num_lines: int, refusals: Sequence[Refusal]) -> str:
    """One message that lists the refused lines of the file `name`."""
    shown = "\n  ".join(str(refusal) for refusal in refusals[:MAX_REPORTED])
    rest = len(refusals) - MAX_REPORTED
    more = f"\n  and {rest} more" if rest > 0 else ""
    return f"{name}: {len(refusals)} of {num_lines} lines are no example:\n  {shown}{more}"


def read_answers(
    file: Path, tokenizer: Tokenizer, template: ChatTemplate, row_length: int | None = None
) -> list[Document]:
    """The documents of a JSON Lines file: the prompt through the chat template, which is not trained on, then
    the last message and the tokenizer's EOS, which are.

    Raises ConfigError that names every bad line; one whose prompt fills a row of `row_length` tokens is bad.
    """
    try:
        data = file.read_bytes()
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error}.") from None
    if not tokenizer.eos_token_ids:
        raise ConfigError("The model names no end-of-sequence token, so that an answer cannot end.")
    examples, refusals = parse(data)
    documents, num_lines = [], len(examples) + len(refusals)
    for example in examples:
        try:
            document = _document(example, tokenizer, template)
        except BadRequest as error:  # the template's own demands, such as turns that alternate
            refusals.append(Refusal(example.line, str(error)))
            continue
        if row_length is not None and document.num_prompt >= row_length:
            refusals.append(Refusal(example.line, _TOO_LONG.format(document.num_prompt, row_length)))
        documents.append(document)
    if refusals:
        refusals.sort(key=lambda refusal: refusal.line)
        raise ConfigError(report(str(file), num_lines, refusals))
    if not documents:
        raise ConfigError(f"{file}: holds no example.")
    return documents


def _is_array(data: bytes) -> bool:
    try:
        return isinstance(json.loads(data), list)
    except (ValueError, RecursionError):
        return False


def _row(line: bytes) -> Any:
    """Raises ValueError saying what is wrong."""
    try:
        return json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 text (byte {error.start + 1})") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} (column {error.colno})") from None
    except RecursionError:
        raise ValueError("not JSON: nested too deeply") from None
    except ValueError:
        raise ValueError("not JSON: a number of thousands of digits") from None


def _example(line: int, row: Any) -> Example:
    if not isinstance(row, Mapping):
        raise ValueError("not a JSON object")
    ends = row.get("finish_reason") != "length"
    if "messages" in row:
        messages = _checked(row["messages"])
        return Example(line, messages[:-1], "", messages[-1]["content"], ends)
    answer = next((name for name in ("response", "completion") if name in row), None)
    given = next((name for name in ("prompt", "prefix") if name in row), None)
    if given is None or answer is None:
        raise ValueError("needs prompt and response, prefix and response, or messages")
    for name in (given, answer):
        if not isinstance(row[name], str):
            raise ValueError(f"{name} must be text")
        _check_characters(name, row[name])
    if not row[answer].strip():
        raise ValueError(f"{answer} is empty")
    if given == "prefix":
        if not row["prefix"]:
            raise ValueError("prefix is empty")
        return Example(line, (), row["prefix"], row[answer], ends)
    return Example(line, ({"role": "user", "content": row["prompt"]},), "", row[answer], ends)


def _checked(messages: Any) -> Messages:
    if not isinstance(messages, list) or not messages:
        raise ValueError("messages must be a list that is not empty")
    for number, message in enumerate(messages):
        whole = isinstance(message, Mapping) and isinstance(message.get("role"), str)
        if not whole or not isinstance(message.get("content"), str):
            raise ValueError(f"messages[{number}]: needs a role and a content, both text")
        _check_characters(f"messages[{number}]", message["content"])
        if message["role"] not in _ROLES:
            raise ValueError(
                f"messages[{number}]: role {message['role'][:40]!r} is not one of {', '.join(_ROLES)}"
            )
    if messages[-1]["role"] != "assistant" or not messages[-1]["content"].strip():
        raise ValueError("the last message must be the assistant's, and not empty")
    if len(messages) == 1:
        raise ValueError("messages hold nothing before the answer")
    return [{"role": message["role"], "content": message["content"]} for message in messages]


def _check_characters(name: str, text: str) -> None:
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError(f"{name} holds half of a character (a lone surrogate)")


def _document(example: Example, tokenizer: Tokenizer, template: ChatTemplate) -> Document:
    if example.messages:
        prompt = template.encode(example.messages, tokenizer)
    else:
        prompt = tokenizer.encode(example.prefix)
    end = [tokenizer.eos_token_ids[0]] if example.ends else []
    return Document([*prompt, *tokenizer.encode(example.answer), *end], len(prompt))
