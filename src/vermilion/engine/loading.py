"""From a model's name to an engine that can run it."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from vermilion.chat_template import ChatTemplate
from vermilion.config import PAGE_SIZE, EngineConfig
from vermilion.engine.cache import PageCache
from vermilion.engine.engine import Engine
from vermilion.engine.scheduler import Limits, Scheduler
from vermilion.engine.worker import Worker
from vermilion.errors import ConfigError, ModelFileError
from vermilion.models import adapters, catalog, weights
from vermilion.models.adapters import Adapter
from vermilion.models.catalog import ModelFiles
from vermilion.models.denoiser import attach_denoiser
from vermilion.models.families import ModelSpec
from vermilion.models.transformer import Transformer, load_tensors
from vermilion.text import Tokenizer
from vermilion.types import DecoderName, ModelInfo

_CANVAS_RESERVE = 128
"""Slots kept from a request's context for the noisy rows behind it."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model ready to serve."""

    engine: Engine
    tokenizer: Tokenizer
    template: ChatTemplate | None


def load_model(name: str, config: EngineConfig, denoiser: Path | None = None) -> Loaded:
    """Read a pulled model or a folder; raises ModelFileError, ModelNotFound or ConfigError.

    `denoiser` is an adapter folder to take in place of the model's own.
    """
    device = _device(config.device)
    if device.type == "cpu":
        torch.set_num_threads(config.threads or os.cpu_count() or 1)
    files = catalog.find(name)
    if denoiser is not None:
        files = replace(files, adapter=denoiser)
    checkpoint = weights.load(files, _dtype(config.dtype, device), device)
    if checkpoint.spec.is_autoregressive:
        raise ModelFileError(f"{name} is an autoregressive model; convert it to a diffusion model first.")
    model = Transformer(checkpoint.spec.architecture).to(device)
    load_tensors(model, checkpoint.tensors)
    attach_denoiser(model, checkpoint)
    tokenizer = catalog.tokenizer_of(files)
    engine = assemble(model, checkpoint.spec, tokenizer, config)
    engine.measure_costs()
    return Loaded(engine, tokenizer, _template_of(files, checkpoint.spec))


def _template_of(files: ModelFiles, spec: ModelSpec) -> ChatTemplate | None:
    try:
        return catalog.chat_template_of(files)
    except ModelFileError:
        return ChatTemplate(spec.family.chat_template) if spec.family.chat_template else None


def assemble(model: Transformer, spec: ModelSpec, tokenizer: Tokenizer, config: EngineConfig) -> Engine:
    """An engine over a model that has its weights."""
    traits = spec.traits
    model.eval().requires_grad_(False)
    multiple = math.lcm(spec.family.page_multiple, traits.block_grid or 1)
    size = config.page_size or math.lcm(PAGE_SIZE, multiple)
    if size % multiple:
        raise ConfigError(f"engine.page_size: {size} is not a multiple of {multiple}, as {spec.name} needs.")
    num_pages = config.kv_tokens // size
    context = min(spec.architecture.context_length, num_pages * size - _CANVAS_RESERVE)
    if context < size:
        raise ConfigError(
            f"engine.kv_tokens: {config.kv_tokens} leaves no room for a prompt; give at least 512."
        )
    # A fully bidirectional model stores nothing that a later pass could use.
    share = config.prefix_cache and traits.context != "full"
    cache = PageCache(num_pages, size, share=share, salt=spec.name.encode())
    limits = Limits(
        max_rows=config.max_rows,
        prefill_chunk=config.prefill_chunk,
        max_running=config.max_running,
    )
    worker = Worker(model, num_pages, size, traits.mask_token_id)
    return Engine(worker, Scheduler(limits, cache), tokenizer, _info(spec, context), traits)


def read_adapter(engine: Engine, folder: Path) -> Adapter:
    """A PEFT folder for the model of `engine`; raises ModelFileError, naming the tensor that does not fit.

    Changes nothing, so another thread may call it while the engine runs.
    """
    assert isinstance(engine.worker, Worker)
    return adapters.read(folder, engine.worker.model)


def _info(spec: ModelSpec, context_length: int) -> ModelInfo:
    decoders: tuple[DecoderName, ...] = ("threshold", "schedule", "entropy", "cumulative")
    if spec.traits.has_next_token:
        decoders = ("ar", "lossless", "relaxed", *decoders)
    return ModelInfo(
        id=spec.name,
        context_length=context_length,
        vocab_size=spec.architecture.vocab_size,
        eos_token_ids=spec.traits.eos_token_ids,
        mask_token_id=spec.traits.mask_token_id,
        decoders=decoders,
        presets=spec.presets,
        default_preset=spec.default_preset,
    )


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(
            f"engine.device: {name!r} is not a device; try auto, cpu, cuda or cuda:0."
        ) from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"engine.device: {name!r} was asked for, but PyTorch finds no GPU here.")
    return device


def _dtype(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}[name]
