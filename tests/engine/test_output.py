"""What a request is told: text up to its stop, token details, the canvas, and the count of it all."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from math import exp

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import tiny
from vermilion.decoding.passes import Pass, Reading
from vermilion.decoding.program import Open, Program, Task
from vermilion.engine.output import Output, repeats_of
from vermilion.types import Canvas, CanvasToken, Decoding, Event, Finish, Request, Sampling, Text

TEXTS = {
    1: b"",
    10: b"a",
    11: b"b",
    12: b"c",
    13: b"ab",
    14: b"bca",
    15: b"\xc3",
    16: b"\xa9",
    17: b"\n\n",
    18: b".",
    19: b'"',
}
IDS = {text: token for token, text in TEXTS.items()}


class Pieces(tiny.Letters):
    """Tokens of several letters, and of half a letter."""

    def token_bytes(self, token_id: int) -> bytes:
        return TEXTS[token_id]

    def token_text(self, token_id: int) -> str:
        return TEXTS[token_id].decode(errors="replace")


class Script(Program):
    """Settles what it is told to, pass by pass."""

    opened: tuple[Open, ...] = ()
    max_slots = 0

    def plan(self, draft: bool = True) -> Pass:
        raise AssertionError

    def apply(self, readings: object) -> None:
        raise AssertionError

    def canvas(self) -> list[Open]:
        return list(self.opened)

    def settle(self, tokens: list[int], opened: tuple[Open, ...] = ()) -> None:
        self.passes += 1
        self.opened = opened
        for token in tokens:
            if self.finish is None:
                self._settle(Reading(token, -0.5, top=((token, -0.5), (12, -1.5), (11, -2.5))))


def told(request: Request, blocks: list[list[int]]) -> tuple[list[Event], Program]:
    sampling = request.sampling
    eos = frozenset() if sampling.ignore_eos else frozenset({tiny.EOS})
    program = Script(Task((5, 6), sampling.max_tokens, request.decoding, eos), tiny.TRAITS["causal-shift"])
    output = Output(request, Pieces())  # type: ignore[arg-type]
    events: list[Event] = []
    for block in blocks:
        if program.finish is None:
            program.settle(block)
            events += output.take(program)
    return events, program


def request(**sampling: object) -> Request:
    return Request("r", (5, 6), Sampling(**sampling), Decoding("ar"))  # type: ignore[arg-type]


def text_of(events: list[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, Text))


def finish_of(events: list[Event]) -> Finish:
    assert [isinstance(event, Finish) for event in events].count(True) == 1
    assert isinstance(events[-1], Finish)
    return events[-1]


@given(
    st.lists(
        st.lists(st.sampled_from([10, 11, 12, 13, 14, 15, 16, 17]), min_size=1, max_size=4),
        min_size=1,
        max_size=6,
    ),
    st.lists(st.text("abc\n", min_size=1, max_size=4), max_size=3),
    st.booleans(),
)
def test_text_ends_before_the_first_stop_string_however_it_is_cut(
    blocks: list[list[int]], stops: list[str], with_eos: bool
) -> None:
    tokens = [token for block in blocks for token in block]
    limit = len(tokens) + with_eos
    events, _ = told(request(max_tokens=limit, stop=tuple(stops)), [*blocks, [1]] if with_eos else blocks)
    whole = b"".join(TEXTS[token] for token in tokens).decode(errors="replace")
    places = [whole.find(stop) for stop in stops if stop in whole]
    assert text_of(events) == (whole[: min(places)] if places else whole)
    finish = finish_of(events)
    assert finish.reason == ("stop" if places or with_eos else "length")
    assert finish.usage.completion_tokens <= limit
    if not places:
        assert finish.usage.completion_tokens == limit


@pytest.mark.parametrize(
    ("stop", "blocks", "text", "count"),
    [
        ("bc", [[10, 11], [12, 10]], "a", 3),
        ("c", [[10, 14, 10]], "ab", 2),
        ("ca", [[10], [11], [12], [10]], "ab", 4),
        ("abc", [[13], [12]], "", 2),
    ],
    ids=["across blocks", "inside a token", "at the very end", "the whole answer"],
)
def test_tokens_count_up_to_the_one_that_completes_the_stop(
    stop: str, blocks: list[list[int]], text: str, count: int
) -> None:
    events, _ = told(request(max_tokens=4, stop=(stop,)), blocks)
    assert (text_of(events), finish_of(events).reason) == (text, "stop")
    assert finish_of(events).usage.completion_tokens == count
    assert finish_of(events).stop_string == stop


def test_a_stop_that_only_the_end_of_the_answer_decides_still_is_a_stop() -> None:
    # "ab" is held back, for it could have become "abc".
    events, _ = told(request(max_tokens=2, stop=("ab", "abc")), [[10], [11]])
    assert text_of(events) == ""
    assert (finish_of(events).reason, finish_of(events).stop_string) == ("stop", "ab")


def test_an_end_token_is_counted_but_not_shown() -> None:
    events, _ = told(request(max_tokens=9, logprobs=0), [[10, 1, 11]])
    assert text_of(events) == "a"
    assert finish_of(events).reason == "stop" and finish_of(events).usage.completion_tokens == 2
    ignored, _ = told(request(max_tokens=3, ignore_eos=True), [[10, 1, 11]])
    assert (text_of(ignored), finish_of(ignored).reason) == ("ab", "length")
    at_the_limit, _ = told(request(max_tokens=2, stop=("x",)), [[10, 1]])
    assert (finish_of(at_the_limit).reason, finish_of(at_the_limit).stop_string) == ("stop", "")


def test_a_letter_left_half_is_shown_as_a_replacement_at_the_end() -> None:
    events, _ = told(request(max_tokens=4), [[10, 15], [16, 15]])
    assert text_of(events) == "aé�"


def test_token_details_carry_the_pass_and_the_alternatives() -> None:
    events, _ = told(request(max_tokens=4, logprobs=2), [[10, 13], [15], [16]])
    infos = [info for event in events if isinstance(event, Text) for info in event.tokens]
    assert [(info.id, info.text, info.pass_number) for info in infos[:2]] == [(10, "a", 1), (13, "ab", 1)]
    assert [info.pass_number for info in infos] == [1, 1, 2, 3]
    assert infos[1].top == ((13, b"ab", -0.5), (12, b"c", -1.5))
    assert infos[0].logprob == -0.5 and infos[0].confidence == pytest.approx(0.60653066)
    plain, _ = told(request(max_tokens=4), [[10, 13], [15], [16]])
    assert not any(event.tokens for event in plain if isinstance(event, Text))
    own, _ = told(request(max_tokens=1, logprobs=0), [[10]])
    assert isinstance(own[0], Text) and own[0].tokens[0].top == ()


@given(
    st.lists(
        st.tuples(
            st.lists(st.sampled_from([10, 13, 14, 15, 16]), max_size=2),
            st.lists(
                st.builds(Open, st.sampled_from([-1, 1, 10, 13, 15, 16]), st.booleans(), st.booleans()),
                max_size=4,
            ),
        ),
        min_size=1,
        max_size=5,
    )
)
def test_canvas_spans_are_sorted_disjoint_and_index_its_text(
    steps: list[tuple[list[int], list[Open]]],
) -> None:
    asked = replace(request(max_tokens=12), canvas=True)
    program = Script(Task((5, 6), 12, asked.decoding, frozenset()), tiny.TRAITS["causal-shift"])
    output = Output(asked, Pieces())  # type: ignore[arg-type]
    shown, progress = "", 0.0
    for settled, opened in steps:
        clean = tuple(
            replace(o, masked=o.masked or o.token < 0, edited=o.edited and not o.masked) for o in opened
        )
        program.settle(settled, clean)
        for event in output.take(program):
            if isinstance(event, Text):
                shown += event.text
            if isinstance(event, Canvas):
                assert event.text.startswith(shown)
                assert event.settled == (((0, len(shown)),) if shown else ())
                spans = sorted([*event.settled, *event.masked, *event.edited])
                assert all(0 <= a < b <= len(event.text) for a, b in spans)
                assert all(before[1] <= after[0] for before, after in pairwise(spans))
                assert list(event.masked) == sorted(event.masked)
                assert progress <= event.progress <= 1.0
                assert (event.progress == 1.0) == (program.finish is not None)
                progress = event.progress


def test_guesses_read_as_text_and_are_marked() -> None:
    asked = replace(request(max_tokens=9), canvas=True)
    program = Script(Task((5, 6), 9, asked.decoding, frozenset()), tiny.TRAITS["causal-shift"])
    output = Output(asked, Pieces())  # type: ignore[arg-type]
    program.settle([10], (Open(13, masked=True), Open(12, masked=False), Open(11, False, edited=True)))
    canvas = output.take(program)[-1]
    assert canvas == Canvas("aabcb", ((0, 1),), ((1, 3),), ((4, 5),), 3 / 9, 1)
    program.settle([10, 10], ())
    later = output.take(program)[-1]
    assert isinstance(later, Canvas) and later.text == "aaa" and later.progress == 3 / 9


def test_realtime_text_never_ends_on_a_sentence_before_it_is_known_what_follows() -> None:
    request = Request("x", (5, 6), Sampling(max_tokens=6), realtime=True)
    events, _ = told(request, [[10, 18], [11], [18, 18], [18]])
    assert [event.text for event in events if isinstance(event, Text)] == ["a", ".b", "..."]
    quoted, _ = told(request, [[19, 10, 18, 19], [11, 19]])
    assert [event.text for event in quoted if isinstance(event, Text)] == ['"a', '."b"']
    plain, _ = told(replace(request, realtime=False), [[10, 18], [11]])
    assert [event.text for event in plain if isinstance(event, Text)] == ["a.", "b"]


def test_a_canvas_tells_of_each_token_that_has_text_of_its_own() -> None:
    asked = replace(request(max_tokens=9), canvas=True, canvas_tokens=True)
    program = Script(Task((5, 6), 9, asked.decoding, frozenset()), tiny.TRAITS["causal-shift"])
    output = Output(asked, Pieces())  # type: ignore[arg-type]
    program.settle([10, 15], (Open(16, masked=False, confidence=0.5), Open(13, True, confidence=0.25)))
    canvas = output.take(program)[-1]
    assert isinstance(canvas, Canvas) and canvas.text == "a\u00e9ab"
    first = CanvasToken(0, 1, "settled", exp(-0.5), 1)
    assert canvas.tokens == (
        first,
        CanvasToken(1, 2, "filled", 0.5, 1),
        CanvasToken(2, 4, "masked", 0.25, 1),
    )
    program.settle([16], (Open(11, masked=False, edited=True),))
    canvas = output.take(program)[-1]
    assert isinstance(canvas, Canvas) and canvas.text == "a\u00e9b"
    assert canvas.tokens[:2] == (first, CanvasToken(1, 2, "settled", exp(-0.5), 2))
    assert canvas.tokens[2].state == "edited"


def test_a_canvas_shows_no_token_that_may_be_part_of_a_stop_string() -> None:
    asked = replace(request(max_tokens=9, stop=("bb",)), canvas=True, canvas_tokens=True)
    program = Script(Task((5, 6), 9, asked.decoding, frozenset()), tiny.TRAITS["causal-shift"])
    output = Output(asked, Pieces())  # type: ignore[arg-type]
    program.settle([10, 13])
    (canvas,) = (event for event in output.take(program) if isinstance(event, Canvas))
    assert canvas.text == "aa" and [(token.start, token.end) for token in canvas.tokens] == [(0, 1), (1, 2)]
    program.settle([10])
    (canvas,) = (event for event in output.take(program) if isinstance(event, Canvas))
    assert [(token.start, token.end) for token in canvas.tokens] == [(0, 1), (1, 3), (3, 4)]


@pytest.mark.parametrize(
    ("suffix", "lines"),
    [
        ("\n    return x\nmore", {"\n    return x\n"}),
        ("\r\n\r\n  a\r\n", {"\r\n\r\n  a\r\n", "\r\n  a\r\n"}),
        (")\nb", {")\n"}),
        ("\n\n\nend", {"\n\n\nend", "\nend"}),
        (")", set()),
        ("\n  \n", set()),
        ("", set()),
    ],
)
def test_the_suffixs_first_line_needs_a_break_beside_it(suffix: str, lines: set[str]) -> None:
    assert set(repeats_of(suffix)) == lines


@pytest.mark.parametrize(
    ("tokens", "text"),
    [
        ([17, 12, 17, 11, 12], "\n\nc\n\nbc"),  # another line begins alike
        ([17, 12, 17, 11, 17], "\n\nc"),
        ([17, 12, 17, 11, tiny.EOS], "\n\nc"),  # the end takes the place of the break
        ([10, 11, 17, 12, 10], "ab"),  # what begins within a line ends with it
        ([10, 11, tiny.EOS], "ab"),
    ],
)
@pytest.mark.parametrize("size", [1, 5])
def test_a_middle_ends_where_it_would_repeat_the_suffix(tokens: list[int], text: str, size: int) -> None:
    request = Request("x", (10, 11), Sampling(max_tokens=5), Decoding("ar"), (17, 11, 17, 12))
    program = Script(Task((10, 11), 5, request.decoding, frozenset({tiny.EOS})), tiny.TRAITS["causal-shift"])
    output = Output(request, Pieces(), before_suffix=True)  # type: ignore[arg-type]
    events: list[Event] = []
    for start in range(0, len(tokens), size):
        if program.finish is None:
            program.settle(tokens[start : start + size])
            events += output.take(program)
    assert "".join(event.text for event in events if isinstance(event, Text)) == text
    finish = events[-1]
    assert isinstance(finish, Finish) and not finish.stop_string
    assert finish.reason == ("length" if text.endswith("bc") else "stop")
