r"""What guesses for the base: the drafter, the LoRA denoiser, prompt lookup, alone and together.

    python bench/drafters.py --drafter runs/smollm2-135m-drafter/model/adapter \
        --trained-on runs/answers-*.jsonl

Every guesser answers the same held-out prompts, `lossless` at temperature 0, each right after `ar` or right
before it, in turns, so that whatever else the machine does slows both alike. Rows give tokens per pass of
the base, accepted and drafted tokens, and the median over prompts of `ar`'s time over this one's. All texts
must be `ar`'s; the command fails where one is not.

    python bench/drafters.py --drafter FOLDER --contexts 0 1000 4000 7800 --kinds chat code --prompts 10

asks the drafter alone, behind so many tokens of documentation, with the prompt in the prefix cache and
without one, and counts what it guessed right where every draft is made.

    python bench/drafters.py --drafter FOLDER --calibration --prompts 20

holds the chance that the drafter gives each of its drafts against how many are accepted, by their offset from
the settled text, as it is and as the running record of what was accepted corrects it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

from vermilion.config import EngineConfig
from vermilion.data.prompt_templates import Kind, harvest, prompts
from vermilion.decoding.commit import Node, ancestors
from vermilion.decoding.forward_jobs import Job
from vermilion.decoding.passes import Reading
from vermilion.decoding.speculative import Speculative
from vermilion.engine.llm import LLM
from vermilion.engine.loading import load_model
from vermilion.evaluation.environment import environment
from vermilion.models import catalog
from vermilion.models.catalog import DEFAULT_MODEL
from vermilion.models.denoiser_file import DRAFTER_FILE
from vermilion.models.families.traits import NO_MASK_ID
from vermilion.types import Decoding, Finish, Grammar, Sampling, Text, Usage

SEED = 77
"""Of the prompts; training has another, but a few of its prompts are the same."""
AR = Decoding("ar")
DRAFTING = Decoding("lossless", block_length=8, draft_nodes=12)
TOGETHER = Decoding("lossless", block_length=8, draft_nodes=12, lookup=64)
GUESSERS = {
    "lookup": ("plain", TOGETHER),
    "denoiser": ("denoiser", DRAFTING),
    "drafter": ("drafter", DRAFTING),
    "denoiser and lookup": ("denoiser", TOGETHER),
    "drafter and lookup": ("drafter", TOGETHER),
}


@dataclass(frozen=True, slots=True)
class Question:
    kind: str
    ids: tuple[int, ...]
    grammar: Grammar | None = None


def questions(llm: LLM, given: argparse.Namespace, context: int = 0) -> list[Question]:
    """As many of each kind as asked for, none that training saw, behind `context` tokens of documentation."""
    texts = harvest((), SEED)
    before = filler(llm, texts.paragraphs, context)
    seen = trained_on(given.trained_on)
    found = []
    for kind in given.kinds:
        unseen = (prompt for prompt in prompts(texts, {kind: 1.0}, SEED) if prompt.text not in seen)
        for prompt in itertools.islice(unseen, given.prompts):
            if kind == "continue":
                text = texts.paragraphs[len(found) % len(texts.paragraphs)][:200]
                ids = llm.tokenizer.encode(f"{before}{text}")
            else:
                *system, user = prompt.messages
                ids = llm.chat_prompt([*system, user | {"content": f"{before}{user['content']}"}])
            grammar = prompt.form.grammar if prompt.form else None
            found.append(Question("prose" if kind == "continue" else kind, tuple(ids), grammar))
    return found


def trained_on(files: Sequence[Path]) -> set[str]:
    """The prompts of files that `vermilion data answers` wrote."""
    rows = [json.loads(line) for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    return {row["messages"][-2]["content"] if "messages" in row else row.get("prompt", "") for row in rows}


def filler(llm: LLM, paragraphs: Sequence[str], context: int) -> str:
    """About `context` tokens of other paragraphs than the questions take."""
    if not context:
        return ""
    ids = llm.tokenizer.encode("\n\n".join(reversed(paragraphs)))
    return f"{llm.tokenizer.decode(ids[:context])}\n\n"


def engines(drafter: Path, config: EngineConfig) -> Iterator[tuple[str, LLM]]:
    """Three engines on one base: with nothing beside it, with its denoiser, with the drafter."""
    own = catalog.find(DEFAULT_MODEL).adapter
    assert own is not None
    with tempfile.TemporaryDirectory() as folder:
        for name in ("denoiser", "drafter"):
            beside = Path(folder) / name
            shutil.copytree(own, beside, ignore=shutil.ignore_patterns("drafter.*"))
            if name == "drafter":
                for path in (drafter / DRAFTER_FILE, drafter / "drafter.safetensors"):
                    shutil.copy(path, beside)
            yield name, LLM(loaded=load_model(DEFAULT_MODEL, config, denoiser=beside))
            if name == "denoiser":
                plain = LLM(loaded=load_model(DEFAULT_MODEL, config, denoiser=beside))
                # Without rows of the denoiser only prompt lookup is left.
                plain.engine.traits = replace(plain.engine.traits, mask_token_id=NO_MASK_ID)
                yield "plain", plain


def timed(llm: LLM, question: Question, decoding: Decoding, limit: int) -> tuple[str, float, Usage]:
    """(text, seconds, usage)"""
    started, text = time.perf_counter(), ""
    for event in llm.stream(question.ids, Sampling(max_tokens=limit), decoding, grammar=question.grammar):
        if isinstance(event, Text):
            text += event.text
        if isinstance(event, Finish):
            usage = event.usage
    return text, time.perf_counter() - started, usage


def measured(name: str, llms: dict[str, LLM], asked_for: Sequence[Question], limit: int) -> dict[str, object]:
    engine, decoding = GUESSERS[name]
    llm, ratios, tokens, passes = llms[engine], [], 0, 0
    before = (llm.engine._drafted.copy(), llm.engine._accepted.copy())
    for number, question in enumerate(asked_for):
        timed(llm, question, AR, 1)  # the prompt is in the prefix cache for both
        # In turns, as each finds the caches and the cost curve as the other left them.
        if number % 2:
            text, taken_s, usage = timed(llm, question, decoding, limit)
        plain, ar_s, _ = timed(llm, question, AR, limit)
        if number % 2 == 0:
            text, taken_s, usage = timed(llm, question, decoding, limit)
        if text != plain:
            raise SystemExit(f"{name}: not the base's own text behind {llm.tokenizer.decode(question.ids)!r}")
        ratios.append(ar_s / taken_s)
        tokens, passes = tokens + usage.completion_tokens, passes + usage.passes
    drafted, accepted = (
        now - then for now, then in zip((llm.engine._drafted, llm.engine._accepted), before, strict=True)
    )
    return {
        "guesser": name,
        "kind": asked_for[0].kind,
        "prompts": len(asked_for),
        "tokens": tokens,
        "tokens_per_pass": round(tokens / max(1, passes), 3),
        "drafted": dict(drafted),
        "accepted": dict(accepted),
        "times_ar": round(statistics.median(ratios), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--drafter", type=Path, required=True, help="folder with drafter.json")
    kinds = get_args(Kind)
    parser.add_argument("--kinds", nargs="*", choices=kinds, default=kinds)
    parser.add_argument("--prompts", type=int, default=100, help="of each kind")
    parser.add_argument(
        "--trained-on", type=Path, nargs="*", default=[], help="answers: their prompts are left out"
    )
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", nargs="*", choices=GUESSERS, default=list(GUESSERS))
    parser.add_argument("--contexts", type=int, nargs="*", help="tokens before each question")
    parser.add_argument("--calibration", action="store_true")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    config = EngineConfig(threads=given.threads, kv_tokens=16_640)
    stored = dict(engines(given.drafter, config))
    if given.calibration:
        rows = calibration(given, stored["drafter"])
    else:
        rows = along(given, stored) if given.contexts else alone_and_together(given, stored)
    for found in rows:
        row = {
            "benchmark": "calibration" if given.calibration else "drafters",
            **environment(stored["drafter"]),
            **found,
        }
        print(json.dumps(row), flush=True)
        if given.out:
            with given.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")


def alone_and_together(given: argparse.Namespace, llms: dict[str, LLM]) -> Iterator[dict[str, object]]:
    for group in by_kind(questions(llms["drafter"], given)):
        for name in given.only:
            yield measured(name, llms, group, given.max_tokens)


def along(given: argparse.Namespace, stored: dict[str, LLM]) -> Iterator[dict[str, object]]:
    config = EngineConfig(threads=given.threads, kv_tokens=16_640, prefix_cache=False)
    cold = dict(engines(given.drafter, config))
    for llm in (stored["drafter"], cold["drafter"]):
        # Without prices every draft is made, so that the counts do not depend on the machine.
        llm.engine.scheduler.costs = None
    for context in given.contexts:
        for group in by_kind(questions(stored["drafter"], given, context)):
            for is_stored, llms in ((True, stored), (False, cold)):
                row = measured("drafter", llms, group, given.max_tokens)
                del row["times_ar"]
                yield row | {"context": context, "prefix_hit": is_stored}


@dataclass(frozen=True, slots=True)
class Guess:
    offset: int
    promised: float
    """The drafter's chance of the whole path up to it."""
    corrected: float
    """The same by the request's record."""
    is_right: bool


