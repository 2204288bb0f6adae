"""What a drafter is asked for, and what its guesses cost.

Shapes: L positions of a text, T taps, H hidden, A anchors, K rows of a block, R = A x K rows, W draft
vocabulary, C candidates of a row.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from vermilion.models.drafter import Drafter
from vermilion.models.linear import Linear
from vermilion.models.rotary import Rotary
from vermilion.models.transformer import Transformer


@dataclass(frozen=True, slots=True)
class DrafterLoss:
    """Weights of a row's loss

    (1 - following) CE(guess)
      + following [(1 - total_variation) CE + total_variation TV](guess | token before)

    The second part is over the row's likeliest `candidates`, the base's and the token itself, as the head
    weighs them in serving. TV is half the L1 distance to the base's distribution: a draft is refused with
    that probability (arXiv 2609.04010).
    """

    following: float = 0.6
    total_variation: float = 0.9
    candidates: int = 16
    offset_decay: float = 4.0
    """Row k weighs exp(-k / this): drafts are used from the left."""


@dataclass(frozen=True, slots=True)
class OwnText:
    """One text of the base's own, and what the base thought at each of its positions."""

    ids_L: Tensor
    tapped_LTH: Tensor
    last_LH: Tensor
    """After the base's last norm: its head gives the next token's logits."""
    num_prompt: int

    def to(self, device: torch.device) -> OwnText:
        """The same on a device."""
        ids_L, tapped_LTH, last_LH = (each.to(device) for each in (self.ids_L, self.tapped_LTH, self.last_LH))
        return OwnText(ids_L, tapped_LTH, last_LH, self.num_prompt)


@dataclass(frozen=True, slots=True)
class Frozen:
    """What drafter and base share."""

    embedding: Linear
    head_WH: Tensor
    """The head's rows of the draft vocabulary."""
    rotary: Rotary
    inverse_V: Tensor
    """Token id to its place in the draft vocabulary; -1 outside it."""

    @classmethod
    def of(cls, model: Transformer, vocabulary_W: Tensor) -> Frozen:
        inverse_V = torch.full((model.architecture.vocab_size,), -1, device=vocabulary_W.device)
        inverse_V[vocabulary_W] = torch.arange(len(vocabulary_W), device=vocabulary_W.device)
        return cls(model.embedding, model.output.rows(vocabulary_W), model.rotary, inverse_V)


@dataclass(frozen=True, slots=True)
class Guesses:
    """A text's rows, as scored."""

    loss: Tensor
    accepted_AK: Tensor
    """bool: the likeliest token behind the true one before it is the base's likeliest."""
    weight: float


def anchors_of(text: OwnText, every: int, length: int, generator: torch.Generator) -> Tensor:
    """Positions of settled tokens to draft behind, [A], one in each run of `every`; on the CPU, so that they
    are the same on every device."""
    first, last = max(1, text.num_prompt - 1), len(text.ids_L) - 1 - length
    starts = torch.arange(first, last + 1, every)
    if not len(starts):
        return starts
    return (starts + torch.randint(0, every, (len(starts),), generator=generator)).clamp(max=last)


def guess(drafter: Drafter, frozen: Frozen, text: OwnText, anchors_A: Tensor, config: DrafterLoss) -> Guesses:
    """The loss of the blocks behind these anchors, summed over rows by weight."""
    length, device = drafter.shape.block_length, text.ids_L.device
    position_AK = (anchors_A[:, None] + torch.arange(length)).to(device)
    hidden_RH = block_states(drafter, frozen, text, anchors_A, position_AK)
    label_R = text.ids_L[(position_AK + 1).flatten()]
    before_R = text.ids_L[position_AK.flatten()]
    place_R = frozen.inverse_V[label_R]
    weight_K = torch.exp(-torch.arange(length) / config.offset_decay)
    weight_R = weight_K.to(device).repeat(len(anchors_A))
    known_R = place_R >= 0
    label_R1 = place_R.clamp(min=0)[:, None]
    logits_RW = F.linear(hidden_RH, frozen.head_WH).float()
    plain_R = F.cross_entropy(logits_RW, label_R1[:, 0], reduction="none") * known_R
    with torch.no_grad():
        teacher_RH = text.last_LH[position_AK.flatten()].to(hidden_RH.dtype)
        teacher_RW = F.linear(teacher_RH, frozen.head_WH)
        best_R4 = teacher_RW.topk(4).indices
        candidate_RC = torch.cat([logits_RW.topk(config.candidates).indices, best_R4, label_R1], -1)
        # A token that is named twice counts once.
        repeated_RC = (candidate_RC[:, :, None] == candidate_RC[:, None, :]).tril(-1).any(-1)
        teacher_RC = _shares_of(teacher_RW, candidate_RC).masked_fill(repeated_RC, 0.0)
        at_R1 = (candidate_RC == label_R1).float().argmax(-1, keepdim=True)
    added_RH = drafter.head(hidden_RH, frozen.embedding.rows(before_R).to(hidden_RH.dtype))
    # Through all logits again the gradient of a few candidates would cost more than to read their rows.
    moved_RC = torch.einsum("rh,rch->rc", hidden_RH + added_RH, frozen.head_WH[candidate_RC]).float()
    logit_RC = moved_RC.masked_fill(repeated_RC, float("-inf"))
    logprob_RC = logit_RC.log_softmax(-1)
    follow_R = -logprob_RC.gather(-1, at_R1)[:, 0] * known_R
    variation_R = 0.5 * (logprob_RC.exp() - teacher_RC).abs().sum(-1)
    behind_R = (1 - config.total_variation) * follow_R + config.total_variation * variation_R
    loss = (weight_R * ((1 - config.following) * plain_R + config.following * behind_R)).sum()
    chosen_R = candidate_RC.gather(-1, logit_RC[:, : config.candidates].argmax(-1, keepdim=True))[:, 0]
    accepted_AK = ((chosen_R == best_R4[:, 0]) & known_R).view(position_AK.shape)
    return Guesses(loss, accepted_AK, len(anchors_A) * float(weight_K.sum()))


