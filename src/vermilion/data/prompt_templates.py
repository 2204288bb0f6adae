"""Distinct prompts: templates filled from word lists and real files."""

from __future__ import annotations

import ast
import random
import re
import sysconfig
import tomllib
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata, resources
from pathlib import Path
from typing import Any, Literal

from vermilion.data.forms import Form, call_form, json_form
from vermilion.errors import ConfigError
from vermilion.text import split_lines

Kind = Literal["chat", "code", "continue", "json", "tools"]
SKIPPED = frozenset(
    {"test", "tests", "idlelib", "lib2to3", "site-packages", "turtledemo", "_vendor", "encodings"}
)
_SLOT = re.compile(r"\{(\w+)\}")
_TRIES = 1000
_BLOCKS = ("body", "handlers", "orelse", "finalbody", "cases")
"""Where an ast node keeps statements, in the order that ast has."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """`continue` is the start of a file, taken as it is; all else goes through the chat template."""

    kind: Kind
    text: str
    form: Form | None = None
    """Of `json` and `tools`."""
    turns: tuple[tuple[str, str], ...] = ()
    """What was asked and answered before; none of `continue`."""

    @property
    def messages(self) -> list[dict[str, Any]]:
        """What the chat template is given."""
        told = [("system", self.form.system)] if self.form else []
        for asked, answered in self.turns:
            told += [("user", asked), ("assistant", answered)]
        return [{"role": role, "content": text} for role, text in (*told, ("user", self.text))]


@dataclass(frozen=True, slots=True)
class Texts:
    """What is taken from real files."""

    paragraphs: Sequence[str]
    """From docstrings; 200 to 900 characters."""
    goals: Sequence[str]
    """First lines of docstrings."""
    starts: Sequence[str]
    """Starts of Python files, cut at the end of a line."""


def standard_library() -> Path:
    """The folder of the running interpreter's own modules."""
    return Path(sysconfig.get_path("stdlib"))


def distribution_files(name: str) -> list[Path]:
    """The Python files of an installed distribution, but for its tests.

    Raises ConfigError where it is not installed.
    """
    try:
        files = metadata.files(name) or []
    except metadata.PackageNotFoundError:
        raise ConfigError(f"packages: {name} is not installed; leave it out or install it.") from None
    kept = (file for file in files if file.suffix == ".py" and not SKIPPED & set(file.parts))
    return sorted(Path(str(file.locate())) for file in kept)


def harvest(packages: Sequence[str], seed: int) -> Texts:
    """Docstrings and file starts of the standard library and of installed `packages`."""
    library = standard_library()
    files = [
        file for file in sorted(library.rglob("*.py")) if not SKIPPED & set(file.relative_to(library).parts)
    ]
    for name in packages:
        files += distribution_files(name)
    paragraphs: set[str] = set()
    goals: set[str] = set()
    starts: list[str] = []
    generator = random.Random(f"starts {seed}")
    for file in files:
        try:
            source = file.read_text(encoding="utf-8")
            tree = ast.parse(source)
        except (OSError, ValueError, SyntaxError):
            continue
        for text in _docstrings(tree):
            paragraphs.update(_paragraphs(text))
            goals.update(_goal(text))
        starts += _starts(source, tree, generator)
    return Texts(sorted(paragraphs), sorted(goals), starts)


def prompts(texts: Texts, shares: Mapping[Kind, float], seed: int) -> Iterator[Prompt]:
    """Distinct prompts, their kinds drawn by `shares`; the same arguments give the same ones.

    Ends after a thousand draws in a row without a new prompt.
    """
    with resources.files("vermilion.data").joinpath("assets/prompts.toml").open("rb") as file:
        book = tomllib.load(file)
    generator = random.Random(f"prompts {seed}")
    seen: set[Prompt] = set()
    kinds, weights = list(shares), list(shares.values())
    tries = 0
    while tries < _TRIES:
        kind = generator.choices(kinds, weights)[0]
        prompt = _drawn(book, kind, texts, generator)
        tries += 1
        if prompt not in seen:
            seen.add(prompt)
            tries = 0
            yield prompt


def _drawn(book: Mapping[str, Any], kind: Kind, texts: Texts, generator: random.Random) -> Prompt:
    if kind == "continue":
        return Prompt(kind, generator.choice(texts.starts))
    lists = book["lists"]
    if kind == "json":
        return Prompt(kind, _filled(book, kind, texts, generator), json_form(lists["field"], generator))
    if kind == "tools":
        thing = generator.choice(lists["thing"])
        form = call_form(lists["verb"], thing, lists["field"], generator)
        return Prompt(kind, _filled(book, kind, texts, generator).replace("<thing>", thing), form)
    return Prompt(kind, _filled(book, kind, texts, generator))


def _filled(book: Mapping[str, Any], kind: str, texts: Texts, generator: random.Random) -> str:
    lists = {**book["lists"], "text": texts.paragraphs, "goal": texts.goals}
    template = generator.choice(book[kind][generator.choice(sorted(book[kind]))])
    used: set[str] = set()

    def draw(match: re.Match[str]) -> str:
        # One prompt never names the same thing twice.
        choice = str(generator.choice([entry for entry in lists[match[1]] if entry not in used]))
        used.add(choice)
        return choice

    return _SLOT.sub(draw, template)


def _walk(tree: ast.Module) -> Iterator[ast.AST]:
    """As ast.walk, without expressions, of which a file has ten times as many."""
    queue: deque[ast.AST] = deque([tree])
    while queue:
        node = queue.popleft()
        yield node
        for name in _BLOCKS:
            queue.extend(getattr(node, name, ()))


def _docstrings(tree: ast.Module) -> Iterator[str]:
    for node in _walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text and text.isascii():
                yield text


def _paragraphs(docstring: str) -> list[str]:
    """Prose alone: no examples, no tables, no field lists."""
    blocks = [
        " ".join(block.split())
        for block in docstring.split("\n\n")
        if not block.startswith((" ", ">>>", ":", "-"))
    ]
    return [
        b for b in blocks if 200 <= len(b) <= 900 and sum(c.isalpha() or c == " " for c in b) > 0.9 * len(b)
    ]


def _goal(docstring: str) -> list[str]:
    line = docstring.split("\n\n", maxsplit=1)[0].replace("\n", " ").strip()
    plain = (
        25 <= len(line) <= 160
        and line.count(" ") >= 4
        and line[0].isupper()
        and not set(line) & set("<>{}|`:")
    )
    return [line] if plain else []


def _starts(source: str, tree: ast.Module, generator: random.Random) -> list[str]:
    """Up to two starts of a text, 100 to 1200 characters: a function's head and what stands before it."""
    lines = [line.rstrip("\r\n") for line in split_lines(source)]
    long = [
        node
        for node in _walk(tree)
        if isinstance(node, ast.FunctionDef) and (node.end_lineno or 0) - node.lineno > 5
    ]
    texts = []
    for node in generator.sample(long, min(2, len(long))):
        first = node.body[0]
        end = (first.end_lineno if ast.get_docstring(node) else None) or first.lineno - 1
        start = max(0, node.lineno - 1 - generator.randrange(4, 30))
        texts.append("\n".join(lines[start:end]).strip("\n"))
    return [text for text in texts if 100 <= len(text) <= 1200]
