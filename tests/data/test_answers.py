"""The base answers prompts in batches; the file goes on where it stopped."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests import tiny
from vermilion.config import EngineConfig
from vermilion.data import answers
from vermilion.data.answers import AnswerCounts, AnswersConfig, generate, refusal_of, repeated
from vermilion.data.conversations import CALL_BEGIN, CALL_END
from vermilion.data.examples import read_answers
from vermilion.data.prompt_templates import Kind, Prompt, Texts, harvest, prompts
from vermilion.engine.llm import LLM
from vermilion.engine.loading import Loaded
from vermilion.errors import ConfigError

TEXTS = Texts(["A paragraph."], ["Return the sum of all numbers."], ["def f(x):\n    return"])
SHARES = {"chat": 0.5, "code": 0.3, "continue": 0.2}


@pytest.fixture
def llm(monkeypatch: pytest.MonkeyPatch) -> LLM:
    """A tiny random model over letters; every prompt is the start of a text."""
    starts = [f"def f{i}(" for i in range(12)]
    monkeypatch.setattr(answers, "harvest", lambda packages, seed: replace(TEXTS, starts=starts))
    engine = tiny.engine("causal-shift", tiny.model("causal-shift"), max_running=4, kv_tokens=1024)
    return LLM("", loaded=Loaded(engine, tiny.Letters(), None))  # type: ignore[arg-type]


def config(tmp_path: Path, **changes: object) -> AnswersConfig:
    given = AnswersConfig(
        tmp_path / "answers.jsonl", num_answers=12, batch=4, max_tokens=20, min_tokens=5, max_repeated=0.9,
        shares={"continue": 1.0},
    )  # fmt: skip
    return replace(given, **changes)  # type: ignore[arg-type]


def rows(file: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_prompts_are_distinct_repeatable_and_of_the_asked_kinds() -> None:
    first = list(itertools.islice(prompts(TEXTS, SHARES, 3), 3000))  # type: ignore[arg-type]
    assert first == list(itertools.islice(prompts(TEXTS, SHARES, 3), 3000))  # type: ignore[arg-type]
    assert first[:50] != list(itertools.islice(prompts(TEXTS, SHARES, 4), 50))  # type: ignore[arg-type]
    assert len(set(first)) == len(first)
    assert sum(prompt.kind == "continue" for prompt in first) == 1, "there is but one start of a file"
    assert not any("{" in prompt.text for prompt in first)
    share = sum(prompt.kind == "chat" for prompt in first) / len(first)
    assert 0.57 < share < 0.68


@pytest.mark.parametrize("kind", ["json", "tools"])
def test_forms_say_what_their_grammar_holds(kind: Kind) -> None:
    asked = list(itertools.islice(prompts(TEXTS, {kind: 1.0}, 3), 40))
    assert len({prompt.form for prompt in asked}) > 20
    for prompt in asked:
        assert prompt.form is not None and "{" not in prompt.text and "<thing>" not in prompt.text
        assert [message["role"] for message in prompt.messages] == ["system", "user"]
        names = re.findall(r'"const": "(\w+)"', prompt.form.grammar.text) or [prompt.form.grammar.text]
        assert all(name in prompt.form.system for name in names)


def test_answers_are_held_to_their_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "harvest", lambda packages, seed: TEXTS)
    shares: dict[str, float] = {"json": 0.5, "tools": 0.5}
    given = AnswersConfig(
        tmp_path / "answers.jsonl", num_answers=6, batch=6, min_tokens=1, max_repeated=1.0, shares=shares
    )
    llm = LLM(config=EngineConfig(kv_tokens=4096, threads=1))
    asked = generate(given, llm)
    written = rows(tmp_path / "answers.jsonl")
    assert len(written) == asked.kept == 6
    assert {row["kind"] for row in written} == {"json", "tools"}
    for row in written:
        messages: Any = row["messages"]
        text = messages[-1]["content"]
        if row["finish_reason"] == "stop":
            assert isinstance(json.loads(text.removeprefix(CALL_BEGIN).removesuffix(CALL_END)), dict)
        assert text.startswith(CALL_BEGIN if row["kind"] == "tools" else "{")
    before = (tmp_path / "answers.jsonl").read_bytes()
    generate(given, llm)
    assert (tmp_path / "answers.jsonl").read_bytes() == before, "every question was asked once"
    documents = read_answers(tmp_path / "answers.jsonl", llm.tokenizer, llm.template)  # type: ignore[arg-type]
    assert len(documents) == 6


def test_prompts_end_when_there_is_nothing_new() -> None:
    assert list(prompts(TEXTS, {"continue": 1.0}, 0)) == [Prompt("continue", TEXTS.starts[0])]


def test_the_standard_library_gives_texts_of_every_sort() -> None:
    texts = harvest((), 0)
    assert min(map(len, (texts.paragraphs, texts.goals, texts.starts))) > 500
    assert all(not start.endswith("\n") for start in texts.starts)
    with pytest.raises(ConfigError, match="no-such-package is not installed"):
        harvest(("no-such-package",), 0)


def test_every_prompt_is_answered_once(tmp_path: Path, llm: LLM) -> None:
    seen: list[AnswerCounts] = []
    asked = generate(config(tmp_path), llm, seen.append)
    kept, refused = rows(tmp_path / "answers.jsonl"), rows(tmp_path / "answers.refused.jsonl")
    assert (asked.kept, asked.refused) == (len(kept), len(refused)) and len(seen) == 12
    assert sorted(row["number"] for row in kept + refused) == list(range(12))
    assert asked.num_tokens == sum(row["num_tokens"] for row in kept) > 0
    assert {row["finish_reason"] for row in kept} <= {"stop", "length"}
    assert all(row["refused"] in ("short", "repetitive") for row in refused)


def test_it_goes_on_behind_a_torn_line(tmp_path: Path, llm: LLM) -> None:
    whole = config(tmp_path / "whole")
    generate(whole, llm)
    part = config(tmp_path / "part")
    generate(replace(part, num_answers=7), llm)
    torn = part.output.read_text()
    part.output.write_text(torn[:-10])
    generate(part, llm)

    def by_number(file: Path) -> list[dict[str, object]]:
        return sorted(rows(file), key=lambda row: int(str(row["number"])))

    assert by_number(part.output) == by_number(whole.output)


def test_a_foreign_file_is_not_written_to(tmp_path: Path, llm: LLM) -> None:
    (tmp_path / "answers.jsonl").write_text("# notes\n")
    with pytest.raises(ConfigError, match="other than answers"):
        generate(config(tmp_path), llm)


def test_what_repeats_itself_or_is_short_is_refused() -> None:
    assert repeated([1, 2, 3, 4] * 10) > 0.8
    assert repeated(range(50)) == 0 and repeated([1]) == 0
    assert refusal_of([7] * 40, 16, 0.4) == "repetitive"
    assert refusal_of(list(range(15)), 16, 0.4) == "short"
    assert refusal_of(list(range(16)), 16, 0.4) == ""


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: replace(c, num_answers=0), "num_answers, minutes"),
        (lambda c: replace(c, min_tokens=30), "min_tokens"),
        (lambda c: replace(c, shares={"poem": 1.0}), "allowed: a number above 0 for chat, code, continue"),
    ],
)
def test_bad_settings_are_named(
    tmp_path: Path, change: Callable[[AnswersConfig], AnswersConfig], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        change(config(tmp_path))
