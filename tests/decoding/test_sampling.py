"""Sampling is exact, reproducible and independent of what shares the batch."""

from __future__ import annotations

import math
import random
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests import tiny
from vermilion.decoding.forward_jobs import Wanted
from vermilion.decoding.penalties import BAN, Adjustment, Adjustments
from vermilion.decoding.sampling import _nucleus, read
from vermilion.types import Decoding, Request, Sampling

MASK = 0
SIZE = 12
LOGITS = [3.0, 1.2, -0.4, 2.0, 0.1, 1.9, -2.0, 0.8, 1.1, -1.0, 0.4, 1.5]
FILTERS = [
    Sampling(temperature=1.0),
    Sampling(temperature=0.6),
    Sampling(temperature=1.7, top_k=4),
    Sampling(temperature=1.0, top_p=0.7),
    Sampling(temperature=1.3, min_p=0.3),
    Sampling(temperature=0.9, top_k=7, top_p=0.8, min_p=0.1),
]


def warped(logits_V: Tensor, sampling: Sampling) -> Tensor:
    """Probabilities by Hugging Face's logits warpers, the mask token taken out first."""
    from transformers import generation

    scores = logits_V.clone()[None]
    scores[0, MASK] = -math.inf
    scores = scores / sampling.temperature
    if sampling.top_k:
        scores = generation.TopKLogitsWarper(sampling.top_k)(None, scores)
    if sampling.top_p < 1:
        scores = generation.TopPLogitsWarper(sampling.top_p)(None, scores)
    if sampling.min_p:
        scores = generation.MinPLogitsWarper(sampling.min_p)(None, scores)
    return scores[0].softmax(-1)


def wants(sampling: Sampling, count: int) -> list[Wanted]:
    return [Wanted(sampling, position) for position in range(count)]


@pytest.mark.parametrize("sampling", FILTERS, ids=str)
def test_tokens_are_drawn_from_the_filtered_softmax(sampling: Sampling) -> None:
    draws = 4000
    logits = torch.tensor(LOGITS, dtype=torch.float64)
    wanted = warped(logits, sampling)
    counts = torch.zeros(SIZE, dtype=torch.float64)
    for reading in read(logits.repeat(draws, 1), wants(sampling, draws), MASK):
        counts[reading.token] += 1
    assert counts[wanted == 0].sum() == 0
    possible = wanted > 0
    expected = wanted[possible] * draws
    chi_square = ((counts[possible] - expected) ** 2 / expected).sum().item()
    freedom = int(possible.sum()) - 1
    # Four standard deviations above the mean of a chi-square; the seeds are fixed, so this never flickers.
    assert chi_square < freedom + 4 * math.sqrt(2 * freedom)


@given(st.data())
def test_the_quick_search_for_the_nucleus_finds_what_sorting_everything_finds(data: st.DataObject) -> None:
    # Few values, so that there are equals; few candidates, so that they often do not suffice.
    values = data.draw(st.lists(st.sampled_from([-math.inf, -2.0, -1.0, 0.5, 1.0]), min_size=2, max_size=30))
    values[data.draw(st.integers(0, len(values) - 1))] = 1.5
    top_p = data.draw(st.floats(0.0, 0.999))
    scaled = torch.tensor(values, dtype=torch.float64)
    ordered, order = torch.sort(scaled, descending=True, stable=True)
    probability = torch.softmax(ordered, -1)
    outside = probability.cumsum(-1) - probability >= top_p
    outside[0] = False
    expected = set(order[~outside].tolist())
    for candidates in {1, 2, len(values)}:
        assert set(_nucleus(scaled, top_p, candidates).nonzero()[:, 0].tolist()) == expected


def test_seeds_and_positions_are_independent_keys() -> None:
    one = Sampling(temperature=1.0, seed=1)
    logits = torch.zeros(2000, SIZE, dtype=torch.float64)
    by_position = [r.token for r in read(logits.clone(), wants(one, 2000), MASK)]
    by_seed = [
        r.token
        for r in read(
            logits.clone(), [Wanted(Sampling(temperature=1.0, seed=s), 1) for s in range(2000)], MASK
        )
    ]
    for tokens in (by_position, by_seed):
        pairs = {(a, b): 0 for a in range(1, SIZE) for b in range(1, SIZE)}
        for pair in pairwise(tokens):
            pairs[pair] += 1
        expected = 1999 / len(pairs)
        chi_square = sum((count - expected) ** 2 / expected for count in pairs.values())
        freedom = len(pairs) - 1
        assert chi_square < freedom + 4 * math.sqrt(2 * freedom)


