"""The one training loop: batch, noise, loss over the whole batch, step; it can stop and go on anywhere."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace

import torch

from vermilion.errors import EngineFailure
from vermilion.models.transformer import Transformer
from vermilion.training import checkpoint, corruption
from vermilion.training.checkpoint import Adapter, Progress
from vermilion.training.data import Dataset, held_out, next_batch
from vermilion.training.denoise import Noisy, add_noise, ask
from vermilion.training.forward import Forward
from vermilion.training.objectives import index_in_block
from vermilion.training.recipe import MAY_CHANGE, Recipe

_MASK_EMBEDDING_RATE = 3.0
"""Learning rate of the mask embedding over that of the adapter: it is one row, and starts from a mean."""
_HELD_OUT_SEED = 1


@dataclass(frozen=True, slots=True)
class Run:
    """What a training run works on."""

    model: Transformer
    """On its device, with an adapter and a mask embedding attached."""
    dataset: Dataset
    recipe: Recipe
    adapter: Adapter


def train(run: Run, on_step: Callable[[Mapping[str, float]], None] = lambda figures: None) -> Progress:
    """Train until the recipe's steps or minutes are over, or SIGINT or SIGTERM comes; then save.

    Goes on from the newest checkpoint in the output folder, if there is one; on a CPU, and when the length
    is given in steps, the result equals that of an unbroken run bit for bit. `on_step` gets every step's
    figures, which also go to log.jsonl. Raises ConfigError for an output folder of another recipe, and
    EngineFailure when the loss is no longer a number.
    """
    recipe, model = run.recipe, run.model
    model.requires_grad_(False)
    for parameter in checkpoint.trainable(model).values():
        parameter.requires_grad_(True)
    optimizer = _optimizer(run)
    folder, progress = recipe.output / "checkpoints", Progress()
    settings = json.loads(json.dumps(asdict(recipe), default=str))
    newest = checkpoint.latest(folder)
    if newest is not None:
        checkpoint.check_same_recipe(newest, settings, MAY_CHANGE)
        progress = checkpoint.load(newest, model, optimizer)
    forward = Forward(model, recompute=recipe.recompute, compiled=recipe.compile)
    recipe.output.mkdir(parents=True, exist_ok=True)
    started, before = time.monotonic(), progress.seconds
    saved = progress.step if newest else -1
    with _stop_signals() as stopped, (recipe.output / "log.jsonl").open("a", encoding="utf-8") as log:
        while not stopped and _done_share(recipe, progress) < 1:
            figures, progress = _step(run, forward, optimizer, progress)
            progress = replace(progress, seconds=before + time.monotonic() - started)
            over = bool(stopped) or _done_share(recipe, progress) >= 1
            if over or progress.step % recipe.validate_every == 0:
                figures |= validate(run, forward, recipe.longest_block)
            figures |= {"step": progress.step, "tokens": progress.tokens, "seconds": progress.seconds}
            log.write(json.dumps(figures) + "\n")
            log.flush()
            on_step(figures)
            if progress.step % recipe.save_every == 0:
                checkpoint.save(folder, model, optimizer, progress, run.adapter, settings)
                saved = progress.step
        if saved != progress.step:
            checkpoint.save(folder, model, optimizer, progress, run.adapter, settings)
    return progress


def validate(run: Run, forward: Forward, block_length: int) -> dict[str, float]:
    """Figures of the held-out rows with every block fully masked; empty without such rows.

    held_out_nll is the mean negative log-likelihood in nats; agreement_k how often the denoiser's likeliest
    token at offset k of a block is the base's; accepted the mean length of the agreeing run, which is what
    lossless decoding gains.
    """
    batch = held_out(run.dataset)
    if batch is None:
        return {}
    recipe = replace(
        run.recipe,
        corruption=corruption.CorruptionConfig(full=1, prefix=0, random=0),
        objective=replace(run.recipe.objective, teacher=0, certainty=0, offset_decay=0),
    )
    vocab_size = run.model.architecture.vocab_size
    noisy = add_noise(recipe, batch, block_length, vocab_size, corruption.noise(_HELD_OUT_SEED, 0))
    loss, weight = 0.0, 0.0
    agreed = torch.zeros(block_length, dtype=torch.float64)
    counts = torch.zeros(block_length, dtype=torch.float64)
    for part in _parts(noisy, recipe.micro_rows):
        offset_BL = index_in_block(part.block_BL)
        with torch.no_grad(), _precision(recipe, run.model):
            for (_, targets), opinions in zip(part.copies, ask(forward, recipe, part), strict=False):
                weight_R = opinions.scored.weight_R
                loss += float((opinions.loss_R * weight_R).sum())
                weight += float(weight_R.sum())
                same_R = opinions.logits_RV.argmax(-1) == opinions.base_logits_RV.argmax(-1)
                offset_R = offset_BL[targets.weight_BL > 0]
                agreed.index_add_(0, offset_R, same_R.double().cpu())
                counts.index_add_(0, offset_R, torch.ones(len(offset_R), dtype=torch.float64))
    shares = (agreed / counts.clamp(min=1))[1:]
    figures = {f"agreement_{k}": round(float(share), 4) for k, share in enumerate(shares, 1)}
    accepted = float(shares.cumprod(0).sum())
    return {"held_out_nll": loss / max(weight, 1e-9), "accepted": round(accepted, 4), **figures}


def _step(
    run: Run, forward: Forward, optimizer: torch.optim.AdamW, progress: Progress
) -> tuple[dict[str, float], Progress]:
    """One optimiser step; its figures and where the run then stands."""
    recipe, share = run.recipe, _done_share(run.recipe, progress)
    batch, data = next_batch(run.dataset, recipe.rows, progress.data)
    block_length = next(stage.block_length for stage in recipe.stages if share < stage.until)
    rng = corruption.noise(recipe.seed, progress.step)
    noisy = add_noise(recipe, batch, block_length, run.model.architecture.vocab_size, rng)
    weight = max(noisy.weight, 1e-9)
    total, right, count = 0.0, 0, 0
    for part in _parts(noisy, recipe.micro_rows):
        with _precision(recipe, run.model):
            losses = []
            for opinions in ask(forward, recipe, part):
                losses.append((opinions.loss_R * opinions.scored.weight_R).sum() / weight)
                right += int((opinions.logits_RV.argmax(-1) == opinions.scored.label_R).sum())
                count += len(opinions.loss_R)
        if losses:
            loss = torch.stack(losses).sum()
            torch.autograd.backward(loss)
            total += float(loss.detach())
    if not total < float("inf"):
        raise EngineFailure(
            f"The loss of step {progress.step + 1} is {total}. Lower learning_rate and start again from the "
            "newest checkpoint, which is from before it."
        )
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    norm = torch.nn.utils.clip_grad_norm_(parameters, recipe.clip_norm)
    rate = _rate(recipe, progress, share)
    for group in optimizer.param_groups:
        group["lr"] = rate * group["factor"]
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    figures = {
        "loss": total,
        "right": right / max(count, 1),
        "gradient_norm": float(norm),
        "learning_rate": rate,
        "block_length": block_length,
    }
    tokens = progress.tokens + int((batch.document_BL >= 0).sum())
    return figures, replace(progress, step=progress.step + 1, tokens=tokens, data=data)


def _parts(noisy: Noisy, micro_rows: int) -> Iterator[Noisy]:
    num_rows = noisy.block_BL.shape[0]
    for start in range(0, num_rows, micro_rows):
        yield noisy.rows(start, min(start + micro_rows, num_rows))


def _optimizer(run: Run) -> torch.optim.AdamW:
    """Rates are set as if B did not carry the adapter's scale."""
    named = checkpoint.trainable(run.model)
    factors = {
        name: _MASK_EMBEDDING_RATE
        if name == "mask_embedding"
        else run.adapter.scale
        if ".lora_b" in name
        else 1.0
        for name in named
    }
    groups = [
        {"params": [named[name] for name in named if factors[name] == factor], "factor": factor}
        for factor in dict.fromkeys(factors.values())
    ]
    recipe = run.recipe
    return torch.optim.AdamW(
        groups, lr=recipe.learning_rate, betas=(0.9, 0.95), weight_decay=recipe.weight_decay
    )


