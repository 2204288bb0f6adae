"""Our backbone against Hugging Face's models, against merged weights and against plain attention."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests import tiny
from vermilion.decoding.forward_jobs import Job
from vermilion.decoding.passes import Pass, Segment
from vermilion.engine.worker import Worker
from vermilion.models import catalog
from vermilion.models.adapters import DENOISER
from vermilion.models.attention import ATTENTION_KINDS, DenseAttention, LayeredAttention, Visibility
from vermilion.models.build import build
from vermilion.models.families import Architecture, ModelSpec
from vermilion.models.linear import AdapterRows
from vermilion.models.transformer import Rows, Transformer

SIZES = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 44,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6,
    "initializer_range": 0.2,
}
YARN = {
    "rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 16,
}  # fmt: skip
WINDOWS = {"head_dim": 12, "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}
EXPERTS = {"num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 20}
POSITION_FREE = {"no_rope_layers": [1, 0, 1], "pad_token_id": 0}
FAMILIES_OF_TRANSFORMERS = [
    "llama", "llama-tied", "llama-wide-heads", "llama-yarn", "qwen2", "qwen3", "qwen3-windows", "qwen3-moe",
    "olmoe", "smollm3",
]  # fmt: skip
IDS = [7, 3, 60, 0, 12, 12, 44, 9, 31, 5, 18, 2, 59]


def hugging_face(name: str) -> Any:
    import transformers

    kinds: dict[str, tuple[Any, Any, dict[str, Any]]] = {
        "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM, {"tie_word_embeddings": False}),
        "llama-tied": (
            transformers.LlamaConfig,
            transformers.LlamaForCausalLM,
            {"tie_word_embeddings": True},
        ),
        "llama-wide-heads": (transformers.LlamaConfig, transformers.LlamaForCausalLM, {"head_dim": 10}),
        "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM, {}),
        "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM, {"head_dim": 12}),
        "llama-yarn": (transformers.LlamaConfig, transformers.LlamaForCausalLM, {"rope_parameters": YARN}),
        "qwen3-windows": (
            transformers.Qwen3Config,
            transformers.Qwen3ForCausalLM,
            {"head_dim": 12, **WINDOWS},
        ),
        "qwen3-moe": (
            transformers.Qwen3MoeConfig,
            transformers.Qwen3MoeForCausalLM,
            {"head_dim": 12, "norm_topk_prob": True, "mlp_only_layers": [1], **EXPERTS},
        ),
        "olmoe": (transformers.OlmoeConfig, transformers.OlmoeForCausalLM, EXPERTS),
        "smollm3": (transformers.SmolLM3Config, transformers.SmolLM3ForCausalLM, POSITION_FREE),
    }
    config, kind, extra = kinds[name]
    torch.manual_seed(1)
    model = kind(config(**SIZES, **extra)).eval()
    generator = torch.Generator().manual_seed(2)
    for key, parameter in model.named_parameters():
        # Fresh biases are zero and fresh norms one: neither would show a mistake.
        if key.endswith("bias") or "norm" in key:
            parameter.data += 0.5 * torch.randn(parameter.shape, generator=generator)
    return model


def ours(
    theirs: Any,
    folder: Path,
    dtype: torch.dtype,
    changes: Mapping[str, Any] | None = None,
    change: Callable[[Path], None] | None = None,
) -> tuple[Transformer, ModelSpec]:
    """Our model of their weights, with `changes` to their config.json and `change` to the folder."""
    theirs.save_pretrained(folder)
    config = folder / "config.json"
    (folder / "generation_config.json").unlink(missing_ok=True)  # its end would win over that of `changes`
    config.write_text(json.dumps({**json.loads(config.read_text()), **(changes or {})}))
    (folder / "tokenizer.json").write_text("{}")
    if change is not None:
        change(folder)
    built = build(catalog.find(str(folder)), dtype)
    return built.model.eval(), built.spec


def run(model: Transformer, segments: list[tuple[int, int]], slots: list[int], ids: list[int]) -> Tensor:
    """Logits of a causal text stored at `slots`, one forward per (start, end)."""
    pool = model.new_pool(max(slots) + 1)
    attention = LayeredAttention(model.architecture.layer_kinds(), model.architecture.num_heads, pool)
    logits = []
    for start, end in segments:
        rows = list(range(end - start))
        at = range(start, end)
        seen = Visibility(
            rows, [start] * len(rows), [start] * len(rows), [p + 1 for p in at], end, 0,
            positions=list(at), slots=list(at),
        )  # fmt: skip
        forward = Rows(
            torch.tensor(ids[start:end]),
            torch.tensor(list(at)),
            torch.zeros(len(rows), dtype=torch.bool),
            torch.tensor(slots[start:end]),
            attention.plan([seen], torch.tensor([slots]), len(rows)),
        )
        with torch.inference_mode():
            logits.append(model.logits(model(forward, pool)))
    return torch.cat(logits)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", FAMILIES_OF_TRANSFORMERS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_logits_equal_hugging_face(
    tmp_path: Path,
    name: str,
    dtype: torch.dtype,
    tolerance: float,
    record_property: Callable[[str, object], None],
) -> None:
    if dtype == torch.float64 and name in ("llama-yarn", "qwen3-moe", "olmoe"):
        pytest.skip("transformers computes its angles or its router in float32")
    theirs = hugging_face(name)
    model, spec = ours(theirs, tmp_path, dtype)
    assert spec.architecture.tied_embeddings == theirs.config.tie_word_embeddings
    theirs = theirs.to(dtype)
    if dtype == torch.float64:
        without_casts(theirs, spec.architecture)
    with torch.inference_mode():
        wanted = theirs(torch.tensor([IDS])).logits[0]
    count = len(IDS)
    scale = max(1.0, wanted.abs().max().item() / 10)
    whole = run(model, [(0, count)], list(range(count)), IDS)
    torch.testing.assert_close(whole, wanted, atol=tolerance * scale, rtol=0)
    scrambled = [23, 2, 17, 5, 11, 29, 0, 8, 14, 26, 20, 3, 9]
    pieces = run(model, [(0, 4), (4, 5), (5, 11), (11, count)], scrambled, IDS)
    torch.testing.assert_close(pieces, wanted, atol=tolerance * scale, rtol=0)
    if dtype == torch.float32:
        import transformers

        record_property("family", spec.family.name)
        record_property("parity_error", max((each - wanted).abs().max().item() for each in (whole, pieces)))
        record_property("reference", f"transformers {transformers.__version__}")


def without_casts(theirs: Any, architecture: Architecture) -> None:
    """Hugging Face computes norms and angles in float32 whatever the dtype; here they are exact."""
    a = architecture
    inverse = 1.0 / a.rope_theta ** (torch.arange(0, a.head_dim, 2, dtype=torch.float64) / a.head_dim)
    theirs.model.rotary_emb = ExactRotary(inverse)
    for module in theirs.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = partial(exact_norm, module)


def exact_norm(module: Any, x: Tensor) -> Tensor:
    scaled: Tensor = x * (x.square().mean(-1, keepdim=True) + module.variance_epsilon).rsqrt() * module.weight
    return scaled


class ExactRotary(torch.nn.Module):
    """Hugging Face's rotary embedding without its cast to float32."""

    def __init__(self, inverse: Tensor) -> None:
        super().__init__()
        self.inverse = inverse

    def forward(self, x: Tensor, position_ids: Tensor, **_: object) -> tuple[Tensor, Tensor]:
        angle = position_ids[:, :, None].double() * self.inverse
        angle = torch.cat([angle, angle], -1)
        return angle.cos(), angle.sin()


