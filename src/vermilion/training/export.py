"""From a trained model to the files that every command reads, in Hugging Face's and PEFT's layouts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from vermilion.gap_template import GapTemplate
from vermilion.models import adapters
from vermilion.models.build import base_tensors, build, published
from vermilion.models.catalog import ModelFiles
from vermilion.models.configuration import hugging_face_config, spec_of
from vermilion.models.denoiser_file import DenoiserFile, Weights
from vermilion.models.families import ModelSpec
from vermilion.models.lora_folder import PEFT_PREFIX
from vermilion.models.transformer import Transformer
from vermilion.training.distributed import World, whole
from vermilion.training.run import TUNED, AdapterMetadata, Run

_SIDE_FILES = ("*.json", "*.jinja", "*.safetensors")


def write_adapter(folder: Path, run: Run) -> None:
    """What `models.build` reads beside a base: a fine-tuned LoRA under PEFT's names, with fim.json where it
    learnt gaps, or a denoiser (its LoRA, its copy of the projections, or neither) with its mask embedding and
    denoiser.json."""
    model, adapter = run.model, run.adapter
    folder.mkdir(parents=True, exist_ok=True)
    if run.recipe.method == "lora":
        _write_lora(folder, _peft(adapters.pairs_of(model, TUNED), adapter.dtype), adapter)
        data = run.recipe.data
        if data.fim_token_ids:
            begin, suffix, prefix, end = data.fim_token_ids
            GapTemplate((begin, suffix, prefix, end), max(1, data.length // 4)).write(folder)
        return
    kind: Weights = "tied"
    pairs = adapters.pairs_of(model, adapters.DENOISER)
    own = adapters.weights_of(model, adapters.DENOISER)
    if pairs:
        kind = "lora"
        _write_lora(folder, _peft(pairs, adapter.dtype), adapter)
    elif own:
        kind = "copy"
        tensors = {name: _stored(tensor, adapter.dtype) for name, tensor in own.items()}
        save_file(tensors, folder / "model.safetensors")
    if kind != "tied" and model.mask_embedding is not None:
        mask_H = _stored(model.mask_embedding, torch.float32)
        save_file({"mask_embedding": mask_H}, folder / "denoiser.safetensors")
    if model.draft_head is not None:
        both = {"down": model.draft_head.down, "up": model.draft_head.up}
        head = {name: _stored(linear.part_weight(0), adapter.dtype) for name, linear in both.items()}
        save_file(head, folder / "draft_head.safetensors")
    DenoiserFile.of(adapter.traits, kind, adapter.block_length, adapter.facts).write(folder)


def write_model(run: Run, files: ModelFiles, world: World) -> Path:
    """OUTPUT/model: base, tokenizer, and the denoiser as adapter/ beside them.

    A base that stayed as it was keeps its files (a GGUF's tensors become fp32 ones); otherwise the trained
    weights take their place. Every process must call it; the first one's folder stays.
    """
    folder = run.recipe.output / "model"
    draft = run.recipe.output / f".model.{world.rank}.partial"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    changed = run.recipe.trains_clean
    spec = _copy_side_files(files, draft, weights=not changed)
    if changed:
        tensors = hugging_face_tensors(run.model)
        if run.recipe.method != "lora" and not run.adapter.traits.gated:
            _show_masks_as(tensors, run)
        save_file(
            {name: _stored(tensor, run.adapter.dtype) for name, tensor in published(tensors, spec).items()},
            draft / "model.safetensors",
        )
    elif files.kind == "gguf":
        base = build(replace(files, adapter=None)).model
        save_file(hugging_face_tensors(base), draft / "model.safetensors")
    if run.recipe.method != "lora":
        write_adapter(draft / "adapter", run)
    elif files.adapter is not None:
        shutil.copytree(files.adapter, draft / "adapter")
    return settle(draft, folder, world)


def model_with(files: ModelFiles, output: Path, write_beside: Callable[[Path], None]) -> Path:
    """OUTPUT/model: a base as it is, with what is beside it and what `write_beside` puts into that folder."""
    folder, draft = output / "model", output / ".model.partial"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    _copy_side_files(files, draft, weights=True)
    if files.kind == "gguf":
        base = build(replace(files, adapter=None)).model
        save_file(hugging_face_tensors(base), draft / "model.safetensors")
    if files.adapter is not None:
        shutil.copytree(files.adapter, draft / "adapter")
    write_beside(draft / "adapter")
    shutil.rmtree(folder, ignore_errors=True)
    return draft.replace(folder)


def _copy_side_files(files: ModelFiles, draft: Path, *, weights: bool) -> ModelSpec:
    """Descriptions, tokenizer and, where they are safetensors and wanted, weights of a base; its spec."""
    for pattern in _SIDE_FILES:
        for path in files.text_folder.glob(pattern):
            stale = not weights and (path.suffix == ".safetensors" or path.name.endswith(".index.json"))
            if not stale and not path.name.endswith(".verified.json"):
                shutil.copy(path, draft)
    spec = spec_of(replace(files, adapter=None))
    if files.kind == "gguf":
        config = hugging_face_config(spec)
        (draft / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    return spec


def settle(draft: Path, folder: Path, world: World) -> Path:
    """Give the first process's `draft` its name, in place of what has it; the others' drafts go."""
    if world.is_first:
        shutil.rmtree(folder, ignore_errors=True)
        draft.replace(folder)
    else:
        shutil.rmtree(draft)
    world.wait()
    return folder


def hugging_face_tensors(model: Transformer) -> dict[str, Tensor]:
    """The backbone's own weights under the names of Hugging Face's Llama, a LoRA of every row merged into
    them."""
    tensors = {name: whole(tensor) for name, tensor in base_tensors(model).items()}
    own = adapters.rank_and_scale(model, TUNED)
    for name, pair in adapters.pairs_of(model, TUNED).items():
        a, b = (whole(each) for each in pair)
        tensors[f"{name}.weight"] = tensors[f"{name}.weight"] + (own[1] if own else 0.0) * (b @ a)
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def _show_masks_as(tensors: dict[str, Tensor], run: Run) -> None:
    """Put the trained mask embedding where a model without a denoiser of its own looks for it."""
    if run.model.mask_embedding is not None:
        embedding = tensors["model.embed_tokens.weight"].clone()
        embedding[run.adapter.traits.mask_token_id] = whole(run.model.mask_embedding.detach())
        tensors["model.embed_tokens.weight"] = embedding


def _peft(pairs: Mapping[str, tuple[Tensor, Tensor]], dtype: torch.dtype) -> dict[str, Tensor]:
    return {
        f"{PEFT_PREFIX}{module}.lora_{side}.weight": _stored(tensor, dtype)
        for module, pair in pairs.items()
        for side, tensor in zip("AB", pair, strict=True)
    }


def _stored(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return whole(tensor.detach()).to("cpu", dtype).contiguous()


def _write_lora(folder: Path, tensors: Mapping[str, Tensor], adapter: AdapterMetadata) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(dict(tensors), folder / "adapter_model.safetensors")
    modules = {name.split(".lora_")[0].rpartition(".")[2] for name in tensors}
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": adapter.rank,
        "lora_alpha": adapter.alpha,
        "lora_dropout": 0.0,
        "target_modules": sorted(modules),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "base_model_name_or_path": adapter.base,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
