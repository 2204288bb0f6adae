"""OpenAI's Responses API: one reply of items, whole or as named events, kept for a while."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from fastapi.responses import Response

from vermilion.errors import ContextLengthExceeded, VermilionError
from vermilion.serving.generation import chat, parameters
from vermilion.serving.generation.tool_calls import ArgumentsDelta, Piece, ToolCall, ToolCallStart
from vermilion.serving.generation.tools import Toolbox
from vermilion.serving.http.openapi import operation
from vermilion.serving.http.request_context import RequestContext, json_response
from vermilion.serving.http.routes import Route
from vermilion.serving.http.sse import EVENT_STREAM
from vermilion.serving.jobs.pagination import page
from vermilion.serving.wire.openai_replies import scored
from vermilion.serving.wire.openai_streams import DONE, KEEP_ALIVE
from vermilion.serving.wire.response_store import StoredResponse
from vermilion.serving.wire.responses_bodies import Item, ResponsesBody
from vermilion.serving.wire.responses_items import (
    Tools,
    call_item,
    input_row,
    message_item,
    new_id,
    output_of,
    part_body,
    response_body,
    settings,
)
from vermilion.types import Event, Finish, Text, TokenInfo, Usage

Keep = Callable[[dict[str, Any]], None]
"""Told the whole response once it has ended."""


class ResponseStream:
    """Named events, numbered: the response, its items as they grow, the response as it ended."""

    media_type = EVENT_STREAM
    keep_alive = KEEP_ALIVE

    def __init__(self, base: dict[str, Any], box: Toolbox | None, tools: Tools, keep: Keep) -> None:
        self._base = base
        self._tools = tools
        self._keep = keep
        self._reader = box.reader() if box else None
        self._number = 0
        self._begun = False
        self._output: list[dict[str, Any]] = []
        self._open = ""
        """Id of the message being written."""
        self._called = ""
        """Id of the last call's item."""
        self._text: list[str] = []
        self._tokens: list[TokenInfo] = []

    def render(self, index: int, event: Event) -> bytes:
        content = b"" if self._begun else self._begin()
        text = event.text if isinstance(event, Text) else ""
        if self._reader is None:
            # Where calls may come, tokens are not told: some of them are no text of the answer.
            tokens = event.tokens if isinstance(event, Text) else ()
            content += self._write(text, tokens) if text or tokens else b""
        else:
            pieces: list[Piece] = self._reader.push(text)
            pieces += self._reader.finish() if isinstance(event, Finish) else []
            for piece in pieces:
                content += self._write(piece) if isinstance(piece, str) else self._tell(piece)
        if isinstance(event, Finish):
            if not self._open and not self._output:
                content += self._write("")
            content += self._close("incomplete" if event.reason == "length" else "completed")
            whole = response_body(self._base, self._output, event)
            self._keep(whole)
            content += self._event(f"response.{whole['status']}", response=whole)
        return content

    def _begin(self) -> bytes:
        self._begun = True
        first = response_body(self._base, [], None)
        return self._event("response.created", response=first) + self._event(
            "response.in_progress", response=first
        )

    def _write(self, text: str, tokens: tuple[TokenInfo, ...] = ()) -> bytes:
        content, at = b"", len(self._output)
        if not self._open:
            self._open, self._text, self._tokens = new_id("msg"), [], []
            item = message_item(self._open, None, "in_progress")
            content += self._event("response.output_item.added", output_index=at, item=item)
            content += self._event("response.content_part.added", **self._place, part=part_body(""))
        self._text.append(text)
        self._tokens += tokens
        if text or tokens:
            content += self._event(
                "response.output_text.delta", **self._place, delta=text, logprobs=scored(tokens)
            )
        return content

    @property
    def _place(self) -> dict[str, Any]:
        return {"item_id": self._open, "output_index": len(self._output), "content_index": 0}

    def _close(self, status: str) -> bytes:
        if not self._open:
            return b""
        text = "".join(self._text)
        content = self._event(
            "response.output_text.done", **self._place, text=text, logprobs=scored(self._tokens)
        )
        content += self._event(
            "response.content_part.done", **self._place, part=part_body(text, self._tokens)
        )
        return content + self._done(message_item(self._open, text, status, self._tokens))

    def _done(self, item: dict[str, Any]) -> bytes:
        at, self._open = len(self._output), ""
        self._output.append(item)
        return self._event("response.output_item.done", output_index=at, item=item)

    def _tell(self, piece: ToolCallStart | ArgumentsDelta | ToolCall) -> bytes:
        if isinstance(piece, ToolCallStart):
            content = self._close("completed")
            item = call_item(self._tools[piece.name], piece.id, "", "in_progress")
            self._called = item["id"]
            at = len(self._output)
            return content + self._event("response.output_item.added", output_index=at, item=item)
        place: dict[str, Any] = {"item_id": self._called, "output_index": len(self._output)}
        custom = self._called.startswith("ctc_")
        if isinstance(piece, ArgumentsDelta):
            # The input of a custom tool is a string within the arguments: it is told once it is whole.
            kind = "response.function_call_arguments.delta"
            return b"" if custom else self._event(kind, **place, delta=piece.text)
        status = "completed" if piece.whole else "incomplete"
        item = call_item(self._tools[piece.name], piece.id, piece.arguments, status)
        if custom:
            kind, text = "response.custom_tool_call_input", item["input"]
            content = self._event(f"{kind}.delta", **place, delta=text)
            content += self._event(f"{kind}.done", **place, input=text)
        else:
            kind = "response.function_call_arguments.done"
            content = self._event(kind, **place, name=item["name"], arguments=piece.arguments)
        return content + self._done(item)

    def close(self) -> bytes:
        return DONE

    def fail(self, error: VermilionError) -> bytes:
        content = b"" if self._begun else self._begin()
        failed = response_body(self._base, self._output, None)
        code = error.code if isinstance(error, ContextLengthExceeded) else "server_error"
        failed |= {"status": "failed", "error": {"code": code, "message": str(error)}}
        return content + self._event("response.failed", response=failed) + DONE

    def _event(self, kind: str, /, **fields: object) -> bytes:
        content = json.dumps({"type": kind, "sequence_number": self._number, **fields}, ensure_ascii=False)
        self._number += 1
        return f"event: {kind}\ndata: {content}\n\n".encode("utf-8", "replace")


