"""The engine over the kernels: a text depends on nothing but its request, and lossless text is ar text.

Both are equality of tokens and of log-probabilities, bit for bit: no row may notice its company.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests import tiny
from tests.engine import test_grammar
from tests.engine.test_matches_reference import (
    BLOCK_DECODINGS,
    LOSSLESS,
    REVISING,
    SAMPLINGS,
    outcome,
    prompt,
)
from tests.native import tiny_native
from vermilion.engine.engine import Engine
from vermilion.errors import BadParameter
from vermilion.types import Decoding, Grammar, Request, Sampling, Text, TokenInfo

tiny_native.available_sets()

CASES = [(kind, decoding) for kind in tiny.TRAITS for decoding in BLOCK_DECODINGS[:4]] + [
    ("causal-shift", decoding) for decoding in [*REVISING, *LOSSLESS]
]
CASES += [("full", Decoding("threshold", threshold=0.2, block_length=8, guidance=1.5))]
CASES += [
    (kind, Decoding("wino", threshold=0.1, keep_threshold=0.3, block_length=8)) for kind in ("block", "full")
]
EXACT = [decoding for decoding in LOSSLESS if decoding.decoder == "lossless"]
AR = Decoding("ar")
ADAPTERS = {"whole": "_proj", "narrow": "v_proj"}


def requests(decoding: Decoding) -> list[Request]:
    return [Request(f"{i}", prompt(5 + 9 * i, i), one, decoding) for i, one in enumerate(SAMPLINGS)]


def crowded(kind: str = "causal-shift", **settings: object) -> Engine:
    sizes = {"prefill_chunk": 8, "max_rows": 24, "threads": 2}
    return tiny_native.engine(kind, **{**sizes, **settings})  # type: ignore[arg-type]


def with_adapters(engine: Engine) -> Engine:
    for seed, (name, parts) in enumerate(ADAPTERS.items()):
        adapter = tiny_native.packed_adapter(tiny_native.PLAIN, seed + 20, parts)
        engine.adapters.add(name, adapter)
    return engine


def tokens_of(engine: Engine, asked: list[Request]) -> dict[str, list[TokenInfo]]:
    """Every token of each answer with what was said of it, the pass aside."""
    events = tiny.run(engine, asked)
    return {
        name: [
            replace(info, pass_number=0) for event in got if isinstance(event, Text) for info in event.tokens
        ]
        for name, got in events.items()
    }


@pytest.mark.parametrize(("kind", "decoding"), CASES, ids=str)
def test_alone_and_in_any_company(kind: str, decoding: Decoding) -> None:
    asked = requests(decoding)
    alone = [outcome(tiny_native.engine(kind), [request])[0] for request in asked]
    assert len({result.tokens for result in alone}) == len(alone)
    engine = crowded(kind)
    assert outcome(engine, asked) == alone
    # Again: this time the prompts are in the prefix cache.
    assert outcome(engine, asked) == alone


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("decoding", EXACT, ids=str)
def test_lossless_text_is_ar_text(decoding: Decoding, bits: int) -> None:
    asked = [replace(one, sampling=replace(one.sampling, logprobs=3, max_tokens=60)) for one in requests(AR)]
    expected = tokens_of(tiny_native.engine(bits=bits), asked)
    engine = tiny_native.engine(bits=bits, threads=2, page_size=8)
    given = tokens_of(engine, [replace(one, decoding=decoding) for one in asked])
    assert given == expected
    assert engine.steps < sum(map(len, expected.values()))


@pytest.mark.parametrize("decoding", EXACT[:2], ids=str)
@pytest.mark.parametrize("name", ["odd", "layered", "experts", "grouped", "sandwich", "modulated", "gated"])
def test_no_kind_of_layer_notices_its_company(name: str, decoding: Decoding) -> None:
    """Filled-up sizes, windows, layers of different shapes, experts: still lossless, alone and in a crowd."""
    asked = requests(AR)
    expected = [outcome(tiny_native.engine(name=name), [one])[0].tokens for one in asked]
    assert len(set(expected)) == len(expected)
    drafted = outcome(crowded(name=name), [replace(one, decoding=decoding) for one in asked])
    assert [one.tokens for one in drafted] == expected


@pytest.mark.parametrize("decoding", EXACT[:2], ids=str)
def test_lossless_text_is_ar_text_through_adapters(decoding: Decoding) -> None:
    asked = [
        replace(one, id=f"{adapter}{one.id}", adapter=adapter)
        for one in requests(AR)
        for adapter in ("", *ADAPTERS)
    ]
    alone = with_adapters(tiny_native.engine())
    expected = {one.id: outcome(alone, [one])[0].tokens for one in asked}
    assert len(set(expected.values())) == len(expected)
    together = outcome(with_adapters(crowded()), [replace(one, decoding=decoding) for one in asked])
    assert {one.id: result.tokens for one, result in zip(asked, together, strict=True)} == expected


@pytest.mark.parametrize("decoding", EXACT[:2], ids=str)
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_lossless_text_is_ar_text_under_a_grammar(decoding: Decoding, temperature: float) -> None:
    grammar = Grammar(
        "json_schema", '{"type":"object","properties":{"a":{"type":"integer"}},"required":["a"]}'
    )
    asked = [
        test_grammar.request(f"{i}", grammar if i % 2 else None, AR, temperature=temperature, max_tokens=40)
        for i in range(4)
    ]
    expected = {one.id: tokens_of(tiny_native.bytes_engine(), [with_logprobs(one)])[one.id] for one in asked}
    engine = tiny_native.bytes_engine(prefill_chunk=8)
    assert tokens_of(engine, [with_logprobs(replace(one, decoding=decoding)) for one in asked]) == expected


def with_logprobs(request: Request) -> Request:
    return replace(request, sampling=replace(request.sampling, logprobs=2))


def test_short_memory_changes_nothing() -> None:
    asked = [
        Request(f"{i}", prompt(20 + i % 9, i), Sampling(max_tokens=60, ignore_eos=True), decoding)
        for i, decoding in enumerate([*BLOCK_DECODINGS, *REVISING, *LOSSLESS[:2]])
    ]
    expected = [outcome(tiny_native.engine(), [request])[0] for request in asked]
    engine = crowded(kv_tokens=224, prefill_chunk=16, max_rows=64)
    assert outcome(engine, asked) == expected
    assert engine.scheduler.preemptions > 0


def test_soft_inputs_are_refused_and_their_decoder_runs_on_tokens() -> None:
    engine, soft = tiny_native.engine("block"), Decoding("soft-parallel", threshold=0.1, block_length=8)
    request = Request("x", (5, 6), Sampling(max_tokens=9, ignore_eos=True), soft)
    with pytest.raises(BadParameter, match=r"soft_tokens: 1 .* 0 on the native backend.* to torch"):
        engine.submit(request)
    [result] = outcome(engine, [replace(request, decoding=replace(soft, soft_tokens=0))])
    assert len(result.tokens) == 9
