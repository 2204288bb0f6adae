"""JSON schemas as people have them, made into ones that a grammar can hold.

What no grammar can hold is left out and named, or refused where the caller insists (`strict`). Objects that
list their properties and are silent on others are closed: a model that may invent properties does. References
are resolved within the document and lead to one flat list of definitions.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vermilion.errors import BadRequest
from vermilion.serving.generation import schema_values as values
from vermilion.serving.generation.patterns import compiles, portable
from vermilion.serving.generation.schema_alternatives import exclusive
from vermilion.serving.generation.schema_references import SchemaReferences
from vermilion.serving.http.notices import note_ignored

Schema = dict[str, Any]
MAX_NODES = 20_000
"""Schemas within one schema, a reference's target counted once."""
_MAX_DEPTH = 100
_MAX_COMBINED = 4
_MAX_SHOWN = 80
_SHAPE = ("properties", "patternProperties", "additionalProperties", "required", "minProperties")
_NO_GRAMMAR = "look-around, references and anchors in the middle have no grammar"
_ALTERNATIVES = ("anyOf", "oneOf", "allOf")


def enforceable(schema: Schema | bool, name: str, param: str, strict: bool = False) -> Schema:
    """What a grammar can hold of `schema`; definitions, where it has any, under `$defs`.

    What is left out is told in a header of the reply, under `name`. Raises `BadRequest` where something is
    left out of a `strict` schema, naming `name`, the path and the keyword, and for one that is too large.
    """
    reader = _Reader(schema, name, param, strict)
    held = reader.read()
    note_ignored(f"{name}#{path}: {keyword}" for path, keyword in reader.ignored)
    return held


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a schema stands."""

    path: str
    base: str
    open: bool = False
    """Whether it says only a part of what an object is, so that it must not be closed."""
    depth: int = 0

    def below(self, *steps: object, open: bool = False) -> _Place:
        path = "".join(f"/{str(step).replace('~', '~0').replace('/', '~1')}" for step in steps)
        return _Place(self.path + path, self.base, open, self.depth + 1)


class _Reader:
    """Reads one document."""

    def __init__(self, root: Schema | bool, name: str, param: str, strict: bool) -> None:
        self._root = root
        self._param, self._strict = param, strict
        self._title = param if name.partition(".")[0] == param else f"{param}: {name}"
        self._references = SchemaReferences(root)
        self._names: dict[tuple[int, bool], str] = {}
        self._pending: deque[tuple[str, object, _Place]] = deque()
        self._one_of: list[tuple[list[Schema], _Place]] = []
        self._num_nodes = 0
        self.ignored: list[tuple[str, str]] = []

    def read(self) -> Schema:
        held = self._schema(self._root, _Place("", ""))
        definitions: Schema = {}
        while self._pending:
            name, target, place = self._pending.popleft()
            definitions[name] = self._schema(target, place)
        for alternatives, place in self._one_of:
            if not exclusive(alternatives, definitions):
                self._ignore(place, "oneOf", "its alternatives overlap")
        return {**held, "$defs": definitions} if definitions else held

    def _schema(self, given: object, place: _Place) -> Schema:
        self._num_nodes += 1
        if self._num_nodes > MAX_NODES or place.depth > _MAX_DEPTH:
            raise BadRequest(
                f"{self._title}: the schema is too large; allowed: {MAX_NODES} schemas within "
                f"it, nested {_MAX_DEPTH} deep.",
                self._param,
                "invalid_value",
            )
        if given is True or given is False:
            return {} if given else {"enum": []}
        if not isinstance(given, dict):
            self._ignore(place, values.shown(given), "a schema is an object, true or false")
            return {}
        if given.get("not") in ({}, True):
            return {"enum": []}
        place = _Place(place.path, self._references.base(given, place.base), place.open, place.depth)
        held: Schema = {}
        self._types(given, held, place)
        self._values(given, held, place)
        self._alternatives(given, held, place)
        self._array(given, held, place)
        self._object(given, held, place)
        for keyword, why in values.unenforced(given, held):
            self._ignore(place, keyword, why)
        return held

    def _types(self, given: Schema, held: Schema, place: _Place) -> None:
        if "type" not in given:
            if not place.open and isinstance(given.get("properties"), dict) and not _combines(given):
                held["type"] = "object"
            return
        types, unknown = values.types(given["type"])
        for name in unknown:
            self._ignore(place, "type", f"{name} is no type")
        if types:
            held["type"] = types[0] if len(types) == 1 else types
        if values.contradicted(given, held):
            self._ignore(place, "type", "none of the values that are listed has it")
            del held["type"]

    def _values(self, given: Schema, held: Schema, place: _Place) -> None:
        """Keywords whose values are no schemas."""
        for keyword, value, why in values.plain(given, held):
            if why:
                self._ignore(place, keyword, why)
            else:
                held[keyword] = value
        pattern = given.get("pattern")
        if pattern is not None and values.applies(held, "string"):
            written = portable(pattern) if isinstance(pattern, str) else None
            if written is None:
                self._ignore(place, "pattern", _NO_GRAMMAR)
            else:
                held["pattern"] = written

    def _alternatives(self, given: Schema, held: Schema, place: _Place) -> None:
        """Schemas for the same value, and references."""
        shaped = place.open or any(keyword in given for keyword in _SHAPE)
        num_combined = sum(keyword in given for keyword in (*_ALTERNATIVES, "$ref"))
        for keyword in _ALTERNATIVES:
            listed = given.get(keyword)
            if listed is None:
                continue
            if not isinstance(listed, list) or not listed:
                self._ignore(place, keyword, "it must be a list of schemas")
                continue
            open = shaped or num_combined > 1 or (keyword == "allOf" and len(listed) > 1)
            branches = [
                self._schema(one, place.below(keyword, at, open=open)) for at, one in enumerate(listed)
            ]
            if keyword == "oneOf":
                self._one_of.append((branches, place))
            if keyword == "allOf" or "anyOf" in held:
                more = branches if keyword == "allOf" else [{"anyOf": branches}]
                held["allOf"] = [*held.get("allOf", ()), *more]
            else:
                held["anyOf"] = branches
        if "$ref" in given:
            self._reference(given["$ref"], held, place, shaped or num_combined > 1)

    def _reference(self, reference: object, held: Schema, place: _Place, open: bool) -> None:
        found = self._references.target(reference, place.base) if isinstance(reference, str) else None
        if found is None:
            self._ignore(place, "$ref", f"{values.shown(reference)} is not in this schema")
            return
        target, base = found
        key = (id(target), open)
        if isinstance(target, bool):
            held["allOf"] = [*held.get("allOf", ()), {} if target else {"enum": []}]
            return
        if key not in self._names:
            self._names[key] = str(len(self._names))
            path = str(reference)[:_MAX_SHOWN].removeprefix("#")
            self._pending.append((self._names[key], target, _Place(path, base, open)))
        held["$ref"] = f"#/$defs/{self._names[key]}"

    def _array(self, given: Schema, held: Schema, place: _Place) -> None:
        if not values.applies(held, "array"):
            return
        items, prefix = given.get("items"), given.get("prefixItems")
        if isinstance(items, list):
            prefix, items = items, given.get("additionalItems")
        if isinstance(prefix, list):
            held["prefixItems"] = [
                self._schema(one, place.below("prefixItems", number)) for number, one in enumerate(prefix)
            ]
        if items is not None:
            held["items"] = items if items is False else self._schema(items, place.below("items"))

    def _object(self, given: Schema, held: Schema, place: _Place) -> None:
        if not values.applies(held, "object"):
            return
        properties = self._properties(given, "properties", held, place, str)
        if self._properties(given, "patternProperties", held, place, portable):
            self._separate(held, place)
        others = given.get("additionalProperties")
        if others is None and given.get("unevaluatedProperties") is False and not _combines(given):
            others = False
        if others is None and properties and not (place.open or self._needs_others(given, held, place)):
            others = False
        if isinstance(others, bool):
            held["additionalProperties"] = others
        elif others is not None:
            held["additionalProperties"] = self._schema(others, place.below("additionalProperties"))
        self._number_of_properties(held, place)

    def _number_of_properties(self, held: Schema, place: _Place) -> None:
        """The grammar library counts properties only where it may not leave out a listed one."""
        listed, needed = held.get("properties", {}).keys(), set(held.get("required", ()))
        if listed <= needed:
            return
        closed = held.get("additionalProperties") is False and not held.get("patternProperties")
        fewest, most = held.pop("minProperties", 0), held.pop("maxProperties", None)
        if fewest > len(needed):
            self._ignore(place, "minProperties", "it cannot be counted where listed properties are optional")
        if most is not None and not (closed and most >= len(listed)):
            self._ignore(place, "maxProperties", "it cannot be counted where listed properties are optional")

    def _properties(
        self, given: Schema, keyword: str, held: Schema, place: _Place, name_of: Callable[[str], str | None]
    ) -> bool:
        """Whether they are listed."""
        if keyword not in given:
            return False
        listed = given[keyword]
        if not isinstance(listed, dict):
            self._ignore(place, keyword, f"it must be an object, not {values.shown(listed)}")
            # What writers of other languages make of an object without properties.
            listed = {} if listed in ([], None) else None
        if listed is None:
            return False
        held[keyword] = {}
        for key, one in listed.items():
            name = name_of(key)
            if name is None:
                self._ignore(place.below(keyword, key), "pattern", _NO_GRAMMAR)
            else:
                held[keyword][name] = self._schema(one, place.below(keyword, key))
        return True

    def _separate(self, held: Schema, place: _Place) -> None:
        """Leaves one pattern where a name could match two."""
        patterns = held["patternProperties"]
        if len(patterns) > 1 and not compiles({"patternProperties": dict.fromkeys(patterns, True)}):
            self._ignore(place, "patternProperties", "a name could match two of the patterns")
            held["patternProperties"] = dict([*patterns.items()][:1])

    def _needs_others(self, given: Schema, held: Schema, place: _Place) -> bool:
        """Whether an object of the listed properties alone may break what is said elsewhere."""
        listed = held["properties"]
        missing = any(name not in listed for name in held.get("required", ()))
        patterns = bool(given.get("patternProperties"))
        few = held.get("minProperties", 0) > len(listed)
        return missing or patterns or few or self._lists_elsewhere(given, place.base, 0)

    def _lists_elsewhere(self, given: Schema, base: str, depth: int) -> bool:
        """Whether what is combined with `given` lists properties too."""
        branches = [one for keyword in _ALTERNATIVES for one in values.listed(given.get(keyword))]
        found = self._references.target(given["$ref"], base) if isinstance(given.get("$ref"), str) else None
        branches += [found[0]] if found else []
        return any(
            isinstance(one, dict)
            and (
                depth > _MAX_COMBINED
                or any(keyword in one for keyword in _SHAPE[:3])
                or self._lists_elsewhere(one, base, depth + 1)
            )
            for one in branches
        )

    def _ignore(self, place: _Place, keyword: str, why: str) -> None:
        if self._strict:
            raise BadRequest(
                f"{self._title}: #{place.path[:_MAX_SHOWN]}: {keyword} cannot be enforced: "
                f"{why}. Leave it out, or leave out strict.",
                self._param,
                "unsupported_schema",
            )
        self.ignored.append((place.path, keyword))


def _combines(given: Schema) -> bool:
    return any(keyword in given for keyword in (*_ALTERNATIVES, "$ref"))
