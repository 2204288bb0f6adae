"""From a model's name to an engine that can run it."""

from __future__ import annotations

import ctypes
import logging
import math
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from vermilion.chat_template import ChatTemplate
from vermilion.config import PAGE_SIZE, EngineConfig
from vermilion.decoding.decoders import available
from vermilion.engine.cache import PageCache
from vermilion.engine.engine import Engine, Runner
from vermilion.engine.loaded_adapters import FIM
from vermilion.engine.scheduler import Limits, Scheduler
from vermilion.errors import ConfigError, ModelFileError
from vermilion.gap_template import FIM_FOLDER, GapTemplate
from vermilion.models import catalog
from vermilion.models.catalog import ModelFiles
from vermilion.models.configuration import spec_of
from vermilion.models.families import ModelSpec
from vermilion.models.memory import Format, cache_bytes_per_token, weight_bytes
from vermilion.native import checkpoint_packing, library
from vermilion.native.runner import NativeRunner
from vermilion.text import Tokenizer
from vermilion.types import ModelInfo

if TYPE_CHECKING:
    import torch

    from vermilion.models.transformer import Transformer

_CANVAS_RESERVE = 128
"""Slots kept from a request's context for the noisy rows behind it."""

log = logging.getLogger(__name__)


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
    files = catalog.find(name)
    if denoiser is not None:
        files = replace(files, adapter=denoiser)
    spec = spec_of(files)
    tokenizer, template = _text_of(files, spec)
    opened = _native if _chosen_backend(config, spec) == "native" else _on_torch
    engine = opened(files, spec, tokenizer, config)
    engine.measure_costs()
    if files.adapter is not None and (fim := files.adapter / FIM_FOLDER).is_dir():
        engine.gap_template = GapTemplate.read(fim, spec.architecture.vocab_size)
        engine.adapters.keep(FIM, read_adapter(engine, fim))
    return Loaded(engine, tokenizer, template)


def describe_model(name: str, config: EngineConfig) -> tuple[ModelInfo, int]:
    """What is known of a model before it is loaded, and the bytes it will take. Raises as `load_model`."""
    files = catalog.find(name)
    spec = spec_of(files)
    a, kind = spec.architecture, _format(config, spec)
    weights = weight_bytes(a, kind)
    if files.kind == "gguf" and kind in ("q4", "q8"):
        weights = max(files.base.stat().st_size, weight_bytes(a, "q4"))  # its own blocks are kept
    if files.adapter is not None:
        weights += sum(path.stat().st_size for path in files.adapter.rglob("*"))
    context = min(a.context_length, config.kv_tokens - _CANVAS_RESERVE)
    return _info(spec, context), weights + config.kv_tokens * cache_bytes_per_token(a, kind)


def load_text(name: str) -> tuple[Tokenizer, ChatTemplate | None]:
    """What reads and writes the text of a model that runs elsewhere. Raises as `load_model`."""
    files = catalog.find(name)
    return _text_of(files, spec_of(files))


def _format(config: EngineConfig, spec: ModelSpec) -> Format:
    """In which numbers the weights will lie in memory."""
    if config.backend != "torch" and not _obstacle(config, spec):
        return "q4" if config.quantize == "q4" else "q8"
    if config.quantize in ("int8", "fp8"):
        return config.quantize
    on_gpu = config.device.startswith("cuda") or (config.device == "auto" and _has_gpu())
    return "bf16" if config.dtype == "bfloat16" or (config.dtype == "auto" and on_gpu) else "float32"


def _chosen_backend(config: EngineConfig, spec: ModelSpec) -> str:
    """`native` or `torch`; raises ConfigError where the kernels are asked for and cannot run this."""
    if config.backend == "torch":
        return "torch"
    obstacle = _obstacle(config, spec)
    if not obstacle:
        return "native"
    if config.backend == "native":
        raise ConfigError(f"engine.backend: the native backend cannot run {spec.name}: {obstacle}.")
    log.warning("%s runs on PyTorch, not on the native backend: %s.", spec.name, obstacle)
    return "torch"


def _obstacle(config: EngineConfig, spec: ModelSpec) -> str:
    """Why the kernels cannot run this, for people; empty if they can."""
    if config.tensor_parallel > 1:
        return f"engine.tensor_parallel asks for {config.tensor_parallel} processes"
    if config.device != "cpu" and (config.device != "auto" or _has_gpu()):
        return "it is to run on a GPU"
    if config.dtype != "auto":
        return f"engine.dtype asks for {config.dtype}"
    if config.quantize not in ("q8", "q4"):
        return f"engine.quantize is {config.quantize}"
    try:
        library.load()
    except library.LibraryMissing as error:
        return str(error)
    return checkpoint_packing.obstacle(spec.architecture)


def _has_gpu() -> bool:
    """Whether PyTorch would find one; importing it, which takes a second, only where there is a driver."""
    driver = {"win32": "nvcuda.dll", "darwin": ""}.get(sys.platform, "libcuda.so.1")
    if not driver:
        return False
    try:
        ctypes.CDLL(driver)
    except OSError:
        return False
    import torch

    return torch.cuda.is_available()


