"""OpenAI's generating routes, and LM Studio's copies of them."""

from __future__ import annotations

import secrets
from dataclasses import replace

from fastapi.responses import Response

from vermilion.errors import BadParameter
from vermilion.serving.generation import chat
from vermilion.serving.generation.choices import Choice
from vermilion.serving.generation.fitting import Fitting
from vermilion.serving.http import openapi
from vermilion.serving.http.request_context import RequestContext, json_response
from vermilion.serving.http.routes import Route
from vermilion.serving.http.sse import StreamRenderer
from vermilion.serving.wire import lmstudio
from vermilion.serving.wire.openai_bodies import ChatBody, CompletionBody
from vermilion.serving.wire.openai_replies import (
    Head,
    chat_reply,
    completion_reply,
    name_functions,
    usage_body,
)
from vermilion.serving.wire.openai_streams import ChatStream, CompletionStream, DiffusionStream


async def chat_completions(context: RequestContext, body: ChatBody) -> Response:
    return await _chat(context, body)


async def completions(context: RequestContext, body: CompletionBody) -> Response:
    return await complete(context, body)


async def lm_studio_chat(context: RequestContext, body: ChatBody) -> Response:
    return await _chat(context, body, figures=True)


async def lm_studio_completions(context: RequestContext, body: CompletionBody) -> Response:
    return await complete(context, body, figures=True)


async def _chat(context: RequestContext, body: ChatBody, figures: bool = False) -> Response:
    head = Head(f"chatcmpl-{secrets.token_hex(12)}", context.answering(body.model))
    functions, body = body.names_functions, body.with_tools
    body, begun = _begun(body)
    requests = await chat.chat_requests(body, context.served, context.service.config, head.id, begun)
    box = chat.toolbox(body, context.service.config)
    if body.shows_canvas:
        canvases = DiffusionStream(head, body.wants_usage_chunk, len(requests), box, body.diffusing)
        return context.stream(requests, canvases)
    if body.stream:
        stream = ChatStream(head, body.wants_usage_chunk, box, functions)
        return context.stream(requests, lmstudio.FiguresStream(stream, context.model) if figures else stream)
    choices = await context.whole(requests)
    reply = chat_reply(head, choices, bool(body.logprobs), box)
    if functions:
        name_functions(reply)
    if body.reasoning_summary:
        # The model reasons in its answer, if at all: there is nothing else to sum up.
        reply["reasoning_summary"] = {"content": None, "status": "unavailable"}
    return json_response(reply | _figures(context, choices, figures))


def _begun(body: ChatBody) -> tuple[ChatBody, str]:
    """The conversation before the answer, and how that begins. Raises `BadParameter`."""
    last = body.messages[-1]
    if not body.continue_final_message:
        return body, ""
    if last.role != "assistant" or last.calls or len(body.messages) < 2:
        raise BadParameter(
            "continue_final_message", True, "false, unless the assistant began the last message"
        )
    return body.model_copy(update={"messages": body.messages[:-1]}), last.content


async def complete(
    context: RequestContext, body: CompletionBody, delta: bool = False, figures: bool = False
) -> Response:
    head = Head(f"cmpl-{secrets.token_hex(12)}", context.answering(body.model))
    _check_completion(body)
    asked = body
    if body.best_of is not None:
        asked = body.model_copy(update={"n": body.best_of, "logprobs": body.logprobs or 0})
    requests = await chat.completion_requests(asked, context.served, context.service.config, head.id)
    echoes = [""] * len(body.prompts)
    if body.echo:
        echoes = [await chat.prompt_text(prompt, context.served) for prompt in body.prompts]
    if body.shows_canvas:
        canvases = DiffusionStream(head, body.wants_usage_chunk, len(requests), None, body.diffusing, True)
        return context.stream(requests, canvases, len(echoes))
    if body.stream:
        stream = CompletionStream(head, body.wants_usage_chunk, len(requests), delta, echoes)
        renderer: StreamRenderer = lmstudio.FiguresStream(stream, context.model) if figures else stream
        return context.stream(requests, renderer, len(echoes))
    if source := _source(context, body):
        # Greedy is what a gap's likeliest answer mostly is, and the others are drawn beside it.
        requests[:: body.best_of] = [
            replace(one, sampling=replace(one.sampling, temperature=0.0)) for one in requests[:: body.best_of]
        ]
    made = await context.whole(requests, len(echoes), source)
    choices = made if body.best_of is None else likeliest(made, body.best_of, body.n or 1)
    reply = completion_reply(head, choices, body.logprobs is not None, echoes)
    reply["usage"] = usage_body([choice.usage for choice in made], len(echoes))
    return json_response(reply | _figures(context, choices, figures))


def _check_completion(body: CompletionBody) -> None:
    """Raises `BadParameter` for fields that contradict each other."""
    if body.echo and body.logprobs is not None:
        raise BadParameter("echo", True, "false, where logprobs is given", "A prompt's tokens have none.")
    if body.best_of is not None and body.best_of < (body.n or 1):
        raise BadParameter("best_of", body.best_of, f"at least n, here {body.n}")
    if body.best_of is not None and body.best_of > (body.n or 1) and body.stream:
        raise BadParameter("best_of", body.best_of, "at most n in a stream, which cannot wait for the best")


def _source(context: RequestContext, body: CompletionBody) -> Fitting | None:
    """What also reads the answers, where the best of several in a gap is wanted and a base can tell."""
    several = body.best_of is not None and body.best_of > 1 and (body.suffix or "").strip()
    reads = not context.served.forwards and "ar" in context.model.decoders
    return Fitting(context.served) if several and reads else None


def likeliest(choices: list[Choice], num_made: int, num_kept: int) -> list[Choice]:
    """Of every `num_made` choices those that fit best between prompt and suffix, and where that was not read,
    with the highest log-probability per token; the best first."""
    kept: list[Choice] = []
    for start in range(0, len(choices), num_made):
        ranked = sorted(choices[start : start + num_made], key=_rank, reverse=True)
        kept += ranked[:num_kept]
    return kept


def _rank(choice: Choice) -> float:
    if choice.fit is not None:
        return choice.fit
    return sum(token.logprob for token in choice.tokens) / max(1, len(choice.tokens))


def _figures(context: RequestContext, choices: list[Choice], wanted: bool) -> dict[str, object]:
    return lmstudio.figures(context.model, choices[0]) if wanted else {}


ROUTES = (
    Route("POST", "/v1/chat/completions", chat_completions, openapi.CHAT, ChatBody),
    Route("POST", "/v1/completions", completions, openapi.COMPLETIONS, CompletionBody),
    Route("POST", "/api/v0/chat/completions", lm_studio_chat, lmstudio.CHAT, ChatBody),
    Route("POST", "/api/v0/completions", lm_studio_completions, lmstudio.COMPLETIONS, CompletionBody),
)
