"""A protocol takes of a sampling setting what the engine takes, no more and no less."""

from __future__ import annotations

import httpx
import pytest
from annotated_types import Ge, Gt, Le, Lt
from pydantic.fields import FieldInfo

from vermilion.decoding.knobs import MAX_LOGPROBS, SAMPLING
from vermilion.serving.http.app import ROUTES

RANGES = {
    **{name: (knob.low, knob.high) for name, knob in SAMPLING.items() if not knob.integer},
    "repeat_penalty": (SAMPLING["repetition_penalty"].low, SAMPLING["repetition_penalty"].high),
    "top_logprobs": (0, MAX_LOGPROBS),
}
FIELDS = {
    f"{route.body.__name__}.{name}": (field, RANGES[name])
    for route in ROUTES
    if route.body is not None
    for name, field in route.body.model_fields.items()
    if name in RANGES
}


@pytest.mark.parametrize("name", FIELDS)
def test_the_field_has_the_engines_range(name: str) -> None:
    field, (low, high) = FIELDS[name]
    assert bounds(field) == {Ge: low, Le: high}


def bounds(field: FieldInfo) -> dict[type, object]:
    kinds = {Ge: "ge", Gt: "gt", Le: "le", Lt: "lt"}
    return {
        kind: getattr(one, attribute)
        for kind, attribute in kinds.items()
        for one in field.metadata
        if isinstance(one, kind)
    }


@pytest.mark.anyio
async def test_what_is_out_of_range_is_told_with_the_range(client: httpx.AsyncClient) -> None:
    body = {"messages": [{"role": "user", "content": "hi"}], "repetition_penalty": 1e-39}
    reply = await client.post("/v1/chat/completions", json=body)
    assert reply.status_code == 400
    assert (
        "repetition_penalty: input should be greater than or equal to 0.1" in reply.json()["error"]["message"]
    )