def calibration(given: argparse.Namespace, llm: LLM) -> Iterator[dict[str, object]]:
    # Without prices every draft is made, so that the counts do not depend on the machine.
    llm.engine.scheduler.costs = None
    for group in by_kind(questions(llm, given)):
        found = [guess for question in group for guess in guesses(llm, question, given.max_tokens)]
        for offset in sorted({guess.offset for guess in found}):
            here = [guess for guess in found if guess.offset == offset]
            raw = [(guess.promised, guess.is_right) for guess in here]
            corrected = [(guess.corrected, guess.is_right) for guess in here]
            yield {
                "kind": group[0].kind,
                "offset": offset,
                "guesses": len(here),
                "accepted": _mean([guess.is_right for guess in here]),
                "promised": _mean([guess.promised for guess in here]),
                "error": expected_calibration_error(raw),
                "corrected": _mean([guess.corrected for guess in here]),
                "corrected_error": expected_calibration_error(corrected),
                "bins": [
                    [_mean([p for p, _ in one]), _mean([r for _, r in one]), len(one)] for one in bins(raw)
                ],
            }


def guesses(llm: LLM, question: Question, limit: int) -> list[Guess]:
    """Every draft that is verified on the way to the answer."""
    trees: list[tuple[int, tuple[Node, ...], list[float]]] = []
    run, engine, programs = llm.engine.worker.run, llm.engine, list[Speculative]()

    def noted(jobs: Sequence[Job]) -> list[list[Reading]]:
        program = engine._sequences[jobs[0].request].program
        assert isinstance(program, Speculative)
        tree = program._verifying
        chances = program.record.tree_chances([node.logprob for node in tree])
        trees.append((len(program.tokens), tree, chances))
        programs[:] = [program]
        return run(jobs)

    engine.worker.run = noted  # type: ignore[method-assign]
    try:
        timed(llm, question, DRAFTING, limit)
    finally:
        engine.worker.run = run  # type: ignore[method-assign]
    text, found = programs[0].tokens, list[Guess]()
    for settled, tree, chances in trees:
        for index, (node, chance) in enumerate(zip(tree, chances, strict=True)):
            path = [tree[i].token for i in ancestors(tree, index)]
            if settled + node.depth < len(text):
                is_right = path == text[settled : settled + len(path)]
                found.append(Guess(node.depth, math.exp(node.logprob), chance, is_right))
    return found


def bins(pairs: Sequence[tuple[float, bool]]) -> list[list[tuple[float, bool]]]:
    """By promised chance, ten of the same width; empty ones left out."""
    made: list[list[tuple[float, bool]]] = [[] for _ in range(10)]
    for chance, is_right in pairs:
        made[min(9, int(10 * chance))].append((chance, is_right))
    return [one for one in made if one]


def expected_calibration_error(pairs: Sequence[tuple[float, bool]]) -> float:
    """Mean distance of promised and accepted share over the bins (Guo et al. 2017)."""
    off = sum(abs(sum(chance - is_right for chance, is_right in one)) for one in bins(pairs))
    return round(off / len(pairs), 4)


def _mean(values: Sequence[float]) -> float:
    return round(sum(values) / len(values), 3)


def by_kind(asked: Sequence[Question]) -> Iterator[list[Question]]:
    for _, group in itertools.groupby(asked, key=lambda question: question.kind):
        yield list(group)


if __name__ == "__main__":
    main()
