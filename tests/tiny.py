"""Tiny random models of every kind, and an engine over them, for tests that need no checkpoint."""

from __future__ import annotations

import torch

from vermilion.config import EngineConfig
from vermilion.engine.engine import Engine
from vermilion.engine.loading import assemble
from vermilion.models import adapters
from vermilion.models.draft_head import DraftHead
from vermilion.models.families import FAMILIES, Architecture, ModelSpec, Traits
from vermilion.models.transformer import Transformer
from vermilion.types import Event, Finish, Request

VOCAB = 97
MASK = 96
EOS = 1

ARCHITECTURE = Architecture(
    num_layers=2,
    hidden_size=32,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    ffn_size=48,
    vocab_size=VOCAB,
    context_length=512,
)
TRAITS = {
    "causal-shift": Traits("causal", True, MASK, (EOS,), gated=True),
    "block": Traits("block", False, MASK, (EOS,), block_grid=4, delete_token_id=91, split_token_id=92),
    "block-shift": Traits("block", True, MASK, (EOS,), block_grid=8),
    "full": Traits("full", False, MASK, (EOS,)),
    "full-shift": Traits("full", True, MASK, (EOS,)),
}


def spec(kind: str) -> ModelSpec:
    return ModelSpec(f"tiny-{kind}", ARCHITECTURE, TRAITS[kind], FAMILIES[0])


def model(kind: str, seed: int = 0, *, draft_head: bool = True) -> Transformer:
    """float64, so that the order of a sum cannot flip a choice. Sharp enough that answers are not noise."""
    built = Transformer(ARCHITECTURE).double()
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in built.named_parameters():
        if "norm" in name:
            parameter.data.fill_(1.0)
        else:
            parameter.data.normal_(0, 0.5, generator=generator)
    if TRAITS[kind].gated:
        _adapt(built, generator)
    if TRAITS[kind].gated and draft_head:
        built.draft_head = DraftHead.of(
            torch.randn(6, 64, generator=generator).double() * 0.2,
            torch.randn(32, 6, generator=generator).double(),
        )
    return built


def _adapt(built: Transformer, generator: torch.Generator) -> None:
    pairs = {
        name: (
            torch.randn(4, linear.in_size, generator=generator).double() * 0.2,
            torch.randn(size, 4, generator=generator).double() * 0.2,
        )
        for linear, names in built.products()
        for name, size in zip(names, linear.part_sizes, strict=True)
    }
    adapters.attach(built, adapters.DENOISER, adapters.lora(built, pairs, 1.0))
    built.mask_embedding = torch.nn.Parameter(torch.randn(32, generator=generator).double())


class Letters:
    """A stand-in tokenizer: one token, one character."""

    eos_token_ids = (EOS,)

    def encode(self, text: str, special: bool = False) -> list[int]:
        return [ord(character) % 90 + 2 for character in text]

    def is_special(self, token_id: int) -> bool:
        return token_id == EOS

    def token_bytes(self, token_id: int) -> bytes:
        return bytes([33 + token_id % 90])

    def token_text(self, token_id: int) -> str:
        return self.token_bytes(token_id).decode()

    def decode(self, ids: list[int], skip_special: bool = True) -> str:
        return "".join(self.token_text(i) for i in ids if not self.is_special(i))


def engine(kind: str, built: Transformer, **settings: object) -> Engine:
    config = EngineConfig(**{"kv_tokens": 1024, "page_size": 8, "dtype": "float64", **settings})  # type: ignore[arg-type]
    return assemble(built, spec(kind), Letters(), config)  # type: ignore[arg-type]


def run(one: Engine, requests: list[Request]) -> dict[str, list[Event]]:
    """Submit everything at once, step until all have finished."""
    events: dict[str, list[Event]] = {request.id: [] for request in requests}
    for request in requests:
        one.submit(request)
    for _ in range(10_000):
        if not one.has_work:
            break
        for name, event in one.step():
            events[name].append(event)
    assert all(isinstance(got[-1], Finish) for got in events.values())
    one.scheduler.cache.check()
    assert one.scheduler.cache.num_held == 0
    return events
