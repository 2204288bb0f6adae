"""Text to token ids and back, without torch: tokenizer, streaming detokenizer, stop strings.

Only byte-level BPE tokenizers are accepted (all published diffusion families use one), so that every token
is a fixed run of bytes and streaming needs no look-back. A vocabulary may lack single bytes (SmolLM2's lacks
eight that UTF-8 uses); the BPE library drops what it cannot spell, so those bytes get ids of their own here.
"""

from __future__ import annotations

import codecs
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers

from vermilion.errors import ModelFileError

TOKENIZER_FILE = "tokenizer.json"
TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
_VOCABULARY = ("vocab.json", "merges.txt")
_QWEN2_PIECES = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
BUILD = 1
"""Raise it when `build_tokenizer` or `tokenizer_config` changes, so that files built before are rebuilt."""
_SPECIAL_TYPES = (3, 4)
"""GGUF token types: 3 control, 4 user defined; both are matched whole, never split."""


def _byte_of_character() -> dict[str, int]:
    """GPT-2's map of printable characters to bytes: bytes without a printable form follow from U+0100."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTES = _byte_of_character()
_SPARE_TOKENS = (
    "<issue_start>", "<issue_comment>", "<issue_closed>", "<gh_stars>", "<reponame>", "<filename>",
    "<file_sep>", "<repo_name>",
)  # fmt: skip
"""Control tokens that SmolLM2's chat, infill and mask leave unused, in the order in which they are taken for
the bytes without a token: those least likely to be generated first."""
_LEAD_BYTES = range(0xC2, 0xF5)
"""The first bytes of UTF-8 characters beyond ASCII."""
# Texts are encoded one by one, which a pool of threads cannot speed up; it only warns when a process forks.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
_REPLACEMENT = "\ufffd".encode()


def build_tokenizer(metadata: Mapping[str, Any]) -> tokenizers.Tokenizer:
    """The tokenizer that GGUF `metadata` describes; raises ModelFileError for kinds we do not read."""
    kind = (metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre"))
    if kind != ("gpt2", "smollm"):
        raise ModelFileError(f"The GGUF's tokenizer is {kind}; only ('gpt2', 'smollm') is read from a GGUF.")
    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ", 1)) for merge in metadata["tokenizer.ggml.merges"]]
    model = tokenizers.models.BPE({token: i for i, token in enumerate(tokens)}, merges)
    built = tokenizers.Tokenizer(model)
    # The base was trained with digits apart. Readers that leave this out split "    1" differently.
    built.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Digits(individual_digits=True),
            tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    built.decoder = tokenizers.decoders.ByteLevel()
    types: list[int] = metadata["tokenizer.ggml.token_type"]
    special = [token for token, kind in zip(tokens, types, strict=True) if kind in _SPECIAL_TYPES]
    built.add_special_tokens([tokenizers.AddedToken(t, normalized=False, special=True) for t in special])
    return built


def tokenizer_config(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """What Hugging Face keeps in tokenizer_config.json, from GGUF `metadata`."""
    tokens = metadata["tokenizer.ggml.tokens"]
    config: dict[str, Any] = {"chat_template": metadata.get("tokenizer.chat_template"), "build": BUILD}
    for ours, theirs in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        token_id = metadata.get(f"tokenizer.ggml.{theirs}_token_id")
        config[f"{ours}_token"] = None if token_id is None else tokens[token_id]
    return config


def has_tokenizer(folder: Path) -> bool:
    """Whether `Tokenizer.from_folder` finds files to read."""
    return any(all((folder / name).is_file() for name in names) for names in ((TOKENIZER_FILE,), _VOCABULARY))


def _from_vocabulary(folder: Path) -> tokenizers.Tokenizer:
    """The older layout: vocab.json and merges.txt, and the added tokens in tokenizer_config.json.

    How text is split before merging is code there; that of Qwen2, which Dream's tokenizers repeat, and of
    GPT-2 is known. Raises ModelFileError for another class of tokenizer.
    """
    config = read_json(folder / TOKENIZER_CONFIG_FILE)
    kind = str(config.get("tokenizer_class", "GPT2Tokenizer")).removesuffix("Fast")
    if kind not in ("Qwen2Tokenizer", "DreamTokenizer", "GPT2Tokenizer"):
        raise ModelFileError(f"{folder}: there is no {TOKENIZER_FILE}, and {kind} is not known without it.")
    vocabulary, merges = (str(folder / name) for name in _VOCABULARY)
    built = tokenizers.Tokenizer(tokenizers.models.BPE.from_file(vocabulary, merges))
    gpt2, level = kind == "GPT2Tokenizer", tokenizers.pre_tokenizers.ByteLevel
    if not gpt2:
        built.normalizer = tokenizers.normalizers.NFC()
    split = tokenizers.pre_tokenizers.Split(tokenizers.Regex(_QWEN2_PIECES), "isolated")
    parts = (
        [level(add_prefix_space=False)] if gpt2 else [split, level(add_prefix_space=False, use_regex=False)]
    )
    built.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(parts)
    built.decoder = tokenizers.decoders.ByteLevel()
    added = sorted((int(id), token) for id, token in config.get("added_tokens_decoder", {}).items())
    kinds = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")
    built.add_tokens(
        [
            tokenizers.AddedToken(**{kind: token[kind] for kind in kinds if kind in token})
            for _, token in added
        ]
    )
    wrong = [token["content"] for id, token in added if built.token_to_id(token["content"]) != id]
    if wrong:
        raise ModelFileError(f"{folder}: the ids of added tokens have gaps, at {wrong[0]!r}.")
    return built


class Tokenizer:
    """Text to ids and back. Threads may share one: nothing in it changes once built."""

    def __init__(self, built: tokenizers.Tokenizer, eos_token_ids: tuple[int, ...] = ()) -> None:
        layout = json.loads(built.decoder.__getstate__()) if built.decoder else {}
        kinds = {layout.get("type"), *(part.get("type") for part in layout.get("decoders", ()))}
        if "ByteLevel" not in kinds:
            raise ModelFileError(
                f"The tokenizer decodes by {layout.get('type')}; only byte-level BPE is read."
            )
        built.encode_special_tokens = True
        self._built = built
        added = built.get_added_tokens_decoder()
        self._special = {token.content: i for i, token in added.items() if token.special}
        known = {byte: i for letter, byte in _BYTES.items() if (i := built.token_to_id(letter)) is not None}
        missing = [byte for byte in (*range(0xC0), *_LEAD_BYTES) if byte not in known]
        spare = [token for token in _SPARE_TOKENS if token in self._special]
        given = {byte: self._special.pop(token) for byte, token in zip(missing, spare, strict=False)}
        self._id_of_byte = known | given
        self._unspelt = _characters_with(missing)
        """Finds runs of characters that the library would drop; None where there are none."""
        self._special_ids = frozenset(self._special.values())
        self._split = _alternatives(self._special)
        self._bytes: dict[int, bytes] = {i: bytes([byte]) for byte, i in given.items()}
        self.eos_token_ids = eos_token_ids
        self.vocab_size: int = built.get_vocab_size()

    @classmethod
    def from_folder(cls, folder: Path, control: Iterable[int] = ()) -> Tokenizer:
        """From tokenizer.json and, for the end ids, the config files beside it (Hugging Face layout).

        `control`: ids of added tokens that no text stands for, such as the mask, whatever the file says of
        them.
        """
        path = folder / TOKENIZER_FILE
        if not path.is_file() and has_tokenizer(folder):
            built = _from_vocabulary(folder)
            return cls(built, _eos_token_ids(folder, built))
        # The library raises bare Exception for every fault, so the likely ones are found first.
        if read_json(path).get("model", {}).get("type") != "BPE":
            raise ModelFileError(f"{path}: not a byte-level BPE tokenizer, or missing.")
        built = tokenizers.Tokenizer.from_file(str(path))
        added = built.get_added_tokens_decoder()
        plain = [added[id] for id in control if id in added and not added[id].special]
        for token in plain:
            token.special = True
        built.add_special_tokens(plain)
        return cls(built, _eos_token_ids(folder, built))

    @cached_property
    def longest_token_bytes(self) -> int:
        """No token stands for more: n bytes of text are at least n / longest_token_bytes tokens."""
        return max(len(self.token_bytes(token)) for token in range(self.vocab_size))

    @property
    def special_tokens(self) -> Mapping[str, int]:
        """The strings that stand for control tokens, and their ids."""
        return dict(self._special)

    def encode(self, text: str, special: bool = False) -> list[int]:
        """Ids of `text`. Control-token strings in it become control tokens only when `special`."""
        return self.encode_parts(self._split.split(text)) if special else self._ordinary(text)

    def encode_parts(self, parts: Sequence[str]) -> list[int]:
        """Ids of what `split_special` gives: ordinary text and control-token strings in turn."""
        ids: list[int] = []
        for i, part in enumerate(parts):
            if i % 2:
                ids.append(self._special[part])
            elif part:
                ids.extend(self._ordinary(part))
        return ids

    def _ordinary(self, text: str) -> list[int]:
        if self._unspelt is None or not self._unspelt.search(text):
            return self._merged(text)
        ids: list[int] = []
        for i, part in enumerate(self._unspelt.split(text)):
            if i % 2:
                ids.extend(token for character in part for token in self._spelt(character.encode()))
            elif part:
                ids.extend(self._merged(part))
        return ids

    def _merged(self, text: str) -> list[int]:
        # Unlike `encode`, a batch is encoded without the interpreter's lock: other threads go on meanwhile.
        return list(self._built.encode_batch_fast([text], add_special_tokens=False)[0].ids)

    def _spelt(self, character: bytes) -> list[int]:
        """One id per byte; U+FFFD if a byte has neither a token nor a spare one."""
        whole = all(byte in self._id_of_byte for byte in character)
        return [self._id_of_byte[byte] for byte in (character if whole else _REPLACEMENT)]

    def split_special(self, text: str) -> list[str]:
        """`text` cut for `encode_parts`."""
        return self._split.split(text)

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes a token stands for, perhaps a part of a character; empty for an unknown id."""
        found = self._bytes.get(token_id)
        if found is None:
            token = self._built.id_to_token(token_id) or ""
            mapped = [_BYTES.get(character) for character in token]
            whole = None in mapped
            found = token.encode() if whole else bytes(byte for byte in mapped if byte is not None)
            self._bytes[token_id] = found
        return found

    def token_text(self, token_id: int) -> str:
        """One token as text; bytes that are not whole characters show as U+FFFD."""
        return self.token_bytes(token_id).decode("utf-8", "replace")

    def is_special(self, token_id: int) -> bool:
        """Whether it is a control token, which `decode` leaves out by default."""
        return token_id in self._special_ids

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """Text of `ids`; broken UTF-8 shows as U+FFFD."""
        kept = (i for i in ids if not (skip_special and i in self._special_ids))
        return b"".join(map(self.token_bytes, kept)).decode("utf-8", "replace")

    def save(self, path: Path) -> None:
        """Write tokenizer.json."""
        path.write_text(self._built.to_str(), encoding="utf-8")


