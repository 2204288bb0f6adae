"""Gaps filled by an adapter: the template's continuation under it, in any company and by any decoder."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from tests import peft, tiny
from tests.engine.test_adapters import merged
from tests.engine.test_matches_reference import prompt
from vermilion.decoding.reference import Reference, infill
from vermilion.engine.engine import Engine
from vermilion.engine.loaded_adapters import FIM
from vermilion.engine.loading import read_adapter
from vermilion.errors import ModelFileError
from vermilion.gap_template import GapTemplate, before_middle, before_word, is_open_line, open_prompt
from vermilion.models import catalog
from vermilion.types import Decoding, Finish, Request, Sampling, Text

KIND = "causal-shift"
BREAK = 94
"""No prompt or answer here holds it; suffixes begin with it."""
TEMPLATE = GapTemplate((91, 92, 93, tiny.EOS), max_suffix=6, end_bias=0.5)
BLANK = 90
"""Of the tokenizer `Words`."""
DECODINGS = [
    Decoding("ar"),
    Decoding("lossless", block_length=4, draft_nodes=8),
    Decoding("threshold", threshold=0.3, block_length=8),
]


class Lines(tiny.Letters):
    """One token breaks lines."""

    def token_bytes(self, token_id: int) -> bytes:
        return b"\n" if token_id == BREAK else super().token_bytes(token_id)

    def encode(self, text: str, special: bool = False) -> list[int]:
        ids = super().encode(text, special)
        return [BREAK if letter == "\n" else token for letter, token in zip(text, ids, strict=True)]


class Words(Lines):
    """A token is a blank and a letter, or one of the two at a text's end or behind a break."""

    def token_bytes(self, token_id: int) -> bytes:
        known = super().token_bytes(token_id)
        return b" " if token_id == BLANK else known if token_id == BREAK else b" " + known

    def encode(self, text: str, special: bool = False) -> list[int]:
        ids = super().encode(re.sub(r" (\S)", r"\1", text), special)
        return [*ids[:-1], BLANK] if text.endswith(" ") else ids


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return peft.write(tmp_path_factory.mktemp("fim"), tiny.ARCHITECTURE, 3, seed=4)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return peft.write(tmp_path_factory.mktemp("other"), tiny.ARCHITECTURE, 3, seed=8)


def engine(folder: Path, other: Path, template: GapTemplate = TEMPLATE, **settings: int) -> Engine:
    one = tiny.engine(KIND, tiny.model(KIND), **settings)
    one.adapters.add("other", read_adapter(one, other))
    one.adapters.keep(FIM, read_adapter(one, folder))
    one.gap_template = template
    one.tokenizer = Lines()  # type: ignore[assignment]
    return one


def answers(one: Engine, requests: list[Request]) -> list[tuple[int, ...]]:
    programs = {}
    for request in requests:
        programs[request.id] = one.submit(request)
    while one.has_work:
        one.step()
    return [tuple(p.tokens[len(p.task.prompt) :]) for p in programs.values()]


def gaps(decoding: Decoding) -> list[Request]:
    greedy = Sampling(max_tokens=18, logit_bias={BREAK: -100.0})
    drawn = replace(greedy, max_tokens=15, temperature=0.8, seed=3)
    return [
        Request(
            f"{i}",
            (*prompt(11, i), BREAK),
            drawn if i % 2 else greedy,
            decoding,
            (BREAK, *prompt(3 + 2 * i, 40 + i)),
        )
        for i in range(4)
    ]


