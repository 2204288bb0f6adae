"""The embedded model on the kernels: its lossless text is its ar text, and nearly always PyTorch's."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from tests.native import tiny_native
from tests.test_exactness import answers, ids
from vermilion.config import EngineConfig
from vermilion.engine.llm import LLM
from vermilion.evaluation.fixed_prompts import fixed, hundred
from vermilion.native.runner import NativeRunner
from vermilion.types import Decoding, Sampling

pytestmark = pytest.mark.model
tiny_native.available_sets()
AR = Decoding("ar")
LOSSLESS = [
    Decoding("lossless"),
    Decoding("lossless", block_length=6, draft_nodes=6, branches=2),
    Decoding("lossless", lookup=16),
]
SAMPLINGS = [
    Sampling(max_tokens=48),
    Sampling(max_tokens=32, temperature=0.8, top_p=0.95, seed=5),
    Sampling(max_tokens=32, temperature=1.0, seed=6, repetition_penalty=1.2, presence_penalty=0.3),
]


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    made = LLM(config=EngineConfig(backend="native"))
    assert isinstance(made.engine.worker, NativeRunner)
    # Whatever rows cost here: every request drafts.
    made.engine.scheduler.costs = None
    yield made


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=["greedy", "sampled", "penalties"])
def test_lossless_text_is_ar_text(llm: LLM, sampling: Sampling) -> None:
    prompts = [ids(llm, prompt) for prompt in hundred()][::8]
    alone = [answers(llm, [prompt], sampling, AR)[0] for prompt in prompts]
    assert answers(llm, prompts, sampling, AR) == alone
    for decoding in LOSSLESS:
        assert answers(llm, prompts, sampling, decoding) == alone


def test_greedy_text_is_mostly_pytorchs(llm: LLM) -> None:
    """Activations of eight bits move logits by 0.15; texts part where two tokens are that close."""
    exact = LLM(config=EngineConfig(backend="torch", dtype="float32"))
    prompts = [ids(llm, prompt) for prompt in fixed(6)]
    sampling = Sampling(max_tokens=24, ignore_eos=True)
    ours, theirs = answers(llm, prompts, sampling, AR), answers(exact, prompts, sampling, AR)
    shared = [
        int(np.argmin([a == b for a, b in zip(one, other, strict=True)] + [False]))
        for one, other in zip(ours, theirs, strict=True)
    ]
    assert np.mean(shared) > 12
