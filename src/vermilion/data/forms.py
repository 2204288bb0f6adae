"""Questions whose answers are held to a grammar: JSON objects of a schema, and calls of functions.

Schemas and functions are put together from the word lists of the prompts, told to the model as the service
tells it, and enforced by the same grammars.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vermilion.data.conversations import CALL_BEGIN, CALL_END, described, schema_hint
from vermilion.types import Grammar

_MOST_FIELDS = 5
_TEXT: Mapping[str, Any] = {"type": "string"}
_PLACE = {
    "type": "object",
    "properties": {"street": _TEXT, "city": _TEXT},
    "required": ["street", "city"],
    "additionalProperties": False,
}
_TYPES: Mapping[str, Mapping[str, Any]] = {
    "id": {"type": "integer"},
    "year": {"type": "integer"},
    "count": {"type": "integer"},
    "price": {"type": "number"},
    "weight": {"type": "number"},
    "rating": {"type": "integer", "minimum": 1, "maximum": 5},
    "duration": {"type": "integer"},
    "enabled": {"type": "boolean"},
    "tags": {"type": "array", "items": _TEXT, "maxItems": 4},
    "status": {"enum": ["new", "active", "paused", "done"]},
    "size": {"enum": ["small", "medium", "large"]},
    "address": _PLACE,
}
"""Of fields that are not text."""


@dataclass(frozen=True, slots=True)
class Form:
    """What the model is told beside the question, and what holds its answer."""

    system: str
    grammar: Grammar


def json_form(fields: Sequence[str], generator: random.Random) -> Form:
    """An object with some of these fields."""
    schema = json.dumps(_object(fields, generator))
    return Form(schema_hint(schema), Grammar("json_schema", schema))


def call_form(verbs: Sequence[str], thing: str, fields: Sequence[str], generator: random.Random) -> Form:
    """Up to three functions on a thing, of which one must be called."""
    chosen = generator.sample(list(verbs), generator.randint(1, min(3, len(verbs))))
    functions = [
        {
            "name": f"{verb}_{thing.replace(' ', '_')}",
            "description": f"{verb.capitalize()} a {thing}.",
            "parameters": _object(fields, generator),
        }
        for verb in chosen
    ]
    rules = ["start: " + " | ".join(f"call{number}" for number in range(len(functions)))]
    for number, function in enumerate(functions):
        body = {
            "type": "object",
            "properties": {"name": {"const": function["name"]}, "arguments": function["parameters"]},
            "required": ["name", "arguments"],
            "additionalProperties": False,
            "x-guidance": {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "},
        }
        rules.append(f'call{number}: "{CALL_BEGIN}\\n" body{number} "\\n{CALL_END}"')
        rules.append(f"body{number}: %json {json.dumps(body)}")
    return Form(described(functions), Grammar("lark", "\n".join(rules)))


def _object(fields: Sequence[str], generator: random.Random) -> dict[str, Any]:
    names = generator.sample(list(fields), generator.randint(2, min(_MOST_FIELDS, len(fields))))
    return {
        "type": "object",
        "properties": {name: _TYPES.get(name, _TEXT) for name in names},
        "required": names,
        "additionalProperties": False,
    }