def test_the_choice_depends_on_the_row_alone() -> None:
    generator = torch.Generator().manual_seed(4)
    logits = torch.randn(40, SIZE, generator=generator, dtype=torch.float64)
    wanted = [Wanted(FILTERS[i % len(FILTERS)], position=3 * i, top=i % 4) for i in range(40)]
    together = read(logits.clone(), wanted, MASK)
    alone = [read(logits[i : i + 1].clone(), [wanted[i]], MASK)[0] for i in range(40)]
    order = list(range(40))
    random.Random(0).shuffle(order)
    shuffled = read(logits[order].clone(), [wanted[i] for i in order], MASK)
    assert [r.token for r in together] == [r.token for r in alone]
    assert [together[i].token for i in order] == [r.token for r in shuffled]
    assert [together[i].top for i in order] == [r.top for r in shuffled]


@pytest.mark.parametrize("temperature", [0.0, 1.0, 50.0])
def test_the_mask_token_is_never_chosen_nor_listed_nor_given_mass(temperature: float) -> None:
    logits = torch.zeros(200, SIZE)
    logits[:, MASK] = 1000.0
    bias = Adjustments.of([Adjustment(MASK, 1.0, 100.0)])
    wanted = [Wanted(Sampling(temperature=temperature), p, adjustments=bias, top=5) for p in range(200)]
    for reading in read(logits, wanted, MASK):
        assert reading.token != MASK
        assert MASK not in {token for token, _ in reading.top}
        assert reading.logprob == pytest.approx(-math.log(SIZE - 1))


@given(
    st.lists(st.floats(-30, 30), min_size=SIZE, max_size=SIZE),
    st.sampled_from([torch.float32, torch.float64]),
)
def test_readings_are_those_of_an_independent_log_softmax(values: list[float], dtype: torch.dtype) -> None:
    logits = torch.tensor([values], dtype=dtype)
    exact = [math.exp(v - max(values[1:])) for v in logits[0].double().tolist()]
    exact[MASK] = 0.0
    probabilities = [p / sum(exact) for p in exact]
    targets = (3, 7, 3)
    reading = read(logits, [Wanted(Sampling(), 5, targets, entropy=True, top=SIZE - 1)], MASK)[0]
    tolerance = 1e-4 if dtype == torch.float32 else 1e-10
    assert probabilities[reading.token] == max(probabilities)
    assert reading.logprob == pytest.approx(math.log(max(probabilities)), abs=tolerance)
    for target, logprob in zip(targets, reading.target_logprobs, strict=True):
        assert math.exp(logprob) == pytest.approx(probabilities[target], abs=tolerance)
    entropy = -sum(p * math.log(p) for p in probabilities if p > 0)
    assert reading.entropy == pytest.approx(entropy, abs=tolerance)
    listed = [math.exp(logprob) for _, logprob in reading.top]
    assert listed == sorted(listed, reverse=True)
    assert sum(listed) == pytest.approx(1.0, abs=tolerance)
    assert {token for token, _ in reading.top} == set(range(1, SIZE))


def test_logprobs_are_before_temperature_and_filters() -> None:
    logits = torch.tensor([LOGITS, LOGITS], dtype=torch.float64)
    cold, plain = read(
        logits, [Wanted(Sampling(temperature=0.2, top_k=1, seed=9), 1), Wanted(Sampling(), 1)], MASK
    )
    assert cold == plain


def test_a_banned_token_is_not_chosen_and_a_bias_adds_to_the_logit() -> None:
    logits = torch.tensor([LOGITS, LOGITS], dtype=torch.float64)
    other = Adjustments.of([Adjustment(6, 1.0, 9.0)])
    best = Adjustments.of([Adjustment(3, 1.0, BAN)])
    banned, biased = read(
        logits,
        [Wanted(Sampling(), 1, (3,), best), Wanted(Sampling(), 1, (6,), other)],
        MASK,
    )
    assert banned.token == 5 and banned.target_logprobs == (-math.inf,)
    assert biased.token == 6
    total = math.log(sum(math.exp(v) for v in [*LOGITS[1:6], LOGITS[6] + 9.0, *LOGITS[7:]]))
    assert biased.logprob == pytest.approx(7.0 - total)


def test_half_precision_logits_are_not_overwritten_and_agree() -> None:
    logits = torch.tensor([LOGITS], dtype=torch.bfloat16)
    assert read(logits, wants(Sampling(), 1), MASK)[0].token == 3
    assert logits[0, MASK] == 3.0


def answer(decoding: Decoding, sampling: Sampling, built: object) -> tuple[int, ...]:
    engine = tiny.engine("causal-shift", built)  # type: ignore[arg-type]
    prompt = (5, 9, 33, 2)
    engine.submit(Request("a", prompt, sampling, decoding))
    program = engine._sequences["a"].program
    while engine.has_work:
        engine.step()
    return tuple(program.tokens[len(prompt) :])


def test_lossless_sampled_text_is_the_autoregressive_sample() -> None:
    built = tiny.model("causal-shift")
    for seed in range(12):
        sampling = Sampling(max_tokens=16, temperature=0.8 + 0.1 * seed, top_p=0.95, seed=seed)
        expected = answer(Decoding("ar"), sampling, built)
        for decoding in (Decoding("lossless"), Decoding("lossless", block_length=6, branches=3)):
            assert answer(decoding, sampling, built) == expected