class Detokenizer:
    """Ids to settled text as they come: deltas and `flush()` joined equal `Tokenizer.decode` of all ids."""

    def __init__(self, tokenizer: Tokenizer, skip_special: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, ids: Iterable[int]) -> str:
        """The text that these ids settle; the bytes of an unfinished character are held back."""
        kept = (i for i in ids if not (self._skip_special and self._tokenizer.is_special(i)))
        return self._decoder.decode(b"".join(map(self._tokenizer.token_bytes, kept)))

    def fork(self) -> Detokenizer:
        """A copy that continues independently from here, to preview further ids."""
        twin = Detokenizer(self._tokenizer, self._skip_special)
        twin._decoder.setstate(self._decoder.getstate())
        return twin

    def flush(self) -> str:
        """The bytes held back, as U+FFFD; afterwards a new text may start."""
        return self._decoder.decode(b"", final=True)


class StopScanner:
    """Cuts a stream of text at the first stop string, however the stream is chunked.

    The match that starts earliest wins, and of those the longest.
    """

    def __init__(self, stops: Iterable[str], outside: tuple[str, str] | None = None) -> None:
        """Between the two marks of `outside` no stop string counts."""
        self._stops = tuple(stop for stop in stops if stop)
        self._opening, self._closing = outside if outside and self._stops else ("", "")
        self._inside = False
        self.hit: str | None = None
        self._wait_for(*self._stops, self._opening)

    def _wait_for(self, *strings: str) -> None:
        self._wanted = tuple(string for string in strings if string)
        self._longest = max(map(len, self._wanted), default=0)
        self._pattern = _alternatives(self._wanted)
        self._held = ""

    def push(self, text: str) -> tuple[str, str | None]:
        """(text that is safe to show, the stop string or None). After a hit nothing more is shown."""
        return self._scan(self._held + text, final=False)

    def flush(self) -> tuple[str, str | None]:
        """The same for what was held back, once the stream has ended."""
        return self._scan(self._held, final=True)

    def _scan(self, text: str, final: bool) -> tuple[str, str | None]:
        self._held = ""
        if self.hit is not None or not self._stops:
            return ("" if self.hit else text), self.hit
        match = self._pattern.search(text)
        end = match.start() if match else len(text)
        # Only the last `longest - 1` characters can begin a string that is not yet whole.
        for start in range(max(0, len(text) - self._longest + 1), min(end + 1, len(text))):
            if not final and self._may_grow(text[start:]):
                self._held = text[start:]
                return text[:start], None
        if match and (self._inside or match.group() == self._opening):
            return self._crossed(text, match.end(), final)
        self.hit = match.group() if match else None
        return text[:end], self.hit

    def _crossed(self, text: str, end: int, final: bool) -> tuple[str, str | None]:
        """Goes on behind a mark."""
        self._inside = not self._inside
        self._wait_for(*((self._closing,) if self._inside else (*self._stops, self._opening)))
        rest, hit = self._scan(text[end:], final)
        return text[:end] + rest, hit

    def _may_grow(self, tail: str) -> bool:
        return any(len(stop) > len(tail) and stop.startswith(tail) for stop in self._wanted)


