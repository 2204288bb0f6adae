"""Schemas as zod, pydantic and OpenAPI write them: held to, with what is left out said, or refused."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest

from serving.walking import fits, walk
from vermilion.errors import BadRequest
from vermilion.serving.generation.patterns import portable
from vermilion.serving.generation.schemas import MAX_NODES, enforceable
from vermilion.serving.http.notices import notice_headers, open_notices
from vermilion.types import Grammar

ZOD = {
    "$schema": "http://json-schema.org/draft-07/schema#",
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 9},
        "id": {"type": "string", "format": "uuid"},
        "kind": {"anyOf": [{"const": "a"}, {"const": "b"}]},
        "size": {"type": ["number", "null"], "exclusiveMinimum": 0, "maximum": 9},
        "tags": {"type": "array", "items": {"type": "string", "enum": ["x", "y"]}, "maxItems": 3},
        "count": {"type": "integer", "minimum": -9007199254740991, "maximum": 9007199254740991},
    },
    "required": ["name", "kind"],
}
PYDANTIC = {
    "$defs": {
        "Node": {
            "title": "Node",
            "type": "object",
            "properties": {
                "value": {"title": "Value", "type": "integer", "minimum": 0, "maximum": 9},
                "next": {"anyOf": [{"$ref": "#/$defs/Node"}, {"type": "null"}], "default": None},
            },
            "required": ["value", "next"],
        },
        "Cat": {
            "type": "object",
            "properties": {"pet": {"const": "cat"}, "lives": {"type": "integer", "minimum": 1, "maximum": 9}},
            "required": ["pet", "lives"],
        },
        "Dog": {"type": "object", "properties": {"pet": {"const": "dog"}}, "required": ["pet"]},
    },
    "type": "object",
    "properties": {
        "head": {"$ref": "#/$defs/Node"},
        "pet": {
            "oneOf": [{"$ref": "#/$defs/Cat"}, {"$ref": "#/$defs/Dog"}],
            "discriminator": {"propertyName": "pet", "mapping": {"cat": "#/$defs/Cat"}},
        },
        "price": {
            "anyOf": [
                {"type": "number", "minimum": 0, "maximum": 99},
                {"type": "string", "format": "decimal"},
            ]
        },
    },
    "required": ["head", "pet"],
}
TREE = {
    "type": "object",
    "properties": {
        "leaf": {"type": "boolean"},
        "children": {"type": "array", "maxItems": 1, "items": {"$ref": "#"}},
    },
    "required": ["leaf"],
}
NESTED = {
    "type": "object",
    "properties": {
        "point": {
            "type": "object",
            "properties": {
                "x": {"$ref": "#/properties/point/$defs/Unit"},
                "y": {"$ref": "#/properties/unit"},
            },
            "required": ["x", "y"],
            "$defs": {"Unit": {"type": "number", "minimum": 0, "maximum": 1}},
        },
        "unit": {"enum": ["m", "km"]},
    },
    "required": ["point"],
}
OPENAPI = {
    "type": "object",
    "properties": {
        "secret": {"type": "string", "format": "password", "maxLength": 4},
        "raw": {"type": "string", "format": "byte", "maxLength": 4},
        "big": {"type": "integer", "format": "int64", "minimum": -(2**63), "maximum": 2**63 - 1},
        "price": {"type": "number", "format": "double", "minimum": -1.7e308, "maximum": 1.7e308},
        "old": {"type": "integer", "minimum": 3, "exclusiveMinimum": True, "maximum": 6},
    },
    "required": ["secret", "raw", "big", "price", "old"],
}


def grammar(held: dict[str, Any], strict: bool = True) -> Grammar:
    return Grammar("json_schema", json.dumps({**held, "x-guidance": {"lenient": not strict}}))


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize(
    "schema", [ZOD, PYDANTIC, TREE, NESTED, OPENAPI], ids=["zod", "pydantic", "tree", "nested", "openapi"]
)
def test_what_generators_write_is_held_to_whole(schema: dict[str, Any], strict: bool) -> None:
    notices = open_notices()
    held = enforceable(schema, "it", "tools", strict)
    dialect = jsonschema.Draft4Validator if schema is OPENAPI else jsonschema.Draft202012Validator
    judge = dialect(
        {**schema, "$schema": dialect.META_SCHEMA.get("$schema", "")}, format_checker=dialect.FORMAT_CHECKER
    )
    for seed in range(8):
        judge.validate(json.loads(walk(grammar(held, strict), seed)))
    assert notices == []


@pytest.mark.parametrize(
    ("schema", "path", "keyword"),
    [
        ({"type": "object", "propertyNames": {"pattern": "^a"}}, "", "propertyNames"),
        (
            {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}},
            "/properties/a",
            "uniqueItems",
        ),
        ({"type": "string", "format": "json-pointer"}, "", "format"),
        ({"type": "string", "pattern": "^(?=.*[0-9]).{4,9}$"}, "", "pattern"),
        ({"type": "string", "pattern": r"\bword\b"}, "", "pattern"),
        ({"items": [{"type": "string", "pattern": r"(a)\1"}]}, "/prefixItems/0", "pattern"),
        ({"patternProperties": {"(?!a)": {"type": "string"}}}, "/patternProperties/(?!a)", "pattern"),
        ({"patternProperties": {"a": {"type": "string"}, "b": {"type": "null"}}}, "", "patternProperties"),
        ({"type": "string", "not": {"const": "a"}}, "", "not"),
        ({"if": {"type": "string"}, "then": {"minLength": 1}}, "", "if"),
        ({"type": "array", "contains": {"type": "string"}}, "", "contains"),
        ({"type": "object", "dependentRequired": {"a": ["b"]}}, "", "dependentRequired"),
        ({"type": "object", "properties": None}, "", "properties"),
        ({"type": "object", "properties": []}, "", "properties"),
        ({"type": "object", "required": True}, "", "required"),
        ({"type": "frob"}, "", "type"),
        ({"type": "integer", "enum": ["one", "two"]}, "", "type"),
        ({"$ref": "https://example.org/elsewhere"}, "", "$ref"),
        ({"oneOf": [{"type": "string"}, {"type": "string", "minLength": 2}]}, "", "oneOf"),
        ({"properties": {"a": 3}}, "/properties/a", "3"),
        ({"minLength": -1}, "", "minLength"),
        ({"multipleOf": 0.123456789}, "", "multipleOf"),
        ({"properties": {"a": {}, "b": {}}, "minProperties": 1}, "", "minProperties"),
        ({"properties": {"a": {}, "b": {}}, "maxProperties": 1}, "", "maxProperties"),
    ],
)
def test_what_no_grammar_holds_is_named_or_refused(schema: dict[str, Any], path: str, keyword: str) -> None:
    notices = open_notices()
    json.loads(walk(grammar(enforceable(schema, "it", "tools"), strict=False), 0))
    assert notices == [f"it#{path}: {keyword}"]
    with pytest.raises(BadRequest) as refused:
        enforceable(schema, "it", "tools", strict=True)
    assert str(refused.value).startswith(f"tools: it: #{path}: {keyword} ")
    assert refused.value.param == "tools"


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({"properties": {"a": {"type": "integer"}}}, ['{"a": 1}', "{}"], ['{"b": 1}', "3"]),
        ({"type": "object"}, ["{}", '{"b": 1}'], ["3"]),
        ({"properties": {"a": {}}, "additionalProperties": True}, ['{"b": 1}'], []),
        ({"type": "object", "properties": {"a": {}}, "required": ["b"]}, ['{"b": 1}'], ["{}"]),
        ({"type": "object", "properties": {"a": {}}, "maxProperties": 1}, ['{"a": 1}', "{}"], ['{"b": 1}']),
        ({"type": "object", "minProperties": 2}, ['{"a": 1, "b": 1}'], ['{"a": 1}']),
        (
            {
                "type": "object",
                "allOf": [
                    {"properties": {"a": {"const": 1}}, "required": ["a"]},
                    {"properties": {"b": {"const": 2}}, "required": ["b"]},
                ],
            },
            ['{"a": 1, "b": 2}'],
            ['{"a": 1}'],
        ),
        (
            {
                "type": "object",
                "properties": {"a": {}, "b": {}},
                "anyOf": [{"required": ["a"]}, {"required": ["b"]}],
            },
            ['{"a": 1}', '{"b": 1}'],
            ["{}", '{"a": 1, "c": 1}'],
        ),
        ({"$id": "https://a/b", "$ref": "#/$defs/x", "$defs": {"x": {"type": "null"}}}, ["null"], ["1"]),
        (
            {
                "items": {"$id": "https://a/b", "$ref": "#/$defs/x"},
                "type": "array",
                "$defs": {"x": {"const": 1}},
            },
            ["[1]"],
            ["[2]"],
        ),
        (
            {"$ref": "#n", "$defs": {"x": {"$anchor": "n", "const": 1}, "y": {"enum": [{"$anchor": "n"}]}}},
            ["1"],
            ["2"],
        ),
        ({"$ref": "item", "$defs": {"x": {"$id": "item", "const": 1}}}, ["1"], ["2"]),
        ({"type": "dict", "properties": {"a": {"type": "float"}}}, ['{"a": 1.5}'], ["[]"]),
        ({"type": "any"}, ["1", "[]"], []),
        ({"not": {}, "type": "string"}, [], []),
        (
            {
                "oneOf": [
                    {"properties": {"a": {}}, "required": ["a"]},
                    {"properties": {"b": {}}, "required": ["b"]},
                ]
            },
            ['{"a": 1}', '{"b": 1}'],
            ['{"a": 1, "b": 1}'],
        ),
        ({"x-guidance": {"lenient": True}, "type": "null", "unknown": {"pattern": 3}}, ["null"], ["1"]),
    ],
)
def test_what_an_answer_may_be(schema: dict[str, Any], good: list[str], bad: list[str]) -> None:
    held = enforceable(schema, "it", "tools", strict=True)
    if schema.get("not") == {}:
        assert held == {"enum": []}
        return
    for text in good:
        assert fits(grammar(held), text), text
    for text in bad:
        assert not fits(grammar(held), text), text


@pytest.mark.parametrize(
    ("pattern", "written"),
    [
        (r"^\d{3}$", "^[0-9]{3}$"),
        (r"[\d.]+", "[0-9.]+"),
        (r"[[a&&b~-]", r"[\[a\&\&b\~-]"),
        (r"\/x", r"\/x"),
        (r"[^\d]", r"[^\d]"),
        (r"\cA", r"\x01"),
        (r"(?<year>a)(?:b)", r"(?<year>a)(?:b)"),
        (r"(?=a)", None),
        (r"(?<!a)b", None),
        (r"a\b", None),
        (r"(a)\1", None),
        ("a^b", None),
        ("[a", None),
        ("(a", None),
        ("\\", None),
        ("a" * 5000, None),
        ("(" * 2000 + ")" * 2000, None),
    ],
)
def test_patterns_in_the_grammars_dialect(pattern: str, written: str | None) -> None:
    assert portable(pattern) == written


def test_a_schema_has_bounds() -> None:
    deep: dict[str, Any] = {}
    for _ in range(150):
        deep = {"items": deep}
    wide = {"properties": {str(number): {} for number in range(MAX_NODES)}}
    for schema in (deep, wide):
        with pytest.raises(BadRequest, match="too large"):
            enforceable(schema, "it", "tools")
    chain = {f"d{number}": {"$ref": f"#/$defs/d{number + 1}"} for number in range(5000)}
    held = enforceable({"$ref": "#/$defs/d0", "$defs": {**chain, "d5000": {"const": 1}}}, "it", "tools")
    assert len(held["$defs"]) == 5001


def test_the_header_is_ascii_and_bounded() -> None:
    ((name, value),) = notice_headers([f"tool#/properties/größe\n{number}: format" for number in range(200)])
    assert name == b"x-schema-ignored"
    assert value.startswith(b"tool#/properties/gr%C3%B6%C3%9Fe%0A0: format, tool#")
    assert value.endswith(b", ...") and len(value) < 2100
    assert notice_headers([]) == []
