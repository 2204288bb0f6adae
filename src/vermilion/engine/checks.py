"""What a request must be to be taken up: tokens that the model knows, settings in range, room in memory.

Whatever passes here cannot fail the step that it shares with others.
"""

from __future__ import annotations

from collections.abc import Callable

from vermilion.decoding.canvas import num_mixed
from vermilion.decoding.decoders import DECODERS, check_decoding
from vermilion.decoding.knobs import MAX_LOGPROBS, check_sampling
from vermilion.decoding.program import Program
from vermilion.errors import BadParameter, BadRequest, ContextLengthExceeded
from vermilion.models.families import Traits
from vermilion.models.families.family_presets import MAX_BLOCK_LENGTH
from vermilion.types import Decoding, ModelInfo, Request, Seeds

MAX_SEEDED_ROWS = 1024
"""Rows of a seeded canvas, which one step runs at once: up to 3.3 s of one core for the embedded model."""


def check_request(request: Request, model: ModelInfo, traits: Traits, num_slots: int) -> None:
    """Raises `BadRequest` and its kinds."""
    _check_tokens(request, model)
    candidates = request.seeds.candidates if request.seeds is not None else ()
    check_sampling(request.sampling, model.vocab_size, max(MAX_LOGPROBS, *map(len, candidates), 0))
    check_decoding(request.decoding)
    if request.decoding.decoder not in model.decoders:
        raise BadParameter(
            "decoding.decoder",
            request.decoding.decoder,
            ", ".join(model.decoders),
            f"{model.id} has no other.",
        )
    if request.decoding.block_length > MAX_BLOCK_LENGTH and traits.context != "full":
        given = request.decoding.block_length
        raise BadParameter("decoding.block_length", given, f"1 to {MAX_BLOCK_LENGTH} for {model.id}")
    if request.decoding.cache != "none" and traits.context != "full":
        why = "Its own is exact; others are for models that see everything."
        raise BadParameter("decoding.cache", request.decoding.cache, f"none for {model.id}", why)
    decoder = request.decoding.decoder
    if request.decoding.cache != "none" and (DECODERS[decoder].grows or DECODERS[decoder].leaves_out):
        why = "Its passes compare the whole text, or change how long it is."
        raise BadParameter("decoding.cache", request.decoding.cache, f"none for {decoder}", why)
    if request.decoding.guidance and (
        traits.context != "full"
        or "guidance" not in DECODERS[decoder].knobs
        or request.decoding.cache != "none"
    ):
        raise BadParameter(
            "decoding.guidance",
            request.decoding.guidance,
            f"0 for {model.id} with {decoder} and the cache {request.decoding.cache}",
            "It is for models that see everything, in whole passes: each runs again without the given text.",
        )
    total = len(request.prompt) + len(request.suffix)
    if total >= model.context_length:
        raise ContextLengthExceeded(model.context_length, total)
    room = model.context_length - total
    if not 1 <= request.sampling.max_tokens <= room:
        raise BadParameter("max_tokens", request.sampling.max_tokens, f"1 to {room} for this prompt")
    if request.given and not traits.has_next_token:
        raise BadRequest(f"{model.id} has no base that could read a given answer.", "given")
    _check_grammar(request)
    _check_canvas(request, model, traits)
    _check_seeds(request, min(model.context_length, num_slots))


def check_memory(program: Program, max_draft_rows: int, num_slots: int) -> None:
    """What can never fit would wait for ever, and who drafts too much makes all others wait."""
    decoding, drafts = program.task.decoding, program.max_draft_rows
    room = max(0, min(max_draft_rows, num_slots - (program.max_slots - drafts)))
    if drafts > room:
        raise BadParameter(
            "decoding.draft_nodes",
            decoding.draft_nodes,
            f"with branches and block_length, at most {room} rows beside this text",
            f"These ask for {drafts}.",
        )
    if program.max_slots > num_slots:
        raise ContextLengthExceeded(num_slots, program.max_slots)


def check_mixing(decoding: Decoding, backend: Callable[[], str]) -> None:
    """Raises `BadParameter` where rows are to be mixtures of tokens and the backend, asked only then, has
    none."""
    if num_mixed(decoding) and backend() == "native":
        why = "Only PyTorch mixes the embeddings of tokens: set engine.backend to torch."
        raise BadParameter("decoding.soft_tokens", decoding.soft_tokens, "0 on the native backend", why)


def _check_tokens(request: Request, model: ModelInfo) -> None:
    """The model has no row for any other token: the whole step would fail, and every request in it."""
    if not request.prompt:
        raise BadRequest("The prompt is empty; give at least one token.", param="prompt")
    seeds = request.seeds or Seeds(())
    given = {
        "prompt": (*request.prompt, *(token for token in seeds.ids if token is not None)),
        "suffix": request.suffix,
        "existing": request.existing,
        "given": request.given,
        "candidates": tuple(token for some in seeds.candidates for token in some),
    }
    for name, tokens in given.items():
        if tokens and not 0 <= min(tokens) <= max(tokens) < model.vocab_size:
            wrong = min(tokens) if min(tokens) < 0 else max(tokens)
            raise BadParameter(name, wrong, f"token ids from 0 to {model.vocab_size - 1}")


def _check_grammar(request: Request) -> None:
    if request.grammar is not None and request.suffix:
        raise BadRequest("A text that fills a gap cannot be held to a grammar.", "response_format")


def _check_canvas(request: Request, model: ModelInfo, traits: Traits) -> None:
    """What the canvases of this kind of model have no meaning for."""
    gap = "suffix" if request.suffix else "prompt" if request.seeds is not None else ""
    if gap and not traits.denoises:
        raise BadRequest(
            f"{model.id} has no denoiser, so it only continues texts and fills no gaps.",
            gap,
            "unsupported_parameter",
        )
    if gap and traits.noise == "uniform":
        raise BadRequest(
            f"{model.id} has no mask that would keep a place open, so it fills no gaps.",
            gap,
            "unsupported_parameter",
        )
    if gap and traits.canvas == "causal":
        raise BadRequest(
            f"{model.id} decides masks from the text before them alone, so it fills no gaps.",
            gap,
            "unsupported_parameter",
        )
    if request.decoding.revise_below > 0 and traits.next_token:
        raise BadParameter(
            "decoding.revise_below",
            request.decoding.revise_below,
            "0",
            f"{model.id} settles a block before its base reads it.",
        )
    if request.sampling.logprobs is not None and traits.noise == "uniform":
        raise BadRequest(
            f"{model.id} decides every token anew in each pass, at the temperature of its schedule, so that "
            "no token has a log-probability of its own.",
            "logprobs",
            "unsupported_parameter",
        )


def _check_seeds(request: Request, max_rows: int) -> None:
    if request.seeds is None:
        return
    ids, candidates = request.seeds.ids, request.seeds.candidates
    if request.suffix or request.grammar or None not in ids:
        raise BadRequest("A seeded canvas needs an open place, no suffix and no grammar.", "prompt")
    num_open = ids.count(None)
    if len(candidates) not in (0, num_open) or not all(candidates):
        raise BadRequest(f"{num_open} open places need as many lists of candidates, or none.", "prompt")
    if len(ids) > MAX_SEEDED_ROWS:
        # All of them see each other, so that no step can do less than all.
        raise BadRequest(
            f"The text with open places has {len(ids)} tokens from the first place on; at most "
            f"{MAX_SEEDED_ROWS}. Ask in several requests.",
            "prompt",
        )
    if len(request.prompt) + len(ids) > max_rows:
        raise ContextLengthExceeded(max_rows, len(request.prompt) + len(ids))
