"""A checkpoint's chat template: turns messages into one prompt. No message can inject control tokens."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.sandbox
import jinja2.visitor
from jinja2 import nodes
from jinja2.exceptions import SecurityError

from vermilion.errors import BadRequest, ModelFileError
from vermilion.text import TOKENIZER_CONFIG_FILE, Tokenizer, read_json, token_string

_MAX_SOURCE_CHARACTERS = 1 << 20
_MAX_PROMPT_CHARACTERS = 1 << 26
"""Of what a template makes; longer than any context."""
_MAX_STEPS = 1 << 20
"""Of all `range`s of one rendering together."""


class _Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """Without attributes that begin with an underscore, without changes to what it is given, and without ways
    to make something huge out of a few characters."""

    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def call_binop(self, context: jinja2.runtime.Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "+" and isinstance(left, str | list) and isinstance(right, str | list):
            _check_size(len(left) + len(right))
        for whole, count in ((left, right), (right, left)) if operator == "*" else ():
            if isinstance(whole, str | list | tuple) and isinstance(count, int):
                _check_size(len(whole) * max(0, count))
        if operator == "**" and not (isinstance(right, int | float) and abs(right) <= 64):
            raise SecurityError("an exponent beyond 64")
        if operator == "%" and isinstance(left, str):
            raise SecurityError("formatting with %")
        return super().call_binop(context, operator, left, right)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        parsed: nodes.Template = _Joins().visit(super()._parse(source, name, filename))
        return parsed


class _Joins(jinja2.visitor.NodeTransformer):
    """Makes `a ~ b`, which cannot be intercepted, a call of a function that can look at the length."""

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        function = nodes.Name("joined_text", "load", lineno=node.lineno)
        return nodes.Call(function, node.nodes, [], None, None, lineno=node.lineno)


def _joined_text(*parts: Any) -> str:
    texts = [str(part) for part in parts]
    _check_size(sum(map(len, texts)))
    return "".join(texts)


def _check_size(size: int) -> None:
    if size > _MAX_PROMPT_CHARACTERS:
        raise SecurityError(f"a text or list of {size:,} items")


class ChatTemplate:
    """A checkpoint's Jinja chat template, run in a sandbox set up as Hugging Face transformers does.

    A template comes with a checkpoint and is trusted no further than its weights: what it can reach, change
    and grow to is limited.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str] | None = None) -> None:
        """`special_tokens`: what the template may name, such as bos_token and eos_token."""
        environment = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols])
        for name in ("center", "format", "indent", "wordwrap", "xmlattr", "pprint"):
            environment.filters[name] = partial(_bounded, environment.filters[name])
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["joined_text"] = _joined_text
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        if len(source) > _MAX_SOURCE_CHARACTERS:
            raise ModelFileError(f"The chat template has {len(source):,} characters, which is no template.")
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateError as error:
            raise ModelFileError(f"The chat template cannot be read: {error}.") from error
        self.source = source
        self._variables = dict(special_tokens or {})
        self.takes_tools = bool(re.search(r"\btools\b", source))
        """Whether the template itself writes out tools, calls and results."""

    @classmethod
    def from_folder(cls, folder: Path) -> ChatTemplate:
        """From chat_template.jinja or tokenizer_config.json in `folder`."""
        config = read_json(folder / TOKENIZER_CONFIG_FILE)
        source = config.get("chat_template")
        if (folder / "chat_template.jinja").is_file():
            source = (folder / "chat_template.jinja").read_text(encoding="utf-8")
        if isinstance(source, list):
            source = {row["name"]: row["template"] for row in source}.get("default")
        if not source:
            raise ModelFileError(f"{folder}: no chat template; a base model answers completions, not chats.")
        named = {key: token_string(value) for key, value in config.items() if key.endswith("_token")}
        return cls(source, {key: value for key, value in named.items() if value})

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
    ) -> str:
        """The prompt as text. For ids use `encode`: this text does not say which control tokens are real."""
        try:
            parts, size = list[str](), 0
            for part in self._template.generate(
                **self._variables,
                messages=messages,
                tools=tools,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                range=_Range(),
            ):
                parts.append(part)
                size += len(part)
                _check_size(size)
            return "".join(parts)
        except (jinja2.TemplateError, TypeError, ValueError, RecursionError, MemoryError) as error:
            raise BadRequest(
                f"The chat template refuses these messages: {error}", param="messages"
            ) from error

    def encode(
        self,
        messages: Sequence[Mapping[str, Any]],
        tokenizer: Tokenizer,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
    ) -> list[int]:
        """The prompt as ids. Control-token strings inside messages and tools stay ordinary text."""
        guard = _Guard(tokenizer.special_tokens)
        text = self.render(guard.hide(messages), guard.hide(tools), add_generation_prompt)
        return tokenizer.encode_parts([guard.show(part) for part in tokenizer.split_special(text)])


class _Guard:
    """Replaces control-token strings in the caller's values by placeholders, and restores them afterwards.

    A string that merely ends in the beginning of one is treated too, since templates join strings.
    """

    def __init__(self, special: Iterable[str]) -> None:
        # Digits survive upper, lower and JSON escaping; the random run cannot be forged by a caller.
        self._mark = f"\ue000{secrets.randbits(64)}\ue001"
        whole = sorted(special, key=len, reverse=True)
        begun = sorted({token[:n] for token in whole for n in range(1, len(token))}, key=len, reverse=True)
        self._pieces = list(dict.fromkeys([*whole, *begun]))
        self._number = {piece: i for i, piece in enumerate(self._pieces)}
        ends = [rf"(?:{'|'.join(map(re.escape, begun))})(?=\s*\Z)"] if begun else []
        self._hide = re.compile("|".join([*map(re.escape, whole), *ends]) or r"(?!)")
        self._show = re.compile(rf"{self._mark}(\d+)\ue002")

    def hide(self, value: Any) -> Any:
        if isinstance(value, str):
            return self._hide.sub(lambda found: f"{self._mark}{self._number[found.group()]}\ue002", value)
        if isinstance(value, Mapping):
            return {self.hide(key): self.hide(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.hide(item) for item in value]
        return value

    def show(self, text: str) -> str:
        return self._show.sub(lambda found: self._pieces[int(found.group(1))], text)


class _Range:
    """`range` that counts the steps of one rendering."""

    def __init__(self) -> None:
        self._left = _MAX_STEPS

    def __call__(self, *bounds: int) -> range:
        steps = range(*bounds)
        self._left -= len(steps)
        if self._left < 0:
            raise SecurityError(f"more than {_MAX_STEPS:,} steps")
        return steps


def _bounded(text_filter: Callable[..., Any], *given: Any, **options: Any) -> Any:
    """A filter that can make long texts of short ones, with numbers that no template needs refused."""
    for value in (*given, *options.values()):
        if isinstance(value, int) and value > 4096:
            raise SecurityError(f"a width of {value}")
    if given and isinstance(given[0], str) and re.search(r"%[^a-zA-Z]*\d{5}", given[0]):
        raise SecurityError("a width of more than four digits")
    return text_filter(*given, **options)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _to_json(value: Any, indent: int | None = None, **options: Any) -> str:
    """Jinja's own filter escapes HTML characters and sorts keys; a prompt wants neither."""
    return json.dumps(value, ensure_ascii=False, indent=indent, **options)
