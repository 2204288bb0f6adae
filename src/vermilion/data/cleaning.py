"""Which texts are worth training on: quality, duplicates, evaluation strings. Pure functions of the text."""

from __future__ import annotations

import ast
import gzip
import hashlib
import inspect
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath

from vermilion.data.languages import HASH_COMMENTS
from vermilion.errors import ConfigError
from vermilion.text import split_lines

GRAM = 13
"""Words in a row that a text may not share with an evaluation (arXiv 2005.14165)."""
_DROPPED = frozenset(
    {"vendor", "vendored", "_vendor", "_vendored", "third_party", "thirdparty", "extern", "externals"}
    | {"node_modules", "test_data", "testdata", "fixtures", "golden", "goldens", "snapshots", "cassettes"}
    | {"generated", "migrations", "locale", "locales", "build", "dist", ".git"}
)
_GENERATED = re.compile(r"@generated|auto-?generated|generated (?:by|from)|do not (?:edit|modify)", re.I)
_GENERATED_NAMES = re.compile(
    r"_pb2(?:_grpc)?\.py$|(?:^|_)version\.py$|^(?:parsetab|lextab|versioneer)\.py$|\.min\."
)
_RIGHTS = re.compile(r"copyright|licen[cs]e", re.I)
_OPENING_COMMENTS = re.compile(r"\A(?:\s*(?:/\*.*?\*/|//[^\n]*(?:\n|\Z)))+\s*", re.S)
_WORD = re.compile(r"\w+")
_BYTES = (200, 1 << 20)
_MAX_LINE = 400
_MAX_PARAGRAPH = 4000
_MAX_DIGITS = 0.25
_PERMUTATIONS = 128
_SHINGLE = 5


def is_wanted_path(path: PurePosixPath) -> bool:
    """Whether the path says that a file is neither vendored nor generated nor data."""
    parts = {part.lower() for part in path.parts[:-1]}
    return not (
        parts & _DROPPED or any(p.endswith(".egg-info") for p in parts) or _GENERATED_NAMES.search(path.name)
    )


def refusal_of_text(text: str, is_code: bool = True) -> str:
    """Why a text is rejected; empty if it is accepted. Prose may have one line per paragraph."""
    size = len(text.encode())
    if not _BYTES[0] <= size <= _BYTES[1]:
        return "size"
    longest = _MAX_LINE if is_code else _MAX_PARAGRAPH
    if max((len(line.rstrip("\r\n")) for line in split_lines(text)), default=0) > longest:
        return "long lines"
    if sum(character.isdigit() for character in text) > _MAX_DIGITS * len(text):
        return "digits"
    return "generated" if _GENERATED.search(text[:1000]) else ""


def without_header(source: str, suffix: str = ".py") -> str:
    """Source without an opening comment about copyright or licence; the file's suffix tells its language."""
    if suffix not in HASH_COMMENTS:
        comments = _OPENING_COMMENTS.match(source)
        return source[comments.end() :] if comments and _RIGHTS.search(comments[0]) else source
    lines = source.split("\n")
    start = 1 if lines[0].startswith("#!") else 0
    end = start
    while end < len(lines) and (lines[end].startswith("#") or not lines[end].strip()):
        end += 1
    head = "\n".join(lines[start:end])
    return "\n".join(lines[end:]) if _RIGHTS.search(head) else source


def docstrings(source: str) -> Iterator[str]:
    """The docstrings of Python source that are longer than a line or two, indentation taken off."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node, clean=False)
            if text and len(text) >= _BYTES[0]:
                yield inspect.cleandoc(text)


class Decontamination:
    """Finds texts that share a 13-gram of words with an evaluation."""

    def __init__(self, texts: Iterable[str]) -> None:
        # Runs of bare numbers ("0 1 2 3 ...") stand in many texts and leak nothing.
        self._known = {gram for text in texts for gram in _grams(text) if not all(map(str.isdigit, gram))}

    @classmethod
    def of_files(cls, files: Sequence[Path]) -> Decontamination:
        """Every string of JSON Lines files (plain or .gz). Raises ConfigError."""
        return cls(text for file in files for text in _strings(file))

    def hits(self, text: str) -> bool:
        return not self._known.isdisjoint(_grams(text))


def _grams(text: str) -> Iterator[tuple[str, ...]]:
    words = _WORD.findall(text.lower())
    return zip(*(words[start:] for start in range(GRAM)), strict=False)


def _strings(file: Path) -> Iterator[str]:
    try:
        content = file.read_bytes()
        raw = gzip.decompress(content) if file.suffix == ".gz" else content
        rows = [json.loads(line) for line in raw.decode("utf-8").split("\n") if line.strip()]
    except (OSError, ValueError, EOFError) as error:
        raise ConfigError(f"decontaminate: {file}: no readable JSON Lines: {error}.") from None
    for row in rows:
        # A prompt and its solution stand apart in the file and together in the wild.
        strings = [value for value in row.values() if isinstance(value, str)] if isinstance(row, dict) else []
        yield from strings
        yield "".join(strings)


class Deduplicator:
    """Recognises texts that are the same as, or similar to, one seen before."""

    def __init__(self, similarity: float, seed: int) -> None:
        """`similarity`: Jaccard, of sets of 5 words, above which two texts are one."""
        try:
            from datasketch import MinHashLSH
        except ModuleNotFoundError:
            raise ConfigError("datasketch is missing; run: pip install 'vermilion[data]'") from None
        self._seed = seed
        self._exact: set[bytes] = set()
        self._near = MinHashLSH(threshold=similarity, num_perm=_PERMUTATIONS)
        self._count = 0

    def refusal_of(self, text: str) -> str:
        """ "same" or "similar" to an earlier text; else empty, and the text is remembered."""
        words = _WORD.findall(text)
        exact = hashlib.sha256(" ".join(words).encode()).digest()
        if exact in self._exact:
            return "same"
        sketch = self._sketch(words)
        if self._near.query(sketch):
            return "similar"
        self._exact.add(exact)
        self._near.insert(self._count, sketch)
        self._count += 1
        return ""

    def _sketch(self, words: Sequence[str]):  # type: ignore[no-untyped-def]
        from datasketch import MinHash

        shingles = {
            " ".join(words[i : i + _SHINGLE]).encode() for i in range(max(1, len(words) - _SHINGLE + 1))
        }
        sketch = MinHash(num_perm=_PERMUTATIONS, seed=self._seed)
        sketch.update_batch(sorted(shingles))
        return sketch
