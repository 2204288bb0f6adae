"""From a checkpoint's files to a model with its weights: shapes first, then tensors, shard by shard.

The module is built on PyTorch's meta device, where it takes no memory. Then every tensor is read in the dtype
and on the device that are wanted, and given to the one place where it belongs. So there is never more in
memory than the weights and one shard of the files.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from vermilion.models import denoiser
from vermilion.models.catalog import ModelFiles
from vermilion.models.configuration import spec_of
from vermilion.models.families import LLAMA, Architecture, ModelSpec, TensorNames
from vermilion.models.gguf_file import GGUFHeader, read_header
from vermilion.models.layers import Norm
from vermilion.models.linear import Linear
from vermilion.models.transformer import Transformer
from vermilion.models.weights import GGUFTensors, Shape, TensorFolder, check_shapes


@dataclass(frozen=True, slots=True)
class BuiltModel:
    """A model with its weights, its denoiser among its adapters where it has one."""

    model: Transformer
    spec: ModelSpec


@dataclass(slots=True)
class _Whole:
    """A tensor of the module, made of the published ones in their order."""

    shape: Shape
    store: Callable[[Tensor], None]
    tensor: Tensor | None = None
    num_filled: int = 0
    """Rows."""


@dataclass(frozen=True, slots=True)
class _Place:
    """The rows of a module's tensor that a published one is."""

    whole: _Whole
    rows: slice

    @property
    def shape(self) -> Shape:
        return (self.rows.stop - self.rows.start, *self.whole.shape[1:])

    def home(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Memory for the published tensor, beside that of the others of its whole."""
        if self.whole.tensor is None:
            self.whole.tensor = torch.empty(self.whole.shape, dtype=dtype, device=device)
        return self.whole.tensor[self.rows]

    def filled(self) -> None:
        """The last of a whole gives it to the module."""
        self.whole.num_filled += self.shape[0]
        if self.whole.num_filled == self.whole.shape[0] and self.whole.tensor is not None:
            self.whole.store(self.whole.tensor)
            self.whole.tensor = None


def build(
    files: ModelFiles,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    kind: str = "dense",
) -> BuiltModel:
    """`kind`: what weights are stored as, of `LINEAR_KINDS`; activations have the dtype.

    Raises ModelFileError where files and family disagree, naming the tensor, or a format is not read.
    """
    header = read_header(files.base) if files.kind == "gguf" else None
    spec = spec_of(files, header)
    with torch.device("meta"):
        model = Transformer(spec.architecture, kind)
    names: TensorNames = spec.family.names
    source: TensorFolder | GGUFTensors = TensorFolder(files.base)
    if header is not None and spec.family.gguf is not None:
        names, source = spec.family.gguf.names, _gguf_source(files.base, header, spec)
    fill(model, source, names, dtype, device)
    if files.adapter is not None:
        denoiser.attach(model, denoiser.read(files.adapter, spec.architecture, dtype, device))
    return BuiltModel(model, spec)


def fill(
    model: Transformer,
    source: TensorFolder | GGUFTensors,
    names: TensorNames,
    dtype: torch.dtype,
    device: torch.device | str,
) -> None:
    """Give `model` the weights of `source`, which has them under `names`. Raises as `build`."""
    places = dict(_places(model, names))
    given = {name: shape for name, shape in source.shapes().items() if not _is_spare(name, places, names)}
    check_shapes(source.path, given, {name: place.shape for name, place in places.items()})

    def home_of(name: str) -> Tensor | None:
        return places[name].home(dtype, torch.device(device)) if name in places else None

    for name in source.fill(home_of):
        places[name].filled()


def expected_shapes(architecture: Architecture, names: TensorNames = LLAMA) -> dict[str, Shape]:
    """Every tensor that a checkpoint of this architecture must hold, and its shape."""
    with torch.device("meta"):
        model = Transformer(architecture)
    return {name: place.shape for name, place in _places(model, names)}


def base_tensors(model: Transformer) -> dict[str, Tensor]:
    """The backbone's own weights, detached, under the names of Hugging Face's Llama."""
    tensors = {f"{LLAMA.embedding}.weight": model.embedding.part_weight(0)}
    if model.head is not None:
        tensors[f"{LLAMA.head}.weight"] = model.head.part_weight(0)
    tensors |= {f"{name}.weight": norm.weight for norm, name in model.norms()}
    for linear, names in model.products():
        for part, name in enumerate(names):
            tensors[f"{name}.weight"], bias = linear.part_weight(part), linear.part_bias(part)
            if bias is not None:
                tensors[f"{name}.bias"] = bias
    return {name: tensor.detach() for name, tensor in tensors.items()}


def published(tensors: Mapping[str, Tensor], spec: ModelSpec) -> dict[str, Tensor]:
    """Tensors under Hugging Face's Llama names as a checkpoint of the family keeps them."""
    with torch.device("meta"):
        model = Transformer(spec.architecture)
    ours, theirs = iter(_places(model, LLAMA)), {}
    for name, place in _places(model, spec.family.names):
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


def _is_spare(name: str, places: Mapping[str, _Place], names: TensorNames) -> bool:
    """Whether a checkpoint may hold a tensor that is not read: a tied head, or what is computed here."""
    spare = name == f"{names.head}.weight" or name.endswith(names.ignored)
    return spare and name not in places


def _places(model: Transformer, names: TensorNames) -> Iterator[tuple[str, _Place]]:
    yield from _linear_places((names.embedding,), model.embedding)
    yield _norm_place(names.norm, model.norm)
    if model.head is not None:
        yield from _linear_places((names.head,), model.head)
    for index, layer in enumerate(model.layers):
        prefix = names.layer.format(index)
        for ours, published in names.products.items():
            yield from _linear_places([prefix + name for name in published], getattr(layer, ours))
        for ours, name in names.norms.items():
            norm = getattr(layer, ours)
            if norm is not None:
                yield _norm_place(prefix + name, norm)


def _linear_places(names: Sequence[str], linear: Linear) -> Iterator[tuple[str, _Place]]:
    """One name for several parts: the checkpoint keeps them as one tensor."""
    sizes = linear.part_sizes if len(names) > 1 else (linear.out_size,)
    spans = [slice(*span) for span in itertools.pairwise(itertools.accumulate(sizes, initial=0))]
    wholes = {"weight": _Whole((linear.out_size, linear.in_size), linear.load)}
    if linear.bias is not None:
        wholes["bias"] = _Whole((linear.out_size,), linear.load_bias)
    for kind, whole in wholes.items():
        for name, span in zip(names, spans, strict=True):
            yield f"{name}.{kind}", _Place(whole, span)


def _norm_place(name: str, norm: Norm) -> tuple[str, _Place]:
    def store(tensor: Tensor) -> None:
        norm.weight = nn.Parameter(tensor, requires_grad=False)

    (size,) = norm.weight.shape
    return f"{name}.weight", _Place(_Whole((size,), store), slice(0, size))
