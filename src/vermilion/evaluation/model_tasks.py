"""The tasks that ask the model itself: likelihood of held-out text, and drafts that the base keeps."""

from __future__ import annotations

from typing import Any

from vermilion.errors import BadRequest
from vermilion.evaluation import denoiser_metrics, reference_texts
from vermilion.evaluation.fixed_prompts import hundred
from vermilion.evaluation.sampler import Sampler
from vermilion.evaluation.task import EvalTask, Setting

_MIN_BLOCK = 2


def _likelihood(sampler: Sampler, setting: Setting) -> dict[str, Any]:
    llm = sampler.llm
    _check(sampler, setting)
    known = reference_texts.solutions(llm, setting.limit)
    for path in setting.held_out:
        known += reference_texts.held_out(llm, path, setting.limit)
    setting.watch.begin(len(known))
    return denoiser_metrics.likelihood(
        llm.engine, known, setting.block_length, setting.seed, setting.watch.step
    )


def _drafting(sampler: Sampler, setting: Setting) -> dict[str, Any]:
    llm = sampler.llm
    _check(sampler, setting)
    if not llm.engine.traits.has_next_token:
        raise BadRequest(f"{llm.model.id} has no autoregressive base whose text could be drafted.")
    prompts = hundred()[: setting.limit]
    lengths = tuple(dict.fromkeys((4, setting.block_length)))
    setting.watch.begin(2 * len(prompts))
    known = reference_texts.written(llm, prompts, setting.max_tokens, setting.watch.step)
    return denoiser_metrics.drafting(llm.engine, known, lengths, setting.watch.step)


def _check(sampler: Sampler, setting: Setting) -> None:
    if sampler.llm.engine.traits.context == "full":
        raise BadRequest(f"{sampler.llm.model.id} sees whole texts at once and has no blocks to ask about.")
    if setting.block_length < _MIN_BLOCK:
        raise BadRequest(f"--block-length: {setting.block_length} is too small; the least is {_MIN_BLOCK}.")


TASKS = (
    EvalTask("likelihood", "held-out NLL: AR, masked by rate and by offset; agreement", _likelihood, True),
    EvalTask(
        "drafting",
        "agreement by offset, accepted length, tokens per cycle on the base's text",
        _drafting,
        True,
    ),
)
