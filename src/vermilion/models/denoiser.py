"""What makes noisy rows differ from clean ones, put on the backbone."""

from __future__ import annotations

from vermilion.models.draft_head import DraftHead
from vermilion.models.transformer import Transformer, load_adapter, load_noisy
from vermilion.models.weights import Checkpoint


def attach_denoiser(model: Transformer, checkpoint: Checkpoint) -> None:
    """The checkpoint's gated LoRA, or its second set of projections, or nothing where all rows share weights;
    and its draft head.

    Takes the tensors out of the checkpoint as it goes.
    """
    if checkpoint.adapter is not None:
        load_adapter(model, checkpoint.adapter, checkpoint.adapter_scale, checkpoint.mask_embedding_H)
    elif checkpoint.noisy is not None:
        load_noisy(model, checkpoint.noisy, checkpoint.mask_embedding_H)
    if checkpoint.draft_head is not None:
        model.draft_head = DraftHead.of(*checkpoint.draft_head)
