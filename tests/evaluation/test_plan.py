"""Samplers by name, and rows that are measured once."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tests import tiny
from vermilion.errors import BadParameter, ConfigError, ModelFileError
from vermilion.evaluation.environment import command, fingerprint
from vermilion.evaluation.plan import Plan, evaluate
from vermilion.evaluation.results import read_rows
from vermilion.evaluation.sampler import Ask, Sampler, parse
from vermilion.evaluation.suite import TASKS, chosen
from vermilion.evaluation.table import tables
from vermilion.evaluation.task import EvalTask, Setting, Silent, asked
from vermilion.types import Decoding


class Llm:
    """What the tasks need of an LLM, over a tiny model."""

    def __init__(self, kind: str = "causal-shift") -> None:
        self.tokenizer = tiny.Letters()
        self.engine = tiny.engine(kind, tiny.model(kind))
        self.model = self.engine.model


def test_a_sampler_is_a_preset_or_a_decoder_with_knobs_on_a_model() -> None:
    plain, knobs, other = parse("lossless threshold:threshold=0.7,block_length=8 some/folder@fast", "m")
    assert (plain.name, plain.model, plain.preset, plain.knobs) == ("lossless", "m", "lossless", {})
    model = Llm().model
    wanted = replace(model.presets["lossless"], decoder="threshold", threshold=0.7, block_length=8)
    assert knobs.decoding(model) == wanted
    assert (other.model, other.name) == ("some/folder", "some/folder@fast")
    assert len(parse("curve", "m")) > 10
    assert {spec.model for spec in parse("x@curve", "m")} == {"x"}


@pytest.mark.parametrize(
    "written",
    ["", "quick", "fast:threshold", "fast:warmth=1", "threshold:threshold=2", "threshold:block_length=a"],
)
def test_a_sampler_that_makes_no_sense_is_refused(written: str) -> None:
    with pytest.raises(BadParameter):
        parse(written, "m")


def test_an_unknown_task_is_refused_with_the_known_ones() -> None:
    with pytest.raises(BadParameter, match="drafting"):
        chosen("likelihood,poetry")
    assert chosen("all") == list(TASKS.values())
    assert [task.name for task in chosen("drafting, likelihood")] == ["drafting", "likelihood"]


def test_a_reply_holds_the_answers_text_tokens_and_cost() -> None:
    llm = Llm()
    sampler = Sampler("lossless", llm, Decoding("lossless"))  # type: ignore[arg-type]
    ask = Ask("once upon a time", 20, ignore_eos=True)
    reply = sampler.answer(ask)
    assert len(reply.token_ids) == reply.usage.completion_tokens == 20
    assert llm.tokenizer.decode(list(reply.token_ids)) == reply.text
    assert reply.prompt_ids == tuple(llm.tokenizer.encode("once upon a time"))
    assert 0 < reply.first_text_s <= reply.wall_s
    again = Sampler("ar", llm, Decoding("ar")).answer(ask)  # type: ignore[arg-type]
    assert again.token_ids == reply.token_ids


def test_only_what_goes_on_is_served_from_the_cache() -> None:
    sampler = Sampler("ar", Llm(), Decoding("ar"))  # type: ignore[arg-type]
    prompt = tuple(range(5, 45))
    assert sampler.answer(Ask(prompt, 4, ignore_eos=True)).usage.cached_tokens == 0
    assert sampler.answer(Ask(prompt, 4, ignore_eos=True, goes_on=True)).usage.cached_tokens > 0
    assert sampler.answer(Ask(prompt, 4, ignore_eos=True)).usage.cached_tokens == 0


def test_grades_are_averaged_over_all_and_by_group() -> None:
    sampler = Sampler("ar", Llm(), Decoding("ar"))  # type: ignore[arg-type]
    asks = [
        Ask(text, 4, group=group, ignore_eos=True) for text, group in (("aa", "x"), ("bb", "x"), ("cc", "y"))
    ]
    values = iter([True, False, None])
    figures = asked(sampler, asks, lambda s, a, r: {"right": next(values)}, Silent())
    assert figures["right"] == 0.5
    assert figures["by_group"]["x"]["right"] == 0.5 and "right" not in figures["by_group"]["y"]
    assert (figures["count"], figures["tokens"]) == (3, 12)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was measured, with nothing loaded."""
    monkeypatch.setattr(
        "vermilion.evaluation.plan.fingerprint", lambda model, denoiser: f"{model}-{denoiser}"
    )
    monkeypatch.setattr("vermilion.evaluation.plan.load", lambda *given: Llm())
    return []


