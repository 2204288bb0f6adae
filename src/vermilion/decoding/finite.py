"""Whether a grammar has any finite text: a rule that always needs itself again can never be finished.

The answer is "no" only where that is certain. What is not understood counts as finite, so that a grammar is
never refused for a construct that this reading does not know.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

_TOKEN = re.compile(
    r"""(?P<skip>\s+|//[^\n]*|\#[^\n]*)|(?P<text>"(?:[^"\\\n]|\\.)*"i?)|(?P<regex>/(?:[^/\\\n]|\\.)+/[a-z]*)"""
    r"""|(?P<arrow>->\s*\w+|\.\.)|(?P<times>~\s*\d+(?:\s*\.\.\s*\d+)?|\{\s*\d*\s*(?:,\s*\d*\s*)?\})"""
    r"""|(?P<special><[^>\n]*>)|(?P<name>[A-Za-z_]\w*)|(?P<json>%json\b)|(?P<sign>[()\[\]|?*+:])""",
    re.VERBOSE,
)
_ENDLESS = "%endless"
_Known = Callable[[str], bool]
_Grammar = Mapping[str, Callable[[_Known], bool]]


def endless_rule(kind: str, text: str) -> str:
    """The rule or reference that can never be finished, of those a text must have; empty if none is known."""
    if kind == "lark":
        rules = _lark_rules(text)
        return "start" if rules is not None and "start" in rules and "start" not in _finite(rules) else ""
    if kind == "json_schema":
        return _endless_schema(json.loads(text))
    return ""


def _finite(rules: _Grammar) -> set[str]:
    """The rules that have a finite text: the least fixed point."""
    found: set[str] = set()
    grown = True
    while grown:
        grown = False
        for name, has_text in rules.items():
            if name not in found and has_text(lambda other: other in found or other not in rules):
                found.add(name)
                grown = True
    return found


def _endless_schema(schema: Any) -> str:
    targets: dict[str, Callable[[_Known], bool]] = {}
    for pointer in _references(schema):
        target = _target(schema, pointer)
        if target is not None:
            targets[pointer] = lambda known, target=target: _has_value(target, known)  # type: ignore[misc]
    finite = _finite(targets)
    if _has_value(schema, lambda pointer: pointer in finite or pointer not in targets):
        return ""
    return next((pointer for pointer in targets if pointer not in finite), "#")


def _references(schema: Any) -> set[str]:
    found: set[str] = set()
    rest = [schema]
    while rest:
        value = rest.pop()
        if isinstance(value, dict):
            if isinstance(value.get("$ref"), str):
                found.add(value["$ref"])
            rest += value.values()
        elif isinstance(value, list):
            rest += value
    return found


def _target(schema: Any, pointer: str) -> Any:
    """What a reference into the schema itself points at; None for one that leads elsewhere."""
    if not pointer.startswith("#"):
        return None
    place = schema
    for part in pointer[1:].split("/")[1:]:
        name = part.replace("~1", "/").replace("~0", "~")
        if not isinstance(place, dict) or name not in place:
            return None
        place = place[name]
    return place


def _has_value(schema: Any, known: _Known) -> bool:
    if not isinstance(schema, dict):
        return True
    if isinstance(schema.get("$ref"), str) and not known(schema["$ref"]):
        return False
    if not all(_has_value(part, known) for part in _listed(schema.get("allOf"))):
        return False
    for choice in ("anyOf", "oneOf"):
        parts = _listed(schema.get(choice))
        if parts and not any(_has_value(part, known) for part in parts):
            return False
    if "enum" in schema or "const" in schema:
        return True
    if schema.get("type") in ("object", ["object"]):
        properties, others = schema.get("properties"), schema.get("additionalProperties", True)
        given = properties if isinstance(properties, dict) else {}
        names = [name for name in _listed(schema.get("required")) if isinstance(name, str)]
        return all(_has_value(given.get(name, others), known) for name in names)
    least = schema.get("minItems", 0)
    if schema.get("type") in ("array", ["array"]) and isinstance(least, int) and least > 0:
        first = _listed(schema.get("prefixItems"))[:least]
        rest = [schema["items"]] if len(first) < least and "items" in schema else []
        return all(_has_value(part, known) for part in (*first, *rest))
    return True


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


@dataclass(slots=True)
class _Lark:
    """Reads one grammar; `None` from any method means that it is not understood."""

    words: list[tuple[str, str]]
    at: int = 0

    def _peek(self, ahead: int = 0) -> tuple[str, str]:
        place = self.at + ahead
        return self.words[place] if place < len(self.words) else ("end", "")

    def _begins_rule(self) -> bool:
        return self._peek()[0] == "name" and self._peek(1) == ("sign", ":")

    def choices(self) -> Callable[[_Known], bool] | None:
        """Alternatives, up to a closing sign or the next rule."""
        parts = []
        while True:
            part = self._sequence()
            if part is None:
                return None
            parts.append(part)
            if self._peek() != ("sign", "|"):
                return lambda known: any(part(known) for part in parts)
            self.at += 1

    def _sequence(self) -> Callable[[_Known], bool] | None:
        parts: list[Callable[[_Known], bool]] = []
        while self._peek()[0] != "end" and not self._begins_rule() and self._peek()[1] not in ("|", ")", "]"):
            part = self._item()
            if part is None:
                return None
            parts.append(part)
        return lambda known: all(part(known) for part in parts)

    def _item(self) -> Callable[[_Known], bool] | None:
        kind, word = self._peek()
        self.at += 1
        found: Callable[[_Known], bool] | None
        if kind == "name":
            found = lambda known: known(word)  # noqa: E731
        elif word in ("(", "["):
            found = self.choices()
            if found is None or self._peek()[1] != {"(": ")", "[": "]"}[word]:
                return None
            self.at += 1
            found = _always if word == "[" else found
        elif kind in ("text", "regex", "special", "arrow", "schema"):
            found = _always
        else:
            return None
        while self._peek()[1] in ("?", "*", "+") or self._peek()[0] == "times":
            kind, sign = self._peek()
            least = re.search(r"\d+", sign) if kind == "times" else None
            may_miss = sign in ("?", "*") or (kind == "times" and (least is None or int(least[0]) == 0))
            found = _always if may_miss or sign.startswith("{,") else found
            self.at += 1
        return found


def _always(known: _Known) -> bool:
    return True


def _lark_rules(text: str) -> _Grammar | None:
    words = _words(text)
    if words is None:
        return None
    reader = _Lark(words)
    rules: dict[str, Callable[[_Known], bool]] = {_ENDLESS: lambda known: False}
    while reader._peek()[0] != "end":
        if not reader._begins_rule():
            return None
        name = reader._peek()[1]
        reader.at += 2
        found = reader.choices()
        if found is None or name in rules:
            return None
        rules[name] = found
    return rules


def _words(text: str) -> list[tuple[str, str]] | None:
    """(kind, word) pairs; a schema behind `%json` becomes one word, judged by itself."""
    words: list[tuple[str, str]] = []
    at = 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None or match.lastgroup is None:
            return None
        at = match.end()
        if match.lastgroup == "json":
            start = at + len(text[at:]) - len(text[at:].lstrip())
            try:
                schema, at = json.JSONDecoder().raw_decode(text, start)
            except ValueError:
                return None
            # A schema without a value is a name that no rule ever finishes.
            words.append(("name", _ENDLESS) if _endless_schema(schema) else ("schema", ""))
        elif match.lastgroup != "skip":
            words.append((match.lastgroup, match[0]))
    return words
