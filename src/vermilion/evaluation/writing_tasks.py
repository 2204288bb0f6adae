"""Free answers: tokens per pass, quality of the text, and latency."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Any

from vermilion.decoding.presets import resolve
from vermilion.evaluation.fixed_prompts import FixedPrompt, fixed, hundred
from vermilion.evaluation.likelihood import opinion
from vermilion.evaluation.sampler import Ask, Reply, Sampler
from vermilion.evaluation.task import EvalTask, Grade, Setting, asked
from vermilion.evaluation.text_quality import distinct, parses_so_far, repetition

_LATENCY_TOKENS = (32, 128)


def _asks(setting: Setting, prompts: list[FixedPrompt]) -> list[Ask]:
    return [
        Ask(_prompt(prompt), setting.max_tokens, group=prompt.kind, facts={"text": prompt.text})
        for prompt in prompts[: setting.limit]
    ]


def _prompt(prompt: FixedPrompt) -> str | tuple[dict[str, str], ...]:
    return ({"role": "user", "content": prompt.text},) if prompt.kind == "chat" else prompt.text


def _autoregressive(sampler: Sampler) -> Sampler:
    """The baseline on the same model; the sampler itself where the model has no base."""
    if not sampler.llm.engine.traits.has_next_token:
        return sampler
    return replace(sampler, name="ar", decoding=resolve(sampler.llm.model, "ar"))


@lru_cache(maxsize=1024)
def _tokens(baseline: Sampler, prompt: tuple[int, ...], max_tokens: int) -> tuple[int, ...]:
    """The baseline's answer, computed once for all samplers compared with it."""
    return baseline.answer(Ask(prompt, max_tokens)).token_ids


def _quality(sampler: Sampler, setting: Setting) -> dict[str, Any]:
    """Quality of the text: base_nll alone rewards repetition, so look at distinct_3 and length too."""
    baseline = _autoregressive(sampler)
    scored = sampler.llm.engine.traits.has_next_token

    def grade(sampler: Sampler, ask: Ask, reply: Reply) -> Grade:
        same = _tokens(baseline, reply.prompt_ids, ask.max_tokens)
        view = (
            opinion(sampler.llm.engine, reply.prompt_ids, reply.token_ids)
            if scored and reply.token_ids
            else None
        )
        code = ask.group == "code"
        return {
            "base_nll": -view.mean_logprob if view else None,
            "greedy_share": view.greedy_share if view else None,
            "distinct_3": distinct(reply.token_ids),
            "repetition": repetition(reply.token_ids),
            "length_ratio": len(reply.token_ids) / max(1, len(same)),
            "same_as_ar": reply.token_ids == same if scored else None,
            "parses": parses_so_far(ask.facts["text"] + reply.text) if code else None,
        }

    return asked(sampler, _asks(setting, hundred()), grade, setting.watch)


def _latency(sampler: Sampler, setting: Setting) -> dict[str, Any]:
    """Short and long answers, each by the base as well, so that ratios hold on a busy machine."""
    return _side_by_side(
        sampler,
        setting,
        [
            Ask(_prompt(prompt), tokens, ignore_eos=True, group=f"{tokens} tokens")
            for prompt in fixed(setting.limit)
            for tokens in _LATENCY_TOKENS
        ],
    )


def _side_by_side(sampler: Sampler, setting: Setting, asks: list[Ask]) -> dict[str, Any]:
    baseline = _autoregressive(sampler)
    setting.watch.begin(len(asks))
    pairs: list[tuple[Ask, Reply, Reply]] = []
    sampler.answer(replace(asks[0], max_tokens=8))  # the first forward of a process is slower
    for ask in asks:
        pairs.append((ask, sampler.answer(ask), baseline.answer(ask)))
        setting.watch.step()
    groups = {group: [pair for pair in pairs if pair[0].group == group] for group in {a.group for a in asks}}
    figures = _compared(pairs)
    if len(groups) > 1:
        figures["by_group"] = {group: _compared(some) for group, some in sorted(groups.items())}
    return figures


def _compared(pairs: list[tuple[Ask, Reply, Reply]]) -> dict[str, Any]:
    def middle(of: Callable[[Reply], float], side: int) -> float:
        return round(statistics.median(of(pair[side]) for pair in pairs), 4)  # type: ignore[arg-type]

    ratios = [baseline.wall_s / reply.wall_s for _, reply, baseline in pairs]
    spread = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else [ratios[0]] * 3
    tokens, passes = (
        sum(getattr(reply.usage, name) for _, reply, _ in pairs) for name in ("completion_tokens", "passes")
    )
    return {
        "count": len(pairs),
        "first_text_s": middle(lambda reply: reply.first_text_s, 1),
        "first_text_ar_s": middle(lambda reply: reply.first_text_s, 2),
        "whole_answer_s": middle(lambda reply: reply.wall_s, 1),
        "whole_answer_ar_s": middle(lambda reply: reply.wall_s, 2),
        "speed_vs_ar": round(statistics.median(ratios), 3),
        "speed_vs_ar_quartiles": [round(value, 3) for value in (spread[0], spread[-1])],
        "tokens_per_pass": round(tokens / max(1, passes), 4),
    }


TASKS = (
    EvalTask(
        "quality",
        "free answers: tokens per pass beside base NLL, repetition, length, code that parses",
        _quality,
    ),
    EvalTask("latency", "first settled text and whole answers, autoregression in turn", _latency),
)
