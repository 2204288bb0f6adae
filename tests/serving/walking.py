"""Random texts of a grammar over bytes, from a fixed seed: what a model that knows nothing would answer."""

from __future__ import annotations

import random

from llguidance import LLMatcher

from vermilion.decoding.compile_worker import source_of
from vermilion.decoding.vocabulary import Vocabulary
from vermilion.types import Grammar

_END = 256
_CLOSERS = frozenset(b'"}]')
_PLAIN = frozenset(range(32, 127)) - {ord("\\")}
_SOON = 60
"""Characters after which what closes is preferred."""


WORDS = Vocabulary([*(bytes([byte]) for byte in range(256)), b""], [_END], _END).library_tokenizer()


def matcher(grammar: Grammar) -> LLMatcher:
    """Raises AssertionError for a grammar that cannot be used."""
    made = LLMatcher(WORDS, source_of(grammar.kind, grammar.text), log_level=0)
    assert not made.is_error(), made.get_error()
    return made


def fits(grammar: Grammar, text: str) -> bool:
    """Whether `text` is a whole text of the grammar."""
    made, content = matcher(grammar), text.encode()
    return made.try_consume_tokens(list(content)) == len(content) and made.is_accepting()


def walk(grammar: Grammar, seed: int) -> str:
    """One text of it."""
    made, dice, text = matcher(grammar), random.Random(seed), bytearray()
    while not made.is_stopped():
        mask = made.compute_bitmask()
        allowed = [token for token in range(257) if mask[token // 8] >> token % 8 & 1]
        closers = [token for token in allowed if token in _CLOSERS or token == _END]
        plain = [token for token in allowed if token in _PLAIN or token == _END]
        choice = closers if closers and len(text) > _SOON else plain or allowed
        token = _END if len(text) > _SOON and _END in allowed else dice.choice(choice)
        if token == _END:
            break
        made.consume_token(token)
        text.append(token)
        assert len(text) < 2000
    return text.decode()