def merged(model: Transformer, architecture: Architecture) -> Transformer:
    """The same model with the adapter added into its weights, as one would do by hand."""
    twin = Transformer(architecture).double()
    twin.load_state_dict({k: v for k, v in model.state_dict().items() if k in twin.state_dict()})
    for (linear, _), (other, _) in zip(model.products(), twin.products(), strict=True):
        deltas = [b @ a for a, b in linear.adapters[DENOISER].pairs()]  # type: ignore[operator]
        other.weight.data += torch.cat(deltas)
    twin.mask_embedding = model.mask_embedding
    return twin


def test_clean_rows_run_the_base_and_noisy_rows_the_merged_adapter_in_one_forward() -> None:
    model = tiny.model("causal-shift")
    whole = merged(model, tiny.ARCHITECTURE)
    base = merged(model, tiny.ARCHITECTURE)
    base.load_state_dict({k: v for k, v in model.state_dict().items() if k in base.state_dict()})
    count, clean = 11, 6
    masked = torch.tensor([False] * 8 + [True] * 3)

    def forward(one: Transformer, rows: slice, num_clean: int) -> Tensor:
        at = list(range(count))[rows]
        # Noisy and clean rows see only their own kind, so that each can be computed without the other.
        start, end = at[0], at[-1] + 1
        parts = [(start, clean), (clean, end)] if start < clean < end else [(start, end)]
        seen = [
            Visibility([p - start for p in range(a, b)], [0] * (b - a), [a] * (b - a), [b] * (b - a), b, 0)
            for a, b in parts
        ]
        pool = one.new_pool(count)
        attention = DenseAttention(one.architecture.num_heads, pool)
        bundle = Rows(
            torch.tensor(IDS[:count])[rows],
            torch.tensor(at),
            masked[rows],
            torch.tensor(at),
            attention.plan(seen, torch.arange(count)[None], len(at)),
            [AdapterRows(DENOISER, num_clean, len(at))],
        )
        with torch.inference_mode():
            return one.logits(one(bundle, pool))

    mixed = forward(model, slice(0, count), clean)
    torch.testing.assert_close(mixed[:clean], forward(base, slice(0, clean), clean), atol=1e-11, rtol=0)
    noisy = forward(whole, slice(clean, count), 0)
    torch.testing.assert_close(mixed[clean:], noisy, atol=1e-11, rtol=0)
    assert (mixed[clean:] - forward(base, slice(clean, count), 0)).abs().max() > 0.1


