"""Grammars that an answer must keep to: which tokens may come next, which one must.

The matching is llguidance's: Earley parsing over derivatives of regular expressions. Nothing here knows a
model: masks are bits over the vocabulary.
"""

from __future__ import annotations

import heapq
import re
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vermilion.decoding.compiler import SHARED
from vermilion.decoding.vocabulary import Vocabulary
from vermilion.errors import BadRequest
from vermilion.frozen import frozen
from vermilion.types import Grammar

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

    from vermilion.text import Tokenizer

_MAX_COMPILED = 64
"""Compiled grammars kept: an application sends the same few schemas again and again."""
_MAX_CHARACTERS = 200_000
"""Of a grammar; compiling takes time that grows with it."""

_PLAIN, _STRING, _ESCAPE = range(3)
"""Where a JSON text stands: outside strings, in one, or behind a backslash in one."""
_COMPLETIONS = (b"a", b"0", b"@", b".", b":", b"-", b"/", b"T", b"Z")
"""Characters that bring a string with a pattern or a format to where it may be closed."""
_MAX_STATES, _MAX_ALIKE = 64, 4
"""Places that are looked at for the way there, and how many of them may be alike."""


@dataclass(frozen=True, slots=True)
class _Words:
    """One vocabulary, and masks of its tokens that bring a JSON text to its end, the surest first."""

    library: LLTokenizer
    tokens: Sequence[bytes]
    eos: int
    ends: tuple[bytes, ...]
    """Outside strings."""
    string_ends: tuple[bytes, ...]
    """In a string: tokens that close it."""
    escapes: tuple[bytes, ...]
    """Behind a backslash: a letter that is a whole escape."""
    quote: int
    completions: tuple[int, ...]

    @staticmethod
    def of(vocabulary: Vocabulary) -> _Words:
        tokens = vocabulary.tokens
        single = {text: token for token, text in enumerate(tokens) if len(text) == 1}
        return _Words(
            vocabulary.library_tokenizer(),
            tokens,
            vocabulary.eos_token_id,
            tuple(_made_of(tokens, letters) for letters in (b"}]", b'"}]', b'"}],: \n')),
            tuple(_made_of(tokens, letters, b'"') for letters in (b'"}]', b'"}],: \n')),
            (_made_of(tokens, b"n"),),
            single.get(b'"', -1),
            tuple(single[text] for text in _COMPLETIONS if text in single),
        )


@frozen
class _Place:
    """What is known of a place in a text beside the matcher's own state."""

    forced: tuple[int, ...] = ()
    """Tokens that must come next, as far as they were looked for at the last place that had a choice."""
    json: int = _PLAIN


