"""A shallow drafter: two layers that guess what the base will say, from the base's own hidden states.

Every settled position leaves keys and values in the drafter's layers, made of what the base's hidden states
were at a few depths (`taps`), so the drafter never runs over the text (DFlash, arXiv 2602.06036). To draft it
runs a few rows: the last settled token, then masks. Row i guesses the token behind it. A bottleneck head then
makes each guess depend on the one before (`draft_head.py`; DSpark's Markov head). Embedding and head are the
base's; the head is cut to the tokens that the base says at all often. Shapes: N rows, H hidden, T taps,
J key heads, D head dim, W draft vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from vermilion.errors import ModelFileError
from vermilion.models.denoiser_file import DRAFTER_FILE
from vermilion.models.draft_head import DraftHead
from vermilion.models.families import Architecture, LayerKind
from vermilion.models.layers import Layer, Norm
from vermilion.models.linear import Linear
from vermilion.models.rotary import Turn, rotate
from vermilion.models.shared_layers import own_tensors, share_layers
from vermilion.models.shares import WHOLE, Share
from vermilion.models.tensor_files import check_shapes
from vermilion.models.weights import TensorFolder
from vermilion.text import read_json

_STEM = "drafter"


@dataclass(frozen=True, slots=True)
class DrafterShape:
    """What tells one drafter of a base from another."""

    taps: tuple[int, ...]
    """Layers of the base whose inputs are injected, the shallowest first."""
    num_layers: int
    block_length: int
    """Tokens guessed at a time in training."""
    rank: int
    """Width of the head's bottleneck."""
    window: int = 0
    """How many positions up to the block's first its layers see; 0: all. Behind more than its training had,
    one that sees them all guesses worse."""

    @classmethod
    def of(
        cls, architecture: Architecture, num_layers: int, block_length: int, rank: int, window: int = 0
    ) -> DrafterShape:
        """With five taps, evenly spaced up to the layers that the drafter's own begin as."""
        last = architecture.num_layers - num_layers
        count = min(5, last)
        taps = [round(1 + i * (last - 1) / max(1, count - 1)) for i in range(count)]
        return cls(tuple(dict.fromkeys(taps)), num_layers, block_length, rank, window)

    def layer_kinds(self, architecture: Architecture) -> list[LayerKind]:
        """Those of the base's last layers; the narrower window counts."""
        kinds = architecture.layer_kinds()[-self.num_layers :]
        windows = [min(filter(None, (kind.window, self.window)), default=0) for kind in kinds]
        return [replace(kind, window=window) for kind, window in zip(kinds, windows, strict=True)]


