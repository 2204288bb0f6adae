"""What makes noisy rows differ from clean ones, put on the backbone."""

from __future__ import annotations

from torch import nn

from vermilion.models import adapters
from vermilion.models.draft_head import DraftHead
from vermilion.models.transformer import Transformer
from vermilion.models.weights import Checkpoint


def attach_denoiser(model: Transformer, checkpoint: Checkpoint) -> None:
    """The checkpoint's gated LoRA, or its second set of projections, or nothing where all rows share weights;
    its mask embedding and its draft head.

    Takes the tensors out of the checkpoint as it goes.
    """
    if checkpoint.adapter is not None:
        adapter = adapters.lora(model, checkpoint.adapter, checkpoint.adapter_scale, folded=True)
        adapters.attach(model, adapters.DENOISER, adapter)
    elif checkpoint.noisy is not None:
        adapters.attach(model, adapters.DENOISER, adapters.second_weights(model, checkpoint.noisy))
    if checkpoint.mask_embedding_H is not None:
        model.mask_embedding = nn.Parameter(checkpoint.mask_embedding_H.to(model.norm.weight))
    if checkpoint.draft_head is not None:
        model.draft_head = DraftHead.of(*checkpoint.draft_head)
