"""Prompts and answers from JSON Lines; every bad line is refused with its number and reason. No torch here.

A line is {"prompt": ..., "response": ...} ("completion" will do for "response"), {"messages": [...]} with a
role and a content each, the last the assistant's, or {"prefix": ..., "response": ...} for a raw text that
goes on. With "finish_reason": "length" the answer was cut, and no end is learnt from it.

Messages are OpenAI's: a content may be text parts, the assistant may call functions (`tool_calls`, or the
earlier `function_call`), whose results are messages of the roles tool or function, and `tools` (or
`functions`) beside them says which there are. The last message is the answer; where one of
them has a `weight`, every message of the assistant is an answer of its own unless its weight is 0.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vermilion.chat_template import ChatTemplate
from vermilion.data.conversations import Said, described, instructed
from vermilion.data.corpus import Document
from vermilion.errors import BadRequest, ConfigError
from vermilion.text import Tokenizer

MAX_REPORTED = 100
"""Bad lines that an error lists; of the others it gives the number."""
_TOO_LONG = "what comes before the answer takes {} tokens of a row's {}; shorten it, or raise data.length"
_ROLES = ("system", "developer", "user", "assistant", "tool", "function")
_TEXTS = ("text", "input_text", "output_text")


@dataclass(frozen=True, slots=True)
class Example:
    """A valid line."""

    line: int
    """Counted from 1."""
    messages: tuple[Said, ...]
    """What comes before the answer; empty for a raw text."""
    prefix: str
    """The beginning of a raw text."""
    answer: str
    ends: bool
    """Whether the answer is whole."""
    functions: tuple[Mapping[str, Any], ...] = ()
    """Those that the assistant may call, as OpenAI describes them."""


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
            examples += _examples(number, _row(line))
        except ValueError as error:
            refusals.append(Refusal(number, str(error)))
    return examples, refusals


def num_lines_of(examples: Sequence[Example], refusals: Sequence[Refusal]) -> int:
    """How many lines were read; one may hold several examples."""
    return len({example.line for example in examples}) + len(refusals)


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
        raise ConfigError(f"{file}: cannot be read: {error.strerror}.") from None
    if not tokenizer.eos_token_ids:
        raise ConfigError("The model names no end-of-sequence token, so that an answer cannot end.")
    examples, refusals = parse(data)
    documents, num_lines = [], num_lines_of(examples, refusals)
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


def _examples(line: int, row: Any) -> list[Example]:
    """Raises ValueError saying what is wrong."""
    if not isinstance(row, Mapping):
        raise ValueError("not a JSON object")
    ends = row.get("finish_reason") != "length"
    if "messages" in row:
        said, answers = _checked(row["messages"])
        functions = _functions(row)
        return [
            Example(line, said[:at], "", said[at].text, ends or at < len(said) - 1, functions)
            for at in answers
        ]
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
        return [Example(line, (), row["prefix"], row[answer], ends)]
    return [Example(line, (Said("user", row["prompt"]),), "", row[answer], ends)]


def _checked(messages: Any) -> tuple[tuple[Said, ...], list[int]]:
    """The messages, and which of them are answers to learn."""
    if not isinstance(messages, list) or not messages:
        raise ValueError("messages must be a list that is not empty")
    said = tuple(_said(f"messages[{number}]", message) for number, message in enumerate(messages))
    weights = [_weight(f"messages[{number}]", message) for number, message in enumerate(messages)]
    if said[-1].role != "assistant" or not said[-1].text.strip():
        raise ValueError("the last message must be the assistant's, and not empty")
    if len(said) == 1:
        raise ValueError("messages hold nothing before the answer")
    if all(weight is None for weight in weights):
        return said, [len(said) - 1]
    answers = [
        at
        for at, one in enumerate(said)
        if at and one.role == "assistant" and one.text.strip() and weights[at] != 0
    ]
    if not answers:
        raise ValueError("no message of the assistant has a weight of 1")
    return said, answers


def _said(name: str, message: Any) -> Said:
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise ValueError(f"{name}: needs a role and a content")
    role = message["role"]
    if role not in _ROLES:
        raise ValueError(f"{name}: role {role[:40]!r} is not one of {', '.join(_ROLES)}")
    calls = _calls(name, message) if role == "assistant" else ()
    content = _content(name, message.get("content", "" if calls else None), bool(calls))
    _check_characters(name, content)
    return Said(role, content, calls)


def _content(name: str, content: Any, may_lack: bool) -> str:
    """The text of a content: a string, a list of text parts, or null beside calls."""
    if content is None and may_lack:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise ValueError(f"{name}: needs a role and a content, which is text or a list of text parts")
    texts = []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        text = part.get("refusal" if kind == "refusal" else "text") if isinstance(part, Mapping) else None
        if kind not in (*_TEXTS, "refusal") or not isinstance(text, str):
            raise ValueError(f"{name}: a part of type {str(kind)[:40]!r} is no text")
        texts.append(text)
    return "".join(texts)


def _calls(name: str, message: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """The calls of a message: name and arguments of each."""
    given = message.get("tool_calls") or []
    if not isinstance(given, list) or not all(isinstance(call, Mapping) for call in given):
        raise ValueError(f"{name}: tool_calls must be a list of objects")
    functions = [call.get("function") for call in given]
    if message.get("function_call") is not None:
        functions.append(message["function_call"])
    calls = []
    for function in functions:
        called = function.get("name") if isinstance(function, Mapping) else None
        arguments = function.get("arguments", "{}") if isinstance(function, Mapping) else None
        if not isinstance(called, str) or not isinstance(arguments, str):
            raise ValueError(f"{name}: a call needs a name and arguments, both text")
        try:
            fits = isinstance(json.loads(arguments), dict)
        except (ValueError, RecursionError):
            fits = False
        if not fits:
            raise ValueError(f"{name}: the arguments of {called[:40]!r} are no JSON object")
        _check_characters(name, called + arguments)
        calls.append((called, arguments))
    return tuple(calls)


def _weight(name: str, message: Mapping[str, Any]) -> int | None:
    weight = message.get("weight")
    if weight is None:
        return None
    if message["role"] != "assistant" or weight not in (0, 1):
        raise ValueError(f"{name}: weight must be 0 or 1, and is the assistant's alone")
    return int(weight)


def _functions(row: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
    """What may be called, of both forms."""
    functions = []
    for name in ("tools", "functions"):
        given = row.get(name) or []
        for one in given if isinstance(given, list) else [None]:
            function = one.get("function") if name == "tools" and isinstance(one, Mapping) else one
            if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
                raise ValueError(f"{name} must be a list of functions with a name each")
            if not isinstance(function.get("parameters") or {}, Mapping):
                raise ValueError(f"{name}: the parameters of {function['name'][:40]!r} must be an object")
            functions.append(function)
    return tuple(functions)


def _check_characters(name: str, text: str) -> None:
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError(f"{name} holds half of a character (a lone surrogate)")


def _document(example: Example, tokenizer: Tokenizer, template: ChatTemplate) -> Document:
    if example.messages:
        native = bool(example.functions) and template.takes_tools
        messages = [said.told(native) for said in example.messages]
        if example.functions and not native:
            messages = instructed(messages, described(example.functions))
        tools = [{"type": "function", "function": function} for function in example.functions]
        prompt = template.encode(messages, tokenizer, tools if native else None)
    else:
        prompt = tokenizer.encode(example.prefix)
    end = [tokenizer.eos_token_ids[0]] if example.ends else []
    return Document([*prompt, *tokenizer.encode(example.answer), *end], len(prompt))
