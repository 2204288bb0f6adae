"""A vocabulary as the grammar library asks for it: the bytes of each token, in any process."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llguidance import LLTokenizer


class Vocabulary:
    """`tokens` are the bytes of each id, empty for one that stands for no text."""

    def __init__(
        self,
        tokens: Sequence[bytes],
        special: Sequence[int],
        eos: int,
        encode: Callable[[str], Sequence[int]] | None = None,
    ) -> None:
        """Without `encode` a text is one token a byte, which is enough to try a grammar."""
        self.eos_token_id = eos
        self.bos_token_id = None
        self.tokens = list(tokens)
        self.special_token_ids = list(special)
        self._encode = encode
        self._by_byte = {text[0]: token for token, text in enumerate(tokens) if len(text) == 1}

    @property
    def name(self) -> str:
        """The same for equal vocabularies, whatever process holds them."""
        digest = hashlib.blake2b(repr((self.eos_token_id, self.special_token_ids)).encode(), digest_size=16)
        for text in self.tokens:
            digest.update(len(text).to_bytes(4) + text)
        return digest.hexdigest()

    def __call__(self, text: str | bytes) -> list[int]:
        if self._encode is not None:
            return list(self._encode(text if isinstance(text, str) else text.decode("utf-8", "replace")))
        return [self._by_byte.get(byte, 0) for byte in (text.encode() if isinstance(text, str) else text)]

    def library_tokenizer(self) -> LLTokenizer:
        from llguidance import LLTokenizer, TokenizerWrapper

        return LLTokenizer(TokenizerWrapper(self), len(self.tokens), eos_token=self.eos_token_id)
