"""What guesses for the base: the drafter, the LoRA denoiser, prompt lookup, alone and together.

    python bench/drafters.py --drafter runs/smollm2-135m-drafter/model/adapter --out drafters.jsonl

Every guesser answers the same held-out prompts, `lossless` at temperature 0, each right after `ar`, so that
whatever else the machine does slows both alike. Rows give tokens per pass of the base, accepted and drafted
tokens, and the median over prompts of `ar`'s time over this one's. All texts must be `ar`'s; the command
fails where one is not.

    python bench/drafters.py --drafter FOLDER --contexts 0 1000 4000 7800 --kinds chat code --prompts 10

asks the drafter alone, behind so many tokens of documentation, with the prompt in the prefix cache and
without one, and counts what it guessed right where every draft is made.
"""

from __future__ import annotations

import argparse
import itertools
import json
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
from vermilion.engine.llm import LLM
from vermilion.engine.loading import load_model
from vermilion.evaluation.environment import environment
from vermilion.models import catalog
from vermilion.models.catalog import DEFAULT_MODEL
from vermilion.models.denoiser_file import DRAFTER_FILE
from vermilion.models.families.traits import NO_MASK_ID
from vermilion.types import Decoding, Finish, Grammar, Sampling, Text, Usage

HELD_OUT_SEED = 77
"""Of the prompts; training has others."""
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


def questions(llm: LLM, kinds: Sequence[Kind], count: int, context: int = 0) -> list[Question]:
    """`count` of each kind, behind `context` tokens of documentation."""
    texts = harvest((), HELD_OUT_SEED)
    before = filler(llm, texts.paragraphs, context)
    found = []
    for kind in kinds:
        for prompt in itertools.islice(prompts(texts, {kind: 1.0}, HELD_OUT_SEED), count):
            if kind == "continue":
                text = texts.paragraphs[len(found) % len(texts.paragraphs)][:200]
                ids = llm.tokenizer.encode(f"{before}{text}")
            else:
                *system, user = prompt.messages
                ids = llm.chat_prompt([*system, user | {"content": f"{before}{user['content']}"}])
            grammar = prompt.form.grammar if prompt.form else None
            found.append(Question("prose" if kind == "continue" else kind, tuple(ids), grammar))
    return found


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
    for question in asked_for:
        timed(llm, question, AR, 1)  # the prompt is in the prefix cache for both
        plain, ar_s, _ = timed(llm, question, AR, limit)
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
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", nargs="*", choices=GUESSERS, default=list(GUESSERS))
    parser.add_argument("--contexts", type=int, nargs="*", help="tokens before each question")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    config = EngineConfig(threads=given.threads, kv_tokens=16_640)
    stored = dict(engines(given.drafter, config))
    for found in along(given, stored) if given.contexts else alone_and_together(given, stored):
        row = {"benchmark": "drafters", **environment(stored["drafter"]), **found}
        print(json.dumps(row), flush=True)
        if given.out:
            with given.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")


def alone_and_together(given: argparse.Namespace, llms: dict[str, LLM]) -> Iterator[dict[str, object]]:
    for group in by_kind(questions(llms["drafter"], given.kinds, given.prompts)):
        for name in given.only:
            yield measured(name, llms, group, given.max_tokens)


def along(given: argparse.Namespace, stored: dict[str, LLM]) -> Iterator[dict[str, object]]:
    config = EngineConfig(threads=given.threads, kv_tokens=16_640, prefix_cache=False)
    cold = dict(engines(given.drafter, config))
    for llm in (stored["drafter"], cold["drafter"]):
        # Without prices every draft is made, so that the counts do not depend on the machine.
        llm.engine.scheduler.costs = None
    for context in given.contexts:
        for group in by_kind(questions(stored["drafter"], given.kinds, given.prompts, context)):
            for is_stored, llms in ((True, stored), (False, cold)):
                row = measured("drafter", llms, group, given.max_tokens)
                del row["times_ar"]
                yield row | {"context": context, "prefix_hit": is_stored}


def by_kind(asked: Sequence[Question]) -> Iterator[list[Question]]:
    for _, group in itertools.groupby(asked, key=lambda question: question.kind):
        yield list(group)


if __name__ == "__main__":
    main()
