"""Metrics of held-out documents."""

from __future__ import annotations

from dataclasses import replace

import torch

from vermilion.data.packing import held_out
from vermilion.training import corruption
from vermilion.training.denoise import Opinions, add_noise, ask
from vermilion.training.forward import Forward, precision
from vermilion.training.objectives import index_in_block
from vermilion.training.recipe import Recipe
from vermilion.training.run import Run

_SEED = 1


def validate(run: Run, forward: Forward) -> dict[str, float]:
    """Figures of the held-out documents with every block fully masked; empty without such documents.

    held_out_nll is the mean negative log-likelihood of hidden tokens in nats; agreement_k how often the
    denoiser's likeliest token at offset k of a block is the base's; accepted the mean length of the agreeing
    run, which is what lossless decoding gains. Where the next token is trained too, held_out_next is its
    negative log-likelihood and held_out_right how often it is the likeliest.
    """
    recipe, batch = run.recipe, held_out(run.dataset)
    if batch is None:
        return {}
    plain = replace(
        recipe,
        corruption=corruption.CorruptionConfig(full=1, prefix=0, random=0),
        objective=replace(recipe.objective, teacher=0, total_variation=0, certainty=0, offset_decay=0),
    )
    vocab_size = run.model.architecture.vocab_size
    rng = corruption.noise(_SEED, 0)
    noisy = add_noise(plain, batch, recipe.longest_block, vocab_size, rng)
    sums: dict[str, float] = {}
    agreed, counts = torch.zeros(2, recipe.longest_block, dtype=torch.float64)
    for part in noisy.parts(recipe.micro_rows):
        offsets = iter([index_in_block(part.block_BL)[copy.targets.weight_BL > 0] for copy in part.copies])

        def look(part=part, offsets=offsets) -> None:  # type: ignore[no-untyped-def]
            for opinions in ask(forward, plain, part, base=True):
                _add(sums, opinions)
                if opinions.noisy and opinions.base_logits_RV is not None:
                    same_R = opinions.logits_RV.argmax(-1) == opinions.base_logits_RV.argmax(-1)
                    offset_R = next(offsets)
                    agreed.index_add_(0, offset_R, same_R.double().cpu())
                    counts.index_add_(0, offset_R, torch.ones(len(offset_R), dtype=torch.float64))

        with torch.no_grad(), precision(recipe.autocast, run.model):
            forward.whole(look)
    return _means(sums) | (_agreement(agreed, counts, recipe) if counts.any() else {})


def figure_of(recipe: Recipe, figures: dict[str, float]) -> float | None:
    """The metric by which states of a run are compared: lower is better."""
    return figures.get("held_out_next" if recipe.objective.next_token else "held_out_nll")


def _add(sums: dict[str, float], opinions: Opinions) -> None:
    weight_R, kind = opinions.scored.weight_R, "nll" if opinions.noisy else "next"
    right_R = opinions.logits_RV.argmax(-1) == opinions.scored.label_R
    for name, value in (
        (f"{kind}_loss", (opinions.loss_R * weight_R).sum()),
        (f"{kind}_right", (right_R * weight_R).sum()),
        (f"{kind}_weight", weight_R.sum()),
    ):
        sums[name] = sums.get(name, 0.0) + float(value)


def _means(sums: dict[str, float]) -> dict[str, float]:
    figures = {
        f"held_out_{kind}": sums[f"{kind}_loss"] / max(sums[f"{kind}_weight"], 1e-9)
        for kind in ("nll", "next")
        if f"{kind}_loss" in sums
    }
    if "next_right" in sums:
        figures["held_out_right"] = sums["next_right"] / max(sums["next_weight"], 1e-9)
    return figures


def _agreement(agreed: torch.Tensor, counts: torch.Tensor, recipe: Recipe) -> dict[str, float]:
    shares = (agreed / counts.clamp(min=1))[int(recipe.shift) :]
    figures = {f"agreement_{k}": round(float(share), 4) for k, share in enumerate(shares, 1)}
    return {"accepted": round(float(shares.cumprod(0).sum()), 4), **figures}
