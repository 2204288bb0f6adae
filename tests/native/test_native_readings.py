"""What the kernels say of a row of logits, against what PyTorch makes of the same logits."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch

from tests import tiny
from tests.native import tiny_native
from tests.native.oracle import rms_norm, rounded, unpacked
from tests.native.tiny_native import causal, packed, runner
from vermilion.decoding import sampling as oracle
from vermilion.decoding.forward_jobs import Job, Wanted
from vermilion.decoding.passes import Choices, Pass, Read, Reading, Segment
from vermilion.decoding.penalties import Adjustment, Adjustments
from vermilion.native import library
from vermilion.native.packed_file import Array
from vermilion.types import Sampling

SETS = tiny_native.available_sets()
IDS = [(37 * i + 11) % 90 + 2 for i in range(40)]
ALLOWED = np.packbits([i % 3 == 1 for i in range(tiny.VOCAB)], bitorder="little").tobytes()
CHANGES = Adjustments.of([Adjustment(3, 1.5, -0.5), Adjustment(9, 1.0, 4.0), Adjustment(11, 1.2, -math.inf)])
SAMPLINGS = [
    Sampling(temperature=1.0, seed=3),
    Sampling(temperature=0.3, seed=2**70 + 5),
    Sampling(temperature=2.5, seed=-4),
    Sampling(temperature=1.2, seed=1, top_k=7),
    Sampling(temperature=1.5, seed=2, top_p=0.8),
    Sampling(temperature=1.5, seed=6, top_p=0.02),
    Sampling(temperature=4.0, seed=2, top_p=0.99),
    Sampling(temperature=1.5, seed=4, min_p=0.05),
    Sampling(temperature=2.0, seed=5, top_k=40, top_p=0.9, min_p=0.01),
]


def read(wanted: list[Wanted], isa: str = "") -> tuple[list[Reading], Array]:
    one = runner(isa=isa)
    reads = tuple(Read(row, want.position, "next", tuple(want.targets)) for row, want in enumerate(wanted))
    [readings] = one.run([Job([1, 0, 2], Pass((causal(IDS[: len(wanted)]),), reads), wanted)])
    return readings, one.logits


def close(ours: float, theirs: float) -> bool:
    return ours == theirs or abs(ours - theirs) < 1e-4


@pytest.mark.parametrize("isa", SETS)
def test_readings_are_those_of_pytorch(isa: str) -> None:
    greedy = Sampling()
    wanted = [
        Wanted(greedy, 0),
        Wanted(greedy, 1, targets=(5, 90, 0)),
        Wanted(greedy, 2, adjustments=CHANGES, targets=(3, 9, 11)),
        Wanted(greedy, 3, entropy=True, top=20),
        Wanted(greedy, 4, allowed=ALLOWED, top=8),
        Wanted(greedy, 6, adjustments=CHANGES, divisor=0.4, entropy=True, top=3, targets=(7,)),
        Wanted(greedy, 5, adjustments=CHANGES, allowed=ALLOWED, entropy=True, top=60, targets=(1,)),
    ]
    ours, logits = read(wanted, isa)
    theirs = oracle.read(torch.from_numpy(logits.astype(np.float64)), wanted, tiny.MASK)
    for index, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        assert a.token == b.token
        assert close(a.logprob, b.logprob)
        assert close(a.entropy, b.entropy) or not wanted[index].entropy
        assert len(a.target_logprobs) == len(b.target_logprobs)
        assert all(map(close, a.target_logprobs, b.target_logprobs))
        assert [token for token, _ in a.top] == [token for token, _ in b.top]
        assert all(map(close, (value for _, value in a.top), (value for _, value in b.top)))


def test_a_row_where_all_is_forbidden_reads_as_nothing() -> None:
    ours, _ = read([Wanted(Sampling(), 0, allowed=bytes(13), targets=(4,)), Wanted(Sampling(), 1)])
    assert ours[0].token == 0
    assert math.isnan(ours[0].logprob)
    assert math.isfinite(ours[1].logprob)


@pytest.mark.parametrize("isa", SETS)
@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
def test_samples_are_the_likeliest_under_their_noise(sampling: Sampling, isa: str) -> None:
    """Gumbel's argmax over what the filters keep, token by token."""
    wanted = [Wanted(sampling, 7 * row + 1, adjustments=CHANGES if row % 2 else None) for row in range(24)]
    ours, logits = read(wanted, isa)
    kernels = library.load()
    chosen = set()
    for row, (want, reading) in enumerate(zip(wanted, ours, strict=True)):
        exact = torch.from_numpy(logits[row : row + 1].astype(np.float64))
        exact[:, tiny.MASK] = -math.inf
        oracle._adjust(exact, [want])
        scaled = oracle._filtered(exact[0] / sampling.temperature, sampling)
        noise = [
            kernels.vermilion_noise(sampling.seed & (2**64 - 1), want.position, token)
            for token in range(tiny.VOCAB)
        ]
        assert reading.token == int((scaled + torch.tensor(noise)).argmax())
        assert close(reading.logprob, float(torch.log_softmax(exact[0], -1)[reading.token]))
        chosen.add(reading.token == int(exact[0].argmax()))
    assert len(chosen) == 2 or sampling.top_p < 0.1 or sampling.temperature < 1


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
def test_draws_are_those_of_pytorch(sampling: Sampling) -> None:
    """The inverse of the distribution function, at the same numbers on both sides."""
    wanted = [Wanted(sampling, 7 * row + 1, divisor=0.4 + row / 20, draw=row % 5) for row in range(24)]
    ours, logits = read(wanted)
    theirs = oracle.read(torch.from_numpy(logits.astype(np.float64)), wanted, tiny.MASK)
    assert [one.token for one in ours] == [one.token for one in theirs]
    assert all(close(a.logprob, b.logprob) for a, b in zip(ours, theirs, strict=True))