class Constraint:
    """One answer's place in its grammar. All decisions are functions of the settled tokens alone."""

    def __init__(self, matcher: LLMatcher, words: _Words) -> None:
        self._matcher = matcher
        self._words = words
        self._num_bytes = len(words.ends[0])
        self._num_masks, self._masks_s = 0, 0.0
        self._place = self._looked(_Place())
        self._places: dict[tuple[int, ...], _Place] = {}
        """Behind paths that were followed from here: each is asked for as a draft, for its mask, and once it
        is accepted."""

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
        if token != self._words.eos:
            self._matcher.consume_token(token)
            self._place = self._places.get((token,)) or self._behind(self._place, token)
            self._places = {
                path[1:]: place for path, place in self._places.items() if path[0] == token and len(path) > 1
            }

    def forced(self) -> int | None:
        """The one token that must come next; None where there is a choice, or the answer may end."""
        return self._place.forced[0] if self._place.forced else None

    @property
    def forced_run(self) -> tuple[int, ...]:
        """The tokens that must come next, one behind the other."""
        return self._place.forced

    def kept(self, path: Sequence[int]) -> int:
        """How many tokens of `path` may follow the settled answer; of an end, where one may stand, it is the
        last."""
        end = next((i for i, token in enumerate(path) if token == self._words.eos), len(path))
        _, kept = self._followed(path[:end])
        ends = kept == end < len(path) and (self._matcher.is_accepting() or self._matcher.is_stopped())
        if kept:
            self._matcher.rollback(kept)
        return kept + int(ends)

    def allowed(self, path: Sequence[int] = (), closing: bool = False) -> bytes:
        """The tokens that may follow the settled answer and then `path`, as bits, lowest first.

        With `closing` only those that bring a JSON text to its end, where there are such: it ends if it may,
        else closes strings and brackets. A path that leaves the grammar is followed by nothing but the end,
        whose reading is never used.
        """
        began = time.perf_counter()
        place, kept = self._followed(path)
        mask = self._mask(place, closing) if kept == len(path) else self._only(self._words.eos)
        if kept:
            self._matcher.rollback(kept)
        self._num_masks, self._masks_s = self._num_masks + 1, self._masks_s + time.perf_counter() - began
        return mask

    def take_mask_times(self) -> tuple[int, float]:
        """How many answers `allowed` has given since the last call, and the seconds that they took."""
        taken = self._num_masks, self._masks_s
        self._num_masks, self._masks_s = 0, 0.0
        return taken

    def follows(self, path: Sequence[int]) -> int:
        """How many tokens of `path` may follow the settled answer, forced tokens honoured."""
        _, kept = self._followed(path)
        if kept:
            self._matcher.rollback(kept)
        return kept

    def _followed(self, path: Sequence[int]) -> tuple[_Place, int]:
        """Move the matcher along `path` as far as it goes; the place there, and how far that is."""
        place = self._place
        for kept, token in enumerate(path):
            fits = not place.forced or place.forced[0] == token
            if not fits or self._matcher.try_consume_tokens([token]) != 1:
                return place, kept
            known = tuple(path[: kept + 1])
            if known not in self._places:
                self._places[known] = self._behind(place, token)
            place = self._places[known]
        return place, len(path)

    def _behind(self, place: _Place, token: int) -> _Place:
        """The place after `token`, which the matcher has just taken."""
        forced = place.forced[1:] if place.forced[:1] == (token,) else ()
        return self._looked(_Place(forced, _read_json(place.json, self._words.tokens[token])))

    def _looked(self, place: _Place) -> _Place:
        """With what is forced here. A run is looked up once, not once a token: that took a second for 10,000
        characters, and most of a minute for an answer of them."""
        if self._matcher.is_stopped() or self._matcher.is_accepting():
            return _Place((), place.json)
        return place if place.forced else _Place(tuple(self._matcher.compute_ff_tokens()), place.json)

    def _mask(self, place: _Place, closing: bool) -> bytes:
        if self._matcher.is_stopped() or (closing and self._matcher.is_accepting()):
            return self._only(self._words.eos)
        if place.forced:
            return self._only(place.forced[0])
        mask = self._bits()
        if not closing:
            return mask
        closers = {_PLAIN: self._words.ends, _STRING: self._words.string_ends, _ESCAPE: self._words.escapes}
        for some in closers[place.json]:
            both = (int.from_bytes(mask) & int.from_bytes(some)).to_bytes(self._num_bytes)
            if any(both):
                return both
        way = self._way_out() if place.json != _PLAIN else None
        return mask if way is None else self._only(way)

    def _way_out(self) -> int | None:
        """The first token of a short way, over a few characters, to where an open string may be closed; None
        where none is found. No bracket is among them: in a string it would be text."""
        seen: Counter[tuple[int, bytes]] = Counter()
        # (cost, order of discovery, path, what may follow it): a step that changes nothing costs double.
        heap: list[tuple[int, int, tuple[int, ...], bytes]] = [(0, 0, (), self._bits())]
        num_found = 0
        while heap and num_found < _MAX_STATES:
            cost, _, path, before = heapq.heappop(heap)
            for token in self._words.completions:
                taken = self._matcher.try_consume_tokens([*path, token])
                if taken == len(path) + 1:
                    closes = self._matcher.validate_tokens([self._words.quote]) == 1
                    bits = self._bits()
                    seen[token, bits] += 1
                    if not closes and seen[token, bits] <= _MAX_ALIKE:
                        num_found += 1
                        step = (cost + 1 + (bits == before), num_found, (*path, token), bits)
                        heapq.heappush(heap, step)
                if taken:
                    self._matcher.rollback(taken)
                if taken == len(path) + 1 and closes:
                    return (*path, token)[0]
        return None

    def _bits(self) -> bytes:
        return bytes(self._matcher.compute_bitmask()[: self._num_bytes].ljust(self._num_bytes, b"\0"))

    def _only(self, token: int) -> bytes:
        mask = bytearray(self._num_bytes)
        mask[token // 8] = 1 << token % 8
        return bytes(mask)


class Grammars:
    """Compiled grammars for one tokenizer. Threads may share it: what is compiled already never waits for
    what is being compiled."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._eos = tokenizer.eos_token_ids[0] if tokenizer.eos_token_ids else -1
        self._words: _Words | None = None
        self._vocabulary: tuple[Vocabulary, str] | None = None
        self._compiled: OrderedDict[Grammar, LLMatcher | str] = OrderedDict()
        """A matcher, or why there is none."""
        self._lock = threading.Lock()
        self._words_lock = threading.Lock()

    def constraint(self, grammar: Grammar) -> Constraint:
        """A fresh place at the beginning of `grammar`. Raises `BadRequest` for one that cannot be used."""
        words = self._known_words()
        if len(grammar.text) > _MAX_CHARACTERS:
            raise BadRequest(
                f"The grammar has {len(grammar.text)} characters; at most {_MAX_CHARACTERS}.",
                "response_format",
            )
        with self._lock:
            found = self._compiled.get(grammar)
        if found is None:
            found = self._compile(grammar, words)
        with self._lock:
            self._compiled[grammar] = found
            self._compiled.move_to_end(grammar)
            while len(self._compiled) > _MAX_COMPILED:
                self._compiled.popitem(last=False)
            matcher = found if isinstance(found, str) else found.deep_copy()
        if isinstance(matcher, str):
            name = grammar.kind.replace("_", " ").replace("json", "JSON")
            raise BadRequest(
                f"response_format: this {name} cannot be kept to: {matcher}{rule_at_fault(grammar, matcher)}",
                "response_format",
                "invalid_value",
            )
        return Constraint(matcher, words)

    def _compile(self, grammar: Grammar, words: _Words) -> LLMatcher | str:
        """Here only what has been compiled safely in another process."""
        from llguidance import LLMatcher

        assert self._vocabulary is not None
        source, refusal = SHARED.attempt(*self._vocabulary, grammar.kind, grammar.text)
        if refusal:
            return refusal
        matcher = LLMatcher(words.library, source, log_level=0)
        return str(matcher.get_error())[:300] if matcher.is_error() else matcher

    def _known_words(self) -> _Words:
        with self._words_lock:
            if self._words is None:
                if self._eos < 0:
                    raise BadRequest(
                        "This model names no token that ends a text; it cannot keep to a grammar.",
                        "response_format",
                    )
                vocabulary = self._read_vocabulary()
                self._vocabulary = vocabulary, vocabulary.name
                self._words = _Words.of(vocabulary)
            return self._words

    def _read_vocabulary(self) -> Vocabulary:
        tokens = [self._tokenizer.token_bytes(token) for token in range(self._vocab_size)]
        # A token that stands for no bytes, such as the mask, must not be taken for empty text.
        special = [
            token for token, text in enumerate(tokens) if not text or self._tokenizer.is_special(token)
        ]
        return Vocabulary(tokens, special, self._eos, self._tokenizer.encode)


def rule_at_fault(grammar: Grammar, reason: str) -> str:
    """Names the rule of a Lark grammar that the library found the fault in: it says only in which line."""
    place = re.match(r"at (\d+)\(", reason) if grammar.kind == "lark" else None
    lines = grammar.text.split("\n")
    if place is None or not 0 < int(place[1]) <= len(lines):
        return ""
    rule = re.match(r"\w+", lines[int(place[1]) - 1])
    return f" (in the rule {rule[0]})" if rule else ""


def _read_json(state: int, text: bytes) -> int:
    """Where a JSON text stands after `text`."""
    for byte in text:
        if state == _ESCAPE:
            state = _STRING
        elif byte == 0x22:
            state = _STRING if state == _PLAIN else _PLAIN
        elif byte == 0x5C and state == _STRING:
            state = _ESCAPE
    return state


def _made_of(tokens: Sequence[bytes], letters: bytes, first: bytes = b"") -> bytes:
    """A mask of the tokens that consist of `letters` and begin with `first`."""
    mask = bytearray((len(tokens) + 31) // 32 * 4)
    for token, text in enumerate(tokens):
        if text.startswith(first) and text and not text.strip(letters):
            mask[token // 8] |= 1 << token % 8
    return bytes(mask)
