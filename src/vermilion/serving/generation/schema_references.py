"""Where a JSON schema's references lead: pointers, anchors and ids, each within its own document."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote, urldefrag, urljoin

_NAMES = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas", "dependencies")
"""Keywords under which the keys are names, not keywords."""
_VALUES = ("enum", "const", "default", "examples")
"""Keywords under which nothing is a schema."""


class SchemaReferences:
    """Of one document, which is never left: no reference is fetched."""

    def __init__(self, root: object) -> None:
        self._root = root
        dialect = root.get("$schema") if isinstance(root, dict) else None
        self._alone = isinstance(dialect, str) and "/draft-0" in dialect
        """Up to draft 7 nothing beside a reference counts."""
        self._named: dict[str, object] = {}
        for base, resource in _resources(root):
            self._named.setdefault(base, resource)

    def target(self, reference: str, base: str) -> tuple[object, str] | None:
        """What `reference` means in the resource `base`, and the base there; None for nothing known.

        Where a schema with an id of its own lacks the target, its document is asked: generators write ids
        beside references that were made for the whole.
        """
        for start in (base, ""):
            document, fragment = urldefrag(urljoin(start, reference) if start else reference)
            if not document and not start:
                resource: object = self._root
            else:
                resource = self._named.get(document)
            found = self._within(resource, document, unquote(fragment))
            if found is not None:
                return found, document
        return None

    def _within(self, resource: object, document: str, fragment: str) -> object | None:
        if not fragment:
            return resource
        if not fragment.startswith("/"):
            return self._named.get(f"{document}#{fragment}")
        value: Any = resource
        for step in fragment[1:].split("/"):
            key = step.replace("~1", "/").replace("~0", "~")
            if isinstance(value, dict) and key in value:
                value = value[key]
            elif isinstance(value, list) and key.isdecimal() and int(key) < len(value):
                value = value[int(key)]
            else:
                return None
        return value if isinstance(value, dict | bool) else None

    def base(self, schema: dict[str, Any], around: str) -> str:
        """The base of what stands in `schema`, itself in `around`."""
        return around if self._alone and "$ref" in schema else _base(schema, around)


def _base(schema: dict[str, Any], around: str) -> str:
    id = schema.get("$id", schema.get("id"))
    return urljoin(around, id) if isinstance(id, str) and not id.startswith("#") else around


def _resources(root: object) -> Iterator[tuple[str, dict[str, Any]]]:
    """Address and schema of whatever has an id or an anchor."""
    stack: list[tuple[Any, str, bool]] = [(root, "", True)]
    while stack:
        value, base, is_schema = stack.pop()
        if isinstance(value, list):
            stack += [(inner, base, True) for inner in value]
        elif isinstance(value, dict) and not is_schema:
            stack += [(inner, base, True) for inner in value.values()]
        elif isinstance(value, dict):
            own = _base(value, base)
            document = urldefrag(own)[0]
            if own != base:
                yield document, value
            for anchor in ("$anchor", "$dynamicAnchor"):
                if isinstance(value.get(anchor), str):
                    yield f"{document}#{value[anchor]}", value
            for keyword, inner in value.items():
                if keyword not in _VALUES:
                    stack.append((inner, own, keyword not in _NAMES))
