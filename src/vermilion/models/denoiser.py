"""What makes noisy rows differ from clean ones: a folder beside the base, and its place on the backbone."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from vermilion.models import adapters
from vermilion.models.denoiser_file import DENOISER_FILE, DRAFTER_FILE, DenoiserFile
from vermilion.models.draft_head import DraftHead
from vermilion.models.drafter import Drafter
from vermilion.models.drafter import read as read_drafter
from vermilion.models.families import Architecture
from vermilion.models.lora import Pair
from vermilion.models.lora_folder import read_pairs
from vermilion.models.shares import WHOLE, Share
from vermilion.models.tensor_files import check_shapes
from vermilion.models.transformer import Transformer
from vermilion.models.weights import TensorFolder


@dataclass(frozen=True, slots=True)
class Denoiser:
    """The tensors of one; those it does not have are empty or None."""

    pairs: dict[str, Pair] = field(default_factory=dict)
    """Its LoRA: {module name (`model.layers.0.self_attn.q_proj`): (A [R, I], B [O, R])}."""
    scale: float = 0.0
    """alpha / rank of it."""
    weights: dict[str, Tensor] = field(default_factory=dict)
    """Or projections of its own, by the names of the base's."""
    mask_embedding_H: Tensor | None = None
    """Stands in for the embedding of the mask id in noisy rows."""
    draft_head: tuple[Tensor, Tensor] | None = None
    """(down [K, 2H], up [H, K])"""
    drafter: Drafter | None = None


def read(
    folder: Path,
    architecture: Architecture,
    dtype: torch.dtype,
    device: torch.device | str,
    share: Share = WHOLE,
) -> Denoiser:
    """Its drafter is of the `share`, all else is whole until it is attached. Raises ModelFileError, naming
    the tensor, where it does not fit a base of this architecture."""
    drafter = read_drafter(folder, architecture, dtype, share) if (folder / DRAFTER_FILE).is_file() else None
    if drafter is not None and not (folder / DENOISER_FILE).is_file():
        return Denoiser(drafter=drafter.to(device))
    kind, projections = DenoiserFile.read(folder).weights, adapters.projections(architecture)
    pairs, scale, weights = dict[str, Pair](), 0.0, dict[str, Tensor]()
    if kind == "lora":
        pairs, scale = read_pairs(folder, projections, dtype, device)
    elif kind == "copy":
        source = TensorFolder(folder)
        check_shapes(
            folder, source.shapes(), {f"{name}.weight": shape for name, shape in projections.items()}
        )
        weights = dict(source.read(dtype, device))
    size, mask, head = architecture.hidden_size, None, None
    if kind != "tied" and (path := folder / "denoiser.safetensors").is_file():
        source = TensorFolder(folder, "denoiser")
        check_shapes(path, source.shapes(), {"mask_embedding": (size,)})
        ((_, mask),) = source.read(dtype, device)
    if (path := folder / "draft_head.safetensors").is_file():
        source = TensorFolder(folder, "draft_head")
        given = source.shapes()
        rank = given.get("down", (0,))[0]
        check_shapes(path, given, {"down": (rank, 2 * size), "up": (size, rank)})
        tensors = dict(source.read(dtype, device))
        head = (tensors["down"], tensors["up"])
    return Denoiser(pairs, scale, weights, mask, head, drafter and drafter.to(device))


def attach(model: Transformer, denoiser: Denoiser) -> None:
    """Put it on the backbone; takes its own projections out of it as it goes."""
    if denoiser.pairs:
        adapter = adapters.lora(model, denoiser.pairs, denoiser.scale, folded=True)
        adapters.attach(model, adapters.DENOISER, adapter)
    elif denoiser.weights:
        adapters.attach(model, adapters.DENOISER, adapters.second_weights(model, denoiser.weights))
    if denoiser.mask_embedding_H is not None:
        model.mask_embedding = nn.Parameter(denoiser.mask_embedding_H)
    if denoiser.draft_head is not None:
        model.draft_head = DraftHead.of(*denoiser.draft_head)
    model.drafter = denoiser.drafter
