"""From a checkpoint's files to a model with its weights: shapes first, then tensors, shard by shard.

The module is built on PyTorch's meta device, where it takes no memory. Then every tensor is read in the dtype
and on the device that are wanted, and given to the one place where it belongs. So there is never more in
memory than the weights and one shard of the files.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vermilion.errors import ModelFileError
from vermilion.models import denoiser
from vermilion.models.catalog import ModelFiles
from vermilion.models.configuration import spec_of
from vermilion.models.families import LLAMA, Architecture, ModelSpec, TensorNames
from vermilion.models.gguf_file import GGUFHeader, read_header
from vermilion.models.places import Place, places_of
from vermilion.models.shares import WHOLE, Share
from vermilion.models.tensor_files import Shape, check_shapes
from vermilion.models.transformer import Transformer
from vermilion.models.weights import GGUFTensors, Home, TensorFolder


@dataclass(frozen=True, slots=True)
class BuiltModel:
    """A model with its weights, its denoiser among its adapters where it has one."""

    model: Transformer
    spec: ModelSpec


def build(
    files: ModelFiles,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    kind: str = "dense",
    share: Share = WHOLE,
) -> BuiltModel:
    """`kind`: what weights are stored as, of `LINEAR_KINDS`; activations have the dtype. `share`: the part
    of the model that this process has.

    Raises ModelFileError where files and family disagree, naming the tensor, or a format is not read, and
    ConfigError where the share does not fit.
    """
    header = read_header(files.base) if files.kind == "gguf" else None
    spec = spec_of(files, header)
    with torch.device("meta"):
        model = Transformer(spec.architecture, kind, share)
    names: TensorNames = spec.family.names
    source: TensorFolder | GGUFTensors = TensorFolder(files.base)
    if header is not None and spec.family.gguf is not None:
        names, source = spec.family.gguf.names, _gguf_source(files.base, header, spec)
    try:
        fill(model, source, names, dtype, device)
    except ModelFileError as error:
        raise ModelFileError(f"{error} It was read as a model of the family {spec.family.name}.") from error
    if files.adapter is not None:
        denoiser.attach(model, denoiser.read(files.adapter, spec.architecture, dtype, device, share))
    return BuiltModel(model, spec)


def fill(
    model: Transformer,
    source: TensorFolder | GGUFTensors,
    names: TensorNames,
    dtype: torch.dtype,
    device: torch.device | str,
) -> None:
    """Give `model` the weights of `source`, which has them under `names`, with a progress bar where there is
    a terminal. Raises as `build`."""
    shapes = source.shapes()
    places = dict(places_of(model, names, shapes))
    given = {name: shape for name, shape in shapes.items() if not _is_spare(name, places, names)}
    check_shapes(source.path, given, {name: place.shape for name, place in places.items()})

    def home_of(name: str) -> Home | None:
        return places[name].home(dtype, torch.device(device)) if name in places else None

    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task(f"reading {source.path.name}", total=sum(map(math.prod, given.values())))
        for name in source.fill(home_of):
            places[name].filled()
            bar.advance(task, math.prod(given[name]))


def expected_shapes(architecture: Architecture, names: TensorNames = LLAMA) -> dict[str, Shape]:
    """Every tensor that a checkpoint of this architecture must hold, and its shape."""
    with torch.device("meta"):
        model = Transformer(architecture)
    return {name: place.shape for name, place in places_of(model, names)}


def base_tensors(model: Transformer) -> dict[str, Tensor]:
    """The backbone's own weights, detached, under the names of Hugging Face's Llama."""
    return {name: place.read().detach() for name, place in places_of(model, LLAMA)}


def published(tensors: Mapping[str, Tensor], spec: ModelSpec) -> dict[str, Tensor]:
    """Tensors under Hugging Face's Llama names as a checkpoint of the family keeps them."""
    a = spec.architecture
    if a.attention_gate or a.embedding_norm or a.canon_kernel:
        raise ModelFileError(f"{spec.name}: models of the family {spec.family.name} are read, not written.")
    with torch.device("meta"):
        model = Transformer(a)
    ours, theirs = iter(places_of(model, LLAMA)), {}
    for name, place in places_of(model, spec.family.names):
        parts = list[Tensor]()
        while sum(part.shape[0] for part in parts) < place.shape[0]:
            parts.append(tensors[next(ours)[0]])
        theirs[name] = parts[0] if len(parts) == 1 else torch.cat(parts)
    return theirs


def _gguf_source(path: Path, header: GGUFHeader, spec: ModelSpec) -> GGUFTensors:
    assert spec.family.gguf is not None
    a, names, turned = spec.architecture, spec.family.gguf.names, dict[str, int]()
    if spec.family.gguf.interleaved:
        heads = dict(zip(names.products["qkv"], (a.num_heads, a.num_kv_heads), strict=False))
        prefixes = [names.layer.format(index) for index in range(a.num_layers)]
        turned = {f"{prefix}{name}.weight": n for prefix in prefixes for name, n in heads.items()}
    return GGUFTensors(path, header, turned)


def _is_spare(name: str, places: Mapping[str, Place], names: TensorNames) -> bool:
    """Whether a checkpoint may hold a tensor that is not read: a tied head, or what is computed here."""
    spare = name == f"{names.head}.weight" or name.endswith(names.ignored) or name.startswith(names.unread)
    return spare and name not in places
