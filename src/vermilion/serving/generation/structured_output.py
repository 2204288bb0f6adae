"""The form that an answer must have, in whatever server's words a body asks for it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from vermilion.errors import BadRequest
from vermilion.serving.generation.schemas import enforceable
from vermilion.serving.wire.openai_bodies import Generation, ResponseFormat
from vermilion.types import Grammar

_MAX_CHOICES = 1000


@dataclass(frozen=True, slots=True)
class WantedForm:
    """One form as it was asked for; `param` is the field that did."""

    param: str
    kind: Literal["object", "schema", "regex", "choice", "grammar"]
    value: Any = None
    strict: bool = False


def wanted_form(body: Generation) -> WantedForm | None:
    """What `body` asks for. Raises `BadRequest` for two forms, and for what cannot be understood."""
    forms = [form for form in _forms(body) if form is not None]
    if len(forms) > 1:
        names = " and ".join(form.param for form in forms)
        raise BadRequest(
            f"{names}: an answer has one form; give one of them.", forms[1].param, "invalid_value"
        )
    return forms[0] if forms else None


def grammar_of(form: WantedForm | None) -> Grammar | None:
    """Raises `BadRequest` for a form that no grammar can hold."""
    if form is None:
        return None
    if form.kind == "object":
        return Grammar("json_object")
    if form.kind == "schema":
        schema = enforceable(form.value, form.param, form.param.partition(".")[0], form.strict)
        return Grammar("json_schema", json.dumps({**schema, "x-guidance": {"lenient": not form.strict}}))
    if form.kind == "choice":
        return Grammar("regex", "|".join(_literal(text) for text in form.value))
    if form.kind == "regex":
        return Grammar("regex", form.value)
    return Grammar("lark", _lark(form.value, form.param))


def _forms(body: Generation) -> Iterator[WantedForm | None]:
    yield _of_response_format(body.response_format)
    yield _named("grammar", "grammar", body.grammar or None)
    yield _schema("json_schema", body.json_schema)
    yield _named("regex", "regex", body.regex)
    yield _named("ebnf", "grammar", body.ebnf)
    yield _schema("guided_json", body.guided_json)
    yield _named("guided_regex", "regex", body.guided_regex)
    yield _choice("guided_choice", body.guided_choice)
    yield _named("guided_grammar", "grammar", body.guided_grammar)
    if body.guided_whitespace_pattern is not None:
        raise _unsupported("guided_whitespace_pattern", "white space in an answer is fixed")
    given = body.structured_outputs
    if given is None:
        return
    if given.whitespace_pattern is not None:
        raise _unsupported("structured_outputs.whitespace_pattern", "white space in an answer is fixed")
    if given.structural_tag is not None:
        raise _unsupported("structured_outputs.structural_tag", "give a grammar instead")
    yield _schema("structured_outputs.json", given.json_)
    yield _named("structured_outputs.regex", "regex", given.regex)
    yield _choice("structured_outputs.choice", given.choice)
    yield _named("structured_outputs.grammar", "grammar", given.grammar)
    yield WantedForm("structured_outputs.json_object", "object") if given.json_object else None


def _of_response_format(wanted: ResponseFormat | None) -> WantedForm | None:
    if wanted is None or wanted.type == "text":
        return None
    if wanted.type == "json_object" and wanted.schema_ is None:
        return WantedForm("response_format", "object")
    if wanted.type in ("json_object", "json_schema"):
        inner = wanted.json_schema
        schema = inner.schema_ if inner and inner.schema_ is not None else wanted.schema_
        if schema is None:
            raise _missing("response_format.json_schema.schema")
        return WantedForm("response_format", "schema", schema, bool(inner and inner.strict))
    value = wanted.value if wanted.value is not None else wanted.grammar
    if value is None:
        raise _missing("response_format.value", f" for {wanted.type}")
    return WantedForm("response_format", "regex" if wanted.type == "regex" else "grammar", value)


def _named(param: str, kind: Literal["regex", "grammar"], value: str | None) -> WantedForm | None:
    return None if value is None else WantedForm(param, kind, value)


def _schema(param: str, value: str | dict[str, Any] | bool | None) -> WantedForm | None:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise BadRequest(f"{param}: not JSON: {str(error)[:80]}.", param, "invalid_value") from None
    if value is not None and not isinstance(value, dict | bool):
        raise BadRequest(f"{param}: a schema is a JSON object.", param, "invalid_type")
    return None if value is None else WantedForm(param, "schema", value)


def _choice(param: str, texts: list[str] | None) -> WantedForm | None:
    if texts is None:
        return None
    if not 0 < len(texts) <= _MAX_CHOICES or not all(texts):
        raise BadRequest(f"{param}: give 1 to {_MAX_CHOICES} texts, none empty.", param, "invalid_value")
    return WantedForm(param, "choice", texts)


def _literal(text: str) -> str:
    return "".join(letter if letter.isalnum() else f"\\u{{{ord(letter):x}}}" for letter in text)


def _lark(grammar: str, param: str) -> str:
    """A grammar in llama.cpp's notation, which has `::=`, or in Lark's. Raises `BadRequest`."""
    if "::=" not in grammar:
        return grammar
    from vermilion.serving.generation.gbnf import lark_of

    return lark_of(grammar, param)


def _unsupported(param: str, why: str) -> BadRequest:
    return BadRequest(f"{param}: not supported: {why}.", param.partition(".")[0], "unsupported_parameter")


def _missing(param: str, where: str = "") -> BadRequest:
    return BadRequest(
        f"{param}: this field is required{where}.", "response_format", "missing_required_parameter"
    )
