"""A checkpoint's chat template: turns messages into one prompt. No message can inject control tokens."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.sandbox

from vermilion.errors import BadRequest, ModelFileError
from vermilion.text import TOKENIZER_CONFIG_FILE, Tokenizer, read_json, token_string


class ChatTemplate:
    """A checkpoint's Jinja chat template, run in a sandbox set up as Hugging Face transformers does."""

    def __init__(self, source: str, special_tokens: Mapping[str, str] | None = None) -> None:
        """`special_tokens`: what the template may name, such as bos_token and eos_token."""
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
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
            return self._template.render(
                **self._variables,
                messages=messages,
                tools=tools,
                documents=None,
                add_generation_prompt=add_generation_prompt,
            )
        except (jinja2.TemplateError, TypeError, ValueError) as error:
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


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _to_json(value: Any, indent: int | None = None, **options: Any) -> str:
    """Jinja's own filter escapes HTML characters and sorts keys; a prompt wants neither."""
    return json.dumps(value, ensure_ascii=False, indent=indent, **options)
