"""From a checked body to engine requests; the only file of the service that knows prompting."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from vermilion.data.conversations import CALL_BEGIN, CALL_END, Said, instructed, schema_hint
from vermilion.decoding.decoders import DECODERS
from vermilion.errors import BadParameter, BadRequest
from vermilion.serving.backend import Served
from vermilion.serving.generation import model_names, parameters
from vermilion.serving.generation.edits import FENCE, Edit, EditBody, apply_chat, edit_chat, parse_apply
from vermilion.serving.generation.forwarding import forwarded, forwarded_chat
from vermilion.serving.generation.structured_output import grammar_of, wanted_form
from vermilion.serving.generation.tools import Tool, Toolbox, offered
from vermilion.serving.heavy_work import offload
from vermilion.serving.remote.remote_errors import UpstreamCannot
from vermilion.serving.serve_config import ServeConfig
from vermilion.serving.wire.mercury_bodies import untemplated
from vermilion.serving.wire.openai_bodies import ChatBody, CompletionBody, Message, NamedTool, ToolsChoice
from vermilion.serving.wire.tokenize_bodies import TokenizeBody
from vermilion.types import Request

if TYPE_CHECKING:
    from vermilion.chat_template import ChatTemplate

DEFAULT_COMPLETION_TOKENS = 512
MAX_ANSWERS = 64
"""Of one call: prompts times choices."""
_NO_SUFFIX = "<|endoftext|>"
"""What Continue sends as the suffix where nothing follows the cursor."""
_COPIED = 64
"""Most tokens of a text to be edited that one pass takes over."""
_INLINE_CHARACTERS = 4096
"""Longer prompts are tokenised on a thread: 0.6 us a character would hold up every other stream."""
_TEXT_CHARACTERS = 32
"""What a message costs besides its text, in characters: the template writes it."""


async def chat_requests(
    body: ChatBody, served: Served, config: ServeConfig, id: str, begun: str = ""
) -> list[Request]:
    """One request per choice; `begun` is the beginning of the answer, which the model goes on from.

    Raises `BadRequest` and `ModelNotFound`.
    """
    model_names.check_model(body.model, served.backend.model, config)
    if body.top_logprobs is not None and not body.logprobs:
        raise BadParameter("top_logprobs", body.top_logprobs, "nothing, unless logprobs is true")
    box = toolbox(body, config)
    grammar = box.grammar if box and not served.forwards else None
    if grammar is None:
        grammar = grammar_of(wanted_form(body))
    prompt = await chat_prompt(body, served, config, begun)
    sampling = parameters.sampling(
        body,
        served.backend.model,
        max_tokens=body.max_completion_tokens
        or body.max_tokens
        or parameters.default_limit(config, served.backend.model),
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
    )
    if box is not None:
        sampling = replace(sampling, stop_outside=(CALL_BEGIN, CALL_END))
    preset = body.preset
    if preset is None and body.decoding is None and body.reasoning_effort is not None:
        preset = parameters.preset_of(body.reasoning_effort, served.backend.model)
    decoding = parameters.decoding(body, served, config, preset)
    base = Request(
        id,
        tuple(prompt),
        sampling,
        parameters.spoken(decoding) if body.realtime else decoding,
        canvas=body.shows_canvas,
        canvas_tokens=body.diffusing == "tokens",
        grammar=grammar,
        adapter=model_names.adapter_of(body.model, served.backend.model, config),
        realtime=bool(body.realtime),
        forwarded=forwarded_chat(body, box, config, begun) if served.forwards else None,
    )
    return parameters.choices(base, body, served.backend.model, "messages")


async def chat_prompt(body: ChatBody, served: Served, config: ServeConfig, begun: str = "") -> list[int]:
    """The tokens before the answer, of any number. Raises as `chat_requests` does."""
    model_names.check_model(body.model, served.backend.model, config)
    prompt = await chat_tokens(body, served, toolbox(body, config))
    return prompt + await _token_ids(begun, served)


async def num_prompt_tokens(body: ChatBody, served: Served, config: ServeConfig, begun: str = "") -> int:
    """How many `chat_prompt` gives. Raises `UpstreamCannot` where nobody here knows."""
    _check_known(served)
    return len(await chat_prompt(body, served, config, begun))


def _check_known(served: Served) -> None:
    if served.forwards:
        raise UpstreamCannot("model", "this model runs on another server, and its tokens are not known here.")


def toolbox(body: ChatBody, config: ServeConfig) -> Toolbox | None:
    """The tools an answer may or must call; None where it cannot call any. Raises `BadParameter`."""
    tools = [
        Tool(tool.name, tool.description or "", tool.parameters or {}, bool(tool.strict))
        for tool in (offer.function for offer in body.tools or ())
    ]
    wanted = body.tool_choice
    assert not isinstance(wanted, ToolsChoice), "with_tools says it in other words"
    name = wanted.function.name if isinstance(wanted, NamedTool) else wanted
    known = [tool.name for tool in tools]
    if isinstance(wanted, NamedTool) and name not in known:
        raise BadParameter("tool_choice", name, ", ".join(known) or "no name: there are no tools")
    if name == "required" and not tools:
        raise BadParameter("tool_choice", name, "auto or none, where no tools are offered")
    if name in (None, "auto") and body.messages[-1].role == "user":
        name = next((demanded for demanded in config.demanded_tools if demanded in known), name)
    return offered(tools, name, body.parallel_tool_calls is True)


async def edit_request(edit: Edit, body: EditBody, served: Served, config: ServeConfig, id: str) -> Request:
    """Asks for the region of `edit`, which drafts for it."""
    (request,) = await chat_requests(edit_chat(edit, body), served, config, id, f"{FENCE}\n")
    return await _drafting(request, edit.region, served)


async def apply_request(body: EditBody, served: Served, config: ServeConfig, id: str) -> Request:
    """Asks for the whole new file, for which the old one drafts."""
    tagged = parse_apply(body.text)
    begun = f"{FENCE}\n" if tagged else ""
    (request,) = await chat_requests(apply_chat(body), served, config, id, begun)
    return await _drafting(request, tagged[0], served) if tagged else request


async def _drafting(request: Request, existing: str, served: Served) -> Request:
    """`request` with `existing` to draft from, a run of tokens at a time."""
    tokens = await _token_ids(f"{existing}\n{FENCE}", served)
    decoding = request.decoding
    if DECODERS[decoding.decoder].drafts:
        decoding = replace(decoding, draft_nodes=max(decoding.draft_nodes, _COPIED))
    return replace(request, existing=tuple(tokens), decoding=decoding)


async def completion_requests(
    body: CompletionBody, served: Served, config: ServeConfig, id: str
) -> list[Request]:
    """One request per choice, those of each prompt together. Raises `BadRequest` and `ModelNotFound`."""
    model_names.check_model(body.model, served.backend.model, config)
    prompts = body.prompts
    if len(prompts) * (body.n or 1) > MAX_ANSWERS:
        given = f"{len(prompts)} prompts with {body.n or 1} choices each"
        raise BadParameter("prompt", given, f"at most {MAX_ANSWERS} answers in all")
    requests: list[Request] = []
    for number, prompt in enumerate(prompts):
        one = body.model_copy(update={"prompt": prompt})
        named = id if len(prompts) == 1 else f"{id}-{number}"
        requests += await _prompt_requests(one, served, config, named)
    return requests


async def _prompt_requests(
    body: CompletionBody, served: Served, config: ServeConfig, id: str
) -> list[Request]:
    """Of the one prompt in `body`."""
    model = served.backend.model
    (before,), after = body.prompts, "" if body.suffix in (None, _NO_SUFFIX) else body.suffix
    if isinstance(before, str) and not after:
        before, after = untemplated(before) or (before, after)
    prompt = await _token_ids(before, served)
    suffix = await _token_ids(after, served)
    if not prompt:
        if not suffix:
            raise BadParameter("prompt", body.prompt, "at least one token, or a suffix to write towards")
        # At the top of a file there is nothing to the left; a line break says as little as a token can.
        prompt = await _token_ids("\n", served)
    sampling = parameters.sampling(
        body, model, max_tokens=body.max_tokens or DEFAULT_COMPLETION_TOKENS, logprobs=body.logprobs
    )
    base = Request(
        id,
        tuple(prompt),
        sampling,
        parameters.decoding(body, served, config),
        tuple(suffix),
        body.shows_canvas,
        body.diffusing == "tokens",
        grammar=grammar_of(wanted_form(body)),
        adapter=model_names.adapter_of(body.model, model, config),
        forwarded=forwarded(body, config) if served.forwards else None,
    )
    return parameters.choices(base, body, model, "prompt")


async def infill_requests(
    body: CompletionBody, context: Sequence[tuple[str, str]], served: Served, config: ServeConfig, id: str
) -> list[Request]:
    """As `completion_requests`, with pieces of other files (name, text) before it, the most telling last.

    They get at most half of the context, and leave the answer a quarter; the first ones go for lack of room.
    """
    requests = await completion_requests(body, served, config, id)
    request = requests[0]
    length = served.backend.model.context_length
    num_free = length - len(request.prompt) - len(request.suffix)
    room = min(length // 2, num_free - min(request.sampling.max_tokens, length // 4))
    before: list[int] = []
    for name, text in reversed(context):
        if len(text) > room * served.tokenizer.longest_token_bytes:
            break
        tokens = await _token_ids(f"--- {name} ---\n{text}\n\n", served)
        if len(before) + len(tokens) > room:
            break
        before = [*tokens, *before]
    max_tokens = min(request.sampling.max_tokens, num_free - len(before))
    min_tokens = min(request.sampling.min_tokens, max_tokens)
    return [
        replace(
            request,
            prompt=(*before, *request.prompt),
            sampling=replace(request.sampling, max_tokens=max_tokens, min_tokens=min_tokens),
        )
        for request in requests
    ]


async def token_ids(body: TokenizeBody, served: Served, config: ServeConfig) -> list[int]:
    """The tokens a text, or a conversation through the chat template, comes to. Raises as the others do."""
    model_names.check_model(body.model, served.backend.model, config)
    _check_known(served)
    if body.messages is None:
        return await _token_ids(body.text, served)
    chat = ChatBody.model_construct(messages=body.messages)
    return await chat_tokens(chat, served)


async def text_tokens(text: str | list[int], served: Served) -> list[int]:
    """Tokens stay as they are. Raises `BadParameter` for ids outside the vocabulary."""
    return await _token_ids(text, served)


async def prompt_text(prompt: str | list[int], served: Served) -> str:
    """A prompt as text. Raises `BadParameter` for ids outside the vocabulary."""
    return prompt if isinstance(prompt, str) else await text_of(prompt, served)


async def text_of(tokens: list[int], served: Served) -> str:
    """Raises `BadParameter` for ids outside the vocabulary."""
    _check_known(served)
    known = await _token_ids(tokens, served, "tokens")
    return await offload(lambda: served.tokenizer.decode(known))


async def _encode(
    served: Served, encode: Callable[[], list[int]], texts: Sequence[str], param: str
) -> list[int]:
    """What `encode` makes of `texts`, which are in parameter `param`. Raises `ContextLengthExceeded`."""
    if sum(map(len, texts)) + _TEXT_CHARACTERS * len(texts) < _INLINE_CHARACTERS:
        return encode()

    def work() -> list[int]:
        served.check_length(sum(len(text.encode("utf-8", "replace")) for text in texts), param)
        return encode()

    served.check_length(sum(map(len, texts)), param)
    return await offload(work)


async def chat_tokens(body: ChatBody, served: Served, box: Toolbox | None = None) -> list[int]:
    template, tokenizer = _template(served), served.tokenizer
    native = box is not None and template.takes_tools
    messages = _messages(body, box, native)
    offers: dict[str, Any] = {}
    if native:
        offers["tools"] = [offer.model_dump(exclude_none=True) for offer in body.tools or ()]
    texts = [message["content"] for message in messages]
    if native and box is not None:
        texts.append(box.prompt())
    return await _encode(served, lambda: template.encode(messages, tokenizer, **offers), texts, "messages")


async def chat_text(body: ChatBody, served: Served) -> str:
    """The prompt of a conversation as text. Raises `BadRequest`."""
    template = _template(served)
    messages = _messages(body, None, False)
    return await offload(lambda: template.render(messages))


def _template(served: Served) -> ChatTemplate:
    if served.template is None:
        raise BadRequest(
            f"{served.backend.model.id} has no chat template: it continues texts. Use /v1/completions.",
            code="chat_not_supported",
        )
    return served.template


def _messages(body: ChatBody, box: Toolbox | None, native: bool) -> list[dict[str, Any]]:
    """What the template gets; `native` where it writes out tools itself."""
    messages = [_said(message).told(native) for message in body.messages]
    hints = [] if box is None or native else [box.prompt()]
    form = wanted_form(body)
    if form is not None and form.kind == "schema":
        hints.append(schema_hint(json.dumps(form.value, ensure_ascii=False)))
    return instructed(messages, "\n\n".join(hints)) if hints else messages


def _said(message: Message) -> Said:
    calls = tuple((call.function.name, call.function.arguments) for call in message.calls)
    return Said(message.role, message.content, calls)


async def _token_ids(prompt: str | list[int], served: Served, param: str = "prompt") -> list[int]:
    if isinstance(prompt, str):
        return await _encode(served, lambda: served.tokenizer.encode(prompt, special=False), [prompt], param)
    if prompt:
        # The least and the greatest stand for all: a loop of our own over 400,000 would hold up every stream.
        for token in (min(prompt), max(prompt)):
            parameters.check_token(param, token, served.backend.model)
    return prompt