def split_lines(text: str) -> list[str]:
    """The lines of `text` with their ends: LF, CRLF, or CR alone in a text without any LF.

    Editors and compilers break lines there and nowhere else; `str.splitlines` also breaks at a form feed,
    U+0085, U+2028 and others.
    """
    return re.findall(r"[^\n]*\n|[^\n]+" if "\n" in text else r"[^\r]*\r|[^\r]+", text)


def line_end(line: str) -> str:
    """The line end of a line from `split_lines`; empty for a last line without one."""
    return next((end for end in ("\r\n", "\n", "\r") if line.endswith(end)), "")


def _alternatives(strings: Iterable[str]) -> re.Pattern[str]:
    """Matches any of them, the longest first, as one group; never when there are none."""
    ordered = sorted(strings, key=len, reverse=True)
    return re.compile(f"({'|'.join(map(re.escape, ordered))})" if ordered else r"((?!))")


def _characters_with(missing: Sequence[int]) -> re.Pattern[str] | None:
    """Matches runs of characters whose UTF-8 may hold one of these bytes; None for no bytes."""
    if not missing:
        return None
    letters = [re.escape(chr(byte)) for byte in missing if byte < 0x80]
    if any(0x80 <= byte < 0xC0 for byte in missing):
        letters.append("\x80-\U0010ffff")
    for byte in missing:
        if byte >= 0xC0:
            tail = 1 + (byte >= 0xE0) + (byte >= 0xF0)
            value = (byte & (0x3F >> tail)) << 6 * tail
            first = max(value, (0x80, 0x800, 0x10000)[tail - 1])
            last = min(value + (1 << 6 * tail) - 1, 0x10FFFF)
            letters.append(f"{chr(first)}-{chr(last)}")
    return re.compile(f"([{''.join(letters)}]+)")


def _eos_token_ids(folder: Path, built: tokenizers.Tokenizer) -> tuple[int, ...]:
    for name in ("generation_config.json", "config.json"):
        ids = read_json(folder / name).get("eos_token_id")
        if ids is not None:
            return tuple(ids) if isinstance(ids, list) else (ids,)
    token = token_string(read_json(folder / TOKENIZER_CONFIG_FILE).get("eos_token"))
    token_id = built.token_to_id(token) if token else None
    return () if token_id is None else (token_id,)


def token_string(token: Any) -> str | None:
    """A token of tokenizer_config.json, where it is a string or an object with the string in it."""
    found = token.get("content") if isinstance(token, Mapping) else token
    return found if isinstance(found, str) else None


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file, empty for a missing one; raises ModelFileError for anything else."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelFileError(f"{path}: not valid JSON ({error}).") from error
    if not isinstance(value, dict):
        raise ModelFileError(f"{path}: must hold a JSON object.")
    return value
