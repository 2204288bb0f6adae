"""Requests that are meant to hold up everybody else's: each as a path and a body, made anew for every use.

Sizes are those with which the service once stood still for seconds.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
SIZE = 7_500_000
"""Characters of the largest bodies; a body may have 8 MiB."""


def _json(**fields: object) -> bytes:
    return json.dumps(fields).encode()


def _asked(content: object, **fields: object) -> bytes:
    return _json(messages=[{"role": "user", "content": content}], max_tokens=4, **fields)


def _many(piece: bytes, count: int, before: bytes = b'{"messages":[', after: bytes = b"]}") -> bytes:
    return before + b",".join([piece] * count) + after


def _hunks(count: int) -> bytes:
    lines = "".join(f"line {number}\n" for number in range(count * 4))
    marks = "".join(
        f"line {number * 4}\nnew\nline {number * 4 + 1}\n# ... existing code ...\n" for number in range(count)
    )
    text = f"<|original_code|>\n{lines}\n<|/original_code|>\n\n<|update_snippet|>\n{marks}<|/update_snippet|>"
    return _asked(text)


def _apply(original: str, snippet: str) -> bytes:
    return _asked(
        f"<|original_code|>\n{original}\n<|/original_code|>\n\n"
        f"<|update_snippet|>\n{snippet}\n<|/update_snippet|>"
    )


def _options() -> bytes:
    criteria = {f"option {number}": None for number in range(255)}
    questions = {f"q{number}": {"type": "choice", "criteria": criteria} for number in range(80)}
    return _json(state="a", questions=questions)


ATTACKS: Mapping[str, tuple[str, Callable[[], bytes]]] = {
    "a long message": (CHAT, lambda: _asked("word " * (SIZE // 5))),
    "one long word": (CHAT, lambda: _asked("a" * SIZE)),
    "blanks": (COMPLETIONS, lambda: _json(prompt=" " * SIZE, max_tokens=4)),
    "line breaks": (COMPLETIONS, lambda: _json(prompt="\n" * (SIZE // 2), max_tokens=4)),
    "faces": (COMPLETIONS, lambda: _json(prompt="\U0001f600" * (SIZE // 12), max_tokens=4)),
    "token ids": (COMPLETIONS, lambda: _json(prompt=[1] * 390_000, max_tokens=4)),
    "ten million token ids": (COMPLETIONS, lambda: _many(b"1", SIZE // 2, b'{"prompt":[')),
    "a long suffix": (COMPLETIONS, lambda: _json(prompt="a", suffix="b " * (SIZE // 2), max_tokens=4)),
    "marks of gaps": (COMPLETIONS, lambda: _json(prompt="<|fim_suffix|>" * 20_000, max_tokens=4)),
    "marks of gaps and an end": (
        "/v1/fim/completions",
        lambda: _json(prompt="<|fim_suffix|>" * 20_000 + "<|fim_middle|>x", max_tokens=4),
    ),
    "empty messages": (CHAT, lambda: _many(b'{"role":"user","content":""}', 150_000)),
    "4,000 empty messages": (CHAT, lambda: _many(b'{"role":"user","content":""}', 4000)),
    "wrong messages": (CHAT, lambda: _many(b'{"role":"usr","content":3}', 20_000)),
    "messages of nulls": (CHAT, lambda: _many(b'{"role":null,"content":null}', 10_000)),
    "empty objects": (CHAT, lambda: _many(b"{}", 2_000_000, b'{"x":[')),
    "deep nesting": (CHAT, lambda: b'{"messages":' + b"[" * 300_000 + b"]" * 300_000 + b"}"),
    "parts": (CHAT, lambda: _asked([{"type": "text", "text": ""}] * 20_000)),
    "stop strings": (CHAT, lambda: _asked("hi", stop=["ab" * 16_000] * 64)),
    "biases": (CHAT, lambda: _asked("hi", logit_bias={str(token): 1 for token in range(49_000)})),
    "a wrong stop string": (CHAT, lambda: _asked("hi", preset="x" * SIZE)),
    "turns": (
        "/v1/messages",
        lambda: _many(b'{"role":"user","content":"a"}', 20_000, b'{"max_tokens":4,"messages":['),
    ),
    "items": ("/v1/responses", lambda: _many(b'{"role":"user","content":"a"}', 20_000, b'{"input":[')),
    "a model of Ollama's": ("/api/generate", lambda: _json(model="m" * SIZE, prompt="a" * 1000)),
    "a prompt of Ollama's": ("/api/generate", lambda: _json(model="mercury", prompt="ab " * (SIZE // 3))),
    "an infill": ("/infill", lambda: _json(input_prefix="a " * (SIZE // 2), input_suffix="b", n_predict=4)),
    "files of an infill": (
        "/infill",
        lambda: _json(
            input_prefix="a",
            input_suffix="b",
            n_predict=4,
            input_extra=[{"filename": "f", "text": "x " * 3000}] * 1000,
        ),
    ),
    "holes": ("/v1/infill", lambda: _json(parts=["word " * 2000, {}, " " * 9000, {"tokens": 3}, "x" * SIZE])),
    "many holes": ("/v1/infill", lambda: _json(parts=["a word ", {"max_tokens": 1}] * 16)),
    "a text to count": ("/v1/tokenize", lambda: _json(prompt="ab " * (SIZE // 3), return_token_strs=True)),
    "tokens to read": ("/v1/detokenize", lambda: _json(tokens=[1000] * 390_000)),
    "options": ("/v1/decisions", _options),
    "a state": (
        "/v1/decisions",
        lambda: _json(state="w " * (SIZE // 2), questions={"q": {"type": "noul", "instructions": "?"}}),
    ),
    "4,000 hunks": ("/v1/apply/completions", lambda: _hunks(4000)),
    "a line of blanks": ("/v1/apply/completions", lambda: _apply("a\nb", " " * 30_000 + "x\nb")),
    "a file of line breaks": ("/v1/apply/completions", lambda: _apply("\n" * (SIZE // 2), "a")),
    "a region": (
        "/v1/edit/completions",
        lambda: _asked(
            "<|current_file_content|>\n<|code_to_edit|>\n"
            + "x = 1\n" * (SIZE // 8)
            + "<|/code_to_edit|>\n<|/current_file_content|>"
        ),
    ),
    "a schema": (
        CHAT,
        lambda: _asked("hi", response_format={"type": "regex", "value": "(a|b)" * 20_000}),
    ),
    "no JSON": (CHAT, lambda: b'{"messages": ["' + b'\\"' * (SIZE // 2)),
}
