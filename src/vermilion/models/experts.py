"""A mixture of experts as the feed-forward of a layer (arXiv 1701.06538), as grouped products.

The rows are sorted by expert, so that each expert that is used is one product of its rows.
Shapes: N rows, B blocks of them, H hidden, E experts, A chosen by each row, F width of an expert, P = N x A
pairs.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vermilion.models.families import Experts
from vermilion.models.linear import Linear
from vermilion.models.product import product

Activation = Callable[[Tensor], Tensor]


class Router(nn.Module):
    """Which experts each row goes to, and with what weight."""

    def __init__(self, hidden_size: int, experts: Experts) -> None:
        super().__init__()
        self.experts = experts
        self.weight = nn.Parameter(torch.empty(experts.num_experts, hidden_size))
        self.bias = nn.Parameter(torch.zeros(experts.num_experts)) if experts.router_bias else None

    def forward(self, x_NH: Tensor, blocks_N: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(weights, expert ids), both [N, A]. Scores are at least float32: near ties decide which expert.

        `blocks_N`: which rows share the experts that a block may choose among, where there is a capacity.
        """
        e, wide = self.experts, torch.promote_types(x_NH.dtype, torch.float32)
        scores_NE = F.linear(x_NH.to(wide), self.weight.to(wide))
        scores_NE = scores_NE.sigmoid() if e.router == "sigmoid" else scores_NE.softmax(-1)
        ranked_NE = scores_NE if self.bias is None else scores_NE + self.bias
        if e.block_capacity:
            assert blocks_N is not None
            ranked_NE = self._within_blocks(ranked_NE, blocks_N)
        chosen_NA = self._within_groups(ranked_NE).topk(e.num_active, -1).indices
        weights_NA = scores_NE.gather(-1, chosen_NA)
        if e.normalized:
            weights_NA = weights_NA / (weights_NA.sum(-1, keepdim=True) + 1e-20)
        return (weights_NA * e.scale).to(x_NH.dtype), chosen_NA

    def _within_blocks(self, ranked_NE: Tensor, blocks_N: Tensor) -> Tensor:
        """The ranks, -inf for experts that are not among the best of a row's block: those that some row of it
        ranks highest."""
        block_NE = blocks_N[:, None].expand_as(ranked_NE)
        best_BE = torch.full_like(ranked_NE, float("-inf")).scatter_reduce(0, block_NE, ranked_NE, "amax")
        chosen_BC = best_BE.topk(self.experts.block_capacity, -1).indices
        closed_BE = torch.ones_like(best_BE, dtype=torch.bool).scatter_(-1, chosen_BC, False)
        return ranked_NE.masked_fill(closed_BE[blocks_N], float("-inf"))

    def _within_groups(self, ranked_NE: Tensor) -> Tensor:
        """The ranks, -inf outside the groups that a row may choose from."""
        e = self.experts
        if e.num_active_groups == e.num_groups:
            return ranked_NE
        grouped = ranked_NE.view(-1, e.num_groups, e.num_experts // e.num_groups)
        best = grouped.topk(2, -1).values.sum(-1).topk(e.num_active_groups, -1).indices
        closed = torch.ones(grouped.shape[:2], dtype=torch.bool, device=grouped.device).scatter_(
            -1, best, False
        )
        return grouped.masked_fill(closed[..., None], float("-inf")).flatten(-2)


class ScaledRouter(Router):
    """Rows are normed without a weight and scaled entry by entry; so is the weight of each expert."""

    def __init__(self, hidden_size: int, experts: Experts, norm_eps: float) -> None:
        super().__init__(hidden_size, experts)
        self.scale = nn.Parameter(torch.ones(hidden_size))
        self.expert_scale = nn.Parameter(torch.ones(experts.num_experts))
        self.norm_eps = norm_eps

    def forward(self, x_NH: Tensor, blocks_N: Tensor | None = None) -> tuple[Tensor, Tensor]:
        size = x_NH.shape[-1]
        normed_NH = F.rms_norm(x_NH, (size,), None, self.norm_eps) * self.scale / math.sqrt(size)
        weights_NA, chosen_NA = super().forward(normed_NH, blocks_N)
        return weights_NA * self.expert_scale[chosen_NA], chosen_NA


class ExpertLayer(nn.Module):
    """The experts of a layer; the shared one, which every row goes through, is added to them."""

    def __init__(
        self,
        hidden_size: int,
        experts: Experts,
        activation: Activation,
        linear: type[Linear],
        norm_eps: float = 1e-6,
    ) -> None:
        super().__init__()
        e = experts
        self.router = ScaledRouter(hidden_size, e, norm_eps) if e.scaled_router else Router(hidden_size, e)
        self.activation = activation
        self.gate_up = linear(hidden_size, (e.ffn_size, e.ffn_size) * e.num_experts)
        self.down = linear(e.ffn_size, (hidden_size,) * e.num_experts)
        shared = e.shared_size
        self.shared_gate_up = linear(hidden_size, (shared, shared)) if shared else None
        self.shared_down = linear(shared, (hidden_size,)) if shared else None

    def forward(
        self, x_NH: Tensor, routed_NH: Tensor | None = None, blocks_N: Tensor | None = None
    ) -> Tensor:
        """[N, H]; `routed_NH`: what the router sees of the rows, if not what the experts see; `blocks_N`: as
        the router's."""
        weights_NA, chosen_NA = self.router(x_NH if routed_NH is None else routed_NH, blocks_N)
        expert_P, order_P = chosen_NA.flatten().sort(stable=True)
        counts_E = torch.bincount(expert_P, minlength=self.router.experts.num_experts)
        gate, up = grouped(self.gate_up, x_NH[order_P // chosen_NA.shape[1]], counts_E).chunk(2, -1)
        sorted_PH = grouped(self.down, self.activation(gate) * up, counts_E)
        # Back to the rows' order by a gather: a scattered sum would depend on the order of threads.
        y_NAH = sorted_PH[order_P.argsort()].view(*chosen_NA.shape, -1)
        y_NH: Tensor = (y_NAH * weights_NA[..., None]).sum(1)
        if self.shared_gate_up is None or self.shared_down is None:
            return y_NH
        gate, up = self.shared_gate_up(x_NH).chunk(2, -1)
        shared_NH: Tensor = self.shared_down(self.activation(gate) * up)
        return y_NH + shared_NH


def grouped(linear: Linear, x_PI: Tensor, counts_E: Tensor) -> Tensor:
    """[P, O / E]: rows sorted by expert through their experts' shares of `linear`; counts_E rows each."""
    num_experts = counts_E.shape[0]
    size = linear.out_size // num_experts
    if x_PI.is_cuda and x_PI.dtype == torch.bfloat16 and type(linear) is Linear:
        # No count has to come back to the host.
        weight = linear.weight.view(num_experts, size, linear.in_size).transpose(1, 2)
        return F.grouped_mm(x_PI, weight, offs=counts_E.cumsum(0, dtype=torch.int32))
    parts, at = [], 0
    for expert, count in enumerate(counts_E.tolist()):
        if count:
            weight = linear.output_rows(slice(expert * size, (expert + 1) * size))
            parts.append(product(x_PI[at : at + count], weight))
            at += count
    return torch.cat(parts)
