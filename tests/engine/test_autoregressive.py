"""A model without a denoiser is served: its own text, drafted by prompt lookup alone."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests import tiny
from tests.engine.test_matches_reference import SAMPLINGS, outcome, prompt
from vermilion.config import EngineConfig
from vermilion.engine.engine import Engine
from vermilion.engine.loading import assemble
from vermilion.errors import BadRequest
from vermilion.models.families import AUTOREGRESSIVE
from vermilion.types import Decoding, Request, Sampling, Seeds


def engine() -> Engine:
    spec = replace(tiny.spec("causal-shift"), traits=replace(AUTOREGRESSIVE, eos_token_ids=(tiny.EOS,)))
    config = EngineConfig(kv_tokens=1024, page_size=8, dtype="float64")
    return assemble(tiny.model("full"), spec, tiny.Letters(), config)  # type: ignore[arg-type]


def test_lossless_text_is_the_models_own() -> None:
    asked = [
        [Request(f"{i}", prompt(5 + 9 * i, i) * 2, one, decoding) for i, one in enumerate(SAMPLINGS)]
        for decoding in (Decoding("ar"), Decoding("lossless", lookup=16))
    ]
    plain, drafted = (outcome(engine(), requests) for requests in asked)
    assert [one.tokens for one in drafted] == [one.tokens for one in plain]


def test_it_offers_what_it_can_do() -> None:
    model = engine().model
    assert set(model.presets) == {"ar", "lossless"} and model.default_preset == "lossless"
    assert set(model.decoders) == {"ar", "lossless", "relaxed"}


@pytest.mark.parametrize(
    "request_of",
    [
        lambda: Request("a", (5, 6), Sampling(max_tokens=4), suffix=(7, 8)),
        lambda: Request("a", (5, 6), Sampling(max_tokens=4), seeds=Seeds((None, 7))),
    ],
)
def test_gaps_are_refused(request_of: object) -> None:
    with pytest.raises(BadRequest, match="has no denoiser"):
        engine().check(request_of())  # type: ignore[operator]
