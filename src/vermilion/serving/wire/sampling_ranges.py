"""Types of the fields for sampling, which take in every protocol what the engine takes."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, FiniteFloat

from vermilion.decoding.knobs import LOGIT_BIAS, MAX_LOGPROBS, SAMPLING, Knob


def _bounds(knob: Knob) -> object:
    return Field(ge=knob.low, le=knob.high)


Temperature = Annotated[FiniteFloat | None, _bounds(SAMPLING["temperature"])]
TopP = Annotated[FiniteFloat | None, _bounds(SAMPLING["top_p"])]
MinP = Annotated[FiniteFloat | None, _bounds(SAMPLING["min_p"])]
PresencePenalty = Annotated[FiniteFloat | None, _bounds(SAMPLING["presence_penalty"])]
FrequencyPenalty = Annotated[FiniteFloat | None, _bounds(SAMPLING["frequency_penalty"])]
RepetitionPenalty = Annotated[FiniteFloat | None, _bounds(SAMPLING["repetition_penalty"])]
LogitBias = Annotated[FiniteFloat, _bounds(LOGIT_BIAS)]
NumLogprobs = Annotated[int | None, Field(ge=0, le=MAX_LOGPROBS)]