@pytest.mark.parametrize("decoding", DECODINGS, ids=str)
def test_the_middle_is_the_templates_continuation_in_any_company(
    decoding: Decoding, folder: Path, other: Path
) -> None:
    reference, wanted = Reference(merged(tiny.model(KIND), folder), tiny.TRAITS[KIND]), gaps(decoding)
    expected = []
    for one in wanted:
        asked = (91, 92, *one.suffix[:6], 93, *one.prompt)
        sampling = replace(one.sampling, min_tokens=1, logit_bias={BREAK: -100.0, tiny.EOS: 0.5})
        expected.append(reference.generate(asked, sampling, Decoding("ar")).tokens)
    assert len(set(expected)) == len(expected)
    assert answers(engine(folder, other), wanted) == expected
    company = [
        Request("plain", prompt(12, 0), Sampling(max_tokens=9), decoding),
        Request("other", prompt(12, 1), Sampling(max_tokens=9), decoding, adapter="other"),
    ]
    crowded = engine(folder, other, prefill_chunk=8, max_rows=24)
    for _ in range(2):  # the second time the prompts are in the prefix cache
        assert answers(crowded, [*wanted, *company])[:4] == expected


def test_another_adapter_and_blank_suffixes_go_their_own_way(folder: Path, other: Path) -> None:
    decoding, sampling = Decoding("lossless", block_length=4, draft_nodes=8), Sampling(max_tokens=11)
    line = (*prompt(11, 1), BREAK)
    named = Request("named", line, sampling, decoding, (BREAK, *prompt(5, 41)), adapter="other")
    within = Request("within", line, sampling, decoding, prompt(5, 41))
    bare = Request("bare", line, sampling, decoding)
    blank = replace(bare, id="blank", suffix=(BREAK, BREAK))
    base, traits, breaks = tiny.model(KIND), tiny.TRAITS[KIND], frozenset({BREAK})
    plain = Reference(base, traits).generate(bare.prompt, sampling, Decoding("ar")).tokens
    assert answers(engine(folder, other), [named, within, bare, blank]) == [
        infill(merged(tiny.model(KIND), other), traits, named, breaks).tokens,
        infill(base, traits, within, breaks).tokens,
        plain,
        plain,
    ]


def test_the_end_mark_ends_it_unless_ends_are_ignored(folder: Path, other: Path) -> None:
    request = gaps(DECODINGS[0])[0]
    (whole,) = answers(engine(folder, other), [request])
    place = next(i for i, token in enumerate(whole) if token not in whole[:i] and i > 2)
    ending = GapTemplate((91, 92, 93, whole[place]), 6)
    (cut,) = answers(engine(folder, other, ending), [request])
    assert cut == whole[: place + 1]
    eager = replace(TEMPLATE, end_bias=100.0)
    assert [len(middle) for middle in answers(engine(folder, other, eager), gaps(DECODINGS[1]))] == [2] * 4
    chosen = replace(
        request, sampling=replace(request.sampling, logit_bias={BREAK: -100.0, tiny.EOS: -100.0})
    )
    assert len(answers(engine(folder, other, eager), [chosen])[0]) == 18
    at_once = GapTemplate((91, 92, 93, whole[0]), 6)
    (middle,) = answers(engine(folder, other, at_once), [request])
    assert middle[0] != whole[0], "a middle is not empty"
    deaf = Request(
        "deaf", request.prompt, Sampling(max_tokens=18, ignore_eos=True), request.decoding, request.suffix
    )
    assert len(answers(engine(folder, other, ending), [deaf])[0]) == 18


def test_a_prompts_last_blank_is_part_of_the_middles_first_token_and_told_once(
    folder: Path, other: Path
) -> None:
    request = gaps(DECODINGS[1])[0]
    (expected,) = answers(engine(folder, other), [request])
    one = engine(folder, other)
    one.tokenizer = Words()  # type: ignore[assignment]
    named = replace(request.sampling, logprobs=0)
    spaced = replace(request, prompt=(*request.prompt, BLANK), sampling=named)
    assert answers(one, [replace(spaced, id="again")]) == [expected]
    *told, finish = tiny.run(one, [spaced])["0"]
    kept = [token for token in expected if token != tiny.EOS]
    text = "".join(event.text for event in told if isinstance(event, Text))
    assert " " + text == one.tokenizer.decode(kept) and text[0] != " "
    raw = [info.raw for event in told if isinstance(event, Text) for info in event.tokens]
    assert b"".join(raw).decode() == text
    assert isinstance(finish, Finish) and finish.usage.prompt_tokens == 17