@dataclass(frozen=True)
class Seen:
    """One request: intervals of each row, pool slots, pairs seen besides."""

    sees: list[int]
    own: list[list[int]]
    slots: list[int]
    also: set[tuple[int, int]]
    lowest: list[int]


@st.composite
def visibilities(draw: st.DrawFn) -> list[Seen]:
    requests = []
    free = draw(st.permutations(range(60)))
    for _ in range(draw(st.integers(1, 4))):
        num_rows = draw(st.integers(1, 4))
        length = draw(st.integers(1, 12))
        contiguous = draw(st.booleans())
        first = draw(st.integers(0, 60 - length))
        slots = list(range(first, first + length)) if contiguous else [free.pop() for _ in range(length)]
        sees = [draw(st.integers(0, length)) for _ in range(num_rows)]
        bound = st.tuples(st.integers(0, length), st.integers(0, length))
        own = [sorted(draw(bound)) for _ in range(num_rows)]
        also = draw(st.sets(st.tuples(st.integers(0, num_rows - 1), st.integers(0, length - 1)), max_size=4))
        # Every row sees something: it writes a slot of its own.
        also |= {(row, draw(st.integers(0, length - 1))) for row in range(num_rows)}
        windowed = draw(st.booleans())
        lowest = [draw(st.integers(0, max(s for r, s in also if r == row))) for row in range(num_rows)]
        requests.append(Seen(sees, own, slots, also, lowest if windowed else []))
        free = [slot for slot in free if slot not in slots] if contiguous else free
        if len(free) < 12:
            break
    return requests


