"""From a causal base and a recipe to a block-diffusion model: a gated adapter on the frozen base."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from vermilion.errors import ConfigError, ModelFileError
from vermilion.models import catalog, weights
from vermilion.models.catalog import ModelFiles
from vermilion.models.families import Architecture, Family, Traits
from vermilion.models.transformer import PARTS, Transformer, load_tensors
from vermilion.training import checkpoint, toy
from vermilion.training.checkpoint import Adapter, Progress
from vermilion.training.corpus import Corpus, read_answers
from vermilion.training.data import Dataset, Source
from vermilion.training.loop import Run, train
from vermilion.training.recipe import Recipe

_SIDE_FILES = ("*.json", "*.jinja", "*.safetensors")


def convert(
    recipe: Recipe, on_step: Callable[[Mapping[str, float]], None] = lambda figures: None
) -> tuple[Path, Progress]:
    """Train the recipe's denoiser and write OUTPUT/model, a folder that every command takes as a model.

    Returns that folder and where the run stopped. Raises ConfigError for a recipe, ModelFileError for a
    base that cannot be converted.
    """
    if recipe.base == "toy":
        recipe = replace(recipe, **toy.make(recipe.output, recipe.seed))
    files = replace(catalog.find(recipe.base), adapter=None)
    run = prepare(recipe, files)
    progress = train(run, on_step)
    return write_model(recipe, files, run), progress


def prepare(recipe: Recipe, files: ModelFiles) -> Run:
    """The base with a fresh adapter (B = 0: it starts as the base itself), and the opened data."""
    device = _device(recipe.device)
    loaded = weights.load(files, torch.float32, device)
    traits = _traits(recipe, loaded.family)
    if recipe.data.length > loaded.family.architecture.context_length:
        raise ConfigError(
            f"data.length: {recipe.data.length} is more than the base's context of "
            f"{loaded.family.architecture.context_length}."
        )
    model = Transformer(loaded.family.architecture).to(device)
    load_tensors(model, loaded.tensors)
    facts = {"block_length": recipe.longest_block, "base": files.base.name}
    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[recipe.adapter_dtype]
    adapter = Adapter(recipe.rank, recipe.alpha, traits, files.name, dtype, facts)
    attach_adapter(model, adapter, recipe.seed)
    corpora = tuple(_corpus(source, files, loaded.family) for source in recipe.data.sources)
    dataset = Dataset(recipe.data, corpora, traits.eos_token_ids, recipe.longest_block - 1)
    return Run(model, dataset, recipe, adapter)


def attach_adapter(model: Transformer, adapter: Adapter, seed: int) -> None:
    """A of normal entries with variance 1 / inputs, B zero; the mask embedding is the mean of all."""
    generator = torch.Generator().manual_seed(seed)
    for layer in model.layers:
        for fused in PARTS:
            linear = getattr(layer, fused)
            inputs = linear.weight.shape[1]
            linear.adapt(
                [
                    (
                        torch.randn(adapter.rank, inputs, generator=generator) / math.sqrt(inputs),
                        torch.zeros(size, adapter.rank),
                    )
                    for size in linear.part_sizes
                ],
                adapter.scale,
            )
    model.mask_embedding = torch.nn.Parameter(model.embedding.detach().mean(0))


def write_model(recipe: Recipe, files: ModelFiles, run: Run) -> Path:
    """OUTPUT/model: the base (a GGUF's as fp32 tensors), its tokenizer, and adapter/ beside them."""
    folder = recipe.output / "model"
    draft = recipe.output / ".model.partial"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    for pattern in _SIDE_FILES:
        for path in files.text_folder.glob(pattern):
            if not path.name.endswith(".verified.json"):
                shutil.copy(path, draft)
    if files.kind == "gguf":
        base = weights.load(files)
        save_file(base.tensors, draft / "model.safetensors")
        config = _hugging_face_config(base.family.architecture, run.adapter.traits)
        (draft / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    checkpoint.write_adapter(draft / "adapter", run.model, run.adapter)
    shutil.rmtree(folder, ignore_errors=True)
    draft.replace(folder)
    return folder


def _traits(recipe: Recipe, family: Family) -> Traits:
    base = family.traits
    mask = recipe.mask_token_id if recipe.mask_token_id >= 0 else base.mask_token_id
    if base.context != "causal" or not base.shift:
        raise ModelFileError(f"{recipe.base} is a diffusion model already; a causal base is converted.")
    if not 0 <= mask < family.architecture.vocab_size:
        raise ConfigError(
            f"mask_token_id: {recipe.base} has no mask token; name an unused token of its vocabulary, "
            f"0 to {family.architecture.vocab_size - 1}."
        )
    return Traits("causal", True, mask, base.eos_token_ids, gated=True)


def _corpus(source: Source, files: ModelFiles, family: Family) -> Corpus:
    if source.path.suffix != ".jsonl":
        corpus = Corpus.open(source.path)
    else:
        tokenizer, template = catalog.tokenizer_of(files), catalog.chat_template_of(files)
        corpus = Corpus.of(read_answers(source.path, tokenizer, template))
    if corpus.largest_id() >= family.architecture.vocab_size:
        raise ConfigError(f"{source.path}: holds token ids that the base's vocabulary lacks.")
    return corpus


def _hugging_face_config(a: Architecture, traits: Traits) -> dict[str, Any]:
    """A config.json that `models.configuration` reads back as the same architecture."""
    if a.rope_fraction != 1.0:
        raise ModelFileError("A base that rotates a part of each head has no config.json of ours.")
    return {
        "model_type": "qwen3" if a.qk_norm else "qwen2" if a.qkv_bias else "llama",
        "num_hidden_layers": a.num_layers,
        "hidden_size": a.hidden_size,
        "num_attention_heads": a.num_heads,
        "num_key_value_heads": a.num_kv_heads,
        "head_dim": a.head_dim,
        "intermediate_size": a.ffn_size,
        "vocab_size": a.vocab_size,
        "max_position_embeddings": a.context_length,
        "rope_theta": a.rope_theta,
        "rms_norm_eps": a.norm_eps,
        "hidden_act": "silu",
        "tie_word_embeddings": a.tied_embeddings,
        "eos_token_id": list(traits.eos_token_ids),
    }


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device: {name!r} is not a device; try auto, cpu, cuda or cuda:0.") from error
