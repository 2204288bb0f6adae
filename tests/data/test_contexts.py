"""Prompts behind long contexts out of installed packages."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest

from vermilion.data import contexts, prompt_templates
from vermilion.data.contexts import Contexts, ContextsConfig
from vermilion.data.prompt_templates import Prompt, distribution_files, harvest
from vermilion.errors import ConfigError

QUESTION = Prompt("chat", "Why?")
TOKENS: tuple[Callable[[str], list[int]], Callable[[list[int]], str]] = (
    lambda text: [ord(character) for character in text],
    lambda ids: "".join(map(chr, ids)),
)
"""A token a character."""


def drawn(seed: int = 0, **settings: object) -> Contexts:
    given: dict[str, object] = {"share": 1.0, "shortest": 50, "longest": 2000, **settings}
    return Contexts(ContextsConfig(**given), ("jinja2", "typer"), seed, TOKENS)  # type: ignore[arg-type]


def context(prompt: Prompt) -> str:
    return "".join(text for turn in prompt.turns for text in turn) or prompt.text.removesuffix("\n\nWhy?")


def test_the_length_of_contexts_is_drawn_between_its_limits() -> None:
    source, lengths = drawn(questions=1), []
    for number in range(60):
        prompt = source.before(number, QUESTION)
        assert prompt.text.endswith("Why?") and prompt.kind == "chat"
        lengths.append(len(context(prompt)))
    # A little less where a cut ends in spaces, a question more where turns end.
    assert min(lengths) >= 20 and max(lengths) <= 2200
    middle = sorted(lengths)[30]
    assert math.sqrt(50 * 2000) / 2.5 < middle < math.sqrt(50 * 2000) * 2.5
    assert ContextsConfig(longest=6000, shortest=300).mean == 1903


def test_contexts_are_code_documentation_and_turns() -> None:
    source = drawn(questions=1, shortest=900)
    asked = [source.before(number, QUESTION) for number in range(30)]
    assert len({context(prompt) for prompt in asked}) == 30
    assert 3 < sum(bool(prompt.turns) for prompt in asked) < 20
    turned = next(prompt for prompt in asked if len(prompt.turns) > 1)
    roles = [message["role"] for message in turned.messages]
    assert roles == ["user", "assistant"] * len(turned.turns) + ["user"]
    assert 2 < sum("def " in context(prompt) and not prompt.turns for prompt in asked) < 20


def test_a_continued_text_stands_behind_text_alone() -> None:
    source = drawn(questions=1)
    start = Prompt("continue", "def f():")
    for number in range(20):
        behind = source.before(number, start)
        assert not behind.turns and behind.text.endswith("\n\ndef f():") and len(behind.text) > 30


def test_a_share_of_the_prompts_stands_behind_a_context_and_some_share_one() -> None:
    half = drawn(share=0.5)
    asked = [half.before(number, QUESTION) for number in range(256)]
    assert 40 < sum(prompt == QUESTION for prompt in asked) < 216
    whole = [context(drawn().before(number, QUESTION)) for number in (3, 19, 35, 51, 67, 4)]
    assert len(set(whole[:4])) == 1 and len(set(whole)) == 3


def test_contexts_depend_on_seed_and_number_alone() -> None:
    first, again = drawn(), drawn()
    later = [again.before(number, QUESTION) for number in (9, 2, 70)]
    assert [first.before(number, QUESTION) for number in (2, 9, 70)] == [later[1], later[0], later[2]]
    assert drawn(seed=1).before(2, QUESTION) != first.before(2, QUESTION)


def test_contexts_hold_no_paragraph_that_questions_are_drawn_from() -> None:
    """Held-out prompts are behind paragraphs of the standard library."""
    paragraphs = harvest((), 0).paragraphs
    words = " ".join(" ".join(context(drawn(questions=1).before(n, QUESTION)).split()) for n in range(16))
    assert not [paragraph for paragraph in paragraphs if paragraph in words]


def test_packages_add_their_files_but_not_their_tests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = distribution_files("numpy")
    assert len(files) > 100 and not [file for file in files if "tests" in file.parts]
    monkeypatch.setattr(prompt_templates, "standard_library", lambda: tmp_path)
    assert not harvest((), 0).starts and len(harvest(("jinja2",), 0).starts) > 10


def test_packages_of_too_little_text_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.py").write_text("pass\n")
    monkeypatch.setattr(contexts, "distribution_files", lambda name, endings: [tmp_path / "a.py"])
    with pytest.raises(ConfigError, match="too little text"):
        drawn().before(0, QUESTION)
    monkeypatch.setattr(contexts, "distribution_files", lambda name, endings: [])
    with pytest.raises(ConfigError, match="name some that hold Python code"):
        drawn()


@pytest.mark.parametrize("wrong", [{"share": 1.5}, {"shortest": 0}, {"longest": 20}, {"questions": 0}])
def test_bad_contexts_are_named(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="contexts"):
        drawn(**wrong)
