"""The base model's own answers, decoded autoregressively in large batches: its best training data.

Every answer is a line of JSON as soon as it is there: `number`, `kind`, `prompt` and `response`,
`finish_reason` ("length" where it was cut) and `num_tokens`. A raw text that is continued is a `prefix`; an
answer that was held to a schema or to calls, or follows earlier turns, comes as `messages`. What the filters
refuse goes to a file beside it, with the reason.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from vermilion.config import EngineConfig
from vermilion.data.prompt_templates import Kind, Prompt, harvest, prompts
from vermilion.decoding.presets import resolve
from vermilion.engine.llm import LLM
from vermilion.errors import ConfigError
from vermilion.types import Finish, Request, Sampling, Text

_GRAM = 4
_SHARES = {"chat": 0.5, "code": 0.25, "continue": 0.15, "json": 0.05, "tools": 0.05}


@dataclass(frozen=True, slots=True)
class AnswersConfig:
    """How answers are generated; the same settings give the same prompts and seeds."""

    output: Path
    model: str = "smollm2-135m-diffusion"
    num_answers: int = 0
    """Prompts asked in all; 0 for no limit but the time."""
    minutes: float = 0.0
    """Of this call; 0 for no limit."""
    batch: int = 128
    """Answers written at once."""
    max_tokens: int = 400
    max_continued: int = 160
    """Tokens of a continued text at most: it seldom ends by itself, and wears thin."""
    min_tokens: int = 16
    """Shorter answers are refused."""
    max_repeated: float = 0.5
    """Refused above this share of 4-token runs that occurred before in the answer."""
    temperature: float = 0.7
    """0 is greedy."""
    top_p: float = 0.95
    shares: dict[str, float] = field(default_factory=lambda: dict(_SHARES))
    packages: tuple[str, ...] = ()
    """Installed distributions whose docstrings and files are used beside the standard library's."""
    threads: int = 1
    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.num_answers <= 0 and self.minutes <= 0:
            raise ConfigError("num_answers, minutes: give at least one of them, above 0.")
        if not 1 <= self.min_tokens <= min(self.max_tokens, self.max_continued) or self.batch < 1:
            raise ConfigError(
                "min_tokens, max_tokens, max_continued, batch: at least 1, min_tokens the least."
            )
        kinds = set(get_args(Kind))
        if not self.shares or set(self.shares) - kinds or min(self.shares.values()) <= 0:
            raise ConfigError(
                f"shares: {self.shares}; allowed: a number above 0 for {', '.join(sorted(kinds))}."
            )


@dataclass(frozen=True, slots=True)
class AnswerCounts:
    """Counts of answers so far."""

    kept: int = 0
    refused: int = 0
    num_tokens: int = 0
    """Of the kept answers."""


def generate(
    config: AnswersConfig, llm: LLM | None = None, on_answer: Callable[[AnswerCounts], None] | None = None
) -> AnswerCounts:
    """Generate up to the number of answers or minutes, resuming from `output`; the final counts."""
    refused_file = config.output.with_suffix(".refused.jsonl")
    config.output.parent.mkdir(parents=True, exist_ok=True)
    asked = AnswerCounts()
    answered: set[tuple[str, ...]] = set()
    for row in itertools.chain(_rows(config.output), _rows(refused_file)):
        asked = _counted(asked, row)
        answered.add(_asked(row))
    llm = llm or _model(config)
    waiting = _prompts(config, answered)
    until = time.monotonic() + 60 * config.minutes if config.minutes else float("inf")
    with (
        config.output.open("a", encoding="utf-8") as kept,
        refused_file.open("a", encoding="utf-8") as refused,
    ):
        for row in _answers(config, llm, waiting, until):
            file = refused if "refused" in row else kept
            file.write(json.dumps(row) + "\n")
            file.flush()
            asked = _counted(asked, row)
            if on_answer is not None:
                on_answer(asked)
    return asked


def _prompts(config: AnswersConfig, answered: Collection[tuple[str, ...]]) -> Iterator[tuple[int, Prompt]]:
    """The prompts that are not answered, numbered from 0 among all."""
    listed = prompts(harvest(config.packages, config.seed), config.shares, config.seed)  # type: ignore[arg-type]
    for number, prompt in itertools.islice(enumerate(listed), config.num_answers or None):
        if _asked(_told(prompt, "")) not in answered:
            yield number, prompt


