"""GET /v1/decoders: the table that controls are made from."""

from __future__ import annotations

import httpx
import pytest

from serving.fake import MODEL
from vermilion.decoding.decoders import DECODERS
from vermilion.decoding.knobs import KNOBS, SAMPLING
from vermilion.types import Decoding, Sampling

pytestmark = pytest.mark.anyio


async def test_the_table_has_what_the_model_can_run_with_ranges_and_defaults(
    client: httpx.AsyncClient,
) -> None:
    table = (await client.get("/v1/decoders")).json()
    assert [row["id"] for row in table["data"]] == list(MODEL.decoders)
    assert all(set(row["settings"]) <= table["settings"].keys() for row in table["data"])
    assert table["settings"].keys() == KNOBS.keys() and table["sampling"].keys() == SAMPLING.keys()
    threshold = table["settings"]["threshold"]
    assert (threshold["minimum"], threshold["maximum"], threshold["default"]) == (
        0,
        100,
        Decoding().threshold,
    )
    assert table["sampling"]["temperature"]["default"] == Sampling().temperature
    assert table["presets"].keys() == MODEL.presets.keys()
    assert table["presets"]["ar"]["decoder"] == "ar" and table["default_preset"] == MODEL.default_preset
    rules = {row["id"]: row for row in table["data"]}
    assert rules["entropy"]["max_threshold"] == DECODERS["entropy"].max_threshold


async def test_it_is_that_of_a_model_where_one_is_named(client: httpx.AsyncClient) -> None:
    assert (await client.get("/v1/decoders?model=tiny-diffusion")).status_code == 200
    assert (await client.get("/v1/decoders?model=nothing")).status_code == 404