def _native(files: ModelFiles, spec: ModelSpec, tokenizer: Tokenizer, config: EngineConfig) -> Engine:
    packed = checkpoint_packing.open_packed(files, spec, "q4" if config.quantize == "q4" else "q8")

    def runner(num_pages: int, page_size: int) -> Runner:
        pool = (num_pages, page_size)
        return NativeRunner(packed, spec.architecture, spec.traits.mask_token_id, pool, config.threads)

    return engine_over(runner, spec, tokenizer, config)


def _on_torch(files: ModelFiles, spec: ModelSpec, tokenizer: Tokenizer, config: EngineConfig) -> Engine:
    import torch

    from vermilion.models.build import build

    device = _device(config.device)
    kind = _linear_kind(config, device)
    if config.tensor_parallel > 1:
        return _shared(files, spec, tokenizer, config)
    if device.type == "cpu":
        torch.set_num_threads(config.threads or os.cpu_count() or 1)
    built = build(files, dtype_of(config.dtype, device), device, kind)
    return assemble(built.model, spec, tokenizer, config)


def _linear_kind(config: EngineConfig, device: torch.device) -> str:
    """What PyTorch stores weights as, of `LINEAR_KINDS`; raises ConfigError where that cannot be had."""
    import torch

    if config.quantize not in ("int8", "fp8"):
        return "dense"
    asked = f"engine.quantize: {config.quantize}"
    if config.tensor_parallel > 1:
        raise ConfigError(
            f"{asked} is not for models that processes share; leave engine.tensor_parallel at 1."
        )
    if device.type != "cuda" and config.backend != "torch":
        raise ConfigError(
            f"{asked} is for GPUs, and the model is to run on {device}; take q8 or q4, or, to try it, "
            "engine.backend torch."
        )
    if (
        config.quantize == "fp8"
        and device.type == "cuda"
        and torch.cuda.get_device_capability(device) < (8, 9)
    ):
        name = torch.cuda.get_device_name(device)
        raise ConfigError(f"{asked} needs a GPU of compute capability 8.9, which {name} is not; take int8.")
    return config.quantize


def _shared(files: ModelFiles, spec: ModelSpec, tokenizer: Tokenizer, config: EngineConfig) -> Engine:
    from vermilion.engine.shared_worker import open_shared
    from vermilion.models.shares import check_shareable

    check_shareable(spec.architecture, config.tensor_parallel)
    return engine_over(open_shared(files, config).worker, spec, tokenizer, config)


def _text_of(files: ModelFiles, spec: ModelSpec) -> tuple[Tokenizer, ChatTemplate | None]:
    tokenizer = catalog.tokenizer_of(files, (spec.traits.mask_token_id, *spec.traits.eos_token_ids))
    try:
        return tokenizer, catalog.chat_template_of(files)
    except ModelFileError:
        own = spec.family.chat_template
        return tokenizer, ChatTemplate(own) if own else None


def assemble(model: Transformer, spec: ModelSpec, tokenizer: Tokenizer, config: EngineConfig) -> Engine:
    """An engine over a PyTorch model that has its weights."""
    from vermilion.engine.worker import Worker

    model.eval().requires_grad_(False)

    def runner(num_pages: int, page_size: int) -> Runner:
        return Worker(model, num_pages, page_size, spec.traits.mask_token_id)

    return engine_over(runner, spec, tokenizer, config)


def engine_over(
    runner: Callable[[int, int], Runner], spec: ModelSpec, tokenizer: Tokenizer, config: EngineConfig
) -> Engine:
    """An engine over what `runner` makes of the number of pages and their size."""
    traits = spec.traits
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
        max_pause_ms=config.max_pause_ms,
    )
    worker = runner(num_pages, size)
    return Engine(worker, Scheduler(limits, cache), tokenizer, _info(spec, context), traits)


def read_adapter(engine: Engine, folder: Path) -> object:
    """A PEFT folder for the model of `engine`; raises ModelFileError, naming the tensor that does not fit.

    Changes nothing, so another thread may call it while the engine runs.
    """
    if isinstance(engine.worker, NativeRunner):
        return checkpoint_packing.read_adapter(folder, engine.worker.architecture)
    from vermilion.engine.shared_worker import SharedWorker
    from vermilion.engine.worker import Worker
    from vermilion.models import adapters

    if isinstance(engine.worker, SharedWorker):
        return engine.worker.read_adapter(folder)
    assert isinstance(engine.worker, Worker)
    return adapters.read(folder, engine.worker.model)


def _info(spec: ModelSpec, context_length: int) -> ModelInfo:
    return ModelInfo(
        id=spec.name,
        context_length=context_length,
        vocab_size=spec.architecture.vocab_size,
        eos_token_ids=spec.traits.eos_token_ids,
        mask_token_id=spec.traits.mask_token_id,
        decoders=available(spec.traits),
        presets=spec.presets,
        default_preset=spec.default_preset,
    )


def _device(name: str) -> torch.device:
    import torch

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


def dtype_of(name: str, device: torch.device) -> torch.dtype:
    import torch

    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}[name]
