"""What a grammar does to decoding: tokens per pass and time, with and without a schema, `ar` and `lossless`.

    python bench/forms.py --out bench/results/forms.jsonl

Ten questions, each with the schema an application would ask for (the last three are calls of tools). One row
per preset and form; times are the process's own on one thread, so that other work on the machine is left out.
`realtime` compares the time to the first text and to the end of the first sentence with short and whole first
canvases of a block decoder.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from vermilion.config import EngineConfig
from vermilion.engine.llm import LLM
from vermilion.serving.generation.tools import Tool, Toolbox
from vermilion.types import Decoding, Finish, Grammar, Sampling, Text

TEXT, NUMBER = {"type": "string"}, {"type": "integer"}


def shape(**fields: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": fields,
        "required": list(fields),
        "additionalProperties": False,
    }


SCHEMAS: list[tuple[str, dict[str, Any]]] = [
    ("Describe the city of Paris.", shape(city=TEXT, country=TEXT, population=NUMBER)),
    ("Give me a recipe for pancakes.", shape(title=TEXT, ingredients={"type": "array", "items": TEXT})),
    ("Is this review good or bad? 'I loved it.'", shape(sentiment={"enum": ["good", "bad", "mixed"]})),
    (
        "Extract: Ann Lee, 34, lives in Oslo.",
        shape(first_name=TEXT, last_name=TEXT, age=NUMBER, address=shape(city=TEXT)),
    ),
    ("Name three colours.", {"type": "array", "items": TEXT, "minItems": 3, "maxItems": 3}),
    (
        "Plan a meeting on Monday at ten.",
        shape(day={"enum": ["Monday", "Tuesday"]}, hour=NUMBER, title=TEXT, is_online={"type": "boolean"}),
    ),
    ("What is 12 times 12?", shape(reasoning=TEXT, answer=NUMBER)),
]
CALLS: list[tuple[str, Tool]] = [
    ("What is the weather in Rome?", Tool("get_current_weather", "Weather", shape(city=TEXT, unit=TEXT))),
    ("Write a file hello.py that prints hello.", Tool("write_file", "Write", shape(path=TEXT, content=TEXT))),
    ("Run the tests.", Tool("run_terminal_command", "Run", shape(command=TEXT, timeout_seconds=NUMBER))),
]


def asked(llm: LLM) -> list[tuple[list[int], Grammar]]:
    """Prompts as the service writes them, and what it holds the answers to."""
    pairs = []
    for question, schema in SCHEMAS:
        hint = f"Answer with one JSON value that fits this schema:\n{json.dumps(schema)}"
        messages = [{"role": "system", "content": hint}, {"role": "user", "content": question}]
        pairs.append((llm.chat_prompt(messages), Grammar("json_schema", json.dumps(schema))))
    for question, tool in CALLS:
        box = Toolbox((tool,), demanded=True, parallel=False)
        messages = [{"role": "system", "content": box.prompt()}, {"role": "user", "content": question}]
        grammar = box.grammar
        assert grammar is not None
        pairs.append((llm.chat_prompt(messages), grammar))
    return pairs


def answer(llm: LLM, prompt: list[int], preset: str, grammar: Grammar | None, limit: int) -> tuple[Any, ...]:
    """(text, tokens, passes, seconds of this process) after the prompt was read."""
    started_s, text = time.process_time(), ""
    for event in llm.stream(prompt, Sampling(max_tokens=limit), preset, grammar=grammar):
        if isinstance(event, Text):
            text += event.text
        if isinstance(event, Finish):
            usage = event.usage
    return text, usage.completion_tokens, usage.passes, time.process_time() - started_s


def forms(llm: LLM, limit: int, form: str) -> list[dict[str, Any]]:
    pairs = asked(llm)
    for prompt, _ in pairs:
        # From now on all prompts are in the prefix cache.
        answer(llm, prompt, "ar", None, 2)
    done: dict[str, list[tuple[Any, ...]]] = {"ar": [], "lossless": []}
    for prompt, grammar in pairs:
        for preset, answers in done.items():
            answers.append(answer(llm, prompt, preset, grammar if form == "schema" else None, limit))
    base_s = sum(one[3] for one in done["ar"])
    texts = {preset: [one[0] for one in answers] for preset, answers in done.items()}
    return [
        {
            "benchmark": "forms",
            "form": form,
            "preset": preset,
            "answers": len(answers),
            "limit": limit,
            "tokens": sum(one[1] for one in answers),
            "passes": sum(one[2] for one in answers),
            "tokens_per_pass": _per_pass(answers),
            "calls_tokens_per_pass": _per_pass(answers[-len(CALLS) :]),
            "cpu_s": round(sum(one[3] for one in answers), 2),
            "time_of_ar": round(sum(one[3] for one in answers) / base_s, 3),
            "same_text_as_ar": texts[preset] == texts["ar"],
        }
        for preset, answers in done.items()
    ]


def _per_pass(answers: Sequence[tuple[Any, ...]]) -> float:
    return round(sum(one[1] for one in answers) / max(1, sum(one[2] for one in answers)), 3)


def realtime(llm: LLM, limit: int) -> list[dict[str, Any]]:
    questions = ["What is the capital of France?", "Give me a tip for sleeping better.", "Who wrote Hamlet?"]
    prompts = [llm.chat_prompt([{"role": "user", "content": question}]) for question in questions]
    for prompt in prompts:
        answer(llm, prompt, "ar", None, 2)
    rows = []
    for block in (32, 16):
        found = {first: [_spoken(llm, p, block, first, limit) for p in prompts] for first in (0, 4)}
        for first, times in found.items():
            rows.append(
                {
                    "benchmark": "realtime",
                    "decoder": "threshold",
                    "block_length": block,
                    "first_block": first,
                    "first_text_ms": _middle(times, 0),
                    "first_sentence_ms": _middle(times, 1),
                    "whole_ms": _middle(times, 2),
                    "passes": sum(one[3] for one in times),
                    "first_sentence_of_whole_blocks": round(_middle(times, 1) / _middle(found[0], 1), 3),
                }
            )
    return rows


def _spoken(
    llm: LLM, prompt: list[int], block: int, first: int, limit: int
) -> tuple[float, float, float, int]:
    decoding = Decoding("threshold", threshold=0.9, block_length=block, first_block=first)
    started_s, text, first_s, sentence_s = time.process_time(), "", 0.0, 0.0
    for event in llm.stream(prompt, Sampling(max_tokens=limit), decoding):
        now_s = time.process_time() - started_s
        if isinstance(event, Text):
            text += event.text
            first_s = first_s or now_s
            if re.search(r"[.!?]", text):
                sentence_s = sentence_s or now_s
        if isinstance(event, Finish):
            passes = event.usage.passes
    return first_s, sentence_s or now_s, now_s, passes


def _middle(times: Sequence[tuple[float, ...]], column: int) -> float:
    return round(statistics.median(one[column] for one in times) * 1000, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--limit", type=int, default=64, help="tokens of an answer")
    parser.add_argument("--only", choices=("schema", "free", "realtime"))
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    llm = LLM(config=EngineConfig(threads=1))
    where = {
        "commit": subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True
        ).stdout.strip(),
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "model": llm.model.id,
        "threads": 1,
        "dtype": "float32",
        "torch": torch.__version__,
    }
    rows: list[dict[str, Any]] = []
    for part in [chosen.only] if chosen.only else ["schema", "free", "realtime"]:
        rows += realtime(llm, chosen.limit) if part == "realtime" else forms(llm, chosen.limit, part)
    for row in rows:
        print(json.dumps(row | where), flush=True)
        if chosen.out:
            with chosen.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row | where) + "\n")


if __name__ == "__main__":
    main()
