"""Trains a drafter from the base's own texts and the hidden states it had in them."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from vermilion.config import PAGE_SIZE
from vermilion.data.corpus import Corpus
from vermilion.data.examples import read_answers
from vermilion.decoding.forward_jobs import Job
from vermilion.decoding.passes import Pass, Segment
from vermilion.errors import ConfigError, EngineFailure
from vermilion.models import catalog, drafter
from vermilion.models.build import base_tensors, build
from vermilion.models.catalog import ModelFiles
from vermilion.models.configuration import spec_of
from vermilion.models.drafter import Drafter, DrafterShape
from vermilion.models.transformer import Transformer
from vermilion.native import library
from vermilion.native.checkpoint_packing import obstacle, open_packed
from vermilion.native.runner import NativeRunner
from vermilion.text import read_json
from vermilion.training import checkpoint, records
from vermilion.training.base_states import StateFolder, States, batches, states_of
from vermilion.training.drafter_loss import Frozen, OwnText, anchors_of, guess
from vermilion.training.drafter_recipe import DRAFTER_MAY_CHANGE, DrafterRecipe
from vermilion.training.export import model_with
from vermilion.training.loop import OnStep, stop_signals
from vermilion.training.opening import device_named
from vermilion.training.run import Progress

_BATCH_TOKENS = 1500
"""Of one forward of the base on a CPU."""
_GPU_BATCH_TOKENS = 32_768
_VALIDATION_STRIDE = 8


@dataclass(frozen=True, slots=True)
class _Work:
    recipe: DrafterRecipe
    drafter: Drafter
    frozen: Frozen
    sources: Sequence[StateFolder]
    training: Sequence[tuple[int, int]]
    """(source, text) pairs."""
    validation: Sequence[tuple[int, int]]
    optimizer: torch.optim.AdamW

    @property
    def device(self) -> torch.device:
        return self.drafter.norm.weight.device

    def text(self, source: int, index: int) -> OwnText:
        """With its states, on the device."""
        return self.sources[source][index].to(self.device)

    @property
    def num_steps(self) -> int:
        """0: until the minutes are over."""
        recipe = self.recipe
        if recipe.steps or not recipe.epochs:
            return recipe.steps
        return max(1, round(recipe.epochs * len(self.training) / recipe.texts))


def train_drafter(recipe: DrafterRecipe, on_step: OnStep = lambda figures: None) -> tuple[Path, Progress]:
    """Write OUTPUT/model, the base with its drafter, which every command takes as a model.

    Goes on from the newest checkpoint in the output folder. Raises ConfigError for a recipe or its data,
    ModelFileError for a base, EngineFailure when the loss is no longer a number.
    """
    torch.set_num_threads(recipe.threads)
    files = catalog.find(recipe.base)
    work = _prepared(recipe, files)
    progress, newest = Progress(), checkpoint.latest(recipe.output / "checkpoints")
    if newest is not None:
        progress = _loaded(work, newest)
    with records.Records(recipe.output, progress.step, tensorboard=False) as log:
        progress = _steps(work, progress, log, on_step)
    if recipe.plot:
        records.plot(recipe.output)
    facts = {"base": files.name, "steps": progress.step, "tokens": progress.tokens, **_validated(work)}
    folder = model_with(
        files, recipe.output, lambda beside: drafter.write(beside, work.drafter, torch.bfloat16, facts)
    )
    return folder, progress


def _prepared(recipe: DrafterRecipe, files: ModelFiles) -> _Work:
    device = device_named(recipe.device)
    built = build(replace(files, adapter=None), device=device)
    model, architecture = built.model.requires_grad_(False), built.spec.architecture
    shape = DrafterShape.of(architecture, recipe.num_layers, recipe.block_length, recipe.rank, recipe.window)
    if not built.spec.traits.has_next_token:
        raise ConfigError(f"base: {recipe.base} is no autoregressive model; only those have drafters.")
    sources = _sources(recipe, files, model, shape)
    if recipe.adapter is not None:
        given = drafter.read(recipe.adapter, architecture)
        if replace(given.shape, window=shape.window) != shape:
            raise ConfigError(f"adapter: {recipe.adapter} has the shape {given.shape}, the recipe {shape}.")
        made = Drafter(architecture, shape, given.vocabulary_W)
        made.load_state_dict(given.state_dict(), assign=True)
    else:
        vocabulary_W = _vocabulary(sources, architecture.vocab_size, recipe.vocabulary)
        made = drafter.fresh(architecture, shape, vocabulary_W, base_tensors(model), recipe.seed)
    made.to(device).requires_grad_(True)
    frozen = Frozen.of(model, made.vocabulary_W)
    if recipe.autocast:
        frozen = replace(frozen, head_WH=frozen.head_WH.to(torch.bfloat16))
    texts = [(source, index) for source, each in enumerate(sources) for index in range(len(each))]
    validation = [pair for pair in texts if pair[1] % recipe.held_out == 0]
    training = [pair for pair in texts if pair[1] % recipe.held_out]
    if not training:
        raise ConfigError(f"sources: {len(texts)} texts are too few; one of {recipe.held_out} is held out.")
    kept = [pair for pair in validation if pair[1] < recipe.held_out * recipe.max_held_out]
    optimizer = torch.optim.AdamW(
        made.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.95), weight_decay=0.0
    )
    return _Work(recipe, made, frozen, sources, training, kept, optimizer)


def _sources(
    recipe: DrafterRecipe, files: ModelFiles, model: Transformer, shape: DrafterShape
) -> list[StateFolder]:
    """Every source's texts with their states, computed where they are missing."""
    folder = recipe.states or recipe.output / "states"
    tokenizer = catalog.tokenizer_of(files)
    states: States | None = None
    made = []
    for path in recipe.sources:
        corpus = (
            Corpus.of(read_answers(path, tokenizer, catalog.chat_template_of(files)))
            if path.suffix == ".jsonl"
            else Corpus.open(path)
        )
        source = StateFolder(folder / path.stem, shape.taps, model.architecture.hidden_size)
        if len(source) < len(corpus):
            states = states or _states(recipe, files, model, shape.taps)
            batch = _GPU_BATCH_TOKENS if model.norm.weight.is_cuda else _BATCH_TOKENS
            for _ in source.extend(corpus, states, batch, recipe.max_length):
                pass
        made.append(source)
    return made


