"""The embedded model on real prompts: AR equals transformers, lossless equals AR, the engine its reference.

In fp32 two forwards of different shapes may round differently, so where two texts part the test demands proof
of a tie: at that position the base gives both tokens logits that differ by less than rounding can explain.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest
import torch

from vermilion.config import EngineConfig
from vermilion.decoding.passes import Pass, Read, Segment
from vermilion.decoding.reference import Reference
from vermilion.engine.llm import LLM
from vermilion.errors import ModelFileError
from vermilion.evaluation.fixed_prompts import FixedPrompt, fixed, hundred
from vermilion.models import catalog
from vermilion.models.build import build
from vermilion.models.families.family_presets import WITH_BASE
from vermilion.training.export import hugging_face_tensors
from vermilion.types import Decoding, Finish, Request, Sampling

pytestmark = pytest.mark.model

ROUNDING = 2e-3
"""Logits of the embedded model are of the order of 20; fp32 sums over 30 layers differ by about 1e-4."""


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    try:
        catalog.find(catalog.DEFAULT_MODEL)
    except ModelFileError as error:
        pytest.skip(str(error))
    # Enough rows that every request drafts, however many there are.
    yield LLM(config=EngineConfig(dtype="float32", device="cpu"))


def ids(llm: LLM, prompt: FixedPrompt) -> tuple[int, ...]:
    if prompt.kind == "chat":
        return tuple(llm.chat_prompt([{"role": "user", "content": prompt.text}]))
    return tuple(llm.tokenizer.encode(prompt.text))


def answers(
    llm: LLM, prompts: Sequence[tuple[int, ...]], sampling: Sampling, decoding: Decoding
) -> list[tuple[int, ...]]:
    """All prompts at once through the engine; the answers' tokens."""
    programs = [
        llm.engine.submit(Request(f"{i}", prompt, sampling, decoding)) for i, prompt in enumerate(prompts)
    ]
    while llm.engine.has_work:
        for _, event in llm.engine.step():
            assert not isinstance(event, Finish) or event.reason in ("stop", "length")
    return [tuple(one.tokens[len(prompt) :]) for one, prompt in zip(programs, prompts, strict=True)]


def gap(llm: LLM, context: Sequence[int], one: int, other: int) -> float:
    """How far apart the base's log-probabilities of two next tokens are."""
    rows = Pass(
        (Segment(tuple(context), 0, 0, sees=0, span=1),),
        (Read(len(context) - 1, len(context), "check", (one, other)),),
    )
    [reading] = llm.engine.read(rows)
    return abs(reading.target_logprobs[0] - reading.target_logprobs[1])


def assert_same_or_tied(
    llm: LLM, prompt: Sequence[int], expected: Sequence[int], given: Sequence[int]
) -> bool:
    """Whether the answers are equal; fails unless the first difference is a tie."""
    if tuple(expected) == tuple(given):
        return True
    at = next(i for i, (a, b) in enumerate(zip(expected, given, strict=False)) if a != b)
    apart = gap(llm, [*prompt, *expected[:at]], expected[at], given[at])
    assert apart < ROUNDING, f"texts part at {at} where the base is {apart:.2g} nats sure"
    return False


def test_greedy_text_equals_transformers(llm: LLM) -> None:
    transformers = pytest.importorskip("transformers")
    built = build(catalog.find(catalog.DEFAULT_MODEL))
    a = built.spec.architecture
    config = transformers.LlamaConfig(
        vocab_size=a.vocab_size, hidden_size=a.hidden_size, intermediate_size=a.ffn_size,
        num_hidden_layers=a.num_layers, num_attention_heads=a.num_heads, num_key_value_heads=a.num_kv_heads,
        max_position_embeddings=a.context_length, rms_norm_eps=a.norm_eps, tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": a.rope_theta},
    )  # fmt: skip
    theirs = transformers.LlamaForCausalLM(config).eval()
    missing, unexpected = theirs.load_state_dict(hugging_face_tensors(built.model), strict=False)
    assert set(missing) <= {"lm_head.weight"}
    assert not unexpected
    theirs.tie_weights()
    prompts = [ids(llm, prompt) for prompt in fixed(6)]
    ours = answers(llm, prompts, Sampling(max_tokens=24, ignore_eos=True), WITH_BASE["ar"])
    for prompt, answer in zip(prompts, ours, strict=True):
        text = torch.tensor([prompt])
        made = theirs.generate(
            text, attention_mask=torch.ones_like(text), max_new_tokens=24, do_sample=False, eos_token_id=None,
            pad_token_id=0,
        )  # fmt: skip
        assert_same_or_tied(llm, prompt, made[0, len(prompt) :].tolist(), answer)


@pytest.mark.parametrize(
    "size",
    [
        pytest.param(12, id="some"),
        pytest.param(100, marks=[pytest.mark.exhaustive, pytest.mark.timeout(1800)], id="all"),
    ],
)
def test_lossless_text_equals_autoregression(llm: LLM, size: int) -> None:
    prompts = [ids(llm, prompt) for prompt in hundred()][: None if size == 100 else size]
    assert len(prompts) >= size
    sampling = Sampling(max_tokens=128 if size == 100 else 40)
    expected = answers(llm, prompts, sampling, WITH_BASE["ar"])
    equal = 0
    wide = replace(WITH_BASE["lossless"], block_length=6, draft_nodes=6, branches=2)
    for start in range(0, len(prompts), 8):
        decoding = WITH_BASE["lossless"] if start % 16 == 0 else wide
        given = answers(llm, prompts[start : start + 8], sampling, decoding)
        for i, answer in enumerate(given, start):
            equal += assert_same_or_tied(llm, prompts[i], expected[i], answer)
    print(f"{equal} of {len(prompts)} texts equal token for token, the others part at a tie")
    assert equal >= 0.9 * len(prompts)


def test_sampled_lossless_text_equals_sampled_autoregression(llm: LLM) -> None:
    prompts = [ids(llm, prompt) for prompt in fixed(3)]
    sampling = Sampling(max_tokens=24, temperature=0.8, top_p=0.95, seed=5)
    assert answers(llm, prompts, sampling, WITH_BASE["lossless"]) == answers(
        llm, prompts, sampling, WITH_BASE["ar"]
    )


@pytest.mark.parametrize(
    "decoding",
    [
        WITH_BASE["lossless"],
        WITH_BASE["balanced"],
        Decoding("threshold", threshold=0.7, block_length=8),
        Decoding("cumulative", threshold=0.5, block_length=8, revise_below=0.05),
        Decoding("entropy", threshold=0.5, block_length=8),
        Decoding("schedule", block_length=8, max_steps=4),
    ],
    ids=lambda decoding: f"{decoding.decoder}-{decoding.revise_below}",
)
def test_engine_equals_reference(llm: LLM, decoding: Decoding, monkeypatch: pytest.MonkeyPatch) -> None:
    # The reference drafts with the denoiser; tests/engine/test_drafter.py has the drafter's own.
    monkeypatch.setattr(llm.engine, "traits", replace(llm.engine.traits, drafter=0))
    reference = Reference(llm.engine.worker.model, llm.engine.traits)
    prompts = [ids(llm, prompt) for prompt in fixed(3)]
    sampling = Sampling(max_tokens=14)
    together = answers(llm, prompts, sampling, decoding)
    for prompt, answer in zip(prompts, together, strict=True):
        assert answer == reference.generate(prompt, sampling, decoding).tokens
