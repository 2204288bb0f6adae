"""DiffusionGemma against `transformers`: encoder, canvas, self-conditioning, and its sampler step by step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests import tiny
from tests.goldens import all_logits
from vermilion.config import EngineConfig
from vermilion.decoding.noise import uniform, uniform_token
from vermilion.decoding.passes import Pass, Segment
from vermilion.decoding.reference import denoise
from vermilion.decoding.renoising import Renoising
from vermilion.engine.engine import Engine
from vermilion.engine.loading import assemble
from vermilion.engine.worker import Worker
from vermilion.models.build import BuiltModel, build
from vermilion.models.catalog import ModelFiles
from vermilion.types import Decoding, Finish, Request, Sampling

transformers = pytest.importorskip("transformers", minversion="5.11")
pytestmark = [pytest.mark.filterwarnings("ignore")]
Record = Callable[[str, object], None]
CANVAS, VOCAB = 12, 160
TEXT = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "global_head_dim": 32,
    "num_global_key_value_heads": 1,
    "max_position_embeddings": 512,
    "sliding_window": 16,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention", "full_attention"],
    "num_experts": 6,
    "top_k_experts": 2,
    "moe_intermediate_size": 24,
    "eos_token_id": [1, 106, 50],
}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
}
PROMPT = [(37 * i + 11) % 150 + 4 for i in range(37)]
CANVASES = [[(53 * i + 7) % VOCAB for i in range(CANVAS)], [(29 * i + 3) % VOCAB for i in range(CANVAS)]]


@pytest.fixture(scope="module")
def theirs() -> Any:
    from transformers import DiffusionGemmaConfig, DiffusionGemmaForBlockDiffusion
    from transformers.models.gemma4 import Gemma4VisionConfig

    torch.manual_seed(0)
    config = DiffusionGemmaConfig(
        text_config=TEXT, vision_config=Gemma4VisionConfig(**VISION), canvas_length=CANVAS
    )
    model = DiffusionGemmaForBlockDiffusion(config).eval()
    generator = torch.Generator().manual_seed(3)
    text = [model.model.decoder.named_parameters(), model.model.decoder.named_buffers()]
    encoder = model.model.encoder.language_model
    for name, tensor in [*text[0], *text[1], *encoder.named_buffers()]:
        drawn = torch.randn(tensor.shape, generator=generator)
        if "norm" in name or name.endswith("scale") or "scalar" in name:
            if "embed" not in name:
                # Scores are not divided by anything here: without this they would be all or nothing.
                size = 0.3 if "q_norm" in name else 1.0
                tensor.data.copy_(size + 0.2 * drawn)
        elif "inv_freq" not in name:
            # Small enough that what a step rounds off does not grow from step to step.
            size = 0.3 if "self_conditioning" in name else 1.2
            tensor.data.copy_(drawn * (0.15 if "embed" in name else size / tensor.shape[-1] ** 0.5))
    return model


@pytest.fixture(scope="module")
def built(theirs: Any, tmp_path_factory: pytest.TempPathFactory) -> BuiltModel:
    folder: Path = tmp_path_factory.mktemp("gemma")
    theirs.save_pretrained(folder)
    return build(ModelFiles("folder", "gemma", folder, None))


def clean(tokens: list[int], start: int) -> Segment:
    return Segment(tuple(tokens), start, start, sees=start, span=1)


def canvas(tokens: list[int], start: int, *, conditioned: bool = False) -> Segment:
    return Segment(tuple(tokens), start, start, start, span=0, noisy=True, conditioned=conditioned)


def test_it_is_read_from_what_transformers_writes(built: BuiltModel) -> None:
    spec = built.spec
    assert (spec.family.name, spec.block_length, spec.default_preset) == (
        "diffusion-gemma",
        CANVAS,
        "balanced",
    )
    assert spec.architecture.logit_softcap == 30 and spec.traits.eos_token_ids == (1, 106, 50)
    assert spec.presets["balanced"] == Decoding(
        "renoise",
        block_length=CANVAS,
        max_steps=48,
        threshold=0.1,
        max_temperature=0.8,
        min_temperature=0.4,
        stop_entropy=0.005,
        stable_steps=1,
    )


@torch.no_grad()
def test_its_logits_are_those_of_transformers(
    theirs: Any, built: BuiltModel, record_property: Record
) -> None:
    """Prompts in one piece and in chunks; a canvas behind them; that canvas committed, in one forward with
    the next; with and without self-conditioning."""
    encoded = theirs.model.encoder(input_ids=torch.tensor([PROMPT]))
    wanted_prompt = capped(theirs, encoded.last_hidden_state[0])
    first = theirs(decoder_input_ids=torch.tensor([CANVASES[0]]), cache=encoded.cache).logits[0]
    signal = torch.tensor(CANVASES).float().sin().mean() + 3 * first
    second = theirs(
        decoder_input_ids=torch.tensor([CANVASES[1]]),
        cache=encoded.cache,
        self_conditioning_logits=signal[None],
    ).logits[0]
    committed = theirs.model.encoder(
        input_ids=torch.tensor([CANVASES[1]]),
        cache=encoded.cache,
        position_ids=torch.arange(len(PROMPT), len(PROMPT) + CANVAS)[None],
    )
    wanted_commit = capped(theirs, committed.last_hidden_state[0])
    third = theirs(decoder_input_ids=torch.tensor([CANVASES[0]]), cache=committed.cache).logits[0]
    error, end = 0.0, len(PROMPT)
    for chunks in ([0, end], [0, 7, 16, 30, end]):
        worker = Worker(built.model, 16, 8, -1)
        parts = [all_logits(worker, Pass((clean(PROMPT[a:b], a),))) for a, b in pairwise(chunks)]
        error = max(error, worst(torch.cat(parts), wanted_prompt))
        error = max(error, worst(all_logits(worker, Pass((canvas(CANVASES[0], end),))), first))
        kept = built.model.soft_embedding(torch.softmax(signal, -1))
        worker.states.of("a").tensors["signal"] = kept
        conditioned = Pass((canvas(CANVASES[1], end, conditioned=True),))
        error = max(error, worst(all_logits(worker, conditioned), second))
        both = Pass((clean(CANVASES[1], end), canvas(CANVASES[0], end + CANVAS)))
        error = max(error, worst(all_logits(worker, both), torch.cat([wanted_commit, third])))
    record_property("family", "diffusion-gemma")
    record_property("parity_error", error)
    record_property("reference", f"transformers {transformers.__version__}")
    assert error < 1e-5


def worst(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().max())


def capped(model: Any, hidden: Tensor) -> Tensor:
    return 30 * torch.tanh(model.lm_head(hidden) / 30)


@contextmanager
def fixed_noise(monkeypatch: pytest.MonkeyPatch, seed: int, start: int) -> Iterator[list[list[int]]]:
    """The noise of their sampler replaced by ours; yields its canvases as it goes on."""
    canvases: list[list[int]] = []
    drawn = {"step": 0}

    def randint(low: int, high: int, size: tuple[int, int], device: object) -> Tensor:
        places = [start + CANVAS * (len(begun) - 1) + i for i in range(size[1])]
        return torch.tensor([[uniform_token(seed, place, drawn["step"], high) for place in places]])

    begun: list[int] = []
    sampler = transformers.models.diffusion_gemma.generation_diffusion_gemma.EntropyBoundSampler
    initialize, renoise = sampler.initialize_canvas, sampler.renoise_canvas

    def begin(self: Any, batch_size: int, device: object) -> Tensor:
        if not drawn.get("renoising"):
            begun.append(1)
            drawn["step"] = 0
        return initialize(self, batch_size, device)

    def multinomial(probability_RV: Tensor, num_samples: int) -> Tensor:
        places = [start + CANVAS * (len(begun) - 1) + i for i in range(len(probability_RV))]
        numbers = torch.tensor([uniform(seed, place, drawn["step"]) for place in places]).double()
        total = probability_RV.double().cumsum(-1)
        return torch.searchsorted(total, numbers[:, None] * total[:, -1:], right=True)

    def again(self: Any, accepted: Tensor, cur_step: object) -> Tensor:
        drawn["step"] += 1
        drawn["renoising"] = 1
        made: Tensor = renoise(self, accepted, cur_step)
        drawn["renoising"] = 0
        canvases.append(made[0].tolist())
        return made

    with monkeypatch.context() as patch:
        patch.setattr(torch, "randint", randint)
        patch.setattr(torch, "multinomial", multinomial)
        patch.setattr(sampler, "initialize_canvas", begin)
        patch.setattr(sampler, "renoise_canvas", again)
        yield canvases


SETTINGS = {
    "published": {"max_steps": 48, "threshold": 0.1},
    "loose": {"max_steps": 12, "threshold": 6.0, "stop_entropy": 2.4},
    "never stops": {"max_steps": 7, "threshold": 30.0, "stop_entropy": 1e-9, "stable_steps": 3},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_its_canvases_are_those_of_transformers_sampler(
    theirs: Any, built: BuiltModel, name: str, monkeypatch: pytest.MonkeyPatch, record_property: Record
) -> None:
    """The whole canvas after every step of three canvases, with the same noise on both sides."""
    from transformers import DiffusionGemmaGenerationConfig, EntropyBoundSamplerConfig

    decoding = Decoding("renoise", block_length=CANVAS, **SETTINGS[name])  # type: ignore[arg-type]
    given = DiffusionGemmaGenerationConfig(
        max_new_tokens=3 * CANVAS,
        max_denoising_steps=decoding.max_steps,
        sampler_config=EntropyBoundSamplerConfig(decoding.threshold),
        t_min=decoding.min_temperature,
        t_max=decoding.max_temperature,
        stability_threshold=decoding.stable_steps,
        confidence_threshold=decoding.stop_entropy,
        eos_token_id=None,
        pad_token_id=0,
    )
    with fixed_noise(monkeypatch, 5, len(PROMPT)) as canvases:
        wanted = theirs.generate(torch.tensor([PROMPT]), generation_config=given)
    engine = engine_over(built)
    sampling = Sampling(3 * CANVAS and 1.0, seed=5, max_tokens=3 * CANVAS, ignore_eos=True)
    program = engine.submit(Request("a", tuple(PROMPT), sampling, decoding))
    assert isinstance(program, Renoising)
    steps: list[list[int]] = []
    watch(program, steps)
    while engine.has_work:
        engine.step()
    assert steps == canvases
    assert program.tokens == wanted.sequences[0].tolist()
    record_property("family", "diffusion-gemma")
    record_property("trajectory", "renoise: entropy bound, adaptive stop")
    record_property("reference", f"transformers {transformers.__version__}")


def watch(program: Renoising, steps: list[list[int]]) -> None:
    """Note the canvas after every step, also that of a canvas's last."""
    apply = program.apply

    def applied(readings: Any) -> None:
        canvas = program._canvas
        apply(readings)
        assert canvas is not None
        steps.append(list(canvas.ids))

    program.apply = applied  # type: ignore[method-assign]