def _states(recipe: DrafterRecipe, files: ModelFiles, model: Transformer, taps: Sequence[int]) -> States:
    """By the native backend where it runs the base on a CPU, as it will when serving, else by PyTorch."""
    if model.norm.weight.is_cuda:
        return partial(_states_in_batches, model, taps)
    spec = spec_of(replace(files, adapter=None))
    try:
        library.load()
        unable = obstacle(spec.architecture)
    except library.LibraryMissing as missing:
        unable = str(missing)
    if unable:
        return lambda texts: [states_of(model, [ids], taps)[0] for ids in texts]
    packed = open_packed(replace(files, adapter=None), spec, "q8")
    pages = -(-(2 * _BATCH_TOKENS + 2 * recipe.max_length) // PAGE_SIZE)
    mask = spec.traits.mask_token_id
    runner = NativeRunner(packed, spec.architecture, mask, (pages, PAGE_SIZE), recipe.threads)
    runner.taps = (*taps, model.architecture.num_layers)

    def states(texts: Sequence[Sequence[int]]) -> list[Tensor]:
        jobs, page = [], 0
        for ids in texts:
            count = -(-len(ids) // PAGE_SIZE)
            segment = Segment(tuple(ids), 0, 0, sees=0, span=1)
            jobs.append(Job(range(page, page + count), Pass((segment,)), []))
            page += count
        runner.run(jobs)
        tapped = torch.from_numpy(runner.tapped[..., : model.architecture.hidden_size])
        parts = [part.clone() for part in torch.split(tapped, [len(ids) for ids in texts])]
        for part in parts:
            part[:, -1] = model.norm(part[:, -1])
        return parts

    return states


def _states_in_batches(
    model: Transformer, taps: Sequence[int], texts: Sequence[Sequence[int]]
) -> list[Tensor]:
    found: dict[int, Tensor] = {}
    for batch in batches(texts, _GPU_BATCH_TOKENS):
        states = states_of(model, [texts[number] for number in batch], taps)
        found |= {number: each.cpu() for number, each in zip(batch, states, strict=True)}
    return [found[number] for number in range(len(texts))]


def _vocabulary(sources: Sequence[StateFolder], vocab_size: int, wanted: int) -> Tensor:
    """The `wanted` token ids that the texts hold most often, ascending; among equals the lowest, which
    tokenizers learnt first."""
    counts = sum((source.counts(vocab_size) for source in sources), np.zeros(vocab_size, np.int64))
    return torch.from_numpy(np.sort(np.argsort(-counts, kind="stable")[: min(wanted, vocab_size)]))


def _steps(work: _Work, progress: Progress, log: records.Records, on_step: OnStep) -> Progress:
    recipe, started, before = work.recipe, time.monotonic(), progress.seconds
    saved = progress.step
    with stop_signals() as received:
        while not received and (share := _share(work, progress)) < 1:
            figures, tokens = _step(work, progress.step, share)
            progress = replace(
                progress,
                step=progress.step + 1,
                tokens=progress.tokens + tokens,
                seconds=before + time.monotonic() - started,
            )
            if progress.step % recipe.validate_every == 0 or _share(work, progress) >= 1:
                figures |= _validated(work)
            figures |= {"step": progress.step, "tokens": progress.tokens, "seconds": progress.seconds}
            figures["done"] = min(1.0, _share(work, progress))
            log.add(figures)
            on_step(figures)
            if progress.step % recipe.save_every == 0:
                _save(work, progress)
                saved = progress.step
    if saved != progress.step:
        _save(work, progress)
    return progress


def _share(work: _Work, progress: Progress) -> float:
    by_steps = progress.step / work.num_steps if work.num_steps else 0.0
    minutes = work.recipe.minutes
    return max(by_steps, progress.seconds / (60 * minutes) if minutes else 0.0)


def _step(work: _Work, step: int, share: float) -> tuple[dict[str, float], int]:
    """One optimiser step; what it draws depends on the seed and its number alone."""
    recipe, length = work.recipe, work.drafter.shape.block_length
    rate = recipe.learning_rate * min(1.0, (step + 1) / max(1, recipe.warmup_steps))
    rate *= min(1.0, (1 - share) / recipe.decay_share) if recipe.decay_share else 1.0
    generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)
    texts = [work.text(*pair) for pair in _drawn(work, step)]
    anchors = [anchors_of(text, recipe.anchors_every, length, generator) for text in texts]
    row_weights = float(torch.exp(-torch.arange(length) / recipe.loss.offset_decay).sum())
    whole = max(1.0, row_weights * sum(len(each) for each in anchors))
    parts = []
    # One region for all texts: autocast keeps the weights that it has cast until the region ends.
    with _precision(work):
        for text, each in zip(texts, anchors, strict=True):
            if len(each):
                part = guess(work.drafter, work.frozen, text, each, recipe.loss).loss / whole
                torch.autograd.backward(part)
                parts.append(part.detach())
    total = sum(torch.stack(parts).tolist()) if parts else 0.0
    if not total < float("inf"):
        raise EngineFailure(f"The loss of step {step + 1} is {total}. Lower learning_rate and start again.")
    norm = torch.nn.utils.clip_grad_norm_(work.drafter.parameters(), recipe.clip_norm)
    for group in work.optimizer.param_groups:
        group["lr"] = rate
    work.optimizer.step()
    work.optimizer.zero_grad(set_to_none=True)
    figures = {"loss": total, "gradient_norm": float(norm), "learning_rate": rate}
    return figures, sum(len(text.ids_L) for text in texts)


def _drawn(work: _Work, step: int) -> list[tuple[int, int]]:
    """The texts of a step: each epoch goes through all of them in an order of its own."""
    num, first = len(work.training), step * work.recipe.texts
    orders: dict[int, Any] = {}
    drawn = []
    for at in range(first, first + work.recipe.texts):
        epoch = at // num
        if epoch not in orders:
            orders[epoch] = np.random.default_rng((work.recipe.seed, epoch)).permutation(num)
        drawn.append(work.training[int(orders[epoch][at % num])])
    return drawn


def _precision(work: _Work) -> torch.autocast:
    return torch.autocast(work.device.type, torch.bfloat16, enabled=work.recipe.autocast)


@torch.no_grad()
def _validated(work: _Work) -> dict[str, float]:
    """`tokens_per_cycle`: tokens that a draft and its verification settle, along the held-out texts."""
    generator, length = torch.Generator().manual_seed(7), work.drafter.shape.block_length
    accepted, loss, weight = [], 0.0, 0.0
    for source, index in work.validation:
        text = work.text(source, index)
        anchors_A = anchors_of(text, _VALIDATION_STRIDE, length, generator)
        if not len(anchors_A):
            continue
        with _precision(work):
            found = guess(work.drafter, work.frozen, text, anchors_A, work.recipe.loss)
        accepted.append(found.accepted_AK)
        loss, weight = loss + float(found.loss), weight + found.weight
    if not accepted:
        return {}
    whole_AK = torch.cat(accepted).float().cumprod(1)
    return {"held_out_nll": loss / weight, "tokens_per_cycle": 1 + float(whole_AK.sum(1).mean())}


def _save(work: _Work, progress: Progress) -> None:
    tensors = {f"parameter.{name}": value for name, value in work.drafter.named_parameters()}
    for name, parameter in work.drafter.named_parameters():
        tensors |= {f"{kind}.{name}": value for kind, value in work.optimizer.state[parameter].items()}
    folder = work.recipe.output / "checkpoints"
    partial, target = folder / f".{progress.step:07d}.partial", folder / f"{progress.step:07d}"
    shutil.rmtree(partial, ignore_errors=True)
    drafter.write(partial / "adapter", work.drafter, torch.bfloat16, {"steps": progress.step})
    detached = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    save_file(detached, partial / "state.safetensors")
    state = {"progress": asdict(progress), "recipe": checkpoint.settings(work.recipe)}
    (partial / "state.json").write_text(json.dumps(state), encoding="utf-8")
    shutil.rmtree(target, ignore_errors=True)
    partial.replace(target)
    for old in sorted(path for path in folder.glob("[0-9]*") if path.is_dir())[:-2]:
        shutil.rmtree(old)


def _loaded(work: _Work, newest: Path) -> Progress:
    checkpoint.check_same_recipe(newest, work.recipe, DRAFTER_MAY_CHANGE)
    tensors = checkpoint.load_tensors(newest / "state.safetensors")
    with torch.no_grad():
        for name, parameter in work.drafter.named_parameters():
            parameter.copy_(tensors[f"parameter.{name}"])
            kinds = ("step", "exp_avg", "exp_avg_sq")
            state = {kind: tensors[f"{kind}.{name}"].to(parameter.device) for kind in kinds}
            work.optimizer.state[parameter] = state | {"step": state["step"].cpu()}
    saved = read_json(newest / "state.json")["progress"]
    return Progress(saved["step"], saved["tokens"], saved["seconds"])
