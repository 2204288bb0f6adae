"""A grammar that crashes, hangs or has no text costs the helper process at the most."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.engine.test_grammar import VOCAB, Bytes
from vermilion.decoding import compiler, grammar
from vermilion.decoding.compiler import Compiler
from vermilion.decoding.finite import endless_rule
from vermilion.decoding.grammar import Grammars
from vermilion.errors import BadRequest
from vermilion.types import Grammar


def chained_rules(count: int) -> Grammar:
    rules = [f'r{i}: "a" r{i + 1}' for i in range(count)]
    return Grammar("lark", "\n".join(["start: r0", *rules, f'r{count}: "a"']))


def chained_references(count: int) -> Grammar:
    links: dict[str, Any] = {f"d{i}": {"$ref": f"#/$defs/d{i + 1}"} for i in range(count)}
    return Grammar(
        "json_schema",
        json.dumps({"$defs": {**links, f"d{count}": {"type": "string"}}, "$ref": "#/$defs/d0"}),
    )


def schema(**keys: Any) -> Grammar:
    return Grammar("json_schema", json.dumps(keys))


@pytest.fixture
def grammars() -> Grammars:
    return Grammars(Bytes(), VOCAB)  # type: ignore[arg-type]


@pytest.mark.parametrize("hostile", [chained_rules(2900), chained_references(5000), chained_rules(8000)])
def test_what_overflows_the_stack_is_refused_and_the_next_is_served(
    grammars: Grammars, hostile: Grammar
) -> None:
    for _ in range(2):
        with pytest.raises(BadRequest, match="too deep"):
            grammars.constraint(hostile)
    assert grammars.constraint(chained_rules(400)).allowed()
    assert grammars.constraint(chained_references(200)).allowed()


def test_deep_nesting_is_refused(grammars: Grammars) -> None:
    for text in ("[" * 90_000, '{"items":' * 15_000 + "{}" + "}" * 15_000):
        with pytest.raises(BadRequest, match="response_format"):
            grammars.constraint(Grammar("json_schema", text))


def test_what_takes_too_long_is_refused_and_stays_refused(
    grammars: Grammars, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = Compiler()
    monkeypatch.setattr(grammar, "SHARED", own)
    monkeypatch.setattr(compiler, "TIMEOUT_S", 0.3)
    try:
        assert grammars.constraint(Grammar("regex", "a")).allowed()
        first = own._process
        assert first is not None
        first.send_signal(19)  # SIGSTOP: it hangs.
        with pytest.raises(BadRequest, match="too slow"):
            grammars.constraint(Grammar("regex", "b"))
        assert first.poll() is not None
        monkeypatch.setattr(compiler, "TIMEOUT_S", 30.0)
        with pytest.raises(BadRequest, match="too slow"):
            grammars.constraint(Grammar("regex", "b"))
        assert grammars.constraint(Grammar("regex", "c")).allowed()
    finally:
        own.close()


def test_what_works_too_long_ends_its_process(grammars: Grammars, monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit on work, not on time: a busy machine refuses nobody."""
    own = Compiler()
    monkeypatch.setattr(grammar, "SHARED", own)
    command = compiler.COMMAND
    busy = (
        "import vermilion.decoding.compile_worker as w; w.CPU_S = 0.2\ndef spin(*given):\n while True: pass"
    )
    monkeypatch.setattr(compiler, "COMMAND", [*command[:1], "-c", f"{busy}\nw.attempt = spin\nw.main()"])
    try:
        with pytest.raises(BadRequest, match="too slow"):
            grammars.constraint(Grammar("regex", "a"))
        assert own._process is None
        monkeypatch.setattr(compiler, "COMMAND", command)
        assert grammars.constraint(Grammar("regex", "b")).allowed()
    finally:
        own.close()


