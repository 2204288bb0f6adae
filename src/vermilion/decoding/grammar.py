"""Grammars that an answer must keep to: which tokens may come next, which one must.

The matching is llguidance's: Earley parsing over derivatives of regular expressions. Nothing here knows a
model: masks are bits over the vocabulary.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vermilion.errors import BadRequest
from vermilion.types import Grammar

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

    from vermilion.text import Tokenizer

_KEPT = 64
"""Compiled grammars kept: an application sends the same few schemas again and again."""
_LONGEST = 200_000
"""Characters of a grammar; compiling takes time that grows with it."""
_JSON = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""Where white space may be anything a small model can write it for ever."""

_CLOSERS = (b'"}]', b'"}],: \n')


class Constraint:
    """One answer's place in its grammar. All decisions are functions of the settled tokens alone."""

    def __init__(self, matcher: LLMatcher, eos: int, closers: tuple[bytes, ...]) -> None:
        """`closers` are masks of tokens that bring a text to its end, the surest first."""
        self._matcher = matcher
        self._eos = eos
        self._closers = closers
        self._num_bytes = len(closers[0])

    @property
    def complete(self) -> bool:
        """Whether nothing may follow any more."""
        return bool(self._matcher.is_stopped())

    @property
    def error(self) -> str:
        """Why matching had to be given up (a grammar too complex to follow); empty while all is well."""
        return str(self._matcher.get_error()) if self._matcher.is_error() else ""

    def settle(self, token: int) -> None:
        """Move on by a token of the answer."""
        if token != self._eos:
            self._matcher.consume_token(token)

    def forced(self) -> int | None:
        """The one token that must come next; None where there is a choice, or the answer may end."""
        if self._matcher.is_stopped() or self._matcher.is_accepting():
            return None
        tokens = self._matcher.compute_ff_tokens()
        return tokens[0] if tokens else None

    def allowed(self, path: Sequence[int] = (), closing: bool = False) -> bytes:
        """The tokens that may follow the settled answer and then `path`, as bits, lowest first.

        With `closing` only those that bring the text to its end, where there are such: it ends if it may,
        else closes strings and brackets. A path that leaves the grammar is followed by nothing but the end,
        whose reading is never used.
        """
        kept = self._matcher.try_consume_tokens(list(path)) if path else 0
        mask = self._mask(closing) if kept == len(path) else self._only(self._eos)
        if kept:
            self._matcher.rollback(kept)
        return mask

    def keeps(self, path: Sequence[int]) -> bool:
        """Whether `path` may follow the settled answer, forced tokens honoured."""
        matcher, kept, fits = self._matcher, 0, True
        for token in path:
            forced = self.forced()
            fits = forced in (None, token) and matcher.try_consume_tokens([token]) == 1
            if not fits:
                break
            kept += 1
        if kept:
            matcher.rollback(kept)
        return fits

    def _mask(self, closing: bool) -> bytes:
        if self._matcher.is_stopped() or (closing and self._matcher.is_accepting()):
            return self._only(self._eos)
        forced = self.forced()
        if forced is not None:
            return self._only(forced)
        mask = self._matcher.compute_bitmask()[: self._num_bytes].ljust(self._num_bytes, b"\0")
        for closers in self._closers if closing else ():
            both = (int.from_bytes(mask) & int.from_bytes(closers)).to_bytes(self._num_bytes)
            if any(both):
                return both
        return mask

    def _only(self, token: int) -> bytes:
        mask = bytearray(self._num_bytes)
        mask[token // 8] = 1 << token % 8
        return bytes(mask)


class Grammars:
    """Compiled grammars for one tokenizer. Threads may share it."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._eos = tokenizer.eos_token_ids[0] if tokenizer.eos_token_ids else -1
        self._vocabulary: LLTokenizer | None = None
        self._closers: tuple[bytes, ...] = ()
        self._compiled: OrderedDict[Grammar, LLMatcher] = OrderedDict()
        self._lock = threading.Lock()

    def constraint(self, grammar: Grammar) -> Constraint:
        """A fresh place at the beginning of `grammar`. Raises `BadRequest` for one that cannot be used."""
        with self._lock:
            matcher = self._compiled.get(grammar)
            if matcher is None:
                matcher = self._compile(grammar)
                self._compiled[grammar] = matcher
            self._compiled.move_to_end(grammar)
            while len(self._compiled) > _KEPT:
                self._compiled.popitem(last=False)
            return Constraint(matcher.deep_copy(), self._eos, self._closers)

    def _compile(self, grammar: Grammar) -> LLMatcher:
        try:
            from llguidance import LLMatcher
        except ImportError:
            raise BadRequest(
                "Structured output needs the package llguidance: pip install 'vermilion[serve]'.",
                "response_format",
                "unsupported_parameter",
            ) from None
        if self._eos < 0:
            raise BadRequest(
                "This model names no token that ends a text; it cannot keep to a grammar.", "response_format"
            )
        if len(grammar.text) > _LONGEST:
            raise BadRequest(
                f"The grammar has {len(grammar.text)} characters; at most {_LONGEST}.", "response_format"
            )
        matcher = LLMatcher(self._words(), _source(grammar), log_level=0)
        if matcher.is_error():
            reason = str(matcher.get_error()).strip().splitlines()[0][:300]
            name = grammar.kind.replace("_", " ").replace("json", "JSON")
            raise BadRequest(
                f"response_format: this {name} cannot be kept to: {reason}",
                "response_format",
                "invalid_value",
            )
        return matcher

    def _words(self) -> LLTokenizer:
        if self._vocabulary is None:
            from llguidance import LLTokenizer, TokenizerWrapper

            vocabulary = _Words(self._tokenizer, self._vocab_size, self._eos)
            words = TokenizerWrapper(vocabulary)
            self._closers = tuple(_made_of(vocabulary.tokens, letters) for letters in _CLOSERS)
            self._vocabulary = LLTokenizer(words, self._vocab_size, eos_token=self._eos)
        return self._vocabulary


class _Words:
    """The vocabulary as llguidance asks for it."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, eos: int) -> None:
        self.eos_token_id = eos
        self.bos_token_id = None
        self.tokens = [tokenizer.token_bytes(token) for token in range(vocab_size)]
        # A token that stands for no bytes, such as the mask, must not be taken for empty text.
        self.special_token_ids = [
            token for token, text in enumerate(self.tokens) if not text or tokenizer.is_special(token)
        ]
        self._tokenizer = tokenizer

    def __call__(self, text: str | bytes) -> list[int]:
        plain = text if isinstance(text, str) else text.decode("utf-8", "replace")
        return list(self._tokenizer.encode(plain))


def _made_of(tokens: Sequence[bytes], letters: bytes) -> bytes:
    """A mask of the tokens that consist of `letters`."""
    mask = bytearray((len(tokens) + 31) // 32 * 4)
    for token, text in enumerate(tokens):
        if text and not text.strip(letters):
            mask[token // 8] |= 1 << token % 8
    return bytes(mask)


def _source(grammar: Grammar) -> Any:
    from llguidance import LLMatcher

    if grammar.kind == "regex":
        return LLMatcher.grammar_from_regex(grammar.text)
    if grammar.kind == "lark":
        return LLMatcher.grammar_from_lark(grammar.text)
    try:
        schema = json.loads(grammar.text) if grammar.kind == "json_schema" else {"type": "object"}
        # A schema that is just true or false is one too.
        schema = {"anyOf": [schema]} if isinstance(schema, bool) else schema
        return LLMatcher.grammar_from_json_schema(schema, overrides=_JSON)  # type: ignore[arg-type]
    except (ValueError, TypeError) as error:
        raise BadRequest(
            f"response_format: not a JSON schema: {error}", "response_format", "invalid_value"
        ) from None
