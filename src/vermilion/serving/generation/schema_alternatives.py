"""Whether the alternatives of a `oneOf` exclude each other, so that any of them is one of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from vermilion.serving.generation.schema_values import TYPES, type_of

Schema = dict[str, Any]
_MAX_STEPS = 16
"""References and branches followed from one alternative."""


def exclusive(alternatives: Sequence[Schema], definitions: Mapping[str, Any]) -> bool:
    """Whether no value that is written for one can be one of another; False where that is not seen."""
    followed = [_followed(one, definitions) for one in alternatives]
    return all(_apart(one, other, definitions, 0) for one, other in combinations(followed, 2))


def _followed(schema: Schema, definitions: Mapping[str, Any]) -> Schema:
    """`schema` with what its references and a lone `allOf` say beside its own keywords."""
    for _ in range(_MAX_STEPS):
        held = schema.get("allOf", ())
        if "$ref" in schema:
            target = definitions[schema["$ref"].rpartition("/")[2]]
            schema = {**target, **{key: value for key, value in schema.items() if key != "$ref"}}
        elif len(held) == 1:
            schema = {**held[0], **{key: value for key, value in schema.items() if key != "allOf"}}
        else:
            break
    return schema


def _apart(one: Schema, other: Schema, definitions: Mapping[str, Any], depth: int) -> bool:
    if depth > _MAX_STEPS:
        return False
    for first, second in ((one, other), (other, one)):
        if "anyOf" in first:
            branches = [_followed(branch, definitions) for branch in first["anyOf"]]
            own = {key: value for key, value in first.items() if key != "anyOf"}
            if all(_apart({**own, **branch}, second, definitions, depth + 1) for branch in branches):
                return True
    if not _types(one) & _types(other):
        return True
    values, others = _values(one), _values(other)
    if values is not None and others is not None:
        return not values & others
    return _types(one) & _types(other) == {"object"} and _objects_apart(one, other, definitions, depth)


def _objects_apart(one: Schema, other: Schema, definitions: Mapping[str, Any], depth: int) -> bool:
    mine, theirs = one.get("properties", {}), other.get("properties", {})
    needed, wanted = set(one.get("required", ())), set(other.get("required", ()))
    for name in mine.keys() & theirs.keys() & (needed | wanted):
        pair = _followed(mine[name], definitions), _followed(theirs[name], definitions)
        if _apart(*pair, definitions, depth + 1):
            return True
    # Each needs what the other, being closed, cannot have.
    return _lacks(other, needed) and _lacks(one, wanted)


def _lacks(schema: Schema, names: set[str]) -> bool:
    closed = schema.get("additionalProperties") is False and not schema.get("patternProperties")
    return closed and bool(names - schema.get("properties", {}).keys())


def _types(schema: Schema) -> set[str]:
    given = schema.get("type", TYPES)
    types = {given} if isinstance(given, str) else set(given)
    if "type" not in schema and _values(schema) is not None:
        found = [schema["const"]] if "const" in schema else schema["enum"]
        types = {type_of(value) for value in found}
    # Every integer is a number.
    return types | ({"integer"} if "number" in types else set())


def _values(schema: Schema) -> set[str] | None:
    if "const" in schema:
        return {_written(schema["const"])}
    return {_written(value) for value in schema["enum"]} if "enum" in schema else None


def _written(value: object) -> str:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return json.dumps(value, sort_keys=True)
