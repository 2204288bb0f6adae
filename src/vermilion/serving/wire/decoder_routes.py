"""The table of decoders as JSON: what a page needs to offer presets and knobs with their ranges."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import Query
from fastapi.responses import Response

from vermilion.decoding import knobs
from vermilion.decoding.decoders import DECODERS
from vermilion.decoding.knobs import KNOBS, Knob
from vermilion.serving.http.openapi import operation
from vermilion.serving.http.request_context import RequestContext, json_response
from vermilion.serving.http.routes import Route
from vermilion.types import Decoding, Sampling


async def decoders(
    context: RequestContext,
    name: Annotated[str | None, Query(alias="model", description="The service's own unless given.")] = None,
) -> Response:
    model = context.model if name is None else context.service.find(name)[1]
    rows = [
        {
            "id": name,
            "object": "decoder",
            "meaning": DECODERS[name].meaning,
            "needs_base": DECODERS[name].needs_base,
            "settings": list(DECODERS[name].knobs),
            "max_threshold": DECODERS[name].max_threshold,
        }
        for name in model.decoders
    ]
    return json_response(
        {
            "object": "list",
            "data": rows,
            "settings": _ranges(KNOBS, Decoding()),
            "sampling": _ranges(knobs.SAMPLING, Sampling()),
            "presets": {name: asdict(decoding) for name, decoding in model.presets.items()},
            "default_preset": context.service.config.default_preset or model.default_preset,
        }
    )


def _ranges(table: Mapping[str, Knob], defaults: Decoding | Sampling) -> dict[str, dict[str, Any]]:
    return {
        name: {
            "minimum": knob.low,
            "maximum": knob.high,
            "integer": knob.integer,
            "default": getattr(defaults, name),
            "meaning": knob.meaning,
        }
        for name, knob in table.items()
    }


_ROW = {"id": "ar", "object": "decoder", "meaning": "one token a pass", "needs_base": True, "settings": []}
_RANGE = {"minimum": 0, "maximum": 2, "integer": False, "default": 0.0, "meaning": "0 takes the likeliest"}
DECODER_TABLE = operation(
    "models",
    "List the decoders, their settings with ranges, and the presets",
    "Those that the model can run.",
    None,
    {
        "object": "list",
        "data": [_ROW],
        "settings": {"threshold": _RANGE},
        "sampling": {"temperature": _RANGE},
        "presets": {"ar": {"decoder": "ar"}},
        "default_preset": "lossless",
    },
)

ROUTES = (Route("GET", "/v1/decoders", decoders, DECODER_TABLE),)
