"""The model as the library's table: addresses of packed tensors beside the sizes of the architecture."""

from __future__ import annotations

import ctypes
import math

import numpy as np

from vermilion.models.families import LLAMA, Architecture, Experts, LayerKind, Rope
from vermilion.native.checkpoint_packing import NORMS, layer_products
from vermilion.native.diffusion_packing import BRANCH_NORMS
from vermilion.native.library import (
    DrafterStruct,
    ExpertsStruct,
    LayerStruct,
    MatrixStruct,
    ModelStruct,
    ProductStruct,
    RotationStruct,
    SelfConditioningStruct,
)
from vermilion.native.packed_file import PackedFile
from vermilion.native.stored_sizes import dense_size, filled_up, head_size

ACTIVATIONS = ("silu", "gelu", "gelu_tanh")
"""In the order of kernels/model.h."""
_VECTORS = ("attention_shift", "ffn_shift", "attention_gate", "ffn_gate")


class ModelTable:
    """Points into the packed file, which must outlive it, and into numbers of its own."""

    def __init__(self, packed: PackedFile, architecture: Architecture, mask_token_id: int) -> None:
        a = architecture
        self._packed, self._architecture = packed, a
        kinds = a.layer_kinds()
        ropes: list[Rope] = []
        ropes += (rope for kind in kinds if kind.rotated and (rope := a.rope(kind)) not in ropes)
        self._frequencies = [np.ascontiguousarray(rope.inverse_frequencies()) for rope in ropes]
        rotations = [
            RotationStruct(numbers.ctypes.data, rope.size, rope.magnitude)
            for rope, numbers in zip(ropes, self._frequencies, strict=True)
        ]
        self._products = dict(layer_products(a))
        self._ropes = ropes
        layers = [self._layer(str(index), kind) for index, kind in enumerate(kinds)]
        embedding = packed.matrix("embedding")
        self.struct = ModelStruct(
            num_layers=a.num_layers,
            hidden_size=filled_up(a.hidden_size),
            hidden_norm_size=a.hidden_size,
            num_heads=a.num_heads,
            vocab_size=a.vocab_size,
            num_rotations=len(ropes),
            norm_eps=a.norm_eps,
            mask_token=mask_token_id,
            activation=ACTIVATIONS.index(a.activation),
            centred=bool(a.condition_size),
            embedding_scale=a.embedding_scale,
            logit_softcap=a.logit_softcap,
            query_period=a.query_period if a.query_growth else 0,
            query_growth=a.query_growth,
            layers=(LayerStruct * len(layers))(*layers),
            rotations=(RotationStruct * len(rotations))(*rotations),
            embedding=embedding,
            head=embedding if a.tied_embeddings else packed.matrix("head"),
            norm=packed.address("norm"),
            norm_shift=packed.address("norm_shift"),
            head_bias=packed.address("head_bias"),
            embedding_norm=packed.address("embedding_norm"),
            mask_embedding=packed.address("mask_embedding"),
            draft_down=packed.matrix("draft_down"),
            draft_up=packed.matrix("draft_up"),
            drafter=self._drafter(),
            conditioning=SelfConditioningStruct(
                packed.address("conditioning.norm"),
                *(packed.matrix(f"conditioning.{part}") for part in ("gate", "up", "down")),
            ),
        )

    def _drafter(self) -> DrafterStruct:
        packed = self._packed
        if "drafter.inject" not in packed:
            return DrafterStruct()
        count = packed.size("drafter.layers")
        kinds = self._architecture.layer_kinds()[-count:]
        layers = [self._layer(f"drafter.{index}", kind) for index, kind in enumerate(kinds)]
        return DrafterStruct(
            num_layers=count,
            num_taps=packed.size("drafter.taps"),
            vocab_size=packed.size("drafter.vocabulary"),
            taps=packed.address("drafter.taps"),
            layers=(LayerStruct * count)(*layers),
            inject=packed.matrix("drafter.inject"),
            head=packed.matrix("drafter.head"),
            vocabulary=packed.address("drafter.vocabulary"),
            inject_norm=packed.address("drafter.inject_norm"),
            norm=packed.address("drafter.norm"),
            mask_embedding=packed.address("drafter.mask_embedding"),
            down=packed.matrix("drafter.down"),
            up=packed.matrix("drafter.up"),
        )

    def _layer(self, index: str, kind: LayerKind) -> LayerStruct:
        a = self._architecture
        layer = LayerStruct(
            num_kv_heads=kind.num_kv_heads,
            head_dim=head_size(kind.head_dim),
            head_norm_size=kind.head_dim,
            ffn_size=filled_up(dense_size(a, kind)),
            window=int(self._packed.number(f"{index}.window", kind.window)),
            rotation=self._ropes.index(a.rope(kind)) if kind.rotated else -1,
            joint_norm=a.qk_norm and a.joint_qk_norm,
            late_norm=a.late_qk_norm,
            value_norm=a.value_norm,
            attention_scale=a.attention_scale or 1 / math.sqrt(kind.head_dim),
            scale=self._packed.number(f"{index}.scale", 1.0),
            noisy_scale=self._packed.number(f"{index}.noisy_scale", 1.0),
            **{name: self._packed.address(f"{index}.{name}") for name in (*NORMS, *BRANCH_NORMS, *_VECTORS)},
        )
        layer.gate = self._packed.matrix(f"{index}.gate")
        for product in ("qkv", "output", "gate_up", "down"):
            name = f"{index}.{product}"
            num_parts = len(LLAMA.products[product]) if "drafter" in name else len(self._products[name])
            setattr(layer, product, self._product(name, num_parts))
        if kind.experts is not None and "drafter" not in index:
            layer.experts = self._experts(f"{index}.experts", kind.experts)
        return layer

    def _product(self, name: str, num_parts: int) -> ProductStruct:
        packed = self._packed
        made = ProductStruct(denoiser=packed.low_rank(f"{name}.denoiser"))
        for part in range(num_parts):
            made.parts[part] = packed.matrix(f"{name}.{part}")
            made.noisy[part] = packed.matrix(f"{name}.noisy.{part}")
            made.bias[part] = packed.address(f"{name}.bias.{part}")
        return made

    def _experts(self, name: str, experts: Experts) -> ExpertsStruct:
        e, packed, numbers = experts, self._packed, range(experts.num_experts)

        def matrices(part: str) -> ctypes.Array[MatrixStruct]:
            return (MatrixStruct * len(numbers))(*(packed.matrix(f"{name}.{part}.{i}") for i in numbers))

        return ExpertsStruct(
            num_experts=e.num_experts,
            num_active=e.num_active,
            num_groups=e.num_groups,
            num_active_groups=e.num_active_groups,
            sigmoid=e.router == "sigmoid",
            normalized=e.normalized,
            scale=e.scale,
            ffn_size=filled_up(e.ffn_size),
            router=packed.address(f"{name}.router"),
            router_bias=packed.address(f"{name}.router_bias"),
            expert_scale=packed.address(f"{name}.expert_scale"),
            scaled_router=e.scaled_router,
            gate=matrices("gate"),
            up=matrices("up"),
            down=matrices("down"),
        )
