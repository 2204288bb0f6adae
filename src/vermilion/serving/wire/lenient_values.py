"""Values as clients write them, turned into what the field of a body takes: its validators."""

from __future__ import annotations

import json

NO_LIMIT = 2**31 - 1
"""More tokens than any context has room for."""
_TEXT_PARTS = ("text", "input_text", "output_text", None)


def flatten_content(content: object) -> object:
    """Text of a content that is null, a string, or a list of text parts, in every face's names of them.

    Raises ValueError for a picture or another part that is no text, naming it.
    """
    if content is None:
        return ""
    if not isinstance(content, list):
        return content
    texts = []
    for part in content:
        kind = part.get("type", "text") if isinstance(part, dict) else "text"
        text = part.get("text") if isinstance(part, dict) else part
        if kind == "refusal" and isinstance(part, dict):
            kind, text = "text", part.get("refusal")
        if kind not in _TEXT_PARTS:
            raise ValueError(f"a part of type {kind!r:.40} cannot be read; this model reads only text")
        if not isinstance(text, str):
            raise ValueError('a part must be {"type": "text", "text": "..."}')
        texts.append(text)
    return "".join(texts)


def list_stops(stop: object) -> object:
    """A list of stop strings from a string, a list or null; empty ones, which nothing could end at, go."""
    stops = [stop] if isinstance(stop, str) else stop
    return [text for text in stops if text != ""] if isinstance(stops, list) else stops


def listed_prompts(prompt: object) -> object:
    """One prompt, or a list of several; a list of token ids is a prompt itself."""
    if isinstance(prompt, list) and len(prompt) > 1 and not isinstance(prompt[0], int):
        return [single_prompt(one) for one in prompt]
    return single_prompt(prompt)


def single_prompt(prompt: object) -> object:
    """The one prompt out of a list of one; a list of token ids is a prompt itself."""
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str | list):
        prompt = prompt[0]
    if isinstance(prompt, str):
        return prompt
    if isinstance(prompt, list) and all(type(token) is int for token in prompt):
        return prompt
    raise ValueError("must be a string, a list of one string, or a list of token ids")


def without_limit(limit: object) -> object:
    """What is meant by a limit of -1."""
    return NO_LIMIT if type(limit) in (int, float) and limit == -1 else limit


def as_json(arguments: object) -> object:
    """Arguments of a call as text; some clients send the object itself."""
    return json.dumps(arguments, ensure_ascii=False) if isinstance(arguments, dict) else arguments
