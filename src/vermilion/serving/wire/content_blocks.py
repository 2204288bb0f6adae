"""What the blocks of a message say to a model that reads only text.

A picture that a user shows is refused, since the answer would be a guess. What stands in the history, such as
the picture that a tool returned, becomes a few words in its place: to refuse it would end the conversation,
since every later request repeats it.
"""

from __future__ import annotations

from typing import Any

_UNSEEN = ("thinking", "redacted_thinking", "reasoning", "reasoning_text", "summary_text")
"""What a model wrote for itself; models read their own answers without it."""
_TEXTS = ("text", "input_text", "output_text", None)


def block_text(block: object, history: bool) -> str:
    """The text of one block; `history` says that it is no word of the user's own.

    Raises ValueError for a block that is malformed, and outside of the history for one that is no text.
    """
    if isinstance(block, str):
        return block
    if not isinstance(block, dict):
        raise ValueError('a block must be an object such as {"type": "text", "text": "..."}')
    kind = block.get("type")
    if kind in _TEXTS:
        return _string(block, "text")
    if kind == "refusal":
        return _string(block, "refusal") if "refusal" in block else _string(block, "text")
    if kind in _UNSEEN:
        return ""
    if kind == "tool_reference":
        return f"[tool {_string(block, 'tool_name')}]\n"
    if kind == "document":
        text = _document(block.get("source"), history)
        if text is not None:
            return _marked("document", block, text)
    elif kind == "search_result":
        return _marked("search_result", block, blocks_text(block.get("content"), history))
    if not history:
        raise ValueError(f"a part of type {kind!r:.40} cannot be read; this model reads only text")
    return f"[{kind!s:.40} left out: this model reads only text]"


def blocks_text(content: object, history: bool) -> str:
    """The text of a content: null, a string, or a list of blocks. Raises ValueError as `block_text` does."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise ValueError("must be a string or a list of blocks")
    return "".join(block_text(block, history) for block in content)


def _string(block: dict[str, Any], name: str) -> str:
    text = block.get(name)
    if not isinstance(text, str):
        raise ValueError('a part must be {"type": "text", "text": "..."}')
    return text


def _document(source: object, history: bool) -> str | None:
    """The text of a document's source; None where it is no text, such as a PDF."""
    if not isinstance(source, dict):
        raise ValueError("a document needs a source")
    if source.get("type") == "text":
        return _string(source, "data")
    if source.get("type") == "content":
        return blocks_text(source.get("content"), history)
    return None


def _marked(tag: str, block: dict[str, Any], text: str) -> str:
    """`text` between tags, below what the block says of it."""
    about = [block[name] for name in ("title", "source", "context") if isinstance(block.get(name), str)]
    lines = "\n".join([f"<{tag}>", *about, text, f"</{tag}>"])
    return f"{lines}\n"