def test_noise_is_gumbels() -> None:
    kernels, draw = library.load(), random.Random(1)
    noise = sorted(kernels.vermilion_noise(draw.getrandbits(64), i % 97, i % 1013) for i in range(20_000))
    for share in (0.01, 0.25, 0.5, 0.75, 0.99):
        # The cumulative distribution is exp(-exp(-x)).
        assert abs(math.exp(-math.exp(-noise[int(share * len(noise))])) - share) < 0.015


def expected_given(hidden: Array, top: Choices, before: int) -> list[tuple[int, float]]:
    """`decoding/following.py` in numpy."""
    file = packed("plain")
    embedding = unpacked(file, "embedding")
    eps = float(np.finfo(np.float32).eps)
    both = np.concatenate([rms_norm(each, None, eps, each.shape[-1]) for each in (hidden, embedding[before])])
    low = rounded(both) @ unpacked(file, "draft_down").T
    added = rounded(low / (1 + np.exp(-low))) @ unpacked(file, "draft_up").T
    old = np.array([value for _, value in top])
    new = old + embedding[[token for token, _ in top]] @ added
    new += np.logaddexp.reduce(old) - np.logaddexp.reduce(new)
    order = np.argsort(-new, kind="stable")
    return [(top[i][0], float(new[i])) for i in order]


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_drafts_are_weighed_behind_each_token_before_them(temperature: float) -> None:
    sampling = Sampling(temperature=temperature, seed=11)
    segments = (
        causal(IDS[:20]),
        Segment((IDS[19], 0, 0), 19, 20, sees=19, span=0, noisy=True, masked=(False, True, True)),
    )
    reads = (
        Read(19, 20, "next"),
        Read(21, 21, "draft", top=5, after=0),
        Read(22, 22, "draft", top=4, after=1),
    )
    one = runner()
    [readings] = one.run(
        [Job([0, 1], Pass(segments, reads), [Wanted(sampling, r.position, top=r.top) for r in reads])]
    )
    embedding = unpacked(packed("plain"), "embedding")
    # 97 logits of a row give its 64 components as they went into the head.
    hidden = np.linalg.lstsq(embedding, one.logits.T.astype(float), rcond=None)[0].T
    assert set(readings[1].given) == {readings[0].token}
    assert set(readings[2].given) == {token for token, _ in readings[1].top[:5]}
    for index in (1, 2):
        for before, choices in readings[index].given.items():
            expected = dict(expected_given(hidden[index], readings[index].top, before))
            assert all(abs(value - expected[token]) < 0.05 for token, value in choices)
            if not temperature:
                assert [value for _, value in choices] == sorted((v for _, v in choices), reverse=True)
                continue
            noise = library.load().vermilion_noise
            scores = {
                token: value / temperature + noise(11, reads[index].position, token)
                for token, value in expected.items()
            }
            [(token, _)] = choices
            assert scores[token] > max(scores.values()) - 0.1
