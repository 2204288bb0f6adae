"""Bodies of the routes that count tokens and read them."""

from __future__ import annotations

from pydantic import BaseModel, Field

from vermilion.serving.wire.openai_bodies import MAX_MESSAGES, WIRE, Message


class TokenizeBody(BaseModel):
    """Body of POST /v1/tokenize: one of three kinds of text."""

    model_config = WIRE

    model: str | None = Field(None, description="Id or alias of a served model; the only one if left out.")
    prompt: str | None = Field(None, description="Text to count.")
    content: str | None = Field(None, description="The same, as clients of llama.cpp name it.")
    messages: list[Message] | None = Field(
        None, max_length=MAX_MESSAGES, description="A conversation, through the chat template."
    )
    return_token_strs: bool | None = Field(None, description="Send each token's text as well.")
    with_pieces: bool | None = Field(None, description="llama.cpp's: a list of `id` and `piece`.")

    @property
    def text(self) -> str:
        return self.prompt if self.prompt is not None else self.content or ""


class DetokenizeBody(BaseModel):
    """Body of POST /v1/detokenize."""

    model_config = WIRE

    model: str | None = Field(None, description="Id or alias of a served model; the only one if left out.")
    tokens: list[int] = Field(description="Token ids.")
