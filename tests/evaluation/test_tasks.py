"""The tasks' graders, asked with answers whose worth is known; and the free tasks over a tiny model."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tests import tiny
from vermilion.data.corpus import Document, write_corpus
from vermilion.errors import ConfigError
from vermilion.evaluation import code_tasks, exact_tasks
from vermilion.evaluation.code_tasks import gaps
from vermilion.evaluation.gap_tasks import difference
from vermilion.evaluation.reference_texts import problems
from vermilion.evaluation.sampler import Ask, Reply, Sampler
from vermilion.evaluation.suite import TASKS
from vermilion.evaluation.task import Setting
from vermilion.evaluation.text_quality import distinct, parses, parses_so_far, repetition, similarity
from vermilion.gap_template import GapTemplate
from vermilion.types import Decoding, Usage


class Llm:
    """What the tasks need of an LLM, over a tiny model."""

    def __init__(self) -> None:
        self.tokenizer = tiny.Letters()
        self.engine = tiny.engine("causal-shift", tiny.model("causal-shift"), kv_tokens=2048)
        self.model = self.engine.model

    def chat_prompt(self, messages: list[dict[str, str]]) -> list[int]:
        return self.tokenizer.encode(" ".join(message["content"] for message in messages))


@dataclass(frozen=True, slots=True)
class Scripted(Sampler):
    """Answers by a function."""

    script: Callable[[Ask], str] = lambda ask: ""

    def answer(self, ask: Ask) -> Reply:
        return Reply(self.script(ask), (5,), (6, 7), Usage(1, 0, 2, 1), "stop", 0.1, 0.2)


def scripted(script: Callable[[Ask], str]) -> Scripted:
    return Scripted("s", Llm(), Decoding("ar"), script=script)  # type: ignore[arg-type]


def test_humaneval_counts_what_passes_its_tests() -> None:
    right = {one["prompt"].rstrip(): f"\n{one['canonical_solution']}" for one in problems()}
    setting = Setting(limit=3)
    measure = TASKS["humaneval"].measure
    good = measure(scripted(lambda ask: right[str(ask.prompt)]), setting)
    assert (good["pass_at_1"], good["parses"], good["count"]) == (1.0, 1.0, 3)
    assert good["sandbox"] in ("namespaces", "filter", "hook")
    bad = measure(scripted(lambda ask: "\n    return None\n"), setting)
    assert (bad["pass_at_1"], bad["parses"]) == (0.0, 1.0)
    exits = measure(scripted(lambda ask: "\n    import os; os._exit(0)\n"), setting)
    assert exits["pass_at_1"] == 0.0
    asked: list[Ask] = []
    measure(scripted(lambda ask: asked.append(ask) or ""), setting)  # type: ignore[func-returns-value]
    assert all("\ndef " in ask.stop and not ask.suffix for ask in asked)


def test_infill_is_asked_with_and_without_the_right_side() -> None:
    asked: list[Ask] = []

    def fill(ask: Ask) -> str:
        asked.append(ask)
        gap = ask.facts["gap"]
        assert gap.before == ask.prompt and ask.suffix in ("", gap.after)
        # A continuation runs on; it is cut where the gap's last line ends.
        return str(gap.middle) if ask.suffix else f"{gap.middle}\nand more"

    figures = TASKS["infill"].measure(scripted(fill), Setting(limit=6))
    assert len(asked) == 12 and sum(bool(ask.suffix) for ask in asked) == 6
    assert (figures["exact"], figures["similarity"], figures["parses"]) == (1.0, 1.0, 1.0)
    assert set(figures["by_group"]) == {
        f"humaneval {kind}, {side}"
        for kind in ("line", "lines", "span")
        for side in ("both sides", "left alone")
    }
    wrong = TASKS["infill"].measure(scripted(lambda ask: "(((("), Setting(limit=3))
    assert wrong["exact"] == 0 and wrong["parses"] == 0 and 0 <= wrong["similarity"] < 0.5


def test_infill_takes_gaps_from_held_out_projects(tmp_path: Path) -> None:
    body = "".join(
        f"def f{i}(value):\n    total = value + {i}\n    return total * {i}\n\n\n" for i in range(30)
    )
    (tmp_path / "module.py").write_text(body)
    (tmp_path / "broken.py").write_text("def (:" * 100)
    figures = TASKS["infill"].measure(
        scripted(lambda ask: str(ask.facts["gap"].middle)), Setting(limit=3, held_out=(tmp_path,))
    )
    assert figures["by_group"][f"{tmp_path.name} line, both sides"]["exact"] == 1.0
    assert figures["count"] == 12


def test_infill_reads_the_programs_of_a_corpus_as_training_does(tmp_path: Path) -> None:
    class Bytes(tiny.Letters):
        def decode(self, ids: list[int], skip_special: bool = True) -> str:
            return bytes(ids).decode()

    text = "".join(
        f"def f{i}(value):\n    total = value + {i}\n    return total * {i}\n\n\n" for i in range(9)
    )
    write_corpus(
        tmp_path, [Document(list(text.encode())), Document(list(b"only words, no program" * 20))], 256
    )
    sampler = scripted(lambda ask: str(ask.facts["gap"].middle))
    sampler.llm.tokenizer = Bytes()  # type: ignore[assignment]
    figures = TASKS["infill"].measure(sampler, Setting(limit=2, held_out=(tmp_path,)))
    assert figures["by_group"][f"{tmp_path.name} line, both sides"]["count"] == 1
    assert figures["count"] == 8


def test_lines_are_asked_for_in_each_way_and_compared_gap_by_gap(tmp_path: Path) -> None:
    (tmp_path / "module.py").write_text(
        "".join(f"def f{i}(value):\n    return value * {i}\n" for i in range(40))
    )
    sampler = scripted(lambda ask: str(ask.facts["gap"].middle))
    engine = sampler.llm.engine
    engine.gap_template = template = GapTemplate((1, 2, 3, 4), 8)
    asked: list[tuple[str, bool]] = []

    def fill(ask: Ask) -> str:
        asked.append((ask.facts["way"], engine.gap_template is not None))
        gap = ask.facts["gap"]
        above, _, indent = gap.before.rpartition("\n")
        given, blanks = above if "above" in ask.facts["way"] else gap.before, f"\n{indent}"
        ids = tuple(sampler.llm.tokenizer.encode(given))
        assert ask.prompt in (given, ids) and not indent.strip()
        return {
            "both sides": gap.middle,
            "both sides, best of 8": gap.middle,
            "left alone": f"{gap.middle}\nand more",
            "left alone, from the line above": f"{blanks}{gap.middle}\nand more",
            "left alone, tokens of an open line": f"{gap.middle}\nand more",
        }.get(ask.facts["way"], "wrong")

    figures = TASKS["fim"].measure(replace(sampler, script=fill), Setting(limit=5, held_out=(tmp_path,)))
    assert engine.gap_template is template
    alone = ("left alone", "left alone, from the line above", "left alone, tokens of an open line")
    left = {(way, True) for way in alone}
    both = {("both sides", True), ("both sides, best of 8", True), ("both sides, no adapter", False)}
    assert set(asked) == both | left
    assert len(asked) == 60
    for source in ("humaneval", tmp_path.name):
        for way in alone:
            assert figures["by_group"][f"{source} line, {way}"]["exact"] == 1.0
            assert figures["differences"][f"{source}: both sides over {way}"]["mean"] == 0.0
        over = figures["differences"][f"{source}: both sides over both sides, no adapter"]
        assert over == {"mean": 1.0, "low": 1.0, "high": 1.0}


def test_the_best_of_several_answers_is_the_one_that_the_base_finds_likeliest() -> None:
    drawn = Sampler("s", Llm(), Decoding("ar"), temperature=1.5)  # type: ignore[arg-type]
    ask = Ask("some words", 6, suffix="and more of them")
    answers = {replace(drawn, temperature=0.0).answer(ask).text}
    answers |= {replace(drawn, seed=seed).answer(ask).text for seed in range(1, 4)}
    tokenizer, engine = drawn.llm.tokenizer, drawn.llm.engine

    def fit(text: str) -> float:
        readings = engine.score(tokenizer.encode("some words"), tokenizer.encode(text + ask.suffix))
        return sum(reading.target_logprobs[0] for reading in readings)

    assert len(answers) > 2
    assert replace(drawn, best_of=4).answer(ask).text == max(answers, key=fit)


def test_the_interval_of_a_difference_is_the_bootstraps() -> None:
    ours, theirs = [True] * 60 + [False] * 40, [True] * 40 + [False] * 60
    found = difference(ours, theirs)
    # 20 gaps of 100 are won and none lost: the deviation of their share is 4 points.
    approx = pytest.approx
    assert (
        found["mean"] == 0.2
        and found["low"] == approx(0.12, abs=0.015)
        and found["high"] == approx(0.28, abs=0.015)
    )


@pytest.mark.parametrize("kind", ["line", "lines", "span"])
def test_a_gap_is_cut_out_of_the_solution_and_fits_back(kind: str) -> None:
    rng = random.Random(3)
    for problem in problems()[:40]:
        text = problem["prompt"] + problem["canonical_solution"]
        gap = gaps(text, len(problem["prompt"]), kind, rng)
        if gap is None:
            continue
        assert gap.before + gap.middle + gap.after == text
        assert len(gap.before) >= len(problem["prompt"]) - 1 and gap.middle.strip()
        assert kind == "span" or gap.middle.startswith("\n")
        lines = gap.middle.strip("\n").count("\n") + 1
        assert lines == 1 if kind == "line" else lines >= 2 if kind == "lines" else lines <= 3


def test_templated_tasks_have_one_answer() -> None:
    def solve(ask: Ask) -> str:
        return f" {ask.facts['answer']}\n"

    figures = TASKS["templated"].measure(scripted(solve), Setting(limit=8))
    assert figures["exact"] == 1.0 and set(figures["by_group"]) == {"copy", "sort", "echo", "sum"}
    assert TASKS["templated"].measure(scripted(lambda ask: " 7"), Setting(limit=8))["exact"] < 0.5
    prompts: list[str] = []
    TASKS["templated"].measure(scripted(lambda ask: prompts.append(str(ask.prompt)) or ""), Setting(limit=4))  # type: ignore[func-returns-value]
    assert all(prompt.count("Output:") == 4 and prompt.endswith("Output:") for prompt in prompts)


def test_json_is_valid_by_the_schema_and_right_by_its_fields() -> None:
    measure, setting = TASKS["json"].measure, Setting(limit=2)
    right = measure(scripted(lambda ask: json.dumps(ask.facts["answer"])), setting)
    assert (right["valid"], right["right"], right["fields_right"]) == (1.0, 1.0, 1.0)
    older = measure(scripted(lambda ask: json.dumps({**ask.facts["answer"], "age": 3})), setting)
    assert (older["valid"], older["right"], round(older["fields_right"], 2)) == (1.0, 0.0, 0.67)
    invalid = measure(scripted(lambda ask: json.dumps({**ask.facts["answer"], "age": "old"})), setting)
    assert (invalid["valid"], invalid["right"]) == (0.0, 0.0)
    assert measure(scripted(lambda ask: '{"name": "A'), setting)["valid"] == 0.0


def test_a_missing_validator_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jsonschema", None)
    with pytest.raises(ConfigError, match=r"vermilion\[eval\]"):
        TASKS["json"].measure(scripted(lambda ask: "{}"), Setting(limit=1))


def test_the_agent_makes_thirty_calls_on_one_growing_conversation() -> None:
    asked: list[Ask] = []

    def call(ask: Ask) -> str:
        asked.append(ask)
        errand = str(ask.prompt[-1]["content"])  # type: ignore[index,call-overload]
        if errand.startswith("List"):
            return '{"tool": "list_files", "path": "."}'
        tool = "read_file" if errand.startswith("Read") else "delete_file"
        return json.dumps({"tool": tool, "path": errand.rsplit(maxsplit=1)[-1].rstrip(".")})

    figures = TASKS["agent"].measure(scripted(call), Setting())
    assert exact_tasks.AGENT_CALLS == 30 and len(asked) == 60
    assert figures["right"] == 1.0 and figures["same_calls"] is True
    lengths = [len(ask.prompt) for ask in asked[:30]]
    assert lengths == sorted(lengths) and lengths[0] == 2 and lengths[29] == 2 + 29 * 4
    assert [ask.prompt for ask in asked[:30]] == [ask.prompt for ask in asked[30:]]
    assert TASKS["agent"].measure(scripted(lambda ask: "{}"), Setting())["right"] == 0


def test_a_file_that_is_written_again_takes_few_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(code_tasks, "_FILE", "def step(value):\n    return value + 1\n" * 3)
    sampler = Sampler("lossless", Llm(), Decoding("lossless", block_length=3))  # type: ignore[arg-type]
    figures = TASKS["edits"].measure(sampler, Setting(limit=1))
    assert figures["same_text"] is True and figures["repeats"] == 1
    assert 0 < figures["passes_drafted"] <= figures["passes_again"]
    assert figures["tokens"] > 50 and 0 <= figures["share_of_file"] <= 1


@pytest.mark.parametrize("name", ["quality", "latency"])
def test_lossless_text_is_the_bases_text_in_fewer_passes(name: str) -> None:
    sampler = Sampler("lossless", Llm(), Decoding("lossless", block_length=4))  # type: ignore[arg-type]
    figures = TASKS[name].measure(sampler, Setting(limit=3, max_tokens=16))
    assert figures["tokens_per_pass"] >= 1.0
    if name == "latency":
        assert figures["count"] == 6 and set(figures["by_group"]) == {"32 tokens", "128 tokens"}
        assert figures["first_text_s"] <= figures["whole_answer_s"] and figures["speed_vs_ar"] > 0
        return
    assert (figures["same_as_ar"], figures["greedy_share"], figures["length_ratio"]) == (1.0, 1.0, 1.0)
    assert set(figures["by_group"]) == {"chat", "code", "prose"}
    assert "parses" in figures["by_group"]["code"] and "parses" not in figures["by_group"]["chat"]
    plain = TASKS[name].measure(replace(sampler, decoding=Decoding("ar")), Setting(limit=3, max_tokens=16))
    assert plain["base_nll"] == figures["base_nll"]
    loose = Decoding("threshold", threshold=0.01, block_length=8)
    fast = TASKS[name].measure(replace(sampler, decoding=loose), Setting(limit=3, max_tokens=16))
    assert fast["tokens_per_pass"] > plain["tokens_per_pass"] and fast["base_nll"] > plain["base_nll"]


def test_texts_that_repeat_themselves_are_found_out() -> None:
    assert distinct([1, 2, 3, 4, 5]) == 1.0
    assert distinct([1, 2, 1, 2, 1, 2, 1]) == pytest.approx(2 / 5)
    assert distinct([1, 2]) is None
    assert repetition(list(range(40))) == 0.0
    assert repetition([1, 2, 3, 4] * 20) > 0.8
    assert similarity("abc", "abc") == 1.0 and similarity("abc", "xyz") == 0.0


def test_python_is_judged_up_to_where_it_was_cut_off() -> None:
    whole = "def f(x):\n    return x + 1\n"
    assert parses(whole) and parses_so_far(whole)
    assert not parses(whole + "\ndef g(y):\n    return y +") and parses_so_far(
        whole + "\ndef g(y):\n    return y +"
    )
    assert not parses_so_far("def f(x):\n    return x +* 1\n\nprint(f(1))\n")
    assert not parses_so_far("This is English, not Python.")