def engine_over(built: BuiltModel, **settings: Any) -> Engine:
    config = EngineConfig(**{"kv_tokens": 1024, "page_size": 8, **settings})
    return assemble(built.model, built.spec, tiny.Letters(), config)  # type: ignore[arg-type]


def test_the_engine_gives_its_references_tokens(theirs: Any, built: BuiltModel, tmp_path: Path) -> None:
    """In float64, in a crowd, with prompts in chunks and from the prefix cache; windows and experts on."""
    theirs.save_pretrained(tmp_path / "gemma")
    model = build(ModelFiles("folder", "gemma", tmp_path / "gemma", None), torch.float64).model
    decoding = Decoding("renoise", block_length=CANVAS, max_steps=6, threshold=4.0, stop_entropy=3.0)
    requests = [
        Request(f"{i}", tuple(PROMPT[: 9 + 9 * i]), Sampling(max_tokens=30, seed=i, temperature=t), decoding)
        for i, t in enumerate((0.0, 1.0, 0.7))
    ]
    traits = built.spec.traits
    expected = [denoise(model, traits, r.prompt, r.sampling, r.decoding) for r in requests]
    wide = BuiltModel(model, built.spec)
    engine = engine_over(wide, dtype="float64", prefill_chunk=8, max_rows=48)
    for _ in range(2):
        programs = [engine.submit(request) for request in requests]
        finished: dict[str, Finish] = {}
        while engine.has_work:
            finished |= {name: event for name, event in engine.step() if isinstance(event, Finish)}
        for program, request, result in zip(programs, requests, expected, strict=True):
            assert tuple(program.tokens[len(request.prompt) :]) == result.tokens
            assert finished[request.id].usage.passes == result.passes
    assert engine.scheduler.prefix_hit_tokens > 0
