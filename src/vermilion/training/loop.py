"""The training loop: batch, noise, loss over the whole batch, step. It can stop and resume at any step."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vermilion.data.packing import next_batch
from vermilion.errors import ConfigError, EngineFailure
from vermilion.models.adapters import DENOISER
from vermilion.training import checkpoint, corruption, records
from vermilion.training.denoise import Noisy, add_noise, ask, loss_of
from vermilion.training.distributed import World, joined, whole
from vermilion.training.forward import Forward, precision, round_frozen
from vermilion.training.recipe import Recipe
from vermilion.training.records import Records
from vermilion.training.run import Progress, Run, trainable
from vermilion.training.validation import figure_of, validate

_MASK_EMBEDDING_RATE = 3.0
"""Learning rate of the mask embedding over that of the adapter: it is one row, and starts from a mean."""

OnStep = Callable[[Mapping[str, float]], None]


@dataclass(frozen=True, slots=True)
class _Work:
    """What every step needs."""

    run: Run
    forward: Forward
    optimizer: torch.optim.AdamW
    world: World
    num_steps: int
    """0: until the minutes are over."""


def train(run: Run, on_step: OnStep = lambda figures: None) -> Progress:
    """Train until the recipe's steps, epochs or minutes are over, the held-out figure no longer falls, or
    SIGINT or SIGTERM comes; then save.

    Goes on from the newest checkpoint in the output folder, if there is one; on a CPU, and when the length
    is not given in minutes, the result equals that of an unbroken run bit for bit. `on_step` gets every
    step's figures, which also go to log.jsonl. Under torchrun each process trains its part of every batch.
    Raises ConfigError for an output folder of another recipe, and EngineFailure when the loss is no longer a
    number.
    """
    world = joined()
    work = _prepared(run, world)
    progress, newest = Progress(), checkpoint.latest(run.recipe.output / "checkpoints")
    if newest is not None:
        checkpoint.check_same_recipe(newest, run.recipe)
        progress = checkpoint.load(newest, run, work.optimizer)
    folder, board = run.recipe.output, run.recipe.tensorboard
    log = Records(folder, progress.step, tensorboard=board) if world.is_first else None
    with log or nullcontext():
        progress = _steps(work, progress, newest is not None, lambda f: _tell(log, on_step, f))
    if run.recipe.patience and progress.best is not None:
        checkpoint.load_best(run)
    if world.is_first and run.recipe.plot:
        records.plot(run.recipe.output)
    return progress


def _prepared(run: Run, world: World) -> _Work:
    recipe, model = run.recipe, run.model
    if recipe.rows % world.size:
        raise ConfigError(f"rows: {recipe.rows} is not a multiple of the {world.size} processes.")
    model.requires_grad_(False)
    for parameter in trainable(model, recipe.method).values():
        parameter.requires_grad_(True)
    if recipe.autocast and world.size == 1 and not recipe.merge:
        round_frozen(model)
    forward = Forward(
        model,
        recompute=recipe.recompute,
        compiled=recipe.compile,
        flex=recipe.attention == "flex",
        sharded=world.size > 1,
    )
    num_steps = recipe.steps
    if not num_steps and recipe.epochs:
        num_steps = max(1, round(recipe.epochs * run.dataset.rows_of_an_epoch() / recipe.rows))
    return _Work(run, forward, _optimizer(run), world, num_steps)


def _steps(work: _Work, progress: Progress, resumed: bool, tell: OnStep) -> Progress:
    """From `progress` to the end of the run; the newest state is saved when this returns."""
    recipe, world = work.run.recipe, work.world
    started, before = time.monotonic(), progress.seconds
    saved = progress.step if resumed else -1
    with stop_signals() as received:
        stopped = False
        while not stopped and not _is_over(work, progress):
            figures, progress = _step(work, progress)
            seconds, signals = world.first(before + time.monotonic() - started)[0], world.total(len(received))
            stopped = signals[0] > 0
            progress = replace(progress, seconds=seconds)
            if stopped or _done_share(work, progress) >= 1 or progress.step % recipe.validate_every == 0:
                found = validate(work.run, work.forward)
                progress = _judged(work, progress, figure_of(recipe, found))
                figures |= found
            figures |= {
                "step": progress.step,
                "tokens": progress.tokens,
                "seconds": progress.seconds,
                "done": min(1.0, _done_share(work, progress)),
            }
            tell(figures)
            if progress.step % recipe.save_every == 0:
                checkpoint.save(work.run, work.optimizer, progress, world)
                saved = progress.step
        if saved != progress.step:
            checkpoint.save(work.run, work.optimizer, progress, world)
    return progress


def _judged(work: _Work, progress: Progress, figure: float | None) -> Progress:
    """With the best held-out figure brought up to date, and the best state kept where it is wanted."""
    if figure is None:
        return progress
    if progress.best is not None and figure >= progress.best:
        return replace(progress, since_best=progress.since_best + 1)
    if work.run.recipe.patience:
        checkpoint.save_best(work.run, work.world)
    return replace(progress, best=figure, best_step=progress.step, since_best=0)


def _step(work: _Work, progress: Progress) -> tuple[dict[str, float], Progress]:
    """One optimiser step; its figures and where the run then stands."""
    run, recipe, optimizer = work.run, work.run.recipe, work.optimizer
    share = _done_share(work, progress)
    batch, data = next_batch(run.dataset, recipe.rows, progress.data)
    block_length = next(stage.block_length for stage in recipe.stages if share < stage.until)
    rng = corruption.noise(recipe.seed, progress.step)
    noisy = add_noise(recipe, batch, block_length, run.model.architecture.vocab_size, rng)
    own = noisy.rows(*work.world.part(recipe.rows))
    parts = [_backward(work, part, noisy.weights) for part in own.parts(recipe.micro_rows)]
    total, right, count = work.world.total(*(sum(each) for each in zip(*parts, strict=True)))
    if not total < float("inf"):
        raise EngineFailure(
            f"The loss of step {progress.step + 1} is {total}. Lower learning_rate and start again from the "
            "newest checkpoint, which is from before it."
        )
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    norm = whole(torch.nn.utils.clip_grad_norm_(parameters, recipe.clip_norm))
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


def _backward(work: _Work, part: Noisy, weights: tuple[float, float]) -> tuple[float, int, int]:
    """Add the gradients of some rows; their part of the loss, tokens guessed right, and tokens asked for."""
    run = work.run

    def look() -> tuple[Tensor, int, int]:
        losses, right, count = [], 0, 0
        for opinions in ask(work.forward, run.recipe, part):
            losses.append(loss_of(run.recipe, opinions, weights))
            # In bfloat16 argmax takes four times as long.
            likeliest_R = opinions.logits_RV.detach().max(-1).indices
            right += int((likeliest_R == opinions.scored.label_R).sum())
            count += len(opinions.loss_R)
        return torch.stack(losses).sum(), right, count

    with precision(run.recipe.autocast, run.model):
        loss, right, count = work.forward.whole(look)
    # Sharded gradients are averaged over the processes; the loss is divided by the whole batch already.
    torch.autograd.backward(loss * work.world.size)
    return float(loss.detach()), right, count


def _optimizer(run: Run) -> torch.optim.AdamW:
    """Rates are set as if the denoiser's B did not carry the adapter's scale."""
    named = trainable(run.model, run.recipe.method)
    factors = {
        name: _MASK_EMBEDDING_RATE
        if name == "mask_embedding"
        else run.adapter.scale
        if f".{DENOISER}.b." in name
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


def _is_over(work: _Work, progress: Progress) -> bool:
    patience = work.run.recipe.patience
    return _done_share(work, progress) >= 1 or bool(patience and progress.since_best >= patience)


def _done_share(work: _Work, progress: Progress) -> float:
    """How much of the run is over: by steps, by time, or whichever is further."""
    minutes = work.run.recipe.minutes
    by_steps = progress.step / work.num_steps if work.num_steps > 0 else 0.0
    by_time = progress.seconds / (60 * minutes) if minutes > 0 else 0.0
    return max(by_steps, by_time)


def _rate(recipe: Recipe, progress: Progress, share: float) -> float:
    warm = min(1.0, (progress.step + 1) / max(1, recipe.warmup_steps))
    decay = min(1.0, (1 - share) / recipe.decay_share) if recipe.decay_share else 1.0
    return recipe.learning_rate * warm * decay


def _tell(log: Records | None, on_step: OnStep, figures: Mapping[str, float]) -> None:
    if log is not None:
        log.add(figures)
        on_step(figures)


@contextmanager
def stop_signals() -> Iterator[list[int]]:
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
