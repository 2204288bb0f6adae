"""The backbone again, as plainly as it can be said: one text, every number from its definition, no cache."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from vermilion.models.families import Architecture, Experts, LayerKind

Weights = Mapping[str, Tensor]
"""Under the names of Hugging Face's Llama."""


def logits(weights: Weights, a: Architecture, ids: Sequence[int], visible: Tensor) -> Tensor:
    """[N, V] in float64; visible bool [N, N] says which row sees which, windows not counted."""
    embedding = weights["model.embed_tokens.weight"]
    x = embedding[list(ids)] * a.embedding_scale
    for index, kind in enumerate(a.layer_kinds()):
        layer = {
            name.removeprefix(f"model.layers.{index}."): tensor
            for name, tensor in weights.items()
            if name.startswith(f"model.layers.{index}.")
        }
        x = x + attended(layer, a, kind, norm(x, layer["input_layernorm.weight"], a.norm_eps), visible)
        x = x + feed_forward(layer, a, kind, norm(x, layer["post_attention_layernorm.weight"], a.norm_eps))
    head = embedding if a.tied_embeddings else weights["lm_head.weight"]
    made = norm(x, weights["model.norm.weight"], a.norm_eps) @ head.t()
    return a.logit_softcap * torch.tanh(made / a.logit_softcap) if a.logit_softcap else made


def norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    x = x / (x.square().mean(-1, keepdim=True) + eps).sqrt()
    return x if weight is None else x * weight


def linear(layer: Weights, name: str, x: Tensor) -> Tensor:
    y = x @ layer[f"{name}.weight"].t()
    return y + layer[f"{name}.bias"] if f"{name}.bias" in layer else y


def attended(layer: Weights, a: Architecture, kind: LayerKind, x: Tensor, visible: Tensor) -> Tensor:
    count, group = len(x), a.num_heads // kind.num_kv_heads
    q, k = linear(layer, "self_attn.q_proj", x), linear(layer, "self_attn.k_proj", x)
    v = k if kind.values_are_keys else linear(layer, "self_attn.v_proj", x)
    split = {
        name: each.view(count, heads, kind.head_dim)
        for name, each, heads in (
            ("q", q, a.num_heads),
            ("k", k, kind.num_kv_heads),
            ("v", v, kind.num_kv_heads),
        )
    }
    if a.value_norm:
        split["v"] = norm(split["v"], None, a.norm_eps)
    for name in "qk" if a.qk_norm else "":
        heads, weight = split[name], layer[f"self_attn.{name}_norm.weight"]
        x_normed = (
            norm(heads.flatten(1), weight, a.norm_eps) if a.joint_qk_norm else norm(heads, weight, a.norm_eps)
        )
        split[name] = x_normed.view_as(heads)
    if kind.rotated:
        split["q"], split["k"] = (turned(split[name], a, kind) for name in "qk")
    if a.query_growth:
        periods = torch.arange(count) // a.query_period
        split["q"] = split["q"] * (1 + a.query_growth * periods.double().log1p())[:, None, None]
    out = torch.zeros(count, a.num_heads, kind.head_dim, dtype=x.dtype)
    scale = a.attention_scale or 1 / math.sqrt(kind.head_dim)
    for row in range(count):
        seen = [s for s in range(count) if visible[row, s] and not (kind.window and row - s >= kind.window)]
        for head in range(a.num_heads):
            scores = split["k"][seen, head // group] @ split["q"][row, head] * scale
            out[row, head] = scores.softmax(0) @ split["v"][seen, head // group]
    return linear(layer, "self_attn.o_proj", out.flatten(1))


def turned(x: Tensor, a: Architecture, kind: LayerKind) -> Tensor:
    rope, out = a.rope(kind), x.clone()
    half = rope.size // 2
    for row in range(len(x)):
        for pair, frequency in enumerate(rope.inverse_frequencies()):
            cos, sin = math.cos(row * frequency), math.sin(row * frequency)
            first, second = x[row, :, pair], x[row, :, pair + half]
            out[row, :, pair] = rope.magnitude * (first * cos - second * sin)
            out[row, :, pair + half] = rope.magnitude * (first * sin + second * cos)
    return out


def gated(a: Architecture, gate: Tensor, up: Tensor) -> Tensor:
    x = gate
    if a.activation == "silu":
        return x * torch.sigmoid(x) * up
    if a.activation == "gelu":
        return x * 0.5 * (1 + torch.erf(x / math.sqrt(2))) * up
    return x * 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) * up


def feed_forward(layer: Weights, a: Architecture, kind: LayerKind, x: Tensor) -> Tensor:
    y = torch.zeros_like(x)
    if kind.dense:
        y += one(layer, a, "mlp.", x)
    if kind.experts is None:
        return y
    for row in range(len(x)):
        for expert, weight in chosen(kind.experts, layer, x[row]):
            y[row] += weight * one(layer, a, f"mlp.experts.{expert}.", x[row])
        if kind.experts.shared_size:
            y[row] += one(layer, a, "mlp.shared_experts.", x[row])
    return y


def one(layer: Weights, a: Architecture, prefix: str, x: Tensor) -> Tensor:
    gate, up = (linear(layer, f"{prefix}{name}_proj", x) for name in ("gate", "up"))
    return linear(layer, f"{prefix}down_proj", gated(a, gate, up))


def chosen(e: Experts, layer: Weights, x: Tensor) -> list[tuple[int, float]]:
    """(expert, weight) of one row, from the papers' words."""
    raw = (layer["mlp.gate.weight"] @ x).tolist()
    if e.router == "softmax":
        total = sum(math.exp(value) for value in raw)
        scores = [math.exp(value) / total for value in raw]
    else:
        scores = [1 / (1 + math.exp(-value)) for value in raw]
    bias = layer["mlp.gate.expert_bias"].tolist() if e.router_bias else [0.0] * len(scores)
    ranks = [score + add for score, add in zip(scores, bias, strict=True)]
    size = e.num_experts // e.num_groups
    groups = [range(start, start + size) for start in range(0, e.num_experts, size)]
    if e.num_active_groups < e.num_groups:
        groups.sort(key=lambda group: -sum(sorted((ranks[i] for i in group), reverse=True)[:2]))
        groups = groups[: e.num_active_groups]
    best = sorted((i for group in groups for i in group), key=lambda i: -ranks[i])[: e.num_active]
    total = sum(scores[i] for i in best) if e.normalized else 1.0
    return [(i, e.scale * scores[i] / total) for i in best]