def _done_share(recipe: Recipe, progress: Progress) -> float:
    """How much of the run is over: by steps, by time, or whichever is further."""
    by_steps = progress.step / recipe.steps if recipe.steps > 0 else 0.0
    by_time = progress.seconds / (60 * recipe.minutes) if recipe.minutes > 0 else 0.0
    return max(by_steps, by_time)


def _rate(recipe: Recipe, progress: Progress, share: float) -> float:
    warm = min(1.0, (progress.step + 1) / max(1, recipe.warmup_steps))
    decay = min(1.0, (1 - share) / recipe.decay_share) if recipe.decay_share else 1.0
    return recipe.learning_rate * warm * decay


def _precision(recipe: Recipe, model: Transformer) -> AbstractContextManager[object]:
    if not recipe.autocast:
        return nullcontext()
    return torch.autocast(model.norm.weight.device.type, torch.bfloat16)


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """A list that gets the number of the first stop signal; a second one ends the process as usual."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received  # only the main thread may handle signals
        return
    signals = (signal.SIGINT, signal.SIGTERM)
    previous = {int(number): signal.getsignal(number) for number in signals}

    def note(number: int, frame: object) -> None:
        received.append(number)
        signal.signal(number, previous[number])

    for number in previous:
        signal.signal(number, note)
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
