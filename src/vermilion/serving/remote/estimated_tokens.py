"""Tokens of a model whose vocabulary is elsewhere: estimated, six bytes each, for limits before an answer.

They carry the text, so that what was to be encoded can be sent on as it was. What an answer has cost comes
from the upstream. The estimate is low, so that no prompt is refused that would have fitted.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

BYTES = 6
_OURS = 1 << 8 * (BYTES + 1)
"""Marks an estimated token; a number below is a token of the upstream's own."""


class EstimatedTokenizer:
    """Stands in for a tokenizer where texts are only measured and passed on."""

    longest_token_bytes = BYTES

    def encode(self, text: str, special: bool = False) -> list[int]:
        raw = text.encode("utf-8", "surrogatepass")
        return [_packed(raw[at : at + BYTES]) for at in range(0, len(raw), BYTES)]

    def decode(self, ids: Sequence[int]) -> str:
        return b"".join(map(_bytes, ids)).decode("utf-8", "replace")

    def token_text(self, token_id: int) -> str:
        return _bytes(token_id).decode("utf-8", "replace")


def _packed(piece: bytes) -> int:
    return _OURS | len(piece) << 8 * BYTES | int.from_bytes(piece)


def _bytes(token: int) -> bytes:
    size = token >> 8 * BYTES & 0xFF
    return (token & (1 << 8 * BYTES) - 1).to_bytes(BYTES)[BYTES - size :] if token & _OURS else b""


def sent_prompt(ids: Iterable[int]) -> str | list[int]:
    """A prompt as an upstream takes it: its own tokens as they are, else the text."""
    listed = list(ids)
    own = [token for token in listed if not token & _OURS]
    return own if own and len(own) == len(listed) else EstimatedTokenizer().decode(listed)


def num_tokens(text: str) -> int:
    return -(-len(text.encode("utf-8", "replace")) // BYTES)


class PassedTemplate:
    """Stands in for the template of a conversation, which the upstream writes by itself."""

    takes_tools = True
    source = ""

    def render(self, messages: Sequence[Mapping[str, Any]], **offers: Any) -> str:
        """The words of it, for their number."""
        said = "\n".join(f"{message['role']}: {message['content']}" for message in messages)
        return f"{said}\n{json.dumps(offers)}" if offers else said

    def encode(
        self, messages: Sequence[Mapping[str, Any]], tokenizer: EstimatedTokenizer, **offers: Any
    ) -> list[int]:
        return tokenizer.encode(self.render(messages, **offers))
