"""The process that tries grammars before the engine compiles them, started by `decoding/compiler.py`.

It reads frames from stdin, each a length in four bytes and that much JSON: a vocabulary to keep, or a
grammar to try. It answers each grammar with a frame, and may die of one: of too deep a recursion, for it
tries them on a stack of `STACK_BYTES`, a quarter of a thread's, or of too little memory.
"""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO, TYPE_CHECKING, Any

from vermilion.decoding.finite import endless_rule
from vermilion.decoding.vocabulary import Vocabulary

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

STACK_BYTES = 2 << 20
"""Enough for some 900 rules or references that are chained one behind the other."""
MEMORY_BYTES = 2 << 30
CPU_S = 5.0
"""Of one grammar; real schemas with 500 properties take 0.1 s."""
_MAX_VOCABULARIES = 4
_MAX_FORCED_BYTES = 1 << 16
"""Text without a choice: more would not fit any answer."""
_TRIED_TOKENS = 24
_WALKS = 2
_MAX_MASK_S = 0.5
_COMPACT = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""Where white space may be anything a small model can write it for ever."""


def send(stream: IO[bytes], message: dict[str, Any]) -> None:
    content = json.dumps(message).encode()
    stream.write(len(content).to_bytes(4) + content)
    stream.flush()


def receive(stream: IO[bytes]) -> dict[str, Any] | None:
    """The next message; None where the other side is gone."""
    head = stream.read(4)
    content = stream.read(int.from_bytes(head)) if len(head) == 4 else b""
    return dict(json.loads(content)) if content else None


def source_of(kind: str, text: str) -> str:
    """The grammar in the library's own form. Raises ValueError for what is not JSON where it must be."""
    from llguidance import LLMatcher

    if kind == "regex":
        return str(LLMatcher.grammar_from_regex(text))
    if kind == "lark":
        return str(LLMatcher.grammar_from_lark(text))
    try:
        schema = json.loads(text) if kind == "json_schema" else {"type": "object"}
        # A schema that is just true or false is one too.
        schema = {"anyOf": [schema]} if isinstance(schema, bool) else schema
        return str(LLMatcher.grammar_from_json_schema(schema, overrides=_COMPACT))  # type: ignore[arg-type]
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"not a JSON schema: {error}") from None


def attempt(tokenizer: LLTokenizer, kind: str, text: str) -> dict[str, str]:
    """`source` for a grammar that can be used, else `error`: why not."""
    from llguidance import LLMatcher

    try:
        source = source_of(kind, text)
    except ValueError as error:
        return {"error": str(error)}
    endless = endless_rule(kind, text)
    if endless:
        return {"error": f"no text of it ever ends, since {endless} always needs itself again"}
    matcher = LLMatcher(tokenizer, source, log_level=0)
    reason = _first_line(matcher)
    for walk in range(_WALKS):
        reason = reason or _walk(matcher.deep_copy(), tokenizer.eos_token, walk)
    return {"error": reason} if reason else {"source": source}


def _walk(matcher: LLMatcher, eos: int, walk: int) -> str:
    """Take some tokens that the grammar allows; what goes wrong, if anything does."""
    for step in range(_TRIED_TOKENS):
        if matcher.is_stopped() and not matcher.is_error():
            return ""
        began = time.perf_counter()
        if len(matcher.compute_ff_bytes()) > _MAX_FORCED_BYTES:
            return f"it forces more than {_MAX_FORCED_BYTES} characters in a row; no answer could hold them"
        accepting, mask = matcher.is_accepting(), int.from_bytes(matcher.compute_bitmask(), "little")
        allowed = mask & ~(1 << eos)
        if matcher.is_error() or not (allowed or accepting):
            unsatisfiable = "NoExtension" in str(matcher.get_error()) or not matcher.is_error()
            return "no text fits it" if unsatisfiable else _first_line(matcher)
        if time.perf_counter() - began > _MAX_MASK_S:
            return f"a single step in it takes more than {_MAX_MASK_S:g} s"
        if not allowed:
            return ""
        # The first allowed token behind a place that differs from step to step.
        rest = allowed >> (step * 7919 + walk * 104_729) % max(1, allowed.bit_length())
        behind = allowed.bit_length() - rest.bit_length() if rest else 0
        token = behind + (rest & -rest).bit_length() - 1 if rest else (allowed & -allowed).bit_length() - 1
        if not matcher.consume_token(token):
            return _first_line(matcher)
    return ""


def _first_line(matcher: LLMatcher) -> str:
    return (
        (str(matcher.get_error()).strip().splitlines() or ["unknown"])[0][:300] if matcher.is_error() else ""
    )


@contextmanager
def _limited_time() -> Iterator[None]:
    """More than `CPU_S` of work ends this process; a busy machine does not."""
    timer = getattr(signal, "setitimer", None)
    if timer is not None:
        timer(signal.ITIMER_PROF, CPU_S)
    yield
    if timer is not None:
        timer(signal.ITIMER_PROF, 0.0)


def _limit_memory() -> None:
    with suppress(ImportError, OSError, ValueError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def main() -> None:
    _limit_memory()
    threading.stack_size(STACK_BYTES)
    known: OrderedDict[str, LLTokenizer] = OrderedDict()
    while (message := receive(sys.stdin.buffer)) is not None:
        if "tokens" in message:
            tokens = [bytes.fromhex(token) for token in message["tokens"]]
            words = Vocabulary(tokens, message["special"], message["eos"])
            known[message["vocabulary"]] = words.library_tokenizer()
            while len(known) > _MAX_VOCABULARIES:
                known.popitem(last=False)
        elif message["vocabulary"] not in known:
            send(sys.stdout.buffer, {"unknown": True})
        else:
            tokenizer, answer = known[message["vocabulary"]], dict[str, str]()
            given = (tokenizer, message["kind"], message["text"])
            thread = threading.Thread(target=lambda given=given, to=answer: to.update(attempt(*given)))
            with _limited_time():
                thread.start()
                thread.join()
            send(sys.stdout.buffer, answer or {"error": "it could not be tried"})


if __name__ == "__main__":
    main()