def _shares_of(logits_RW: Tensor, places_RC: Tensor) -> Tensor:
    """Of softmax(logits), the entries at these places, in float32."""
    return (logits_RW.gather(-1, places_RC).float() - logits_RW.float().logsumexp(-1, keepdim=True)).exp()


def block_states(
    drafter: Drafter, frozen: Frozen, text: OwnText, anchors_A: Tensor, position_AK: Tensor
) -> Tensor:
    """The hidden states [R, H], after the drafter's last norm, of the blocks behind these anchors."""
    num, length = position_AK.shape
    x_AKH = drafter.mask_embedding.expand(num, length, -1).clone()
    # What no row sees needs no keys.
    windows = [kind.window or len(text.ids_L) for kind in drafter.layer_kinds]
    first = max(0, int(anchors_A.min()) - max(windows))
    anchors_A = position_AK[:, 0]
    x_AKH[:, 0] = frozen.embedding.rows(text.ids_L[anchors_A])
    x_RH = x_AKH.flatten(0, 1)
    positions_R = position_AK.flatten()
    context_LH = drafter.context(text.tapped_LTH[first:].to(drafter.norm.weight.dtype))
    own = drafter.shape.num_layers
    where_L = torch.arange(first, len(text.ids_L), device=anchors_A.device)
    keys = drafter.keys_values(context_LH, frozen.rotary.at(where_L, x_RH.dtype)[-own:])
    turns = frozen.rotary.at(positions_R, x_RH.dtype)[-own:]
    for layer, turn, (k, v), window in zip(drafter.layers, turns, keys, windows, strict=True):
        seen_AL = (where_L < anchors_A[:, None]) & (where_L > anchors_A[:, None] - window)
        x_RH, _ = layer(x_RH, (), turn, partial(_attend, seen_AL, k, v))
    hidden_RH: Tensor = drafter.norm(x_RH)
    return hidden_RH


def _attend(seen_AL: Tensor, k_L: Tensor, v_L: Tensor, q_R: Tensor, k_R: Tensor, v_R: Tensor) -> Tensor:
    """A row sees what is settled before its anchor, and all rows of its block: [R, heads, head dim].

    Scores of text and block are computed apart and share a softmax: rows of other blocks cost nothing.
    """
    num, count = len(seen_AL), len(q_R) // len(seen_AL)
    keys, size = k_R.shape[1:]
    own = (
        k_R.view(num, count, keys, size).permute(2, 0, 1, 3),
        v_R.view(num, count, keys, size).permute(2, 0, 1, 3),
    )
    heads = q_R.shape[1] // keys
    # [key head, anchor, rows x query heads, head dim]
    q = (q_R * size**-0.5).view(num, count, keys, heads, size).permute(2, 0, 1, 3, 4).flatten(2, 3)
    text = (q.flatten(1, 2) @ k_L.to(q.dtype).permute(1, 2, 0)).view(*q.shape[:3], -1)
    text = text.float().masked_fill(~seen_AL[None, :, None], float("-inf"))
    block = q @ own[0].transpose(-1, -2)
    share = torch.cat([text, block.float()], -1).softmax(-1).to(q.dtype)
    told = share[..., : len(k_L)].flatten(1, 2) @ v_L.to(q.dtype).transpose(0, 1)
    found = told.view_as(q) + share[..., len(k_L) :] @ own[1]
    return found.view(keys, num, count, heads, size).permute(1, 2, 0, 3, 4).reshape(q_R.shape)