@pytest.mark.parametrize("kind", ["dense", "flex"])
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@given(st.lists(visibilities(), min_size=1, max_size=2), st.randoms(use_true_random=False))
def test_attention_equals_a_plain_masked_softmax(kind: str, passes: list[list[Seen]], chance: Any) -> None:
    """Pass after pass through one plan, whose buffers stay."""
    generator = torch.Generator().manual_seed(chance.randrange(2**31))
    pool = torch.randn(60, 2, 2, 16, generator=generator, dtype=torch.float64)
    attention = ATTENTION_KINDS[kind](4, pool)
    for requests in passes:
        num_rows = sum(len(request.sees) for request in requests)
        order = list(range(num_rows))
        chance.shuffle(order)
        q = torch.randn(num_rows, 4, 16, generator=generator, dtype=torch.float64)
        table = torch.zeros(len(requests), 12, dtype=torch.int64)
        visible = torch.zeros(num_rows, 60, dtype=torch.bool)
        planned, taken = [], 0
        for index, one in enumerate(requests):
            rows = order[taken : taken + len(one.sees)]
            # One request alone must cover the rows in order.
            rows = list(range(num_rows)) if len(requests) == 1 else rows
            taken += len(rows)
            length = len(one.slots)
            table[index, :length] = torch.tensor(one.slots)
            first = one.slots[0] if one.slots == list(range(one.slots[0], one.slots[0] + length)) else -1
            start, end = zip(*one.own, strict=True)
            also = sorted(one.also)
            planned.append(
                Visibility(rows, one.sees, start, end, length, index, also, one.lowest, first_slot=first)
            )
            for i, row in enumerate(rows):
                for logical, slot in enumerate(one.slots):
                    seen = logical < one.sees[i] or start[i] <= logical < end[i] or (i, logical) in one.also
                    visible[row, slot] = seen and (not one.lowest or logical >= one.lowest[i])
        got = attention.plan(planned, table, num_rows)(q, pool)
        keys, values = (pool[:, i].repeat_interleave(2, 1) for i in (0, 1))
        scores = torch.einsum("nhd,shd->hns", q, keys) / 4.0
        wanted = torch.einsum("hns,shd->nhd", scores.masked_fill(~visible, -math.inf).softmax(-1), values)
        torch.testing.assert_close(got, wanted, atol=1e-12, rtol=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("sizes", [(7, 300), (1, 2000), (130, 700)])
def test_flex_attention_on_a_gpu_equals_dense(sizes: tuple[int, int]) -> None:
    """Compiled, in bfloat16, over scattered slots and a sliding window."""
    num_rows, length = sizes
    generator = torch.Generator("cuda").manual_seed(0)
    pool = torch.randn(4096, 2, 2, 64, generator=generator, device="cuda", dtype=torch.bfloat16)
    q = torch.randn(2 * num_rows, 8, 64, generator=generator, device="cuda", dtype=torch.bfloat16)
    table = torch.randperm(4096, generator=generator, device="cuda").view(2, 2048)
    before = length - num_rows
    ends = [before + row + 1 for row in range(num_rows)]
    requests = [
        Visibility(
            [*range(index * num_rows, (index + 1) * num_rows)],
            [before] * num_rows,
            [before] * num_rows,
            ends,
            length,
            index,
            lowest=[max(0, end - 100) for end in ends] if index else [],
        )
        for index in range(2)
    ]
    dense, flex = (
        ATTENTION_KINDS[kind](8, pool).plan(requests, table, 2 * num_rows)(q, pool)
        for kind in ("dense", "flex")
    )
    torch.testing.assert_close(flex, dense, atol=2e-2, rtol=2e-2)


def test_prefill_through_scrambled_pages_leaves_the_keys_of_one_forward() -> None:
    model = tiny.model("causal-shift")
    ids = tuple(range(2, 31))
    size = 4
    chunked, whole = Worker(model, 16, size, tiny.MASK), Worker(model, 16, size, tiny.MASK)
    whole.run([Job(list(range(8)), Pass((Segment(ids, 0, 0, 0, span=1),)), [])])
    pages = [13, 2, 7, 5, 11, 0, 15, 4]
    for start, end in ((0, 3), (3, 4), (4, 17), (17, 29)):
        chunked.run([Job(pages, Pass((Segment(ids[start:end], start, start, start, span=1),)), [])])
    slots = torch.tensor([pages[i // size] * size + i % size for i in range(len(ids))])
    torch.testing.assert_close(chunked.pool[:, slots], whole.pool[:, : len(ids)], atol=1e-12, rtol=0)


@pytest.mark.parametrize("num_rows", [1, 2, 3, 4, 5, 6, 8, 33, 130])
@pytest.mark.parametrize("bias", [False, True])
def test_products_are_the_same_for_any_number_of_rows(num_rows: int, bias: bool) -> None:
    from vermilion.models.product import product

    generator = torch.Generator().manual_seed(num_rows)
    x, weight = (torch.randn(size, 48, generator=generator) for size in (num_rows, 40))
    added = torch.randn(40, generator=generator) if bias else None
    exact = torch.nn.functional.linear(x.double(), weight.double(), None if added is None else added.double())
    with torch.inference_mode():
        ours = product(x, weight, added)
        # Rows of a wider tensor, as a part of a fused product is.
        sliced = product(torch.cat([x, x], 1)[:, :48], weight, added)
    assert ours.is_contiguous() and ours.dtype == torch.float32
    torch.testing.assert_close(ours.double(), exact, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(sliced, ours, rtol=1e-5, atol=1e-4)


def test_a_product_in_autocast_is_a_bfloat16_one() -> None:
    from vermilion.models.product import product

    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert product(torch.ones(9, 8), torch.ones(4, 8)).dtype == torch.bfloat16
