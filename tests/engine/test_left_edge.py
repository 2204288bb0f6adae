"""Grammars on models that predict no next token: answers are inside them, alone and in any company, and each
token is the model's likeliest legal one where one settles a pass."""

from __future__ import annotations

import json
from dataclasses import replace

import jsonschema
import numpy as np
import pytest

from tests import tiny
from tests.engine.test_canvas_programs import NOISE, ORDER, RENOISE, tiny_model
from tests.engine.test_grammar import ARCHITECTURE, EOS, MASK, VOCAB, Bytes, finish, request, text
from vermilion.config import EngineConfig
from vermilion.decoding.grammar import Grammars
from vermilion.decoding.reference.reference_context import ReferenceContext
from vermilion.engine.engine import Engine
from vermilion.engine.loading import assemble
from vermilion.models.families import FAMILIES, ModelSpec, Traits
from vermilion.models.self_conditioning import SelfConditioning
from vermilion.models.transformer import Transformer
from vermilion.types import Decoding, Grammar, Request

SCHEMA = {
    "type": "object",
    "properties": {
        "a": {"enum": ["ab", "12"]},
        "b": {"type": "array", "items": {"type": "boolean"}, "maxItems": 3},
    },
    "required": ["a", "b"],
    "additionalProperties": False,
}
JSON = Grammar("json_schema", json.dumps(SCHEMA))
SHORT = Grammar("regex", "(true|false|[0-9]{2,9}) ?[a-c]*x")
IDS = {"mask_token_id": MASK, "eos_token_ids": (EOS,), "delete_token_id": -1, "split_token_id": -1}
KINDS = {
    "full": replace(tiny.TRAITS["full"], **IDS),
    "full-shift": replace(tiny.TRAITS["full-shift"], **IDS),
    "block": replace(tiny.TRAITS["block"], **IDS),
    "block-shift": replace(tiny.TRAITS["block-shift"], **IDS),
    "order": replace(ORDER, **IDS),
    "noise": replace(NOISE, eos_token_ids=(EOS,)),
}
THRESHOLD = Decoding("threshold", threshold=0.05, block_length=8)
DECODINGS = {
    "full": [THRESHOLD, Decoding("entropy", threshold=3.0, block_length=16), Decoding("joint", cache="dual")],
    "full-shift": [THRESHOLD, Decoding("schedule", block_length=8, max_steps=3)],
    "block": [THRESHOLD, Decoding("wino")],
    "block-shift": [THRESHOLD, Decoding("cumulative", threshold=0.01)],
    "order": [Decoding("reorder", threshold=4.0, block_length=8)],
    "noise": [replace(RENOISE, max_steps=8, stop_entropy=2.0), replace(RENOISE, max_steps=3)],
}
CASES = [(kind, decoding) for kind, some in DECODINGS.items() for decoding in some]


def model(kind: str) -> Transformer:
    built = tiny_model(KINDS["full"])
    sized = Transformer(ARCHITECTURE).double()
    generator = np.random.RandomState(0)
    for name, parameter in sized.named_parameters():
        values = np.ones(parameter.shape) if "norm" in name else generator.normal(0, 0.5, parameter.shape)
        parameter.data.copy_(parameter.data.new_tensor(values))
    if kind == "noise":
        sized.self_conditioning = SelfConditioning(ARCHITECTURE, type(built.embedding)).double()
        for parameter in sized.self_conditioning.parameters():
            parameter.data.copy_(parameter.data.new_tensor(generator.normal(0, 0.5, parameter.shape)))
    return sized


def engine(kind: str, built: Transformer, **settings: object) -> Engine:
    config = EngineConfig(**{"kv_tokens": 2048, "page_size": 8, "dtype": "float64", **settings})  # type: ignore[arg-type]
    spec = ModelSpec("tiny", ARCHITECTURE, KINDS[kind], FAMILIES[0])
    return assemble(built, spec, Bytes(), config)  # type: ignore[arg-type]


@pytest.mark.parametrize(("kind", "decoding"), CASES, ids=str)
def test_answers_are_inside_their_grammar_alone_and_in_any_company(kind: str, decoding: Decoding) -> None:
    built = model(kind)
    wanted = [
        request(f"{i}", grammar, decoding, max_tokens=60, temperature=heat, seed=i)
        for i, (grammar, heat) in enumerate(
            [(JSON, 0.0), (SHORT, 0.0), (JSON, 0.9), (SHORT, 0.7), (None, 0.0)]
        )
    ]
    alone = [text(tiny.run(engine(kind, built), [one])[one.id]) for one in wanted]
    events = tiny.run(engine(kind, built, prefill_chunk=8, max_rows=48), wanted)
    assert [text(events[one.id]) for one in wanted] == alone
    for one, answer in zip(wanted[:4], alone, strict=False):
        assert finish(events[one.id]).reason == "stop"
        if one.grammar == JSON:
            jsonschema.validate(json.loads(answer), SCHEMA)
        else:
            assert answer[-1] == "x"


@pytest.mark.parametrize("kind", ["full", "full-shift", "block"])
def test_one_position_a_pass_is_the_likeliest_legal_token(kind: str) -> None:
    built, traits = model(kind), KINDS[kind]
    one = request("x", JSON, Decoding("sequential", block_length=8), max_tokens=40)
    got = text(tiny.run(engine(kind, built), [one])["x"])
    assert got == Bytes().decode(likeliest_legal(built, traits, one))


def likeliest_legal(built: Transformer, traits: Traits, one: Request) -> list[int]:
    """Position by position, from a forward over the whole text each."""
    context = ReferenceContext(built, traits, list(one.prompt), one.sampling, one.decoding)
    assert one.grammar is not None
    constraint = Grammars(Bytes(), VOCAB).constraint(one.grammar)  # type: ignore[arg-type]
    while not context.ended and not constraint.complete:
        known = len(context.tokens)
        start = known // 4 * 4 if traits.block_grid else known
        end = start + 4 if traits.block_grid else context.limit
        block = [*context.tokens[start:], *([None] * (end - known))]
        row = known - int(traits.shift)
        logits = context._canvas_logits(context.tokens[:start], block)[row].clone()
        logits[MASK] = -np.inf
        closing = context.limit - known <= one.sampling.max_tokens // 2
        bits = np.unpackbits(np.frombuffer(constraint.allowed((), closing), np.uint8), bitorder="little")
        logits[logits.new_tensor(bits[:VOCAB]) == 0] = -np.inf
        token = int(logits.argmax())
        constraint.settle(token)
        context.settle(token)
    return [token for token in context.tokens[len(one.prompt) :] if token != EOS]


def test_where_anything_is_legal_the_text_is_the_decoder_s_own() -> None:
    built = model("full")
    free = Grammar("regex", r"[\x02-\x7f]*", closes=False)
    sequential = Decoding("sequential", block_length=8)
    plain = request("x", None, sequential, max_tokens=24, logit_bias=dict.fromkeys((0, 1), -100.0))
    events = [tiny.run(engine("full", built), [replace(plain, grammar=g)])["x"] for g in (None, free)]
    assert text(events[0]) == text(events[1]) and len(text(events[0])) >= 24


def test_a_short_memory_changes_nothing() -> None:
    built = model("block")
    wanted = [request(f"{i}", JSON, THRESHOLD, max_tokens=60) for i in range(16)]
    expected = [text(tiny.run(engine("block", built), [one])[one.id]) for one in wanted]
    short = engine("block", built, kv_tokens=216)
    events = tiny.run(short, wanted)
    assert [text(events[one.id]) for one in wanted] == expected and short.scheduler.preemptions > 0
