"""Long contexts before prompts: documentation, source code and earlier turns out of installed packages."""

from __future__ import annotations

import ast
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice
from pathlib import Path

from vermilion.data.prompt_templates import Prompt, definitions, distribution_files
from vermilion.errors import ConfigError
from vermilion.text import split_lines

CODE = frozenset({".py", ".pyi", ".pyx", ".c", ".h", ".f90", ".js", ".css", ".html", ".toml"})
DOCUMENTS = frozenset({".md", ".rst", ".txt", "METADATA"})
SPREAD = 16
"""A question comes so many prompts after the one before it on its context: while no more of them are being
read at a time, that one has been, and its context is found in the prefix cache."""
_PAGES = 0.3
"""Of the pieces of documentation; the others are docstrings."""
_MIN_PIECE = 200
"""Characters, so that a context is no heap of scraps."""
_MAX_TURN = 2500
"""Characters."""
_TRIES = 1000
_ASKED = (
    ("What does `{name}` do?", "{docstring}"),
    ("Document `{name}`, please.", "{docstring}"),
    ("Write the Python function `{name}`: {goal}", "```python\n{source}\n```"),
    ("Show me how `{name}` is implemented.", "```python\n{source}\n```"),
)


@dataclass(frozen=True, slots=True)
class ContextsConfig:
    """Which prompts stand behind a context, and how long it is."""

    share: float = 0.0
    """Of the prompts."""
    shortest: int = 300
    """Tokens; every length up to `longest` is drawn, its logarithm uniformly."""
    longest: int = 6000
    questions: int = 4
    """Asked behind each context; the prefix cache reads it once."""

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ConfigError(f"contexts.share: {self.share} is not allowed; allowed: 0.0 to 1.0.")
        if not 1 <= self.shortest <= self.longest or self.questions < 1:
            raise ConfigError(
                "contexts.shortest, longest, questions: at least 1, shortest not above longest."
            )

    @property
    def mean(self) -> int:
        """Tokens of the mean context."""
        ratio = self.longest / self.shortest
        return round((self.longest - self.shortest) / math.log(ratio)) if ratio > 1 else self.longest


class Contexts:
    """Contexts out of the files of installed distributions; the same arguments give the same ones."""

    def __init__(
        self,
        config: ContextsConfig,
        packages: Sequence[str],
        seed: int,
        tokens: tuple[Callable[[str], list[int]], Callable[[list[int]], str]],
    ) -> None:
        """`tokens`: encodes and decodes text. Raises ConfigError where the packages hold no code."""
        self._config, self._seed, (self._encode, self._decode) = config, seed, tokens
        self._code = [file for name in packages for file in distribution_files(name, CODE)]
        self._python = [file for file in self._code if file.suffix == ".py"]
        self._documents = [file for name in packages for file in distribution_files(name, DOCUMENTS)]
        if not self._python:
            raise ConfigError("packages: contexts come from their files; name some that hold Python code.")
        self._found = lru_cache(2 * SPREAD)(self._drawn)

    def before(self, number: int, prompt: Prompt) -> Prompt:
        """The prompt of that number behind its context, or alone where it has none.

        Raises ConfigError where the packages hold too little text.
        """
        every = SPREAD * self._config.questions
        turns = self._found(number // every, number % SPREAD)
        if not turns or (turns[0][0] and prompt.kind != "continue"):
            return replace(prompt, turns=turns)
        before = "\n\n".join(text for turn in turns for text in turn if text)
        return replace(prompt, text=f"{before}\n\n{prompt.text}")

    def _drawn(self, run: int, place: int) -> tuple[tuple[str, str], ...]:
        """Earlier turns, or one text as if it were answered to nothing."""
        generator = random.Random(f"context {self._seed} {run} {place}")
        if generator.random() >= self._config.share:
            return ()
        low, high = math.log(self._config.shortest), math.log(self._config.longest)
        size = round(math.exp(generator.uniform(low, high)))
        kind = generator.choice(("code", "documentation", "turns"))
        if kind == "turns":
            return self._turns(size, generator)
        pieces = self._documentation(generator) if kind == "documentation" else self._sources(generator)
        return (("", self._filled(size, pieces)),)

    def _filled(self, size: int, pieces: Iterator[str]) -> str:
        ids: list[int] = []
        while len(ids) < size:
            ids += self._encode(next(pieces) + "\n\n")
        return self._decode(ids[:size]).rstrip()

    def _turns(self, size: int, generator: random.Random) -> tuple[tuple[str, str], ...]:
        turns: list[tuple[str, str]] = []
        for asked, answered in self._exchanges(generator):
            size -= len(self._encode(asked))
            ids = self._encode(answered)[: max(size, 1)]
            turns.append((asked, self._decode(ids).rstrip()))
            size -= len(ids)
            if size <= 0:
                break
        return tuple(turns)

    def _sources(self, generator: random.Random) -> Iterator[str]:
        """Files from a line on."""
        for text in _texts(self._code, generator):
            yield from _long(_from_a_line(text, generator))

    def _documentation(self, generator: random.Random) -> Iterator[str]:
        """The docstrings of files, and written pages from a line on."""
        pages = _texts(self._documents, generator) if self._documents else iter(())
        for source in _texts(self._python, generator):
            found = [text for node in _defined(source) if (text := ast.get_docstring(node))]
            yield from _long("\n\n".join(found))
            if generator.random() < _PAGES:
                yield from _long(_from_a_line(next(pages, ""), generator))

    def _exchanges(self, generator: random.Random) -> Iterator[tuple[str, str]]:
        """Questions about functions and their answers, up to three of a file."""
        for source in _texts(self._python, generator):
            found = [
                (node.name, docstring, code)
                for node in _defined(source)
                if isinstance(node, ast.FunctionDef)
                and (docstring := ast.get_docstring(node))
                and (code := ast.get_source_segment(source, node))
                and max(len(docstring), len(code)) <= _MAX_TURN
            ]
            for name, docstring, code in generator.sample(found, min(3, len(found))):
                goal = " ".join(docstring.split("\n\n", maxsplit=1)[0].split())
                words = {"name": name, "docstring": docstring, "source": code, "goal": goal}
                asked, answered = generator.choice(_ASKED)
                yield asked.format(**words), answered.format(**words)


def _texts(files: Sequence[Path], generator: random.Random) -> Iterator[str]:
    """The texts of files drawn at random. Raises ConfigError after so many that they can be of no use."""
    for _ in range(_TRIES):
        yield _read(generator.choice(files))
    raise ConfigError("packages: their files hold too little text for contexts; name larger ones.")


def _read(file: Path) -> str:
    """The text of a file; empty where it is not ASCII, which alone can be cut at any token."""
    try:
        return file.read_text(encoding="ascii")
    except (OSError, ValueError):
        return ""


def _from_a_line(text: str, generator: random.Random) -> str:
    lines = split_lines(text)
    return "".join(islice(lines, generator.randrange(max(1, len(lines) // 2)), None)).strip("\n")


def _long(text: str) -> list[str]:
    return [text] if len(text) >= _MIN_PIECE else []


def _defined(source: str) -> list[ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]:
    try:
        return list(definitions(ast.parse(source)))
    except (ValueError, SyntaxError):
        return []