def task(name: str, seen: list[str], of_model: bool = False) -> EvalTask:
    def measure(sampler: Sampler, setting: Setting) -> dict[str, Any]:
        seen.append(f"{name} {sampler.name}")
        return {"share": 0.5, "by_group": {"a": {"share": 1.0}}}

    return EvalTask(name, "", measure, of_model)


def test_a_fingerprint_covers_all_that_lies_beside_a_denoiser(tmp_path: Path) -> None:
    weights = b"weights"
    (tmp_path / "adapter_model.safetensors").write_bytes(weights)
    model = "smollm2-135m-diffusion"
    plain = sha256(sha256(weights).digest()).hexdigest()[:12]
    seen = [fingerprint(model, tmp_path)]
    assert seen == [plain], "rows of results are known by it"
    for name in ("drafter.json", "drafter.safetensors", "fim/fim.json", "fim/adapter_model.safetensors"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"more")
        seen.append(fingerprint(model, tmp_path))
    assert len(set(seen)) == 5
    with pytest.raises(ModelFileError, match="nowhere: no such folder"):
        fingerprint(model, tmp_path / "nowhere")


Make = Callable[..., Plan]


def test_rows_that_are_there_are_not_measured_again(measured: list[str], tmp_path: Path) -> None:
    output = tmp_path / "rows.jsonl"
    tasks = [task("of-model", measured, True), task("of-sampler", measured)]
    plan = Plan(parse("ar fast", "m"), tasks, Setting(limit=3), output)
    quiet = Console(stderr=True, quiet=True)
    first = evaluate(plan, quiet)
    assert measured == ["of-model ar", "of-sampler ar", "of-sampler fast"]
    assert [row["sampler"] for row in first] == ["m", "ar", "fast"]
    assert evaluate(plan, quiet) == first == read_rows(output)
    assert len(measured) == 3
    # A run that was cut off behind its first row does the rest alone.
    output.write_text(output.read_text().splitlines()[0] + "\n")
    evaluate(plan, quiet)
    assert measured[3:] == ["of-sampler ar", "of-sampler fast"]
    # Another denoiser, another limit, another seed: another row.
    for changed in (
        replace(plan, denoiser=Path("other")),
        replace(plan, setting=Setting(limit=4)),
        replace(plan, setting=Setting(limit=3, seed=1)),
        replace(plan, again=True),
    ):
        before = len(measured)
        evaluate(changed, quiet)
        assert len(measured) == before + 3


def test_a_row_says_how_it_was_measured(measured: list[str], tmp_path: Path) -> None:
    plan = Plan(parse("ar", "m"), [task("t", measured)], Setting(), tmp_path / "rows.jsonl")
    [row] = evaluate(plan, Console(stderr=True, quiet=True))
    for name in (
        "command",
        "commit",
        "device",
        "threads",
        "dtype",
        "torch",
        "date",
        "seed",
        "weights",
        "limit",
    ):
        assert name in row
    assert json.loads((tmp_path / "rows.jsonl").read_text()) == row
    [table] = tables([row])
    assert [str(column.header) for column in table.columns] == ["sampler", "share"]


def test_a_row_tells_the_command_but_not_where_it_wrote(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "sys.argv", ["/some/bin/vermilion", "eval", "--output", "/a/b", "--samplers", "ar fast"]
    )
    assert command() == "vermilion eval --samplers 'ar fast'"
    monkeypatch.setattr("sys.argv", ["vermilion", "eval", "--output=/a/b", "--limit", "3"])
    assert command() == "vermilion eval --limit 3"


def test_a_file_that_holds_no_rows_is_refused(tmp_path: Path) -> None:
    broken = tmp_path / "rows.jsonl"
    broken.write_text('{"task": "x"}\nnonsense\n')
    with pytest.raises(ConfigError, match="line 2"):
        read_rows(broken)