class Drafter(nn.Module):
    """Its own layers have the base's sizes, so their keys and values lie in the base's pages."""

    def __init__(
        self, architecture: Architecture, shape: DrafterShape, vocabulary_W: Tensor, share: Share = WHOLE
    ) -> None:
        """`vocabulary_W` are the token ids that it can guess, ascending; `share`: of its layers, as of the
        base's."""
        super().__init__()
        size = architecture.hidden_size
        self.shape = shape
        self.inject = Linear(len(shape.taps) * size, (size,))
        self.inject_norm = Norm(size, architecture.norm_eps)
        own = share.of(architecture)
        self.layers = nn.ModuleList(Layer(own, kind, Linear) for kind in shape.layer_kinds(own))
        share_layers(self.layers, share)
        self.norm = Norm(size, architecture.norm_eps)
        self.mask_embedding = nn.Parameter(torch.zeros(size))
        self.head = DraftHead(size, shape.rank)
        self.register_buffer("vocabulary", vocabulary_W, persistent=False)

    def context(self, tapped_NTH: Tensor) -> Tensor:
        """[N, H]: what the drafter's layers make keys and values of, where the base had these states."""
        x_NTH = F.rms_norm(tapped_NTH, tapped_NTH.shape[-1:])
        x_NH: Tensor = self.inject(x_NTH.flatten(1))
        # Under autocast bfloat16 meets fp32 weights, of which PyTorch warns.
        normed_NH: Tensor = self.inject_norm(x_NH.to(self.inject_norm.weight.dtype))
        return normed_NH.to(x_NH.dtype)

    def keys_values(
        self, context_NH: Tensor, turns: Sequence[Turn | None]
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Keys after RoPE and values, [N, J, D] each, of every layer; `turns` of those layers."""
        for layer, turn in zip(self.plain_layers, turns, strict=True):
            start = layer.qkv.part_sizes[0]
            bias = None if layer.qkv.bias is None else layer.qkv.bias[start:]
            both = F.linear(context_NH, layer.qkv.weight[start:], bias)
            k, v = both.view(len(both), 2 * layer.num_keys, layer.head_dim).chunk(2, 1)
            yield rotate(k if layer.k_norm is None else layer.k_norm(k), turn), v

    def inject_rows(
        self, inputs: Sequence[Tensor], turns: Sequence[Turn | None], slots_N: Tensor, pool: Tensor
    ) -> None:
        """The first N rows of a forward of the base leave keys and values in the drafter's layers, the last
        of `pool`; `inputs` and `turns` are those of the base's layers."""
        count, own = len(slots_N), self.shape.num_layers
        tapped_NTH = torch.stack([inputs[tap][:count] for tap in self.shape.taps], 1)
        mine = [turn and (turn[0][:count], turn[1][:count]) for turn in turns[-own:]]
        for (k_NJD, v_NJD), pool_S2JD in zip(
            self.keys_values(self.context(tapped_NTH), mine), pool[-own:], strict=True
        ):
            pool_S2JD.index_copy_(0, slots_N, torch.stack([k_NJD, v_NJD], 1))

    @property
    def plain_layers(self) -> list[Layer]:
        return [cast(Layer, layer) for layer in self.layers]

    @property
    def layer_kinds(self) -> list[LayerKind]:
        return [layer.kind for layer in self.plain_layers]

    @property
    def vocabulary_W(self) -> Tensor:
        return self.get_buffer("vocabulary")


def fresh(
    architecture: Architecture, shape: DrafterShape, vocabulary_W: Tensor, base: dict[str, Tensor], seed: int
) -> Drafter:
    """One that begins as the base's last layers: each of its layers is one of them, and the injection passes
    on the state that the first of them was given. `base` are the backbone's weights by Hugging Face's names.
    """
    drafter = Drafter(architecture, shape, vocabulary_W)
    first = architecture.num_layers - shape.num_layers
    prefix = f"model.layers.{first}."
    size = architecture.hidden_size
    with torch.no_grad():
        drafter.inject.weight.zero_()
        drafter.inject.weight[:, -size:] = torch.eye(size)
        entry_H = base[f"{prefix}input_layernorm.weight"]
        drafter.inject_norm.weight.copy_(entry_H)
        for index, layer in enumerate(drafter.plain_layers):
            copy_layer(layer, base, f"model.layers.{first + index}.", entry_H)
        drafter.norm.weight.copy_(base["model.norm.weight"])
        drafter.mask_embedding.copy_(base["model.embed_tokens.weight"].mean(0))
    head = DraftHead.fresh(size, shape.rank, seed)
    head.requires_grad_(True)
    drafter.head = head
    return drafter


def copy_layer(layer: Layer, base: dict[str, Tensor], prefix: str, entry_H: Tensor) -> None:
    """`layer` as the base's, its queries, keys and values reading what has been scaled by `entry_H` instead
    of the base layer's own norm: all layers share one injected state."""
    own_H = base[f"{prefix}input_layernorm.weight"]
    turn_H = own_H / torch.where(entry_H.abs() < 1e-4, torch.full_like(entry_H, 1e-4), entry_H)
    qkv = [base[f"{prefix}self_attn.{name}_proj.weight"] * turn_H for name in "qkv"]
    layer.qkv.weight.copy_(torch.cat(qkv))
    layer.attention_norm.weight.copy_(entry_H)
    assert layer.gate_up is not None and layer.down is not None
    layer.output.weight.copy_(base[f"{prefix}self_attn.o_proj.weight"])
    layer.ffn_norm.weight.copy_(base[f"{prefix}post_attention_layernorm.weight"])
    both = [base[f"{prefix}mlp.{name}_proj.weight"] for name in ("gate", "up")]
    layer.gate_up.weight.copy_(torch.cat(both))
    layer.down.weight.copy_(base[f"{prefix}mlp.down_proj.weight"])
    for ours, theirs in (("q_norm", "self_attn.q_norm"), ("k_norm", "self_attn.k_norm")):
        norm = getattr(layer, ours)
        if norm is not None:
            norm.weight.copy_(base[f"{prefix}{theirs}.weight"])
    if layer.qkv.bias is not None:
        layer.qkv.bias.copy_(torch.cat([base[f"{prefix}self_attn.{name}_proj.bias"] for name in "qkv"]))


def write(folder: Path, drafter: Drafter, dtype: torch.dtype, facts: Mapping[str, object]) -> None:
    """drafter.safetensors and drafter.json, beside a denoiser's files or alone."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: value.detach().to("cpu", dtype) for name, value in drafter.state_dict().items()}
    save_file(tensors, folder / f"{_STEM}.safetensors")
    described = {**asdict(drafter.shape), **facts, "vocabulary": drafter.vocabulary_W.tolist()}
    (folder / DRAFTER_FILE).write_text(json.dumps(described), encoding="utf-8")


def read(
    folder: Path, architecture: Architecture, dtype: torch.dtype = torch.float32, share: Share = WHOLE
) -> Drafter:
    """Raises ModelFileError, naming the tensor, where it does not fit a base of this architecture."""
    given = read_json(folder / DRAFTER_FILE)
    try:
        taps, vocabulary = ([int(each) for each in given[name]] for name in ("taps", "vocabulary"))
        layers, length, rank = (int(given[name]) for name in ("num_layers", "block_length", "rank"))
        shape = DrafterShape(tuple(taps), layers, length, rank, int(given.get("window", 0)))
    except (KeyError, TypeError, ValueError) as error:
        raise ModelFileError(f"{folder / DRAFTER_FILE}: not a drafter's description ({error}).") from None
    drafter = Drafter(architecture, shape, torch.tensor(vocabulary))
    source = TensorFolder(folder, _STEM)
    wanted = {name: tuple(value.shape) for name, value in drafter.state_dict().items()}
    check_shapes(folder / f"{_STEM}.safetensors", source.shapes(), wanted)
    drafter.load_state_dict(dict(source.read(dtype, "cpu")), assign=True)
    return (drafter if share.size == 1 else shared(drafter, architecture, share)).requires_grad_(False)


def shared(drafter: Drafter, architecture: Architecture, share: Share) -> Drafter:
    """The share of a whole one."""
    own = Drafter(architecture, drafter.shape, drafter.vocabulary_W, share)
    own.load_state_dict(own_tensors(own, drafter.state_dict()), assign=True)
    return own
