"""Metrics of the model, independent of the decoder: likelihood of text, drafts that the base accepts."""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from vermilion.engine.engine import Engine
from vermilion.evaluation.probe import Block, Cut, Guess, blocks, guesses
from vermilion.evaluation.reference_texts import ReferenceText

RATES = (0.25, 0.5, 0.75, 1.0)
_BINS = 10
Step = Callable[[], None]


@dataclass(slots=True)
class _Gathered:
    """Everything read of the texts of one group."""

    tokens: int = 0
    base_nll: list[float] = field(default_factory=list)
    nll: dict[float, list[float]] = field(default_factory=lambda: defaultdict(list))
    nll_at: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))
    base_nll_at: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))
    agrees_at: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))
    runs: list[int] = field(default_factory=list)
    certain: list[tuple[float, float]] = field(default_factory=list)
    """(confidence, 1 where the guess is the text's own token)."""


def likelihood(
    engine: Engine, texts: Sequence[ReferenceText], block_length: int, seed: int, step: Step = lambda: None
) -> dict[str, Any]:
    """How well the base and the denoiser predict `texts`, in nats per token, by group and over all.

    base_nll is autoregressive; nll the denoiser's of hidden tokens by the share hidden of each block;
    nll_by_offset and agreement that of fully hidden blocks, from the first hidden position on, where
    agreement is how often its likeliest token is the base's own; accepted the implied length of the agreeing
    run, sum over k of the product of the first k agreements; run its measured mean; calibration_error the
    mean gap between confidence and accuracy over ten bins. A block's first position is always visible where
    models have shift. Blocks start at another position in each text. `step` is called after each text.
    """
    groups: dict[str, _Gathered] = defaultdict(_Gathered)
    for number, text in enumerate(texts):
        _gather(engine, text, block_length, random.Random(f"{seed} {number}"), groups[text.group])
        step()
    everything = _merged(groups.values())
    figures = _figures(everything)
    figures["by_group"] = {name: _figures(one) for name, one in groups.items()}
    return {"block_length": block_length, "texts": len(texts), **figures}