def _keeper(context: RequestContext, body: ResponsesBody) -> Keep:
    """Puts the response into the store, unless the request does not want that."""
    # A stream is rendered in another task than its request.
    owner, store = context.service.owner(), context.service.responses

    def keep(response: dict[str, Any]) -> None:
        if body.store is not False:
            said = [Item.model_validate(item) for item in response["output"]]
            content = json.dumps(response, ensure_ascii=False).encode("utf-8", "replace")
            conversation = (*body.input, *said)
            store.put(owner, StoredResponse(response["id"], content, conversation, len(said)))

    return keep


def _whole_input(context: RequestContext, body: ResponsesBody) -> ResponsesBody:
    """`body` with the conversation that it goes on from before its input."""
    store, owner = context.service.responses, context.service.owner()
    return body.model_copy(update={"input": store.conversation(owner, body.previous_response_id, body.input)})


async def _fitting(context: RequestContext, body: ResponsesBody) -> ResponsesBody:
    """`body` from the first of the user's messages on with which it leaves room for its answer, a quarter of
    the context at most; the last one where none does."""
    model, config = context.model, context.service.config
    limit = body.max_output_tokens or parameters.default_limit(config, model)
    most = model.context_length - min(limit, model.context_length // 4)

    async def fits(shorter: ResponsesBody) -> bool:
        try:
            asked = await context.offload(lambda: shorter.chat)
            return len(await chat.chat_prompt(asked, context.served, config)) <= most
        except ContextLengthExceeded:
            return False

    starts = [0, *(at for at in body.turns if at)]
    low, high = 0, len(starts) - 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if await fits(body.since(starts[middle])) else (middle + 1, high)
    return body.since(starts[low])


async def responses(context: RequestContext, body: ResponsesBody) -> Response:
    body = _whole_input(context, body)
    asked = await context.offload(lambda: body.chat)
    if body.truncation == "auto":
        body = await _fitting(context, body)
        asked = await context.offload(lambda: body.chat)
    id, config = new_id("resp"), context.service.config
    tools = {tool.function.name: tool for tool in body.flat_tools}
    box = chat.toolbox(asked, config)
    base = settings(id, context.answering(asked.model), body)
    stream = ResponseStream(base, box, tools, _keeper(context, body))
    try:
        requests = await chat.chat_requests(asked, context.served, config, id)
    except ContextLengthExceeded as error:
        error.param = "input"
        if not body.stream:
            raise
        # Codex knows what this event means; of a status it only says that the request was wrong.
        context.service.metrics.errors.labels(error.code).inc()
        return Response(stream.fail(error), media_type=EVENT_STREAM)
    if body.stream:
        return context.stream(requests, stream)
    (choice,) = await context.whole(requests)
    whole = response_body(
        base, output_of(choice, box, tools), Finish(choice.reason, choice.usage, repetition=choice.repetition)
    )
    _keeper(context, body)(whole)
    return json_response(whole)


async def retrieve(context: RequestContext, response_id: str) -> Response:
    stored = context.service.responses.get(context.service.owner(), response_id)
    return Response(stored.body, media_type="application/json")


async def input_items(context: RequestContext, response_id: str) -> Response:
    stored = context.service.responses.get(context.service.owner(), response_id)
    given = stored.conversation[: len(stored.conversation) - stored.num_said]
    rows = [input_row(item, f"{response_id}-{number}") for number, item in enumerate(given)]
    return json_response(page(context.http, rows, most=100, usual=20))


async def delete(context: RequestContext, response_id: str) -> Response:
    context.service.responses.delete(context.service.owner(), response_id)
    return json_response({"id": response_id, "object": "response", "deleted": True})


async def input_tokens(context: RequestContext, body: ResponsesBody) -> Response:
    whole = _whole_input(context, body)
    asked = await context.offload(lambda: whole.chat)
    count = await chat.num_prompt_tokens(asked, context.served, context.service.config)
    return json_response({"object": "response.input_tokens", "input_tokens": count})


_QUESTION = {"A question": {"input": "What is the capital of France?", "max_output_tokens": 64}}
_EXAMPLE = response_body(
    settings("resp_4f2a", "smollm2-135m-diffusion", ResponsesBody.model_validate(_QUESTION["A question"])),
    [message_item("msg_4f2a", "The capital of France is Paris.")],
    Finish("stop", Usage(37, 16, 8)),
)
RESPONSES = operation(
    "generation",
    "Answer as a list of items",
    "OpenAI's newer shape: text and function calls. Responses are kept in memory for a while, so that "
    "`previous_response_id` can name one.",
    _QUESTION,
    _EXAMPLE,
    'event: response.output_text.delta\ndata: {"type": "response.output_text.delta", "sequence_number": 4, '
    '"item_id": "msg_4f2a", "output_index": 0, "content_index": 0, "delta": "The capital of"}\n\n',
)
COUNT = operation(
    "generation",
    "Count the tokens of an input",
    "As a response would use them, with tools, instructions and what it goes on from.",
    _QUESTION,
    {"object": "response.input_tokens", "input_tokens": 37},
)
RETRIEVE = operation("generation", "A response that is kept", "404 once it is kept no more.", None, _EXAMPLE)
INPUT_ITEMS = operation(
    "generation",
    "What a kept response answered",
    "The items of its conversation, in pages: `limit`, `after`, `order`; the latest first.",
    None,
    {
        "object": "list",
        "data": [input_row(Item(content="Hi"), "resp_4f2a-0")],
        "first_id": "resp_4f2a-0",
        "last_id": "resp_4f2a-0",
        "has_more": False,
    },
)
DELETE = operation(
    "generation",
    "Forget a response",
    "Those that went on from it keep what they repeat of it.",
    None,
    {"id": "resp_4f2a", "object": "response", "deleted": True},
)
ROUTES = (
    Route("POST", "/v1/responses", responses, RESPONSES, ResponsesBody),
    Route("POST", "/v1/responses/input_tokens", input_tokens, COUNT, ResponsesBody),
    Route("GET", "/v1/responses/{response_id}", retrieve, RETRIEVE, needs_model=False),
    Route("GET", "/v1/responses/{response_id}/input_items", input_items, INPUT_ITEMS, needs_model=False),
    Route("DELETE", "/v1/responses/{response_id}", delete, DELETE, needs_model=False),
)
