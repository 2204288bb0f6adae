"""Penalties, bias and bans against their published definitions."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vermilion.decoding.forward_jobs import Wanted
from vermilion.decoding.penalties import BAN, Adjustment, Adjustments, Penalties, adjustments, needed
from vermilion.decoding.sampling import read
from vermilion.types import Sampling

SIZE = 9
MASK = 8
IDS = st.lists(st.integers(0, SIZE - 2), max_size=6)


def logprobs(
    logits: list[float], sampling: Sampling, prompt: list[int], answer: list[int], history: list[int]
) -> list[float]:
    changes = Adjustments.of(adjustments(sampling, prompt, Counter(answer), history, ()))
    wanted = Wanted(sampling, 3, tuple(range(SIZE - 1)), changes)
    return list(read(torch.tensor([logits], dtype=torch.float64), [wanted], MASK)[0].target_logprobs)


@given(st.lists(st.floats(-5, 5), min_size=SIZE, max_size=SIZE), IDS, IDS, IDS, st.floats(0.5, 2.0))
def test_repetition_is_that_of_hugging_face(
    logits: list[float], prompt: list[int], answer: list[int], history: list[int], penalty: float
) -> None:
    from transformers import RepetitionPenaltyLogitsProcessor

    got = logprobs(logits, Sampling(repetition_penalty=penalty), prompt, answer, history)
    scores = torch.tensor([logits], dtype=torch.float64)
    seen = torch.tensor([[*prompt, *answer, *history]], dtype=torch.long)
    if seen.numel():
        scores = RepetitionPenaltyLogitsProcessor(penalty)(seen, scores)
    wanted = scores[0, : SIZE - 1].log_softmax(-1).tolist()
    assert got == pytest.approx(wanted, abs=1e-9)


@given(
    st.lists(st.floats(-5, 5), min_size=SIZE, max_size=SIZE),
    IDS,
    IDS,
    st.tuples(st.floats(-2, 2), st.floats(-2, 2)),
    st.dictionaries(st.integers(0, SIZE - 2), st.floats(-10, 10), max_size=3),
)
def test_presence_frequency_and_bias_are_those_of_openai(
    logits: list[float],
    answer: list[int],
    history: list[int],
    penalties: tuple[float, float],
    bias: dict[int, float],
) -> None:
    presence, frequency = penalties
    sampling = Sampling(presence_penalty=presence, frequency_penalty=frequency, logit_bias=bias)
    got = logprobs(logits, sampling, [0, 1, 2], answer, history)
    count = Counter([*answer, *history])
    wanted = [
        logits[j] - count[j] * frequency - (count[j] > 0) * presence + bias.get(j, 0.0)
        for j in range(SIZE - 1)
    ]
    total = math.log(sum(map(math.exp, wanted)))
    assert got == pytest.approx([value - total for value in wanted], abs=1e-9)


def test_a_ban_outweighs_every_bias() -> None:
    sampling = Sampling(logit_bias={4: 100.0}, repetition_penalty=0.5, presence_penalty=-2.0)
    changes = adjustments(sampling, (4,), {4: 2}, (4,), (4,))
    assert changes == [Adjustment(4, 1.0, BAN)]


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(repetition_penalty=1.1),
        Sampling(presence_penalty=-0.1),
        Sampling(frequency_penalty=0.1),
        Sampling(logit_bias={1: 1.0}),
        Sampling(min_tokens=1),
    ],
    ids=str,
)
def test_what_changes_logits_is_known_beforehand(sampling: Sampling) -> None:
    assert needed(sampling)
    assert not needed(Sampling(temperature=1.0, top_p=0.5, top_k=3, min_p=0.1, seed=4, stop=("x",)))


@given(
    IDS,
    st.lists(st.tuples(st.integers(0, 3), IDS, IDS), max_size=8),
    st.builds(
        Sampling,
        repetition_penalty=st.sampled_from([1.0, 1.3]),
        presence_penalty=st.sampled_from([0.0, 0.5, -0.25]),
        frequency_penalty=st.sampled_from([0.0, 0.2]),
        logit_bias=st.dictionaries(st.integers(0, SIZE - 1), st.sampled_from([0.0, -3.5, 2.0]), max_size=3),
    ),
    st.sampled_from([(), (2,), (0, 5)]),
)
def test_what_is_kept_up_equals_what_is_counted_anew(
    prompt: list[int],
    rounds: list[tuple[int, list[int], list[int]]],
    sampling: Sampling,
    banned: tuple[int, ...],
) -> None:
    """Answers grow, and now and then lose their last tokens, as a line that is taken back does."""
    kept, answer = Penalties(sampling, prompt, SIZE), list[int]()
    for lost, more, history in rounds:
        answer = [*answer[: max(0, len(answer) - lost)], *more]
        kept.follow(answer)
        for behind, bans in ((history, banned), ((), ()), ((), banned)):
            wanted = Adjustments.of(adjustments(sampling, prompt, Counter(answer), behind, bans))
            got = kept.at(behind, bans)
            # The oracle lists tokens whose change is none as well.
            changed = (wanted.repetition != 1.0) | (wanted.add != 0.0)
            mine = (got.repetition != 1.0) | (got.add != 0.0)
            assert got.tokens[mine].tolist() == wanted.tokens[changed].tolist()
            assert got.add[mine].tolist() == wanted.add[changed].tolist()
            assert got.repetition[mine].tolist() == wanted.repetition[changed].tolist()