def _gather(
    engine: Engine, text: ReferenceText, block_length: int, rng: random.Random, into: _Gathered
) -> None:
    traits, tokens = engine.traits, text.ids
    given = max(1, text.num_prompt)
    into.tokens += len(tokens) - given
    choices: dict[int, int] = {}
    values: dict[int, float] = {}
    if traits.has_next_token:
        readings = engine.score(tokens[:given], tokens[given:])
        choices = {p: reading.token for p, reading in enumerate(readings, given)}
        values = {p: -reading.target_logprobs[0] for p, reading in enumerate(readings, given)}
        into.base_nll += values.values()
    grid = traits.block_grid
    first = -(-given // grid) * grid if grid else given - traits.shift + rng.randrange(block_length)
    # One forward for all rates: its clean rows are the dear part behind a long prompt.
    cuts = [
        (rate, block)
        for rate in RATES
        for block in blocks(len(tokens), Cut(block_length, rate, first, anchored=traits.shift), rng)
    ]
    asked = guesses(engine, tokens, [block for _, block in cuts]) if cuts else []
    for (rate, _), block in zip(cuts, asked, strict=True):
        into.nll[rate] += [-guess.target_logprob for guess in block]
        into.certain += [(math.exp(g.logprob), float(g.token == tokens[g.position])) for g in block]
        if rate == 1:
            _by_offset(block, choices, values, into)


def _by_offset(
    block: Sequence[Guess], choices: dict[int, int], values: dict[int, float], into: _Gathered
) -> None:
    run, going = 0, True
    for guess in block:
        into.nll_at[guess.offset].append(-guess.target_logprob)
        if guess.position in choices:
            same = guess.token == choices[guess.position]
            into.agrees_at[guess.offset].append(float(same))
            into.base_nll_at[guess.offset].append(values[guess.position])
            going = going and same
            run += going
    into.runs.append(run)


def _figures(one: _Gathered) -> dict[str, Any]:
    agreement = [_mean(values) for _, values in sorted(one.agrees_at.items())]
    figures: dict[str, Any] = {
        "tokens": one.tokens,
        "nll": {str(rate): _mean(values) for rate, values in sorted(one.nll.items())},
        "nll_by_offset": [_mean(values) for _, values in sorted(one.nll_at.items())],
        "calibration_error": _calibration(one.certain),
    }
    if one.base_nll:
        figures |= {
            "base_nll": _mean(one.base_nll),
            "base_nll_by_offset": [_mean(values) for _, values in sorted(one.base_nll_at.items())],
            "agreement": agreement,
            "accepted": implied(agreement),
            "run": _mean(one.runs),
        }
    return figures


def implied(agreement: Sequence[float]) -> float:
    """Mean length of the agreeing run if offsets were independent: the sum of running products."""
    total, product = 0.0, 1.0
    for share in agreement:
        product *= share
        total += product
    return round(total, 4)


def drafting(
    engine: Engine, texts: Sequence[ReferenceText], block_lengths: Sequence[int], step: Step = lambda: None
) -> dict[str, Any]:
    """How many of the denoiser's drafts the base accepts, on `texts` that the base wrote greedily.

    A block is drafted behind every position: agreement by offset, accepted (implied) and run (measured) over
    all of them, of chains of the likeliest draft behind each draft where the model has a draft head.
    tokens_per_cycle replays draft-then-verify from each text's start, one denoise pass per draft: every cycle
    settles the agreeing run and one token of the base's. tokens_per_riding_cycle: the same where, as in
    `lossless`, the draft pass also gives the base's next token, which the drafts then stand behind. Needs a
    family with a base.
    """
    found: dict[tuple[int, str], list[list[list[bool]]]] = defaultdict(list)
    for text in texts:
        for length in block_lengths:
            found[length, text.group].append(_matches(engine, text, length))
        step()
    figures: dict[str, Any] = {"texts": len(texts)}
    for length in block_lengths:
        mine = {group: some for (size, group), some in found.items() if size == length}
        figures[f"block_{length}"] = {
            **_drafted([one for some in mine.values() for one in some], length),
            "by_group": {group: _drafted(some, length) for group, some in mine.items()},
        }
    return figures


def _matches(engine: Engine, text: ReferenceText, block_length: int) -> list[list[bool]]:
    """For every position of the answer, which tokens of a block drafted there are the text's own, if all
    before them are."""
    tokens, most = text.ids, block_length - 1
    starts = range(text.num_prompt, len(tokens) - most + 1)
    if not starts:
        return []
    cut = [Block(p - 1, p + most, tuple(range(p, p + most))) for p in starts]
    return [
        [g.behind(tokens[g.position - 1]) == tokens[g.position] for g in block]
        for block in guesses(engine, tokens, cut)
    ]


def _replayed(matches: Sequence[Sequence[bool]], given: int) -> tuple[int, int]:
    """(cycles, tokens settled) of drafting and verifying from the first position on; the first `given`
    tokens of a block are the base's."""
    at = cycles = 0
    while at < len(matches):
        at += given + run_of(matches[at][given:]) + 1
        cycles += 1
    return cycles, at


def run_of(matches: Iterable[bool]) -> int:
    """How many are true before the first that is not."""
    count = 0
    for same in matches:
        if not same:
            break
        count += 1
    return count


def _drafted(texts: Sequence[Sequence[Sequence[bool]]], block_length: int) -> dict[str, Any]:
    drafts = [draft for text in texts for draft in text]
    agreement = [_mean(draft[k] for draft in drafts) for k in range(block_length - 1)]
    replays = [[_replayed(text, given) for text in texts] for given in (0, 1)]
    apart, riding = (round(sum(n for _, n in each) / max(1, sum(n for n, _ in each)), 4) for each in replays)
    return {
        "positions": len(drafts),
        "agreement": agreement,
        "accepted": implied(agreement),
        "run": _mean(run_of(draft) for draft in drafts),
        "tokens_per_cycle": apart,
        "tokens_per_riding_cycle": riding,
    }


def _merged(parts: Iterable[_Gathered]) -> _Gathered:
    total = _Gathered()
    for part in parts:
        total.tokens += part.tokens
        total.base_nll += part.base_nll
        total.runs += part.runs
        total.certain += part.certain
        for name in ("nll", "nll_at", "base_nll_at", "agrees_at"):
            for key, values in getattr(part, name).items():
                getattr(total, name)[key] += values
    return total


def _calibration(certain: Sequence[tuple[float, float]]) -> float:
    bins: dict[int, list[tuple[float, float]]] = defaultdict(list)
    for confidence, right in certain:
        bins[min(_BINS - 1, int(confidence * _BINS))].append((confidence, right))
    gaps = [len(one) * abs(fmean(c for c, _ in one) - fmean(r for _, r in one)) for one in bins.values()]
    return round(sum(gaps) / max(1, len(certain)), 4)


def _mean(values: Iterable[float]) -> float:
    listed = list(values)
    return round(fmean(listed), 4) if listed else 0.0
