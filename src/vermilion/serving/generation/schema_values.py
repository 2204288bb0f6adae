"""What the keywords of a JSON schema may have as values, and which of them no grammar can hold."""

from __future__ import annotations

import json
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

Schema = dict[str, Any]
TYPES = ("string", "number", "integer", "boolean", "null", "array", "object")
_MEANT = {
    "dict": "object",
    "map": "object",
    "hashmap": "object",
    "list": "array",
    "tuple": "array",
    "set": "array",
    "arraylist": "array",
    "float": "number",
    "double": "number",
    "decimal": "number",
    "int": "integer",
    "long": "integer",
    "short": "integer",
    "byte": "integer",
    "bool": "boolean",
    "str": "string",
    "char": "string",
    "text": "string",
    "none": "null",
}
"""What programming languages call the types; people write these in the descriptions of tools."""
FORMATS = frozenset(
    ("date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri")
)
"""Formats that the grammar library knows."""
_UNHELD_FORMATS = frozenset(
    (
        *("idn-email", "idn-hostname", "iri", "iri-reference", "uri-reference", "uri-template"),
        *("json-pointer", "relative-json-pointer", "regex", "ip-address", "host-name", "color", "phone"),
    )
)
"""Formats that say how a text must look, without a grammar; all other words are annotations."""
_COUNTS = {
    "minLength": "string",
    "maxLength": "string",
    "minItems": "array",
    "maxItems": "array",
    "minProperties": "object",
    "maxProperties": "object",
}
_BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
_LARGEST = 2**53
"""Bounds beyond it are drawn in: the integers up to it are exact everywhere, and the grammar library fails
at those of 64 bits."""
_MAX_DIGITS = 7
"""Of a `multipleOf`; the grammar library refuses some of 9."""
_UNHELD = {
    "not": None,
    "if": None,
    "disallow": None,
    "extends": None,
    "divisibleBy": "number",
    "$dynamicRef": None,
    "$recursiveRef": None,
    "contains": "array",
    "uniqueItems": "array",
    "unevaluatedItems": "array",
    "propertyNames": "object",
    "dependencies": "object",
    "dependentRequired": "object",
    "dependentSchemas": "object",
    "unevaluatedProperties": "object",
}
"""Keywords that no grammar holds -> the one type they say something about."""


def shown(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)[:40]


def listed(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def types(given: object) -> tuple[list[str], list[str]]:
    """The types that are meant, and what was no type. `any` is all of them, which is none said."""
    known: list[str] = []
    unknown: list[str] = []
    for name in given if isinstance(given, list) else [given]:
        word = name.lower() if isinstance(name, str) else ""
        meant = word if word in TYPES else _MEANT.get(word)
        if meant is None and word != "any":
            unknown.append(shown(name))
        elif meant is not None and meant not in known:
            known.append(meant)
    return ([] if unknown and not known else known), unknown


def type_of(value: object) -> str:
    for kind, name in ((bool, "boolean"), (str, "string"), (int | float, "number"), (list, "array")):
        if isinstance(value, kind):
            return name
    return "null" if value is None else "object"


def contradicted(given: Schema, held: Schema) -> bool:
    """Whether none of the values that are listed has a type that is allowed."""
    found = listed(given.get("enum")) or ([given["const"]] if "const" in given else [])
    return bool(found) and not any(applies(held, type_of(value)) for value in found)


def applies(held: Schema, kind: str) -> bool:
    """Whether what `held` allows so far may be of the type `kind`."""
    given = held.get("type")
    allowed = given if isinstance(given, list) else [given]
    return given is None or kind in allowed or (kind == "number" and "integer" in allowed)


def plain(given: Schema, held: Schema) -> Iterator[tuple[str, Any, str]]:
    """(keyword, value, why it is left out): keywords without schemas in them; the last is empty for most."""
    if "const" in given:
        yield "const", given["const"], ""
    if "enum" in given:
        yield "enum", given["enum"], "" if isinstance(given["enum"], list) else "it must be a list"
    yield from _counts(given, held)
    if applies(held, "number"):
        yield from _numbers(given, held)
    if "required" in given and applies(held, "object") and given["required"] not in (False, None):
        names = given["required"]
        good = isinstance(names, list) and all(isinstance(name, str) for name in names)
        yield "required", names, "" if good else "it must be a list of names"
    name = given.get("format")
    if applies(held, "string") and isinstance(name, str):
        if name in FORMATS:
            yield "format", name, ""
        elif name in _UNHELD_FORMATS:
            yield "format", name, f"{name} has no grammar"


def _counts(given: Schema, held: Schema) -> Iterator[tuple[str, Any, str]]:
    for keyword, kind in _COUNTS.items():
        value = given.get(keyword)
        if value is None or not applies(held, kind):
            continue
        whole = isinstance(value, int | float) and not isinstance(value, bool) and value == int(value) >= 0
        yield keyword, int(value) if whole else value, "" if whole else "it must be a whole number from 0"


def _numbers(given: Schema, held: Schema) -> Iterator[tuple[str, Any, str]]:
    for keyword in _BOUNDS:
        value = given.get(keyword)
        exclusive = given.get(f"exclusive{keyword[0].upper()}{keyword[1:]}")
        if value is None or value is False or (value is True and keyword.startswith("exclusive")):
            continue
        good = isinstance(value, int | float) and not isinstance(value, bool)
        # Up to draft 4 the exclusive bound was a flag beside the bound.
        name = f"exclusive{keyword[0].upper()}{keyword[1:]}" if exclusive is True else keyword
        yield name, _within(keyword, value) if good else value, "" if good else "it must be a number"
    value = given.get("multipleOf")
    if value is not None:
        good = isinstance(value, int | float) and not isinstance(value, bool) and value > 0
        good = good and len(Decimal(str(value)).normalize().as_tuple().digits) <= _MAX_DIGITS
        yield "multipleOf", value, "" if good else f"it must be a number above 0 of {_MAX_DIGITS} digits"


def _within(keyword: str, value: float) -> float:
    lower = keyword.lower().endswith("minimum")
    beyond = value < -_LARGEST if lower else value > _LARGEST
    if beyond:
        return -_LARGEST if lower else _LARGEST
    return int(value) if isinstance(value, float) and value == int(value) else value


def unenforced(given: Schema, held: Schema) -> Iterator[tuple[str, str]]:
    """The keywords of `given` that say something which no grammar holds, each with the reason."""
    for keyword, kind in _UNHELD.items():
        if keyword in given and (kind is None or applies(held, kind)) and not _idle(keyword, given, held):
            yield keyword, "no grammar can hold it"


def _idle(keyword: str, given: Schema, held: Schema) -> bool:
    """Whether the keyword says nothing here, or is enforced by other means."""
    value = given[keyword]
    if keyword == "if":
        return "then" not in given and "else" not in given
    if keyword == "contains":
        return given.get("minContains") == 0 and "maxContains" not in given
    if keyword == "uniqueItems":
        return value is not True or held.get("maxItems", 2) < 2
    if keyword == "unevaluatedProperties" and value is False:
        return held.get("additionalProperties") is False
    if keyword == "propertyNames":
        return value in (True, {}, {"type": "string"})
    return value is True or value == {} or (keyword == "not" and value is False)