@pytest.mark.parametrize("end", ["\n    ", "\n\t\t", "\n", "\n\n\n  ", ")\r\n \n     ", "\n \t ", "\n "])
def test_an_open_line_is_tokenised_as_before_a_word(end: str) -> None:
    tokenizer = catalog.tokenizer_of(catalog.find("smollm2-135m-diffusion"))
    for text in (f"def f(x):{end}", end):
        ids, blank = before_word(tokenizer, text)
        for word in ("return x", "("):
            assert [*ids, *tokenizer.encode(blank + word)] == tokenizer.encode(text + word)
        assert blank == (" " if end[-1] == " " else "")
        assert open_prompt(tokenizer, tokenizer.encode(text)) == (tuple(ids), blank)
    assert before_word(tokenizer, "def f") == (tokenizer.encode("def f"), "")


def test_what_is_metered_is_what_was_asked(folder: Path, other: Path) -> None:
    request, one = gaps(DECODINGS[0])[0], engine(folder, other)
    for cached in (0, 16):
        *texts, finish = tiny.run(one, [request])["0"]
        assert isinstance(finish, Finish) and all(isinstance(event, Text) for event in texts)
        assert finish.usage.prompt_tokens == 16 and finish.usage.cached_tokens == cached
        assert finish.usage.completion_tokens == len(answers(engine(folder, other), [request])[0])


def test_the_template_keeps_the_ends_at_the_gap() -> None:
    assert before_middle((5, 6), (7, 8), TEMPLATE.marks) == [91, 92, 7, 8, 93, 5, 6]
    assert TEMPLATE.prompt((5, 6), (7, 8), 100) == (91, 92, 7, 8, 93, 5, 6)
    assert TEMPLATE.prompt(range(20), range(30, 50), 12) == (91, 92, *range(30, 36), 93, 17, 18, 19)
    assert TEMPLATE.prompt(range(20), range(30, 50), 9) == (91, 92, *range(30, 36), 93)


def test_a_text_that_fills_the_context_loses_its_first_tokens(folder: Path, other: Path) -> None:
    one = engine(folder, other)
    room = one.model.context_length - 4 - 10
    before, after = (*prompt(room - 1, 1), BREAK), (BREAK, 5, 6, 7)
    request = Request("full", before, Sampling(max_tokens=10), DECODINGS[0], after)
    program = one.check(request)
    assert len(program.task.prompt) == room + 4 and program.task.prompt[-5:] == request.prompt[-5:]


@pytest.mark.parametrize(
    ("prefix", "suffix", "open"),
    [
        ("a\n    ", "\nx", True),
        ("a\r\n", " \t\r\n\nx", True),
        ("\n", "\nx", True),
        ("a", "\nx", False),
        ("a\n  b", "\nx", False),
        ("a\n", "x\n", False),
        ("a\n", "\n \n", False),
        ("a\n", "", False),
    ],
)
def test_lines_that_are_open_are_its(prefix: str, suffix: str, open: bool) -> None:
    assert is_open_line(prefix, suffix) is open


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ({"marks": [1, 2, 3], "max_suffix": 8}, "marks"),
        ({"marks": [1, 2, 3, 3], "max_suffix": 8}, "marks"),
        ({"marks": [1, 2, 3, 96], "max_suffix": 8}, "marks"),
        ({"marks": [1, 2, 3, 4], "max_suffix": 0}, "max_suffix"),
        ({"marks": [1, 2, 3, 4], "max_suffix": 8, "end_bias": "high"}, "end_bias"),
    ],
)
def test_a_bad_template_is_refused_by_its_entry(content: object, named: str, tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="is missing"):
        GapTemplate.read(tmp_path, 96)
    (tmp_path / "fim.json").write_text(json.dumps(content))
    with pytest.raises(ModelFileError, match=named):
        GapTemplate.read(tmp_path, 96)