def _asked(row: dict[str, Any]) -> tuple[str, ...]:
    """What the model was told, message by message."""
    if "messages" in row:
        return tuple(message["content"] for message in row["messages"][:-1])
    return (str(row.get("prompt", row.get("prefix"))),)


def _counted(asked: AnswerCounts, row: dict[str, Any]) -> AnswerCounts:
    if "refused" in row:
        return AnswerCounts(asked.kept, asked.refused + 1, asked.num_tokens)
    return AnswerCounts(asked.kept + 1, asked.refused, asked.num_tokens + row["num_tokens"])


def _rows(file: Path) -> list[dict[str, Any]]:
    """The complete lines of a file; truncates an incomplete last line that a killed process left."""
    if not file.is_file():
        return []
    content = file.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        with file.open("r+b") as torn:
            torn.truncate(len(whole))
    try:
        return [json.loads(line) for line in whole.decode("utf-8").split("\n") if line]
    except ValueError:
        raise ConfigError(f"{file}: holds something other than answers; move it away.") from None


def _model(config: AnswersConfig) -> LLM:
    engine = EngineConfig(
        device=config.device,
        dtype=config.dtype,
        threads=config.threads,
        kv_tokens=config.batch * (config.max_tokens + 512),
        max_rows=2 * config.batch + 256,
        max_running=config.batch,
        prefix_cache=False,
    )
    return LLM(config.model, config=engine)


def _answers(
    config: AnswersConfig, llm: LLM, waiting: Iterator[tuple[int, Prompt]], until: float
) -> Iterator[dict[str, Any]]:
    """Rows as they finish; as many run at once as `batch` says, until there is no prompt or no time left.

    What has begun is brought to its end: the answers cut off by the clock would be the long ones.
    """
    engine, decoding = llm.engine, resolve(llm.model, "ar")
    running: dict[str, tuple[int, Prompt]] = {}
    texts: dict[str, list[str]] = {}
    while True:
        while len(running) < config.batch and time.monotonic() < until:
            number, prompt = next(waiting, (-1, Prompt("chat", "")))
            if number < 0:
                break
            name = str(number)
            sampling = Sampling(
                config.temperature,
                config.top_p,
                seed=config.seed * 1_000_003 + number,
                max_tokens=config.max_continued if prompt.kind == "continue" else config.max_tokens,
            )
            grammar = prompt.form.grammar if prompt.form else None
            engine.submit(Request(name, tuple(_ids(llm, prompt)), sampling, decoding, grammar=grammar))
            running[name], texts[name] = (number, prompt), []
        if not running:
            return
        for name, event in engine.step():
            if isinstance(event, Text):
                texts[name].append(event.text)
            elif isinstance(event, Finish):
                yield _row(config, llm, running.pop(name), "".join(texts.pop(name)), event)


def _ids(llm: LLM, prompt: Prompt) -> Sequence[int]:
    if prompt.kind == "continue":
        return llm.tokenizer.encode(prompt.text)
    return llm.chat_prompt(prompt.messages)


def _row(
    config: AnswersConfig, llm: LLM, asked: tuple[int, Prompt], text: str, finish: Finish
) -> dict[str, Any]:
    number, prompt = asked
    ids = llm.tokenizer.encode(text)
    row: dict[str, Any] = {
        "number": number,
        "kind": prompt.kind,
        **_told(prompt, text),
        "finish_reason": finish.reason,
        "num_tokens": len(ids),
    }
    if refusal := refusal_of(ids, config.min_tokens, config.max_repeated):
        row["refused"] = refusal
    return row


def _told(prompt: Prompt, text: str) -> dict[str, Any]:
    if prompt.form is not None or prompt.turns:
        return {"messages": [*prompt.messages, {"role": "assistant", "content": text}]}
    return {"prefix" if prompt.kind == "continue" else "prompt": prompt.text, "response": text}


def refusal_of(ids: Sequence[int], min_tokens: int, max_repeated: float) -> str:
    """Why an answer is not worth training on; empty where it is."""
    if len(ids) < min_tokens:
        return "short"
    return "repetitive" if repeated(ids) > max_repeated else ""


def repeated(ids: Sequence[int]) -> float:
    """Share of 4-grams that occurred before."""
    runs = list(zip(*(ids[start:] for start in range(_GRAM)), strict=False))
    return 1 - len(set(runs)) / len(runs) if runs else 0.0