def test_a_slow_grammar_holds_up_nobody_who_uses_another(
    grammars: Grammars, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = Grammar("regex", "[a-z]{3}")
    grammars.constraint(known)
    entered, go_on = threading.Event(), threading.Event()

    class Slow:
        def attempt(self, *given: Any) -> tuple[str, str]:
            entered.set()
            assert go_on.wait(20)
            return "", "too slow"

    monkeypatch.setattr(grammar, "SHARED", Slow())

    def compile_slowly() -> None:
        with pytest.raises(BadRequest):
            grammars.constraint(Grammar("regex", "slow"))

    thread = threading.Thread(target=compile_slowly)
    thread.start()
    assert entered.wait(20)
    began = time.perf_counter()
    assert grammars.constraint(known).allowed()
    assert time.perf_counter() - began < 1.0
    go_on.set()
    thread.join()


@pytest.mark.parametrize(
    ("hopeless", "reason"),
    [
        (Grammar("regex", r"[^\s\S]"), "no text fits"),
        (Grammar("regex", r"ab[^\s\S]"), "no text fits"),
        (Grammar("lark", 'start: "a" start'), "no text of it ever ends"),
        (Grammar("lark", 'start: LETTER start\nLETTER: /[a-z]/'), "no text of it ever ends"),
        (Grammar("lark", 'start: "x" b | b "y"\nb: "(" b ")" | c+\nc: b "?"'), "no text of it ever ends"),
        (Grammar("lark", 'start: "a" %json {"type": "array", "items": {"$ref": "#"}, "minItems": 2}'),
         "no text of it ever ends"),
        (schema(type="object", properties={"a": {"$ref": "#"}}, required=["a"]), "no text of it ever ends"),
        (schema(type="array", items={"$ref": "#"}, minItems=1), "no text of it ever ends"),
        (Grammar("json_schema", json.dumps(
            {"$defs": {"a": {"anyOf": [{"$ref": "#/$defs/b"}, {"allOf": [{"$ref": "#/$defs/a"}]}]},
                       "b": {"type": "array", "items": {"$ref": "#/$defs/a"}, "minItems": 1}},
             "$ref": "#/$defs/a"})), "#/\\$defs/"),
        (Grammar("json_schema", "false"), "Unsatisfiable"),
        (schema(type="integer", minimum=5, maximum=3), "Unsatisfiable"),
        (schema(const="x" * 70_000), "forces more than"),
        (schema(type="object", properties={f"p{i}": {"type": "integer"} for i in range(900)}), "too|max"),
    ],
    ids=lambda value: str(value)[:60],
)  # fmt: skip
def test_a_grammar_without_a_finite_text_is_refused_with_the_reason(
    grammars: Grammars, hopeless: Grammar, reason: str
) -> None:
    with pytest.raises(BadRequest, match=reason) as refusal:
        grammars.constraint(hopeless)
    assert refusal.value.status == 400 and refusal.value.param == "response_format"
    assert len(str(refusal.value)) < 600


@pytest.mark.parametrize(
    "fine",
    [
        Grammar("lark", 'start: "(" start ")" | "x"'),
        Grammar("lark", 'start: item ("," item)*  // a list\nitem: NUM | "[" start? "]"\nNUM: /[0-9]+/'),
        Grammar("lark", 'start: a{0,3} b\na: "x" a\nb: "b"i | "0".."9"'),
        schema(type="object", properties={"a": {"$ref": "#"}}),
        schema(type="array", items={"$ref": "#"}),
        schema(type="object", properties={"a": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}}, required=["a"]),
        schema(type="object", properties={f"name{i}": {"type": "string"} for i in range(500)},
               additionalProperties=False),
    ],
    ids=lambda value: value.text[:60],
)  # fmt: skip
def test_recursion_that_can_end_is_fine(grammars: Grammars, fine: Grammar) -> None:
    assert grammars.constraint(fine).allowed()


RULES = st.lists(
    st.lists(st.lists(st.sampled_from(["a", "b", "c", "d", '"x"']), max_size=3), min_size=1, max_size=3),
    min_size=4,
    max_size=4,
)


@settings(max_examples=200, deadline=None)
@given(RULES)
def test_endless_rules_are_those_without_a_derivation(rules: list[list[list[str]]]) -> None:
    """The oracle searches for a derivation of bounded depth: four rules need no more than four levels."""
    names = ("start", "b", "c", "d")
    bodies = {
        name: [[{"a": "start"}.get(item, item) for item in part] for part in rule]
        for name, rule in zip(names, rules, strict=True)
    }

    def derives(item: str, depth: int) -> bool:
        if item.startswith('"'):
            return True
        return depth > 0 and any(all(derives(part, depth - 1) for part in parts) for parts in bodies[item])

    text = "\n".join(
        f"{name}: " + " | ".join(" ".join(part) or '""' for part in parts) for name, parts in bodies.items()
    )
    assert bool(endless_rule("lark", text)) == (not derives("start", 4))


def test_what_is_not_understood_counts_as_finite() -> None:
    for text in ("start: x &", '%import common.INT\nstart: "a" start', "start[capture]: start", "start: @x"):
        assert endless_rule("lark", text) == ""


@pytest.fixture(autouse=True, scope="module")
def closed() -> Iterator[None]:
    yield
    compiler.SHARED.close()
