"""A run: the same however it is split or interrupted, and what it writes is what inference reads."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.training.conftest import WORDS
from vermilion.config import EngineConfig
from vermilion.data.packing import DataState, next_batch
from vermilion.engine.llm import LLM
from vermilion.engine.loading import load_model
from vermilion.errors import ConfigError, ModelFileError
from vermilion.models import catalog
from vermilion.models.adapters import DENOISER, pairs_of, read_pairs
from vermilion.training import checkpoint, loop, toy
from vermilion.training.convert import convert, prepare
from vermilion.training.corruption import CorruptionConfig, noise
from vermilion.training.denoise import add_noise, ask, loss_of
from vermilion.training.forward import Forward
from vermilion.training.loop import train
from vermilion.training.objectives import ObjectiveConfig
from vermilion.training.recipe import Recipe, Stage
from vermilion.training.run import Run, trainable
from vermilion.types import Decoding, Sampling


def recipe(base: Path, output: Path, **changes: object) -> Recipe:
    made = toy.make(base, 0)
    data = dataclasses.replace(made["data"], held_out=1)
    settings = {
        **made,
        "data": data,
        "output": output,
        "steps": 6,
        "rows": 4,
        "micro_rows": 2,
        "rank": 4,
        "alpha": 6.0,
        "validate_every": 2,
        "save_every": 2,
        "stages": (Stage(0.4, 3), Stage(1.0, 5)),
        "warmup_steps": 2,
    }
    return Recipe(**{**settings, **changes})  # type: ignore[arg-type]


def run(one: Recipe) -> Run:
    return prepare(one, catalog.find(one.base))


def losses(one: Recipe) -> list[float]:
    lines = (one.output / "log.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def test_a_stopped_run_ends_as_an_unbroken_one_bit_for_bit(base: Path, tmp_path: Path) -> None:
    whole, broken = recipe(base, tmp_path / "whole"), recipe(base, tmp_path / "broken")
    train(run(whole))

    def stop(figures: Mapping[str, float]) -> None:
        if figures["step"] == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    handler = signal.getsignal(signal.SIGTERM)
    assert train(run(broken), stop).step in (3, 4)
    assert signal.getsignal(signal.SIGTERM) is handler
    assert train(run(broken)).step == 6
    assert losses(whole) == losses(broken)
    last = [one.output / "checkpoints" / "0000006" for one in (whole, broken)]
    for name in ("state.safetensors", "adapter/adapter_model.safetensors", "adapter/denoiser.safetensors"):
        ours, theirs = (load_file(folder / name) for folder in last)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    progress = [json.loads((folder / "state.json").read_text())["progress"] for folder in last]
    assert progress[0]["data"] == progress[1]["data"]
    assert progress[0]["tokens"] == progress[1]["tokens"] > 0


def test_recomputing_changes_nothing_and_bfloat16_little(base: Path, tmp_path: Path) -> None:
    plain, recomputed, rounded = (
        recipe(base, tmp_path / name, steps=3, **changes)
        for name, changes in (("a", {}), ("b", {"recompute": True}), ("c", {"autocast": True}))
    )
    for one in (plain, recomputed, rounded):
        train(run(one))
    assert losses(recomputed) == losses(plain) != losses(rounded)
    assert losses(rounded) == pytest.approx(losses(plain), rel=0.03)


def test_frozen_weights_kept_in_bfloat16_give_what_casting_them_gives(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, cast = (recipe(base, tmp_path / name, steps=2, autocast=True) for name in ("kept", "cast"))
    work = run(kept)
    train(work)
    assert next(work.model.products())[0].part_weight(0).dtype == torch.bfloat16
    assert work.model.embedding.part_weight(0).dtype == torch.float32
    monkeypatch.setattr(loop, "round_frozen", lambda model: None)
    train(run(cast))
    assert losses(kept) == losses(cast)


def test_a_finished_run_is_left_as_it_is(base: Path, tmp_path: Path) -> None:
    one = recipe(base, tmp_path, steps=2)
    train(run(one))
    assert train(run(one)).step == 2
    assert len(losses(one)) == 2


def test_a_folder_of_another_recipe_is_refused(base: Path, tmp_path: Path) -> None:
    train(run(recipe(base, tmp_path, steps=1)))
    with pytest.raises(ConfigError, match="learning_rate"):
        train(run(recipe(base, tmp_path, steps=1, learning_rate=0.5)))
    assert train(run(recipe(base, tmp_path, steps=2))).step == 2


def test_half_a_checkpoint_is_none_and_only_two_are_kept(base: Path, tmp_path: Path) -> None:
    train(run(recipe(base, tmp_path)))
    folder = tmp_path / "checkpoints"
    (folder / ".0000009.partial").mkdir()
    assert sorted(path.name for path in folder.glob("[0-9]*")) == ["0000004", "0000006"]
    newest = checkpoint.latest(folder)
    assert newest is not None and newest.name == "0000006"
    (newest / "state.safetensors").write_bytes(b"not a file of ours")
    with pytest.raises(ModelFileError, match="not a sound safetensors"):
        train(run(recipe(base, tmp_path)))


@pytest.mark.parametrize("complementary", [False, True])
def test_gradients_do_not_depend_on_how_the_batch_is_split(
    base: Path, tmp_path: Path, complementary: bool
) -> None:
    corruption = CorruptionConfig(complementary=complementary, wrong_tokens=0.1)
    one = recipe(base, tmp_path, rows=8, corruption=corruption)
    work = run(one)
    work.model.double()
    torch.nn.init.normal_(next(work.model.products())[0].adapters[DENOISER].b[0], std=0.1)  # type: ignore[arg-type,index]
    parameters = list(trainable(work.model, one.method).values())
    batch, _ = next_batch(work.dataset, 8, DataState())
    gradients = []
    for micro_rows in (8, 3, 1):
        noisy = add_noise(one, batch, 4, work.model.architecture.vocab_size, noise(0, 0))
        total = 0.0
        for part in noisy.parts(micro_rows):
            for opinions in ask(Forward(work.model), one, part):
                loss = loss_of(one, opinions, noisy.weights)
                torch.autograd.backward(loss)
                total += float(loss.detach())
        gradients.append(torch.cat([torch.as_tensor(total)[None], *(p.grad.flatten() for p in parameters)]))  # type: ignore[union-attr]
        work.model.zero_grad()
    assert gradients[0].abs().sum() > 0
    for other in gradients[1:]:
        torch.testing.assert_close(other, gradients[0], rtol=1e-5, atol=1e-7)


def test_only_the_denoiser_learns(base: Path, tmp_path: Path) -> None:
    work = run(recipe(base, tmp_path))
    before = {name: tensor.clone() for name, tensor in work.model.state_dict().items()}
    train(work)
    changed = {
        name for name, tensor in work.model.state_dict().items() if not torch.equal(tensor, before[name])
    }
    assert changed == trainable(work.model, "adapter").keys()


def test_the_written_adapter_loads_as_the_trained_one(base: Path, tmp_path: Path) -> None:
    work = run(recipe(base, tmp_path, adapter_dtype="float32"))
    train(work)
    folder = tmp_path / "checkpoints" / "0000006" / "adapter"
    pairs, scale = read_pairs(folder, work.model)
    assert scale == 1.5 and len(pairs) == 7 * work.model.architecture.num_layers
    for name, (a, b) in pairs_of(work.model, DENOISER).items():
        torch.testing.assert_close(pairs[name], (a, b))


def test_a_run_goes_on_from_an_adapter_that_is_there_at_its_rank(base: Path, tmp_path: Path) -> None:
    first = run(recipe(base, tmp_path / "first", adapter_dtype="float32"))
    train(first)
    folder = tmp_path / "first" / "checkpoints" / "0000006" / "adapter"
    second = run(recipe(base, tmp_path / "second", adapter=folder, rank=9, alpha=1.0))
    assert (second.adapter.rank, second.adapter.alpha) == (4, 6.0)
    for name, value in trainable(first.model, "adapter").items():
        torch.testing.assert_close(dict(second.model.named_parameters())[name], value)


def test_it_learns_by_heart_and_the_engine_repeats_it_many_tokens_a_pass(base: Path, tmp_path: Path) -> None:
    one = recipe(
        base,
        tmp_path,
        data=toy.make(base, 0)["data"],
        steps=140,
        rows=12,
        micro_rows=12,
        rank=16,
        alpha=32.0,
        learning_rate=5e-3,
        stages=(Stage(1.0, 6),),
        objective=ObjectiveConfig(teacher=0.0),
        save_every=1000,
    )
    folder, progress = convert(one)
    assert progress.step == 140
    assert losses(one)[-1] < 0.05 < losses(one)[0]
    llm = LLM(loaded=load_model(str(folder), EngineConfig(kv_tokens=512, threads=1)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(toy, "_NUMBERS", WORDS)
        examples = toy.rows()
    for example in examples:
        prompt = llm.chat_prompt([{"role": "user", "content": example["prompt"]}])
        decoding = Decoding("threshold", threshold=0.9, block_length=5)
        (answer,) = llm.generate([prompt], Sampling(max_tokens=60), decoding)
        assert answer.text == example["response"]
        assert answer.usage.tokens_per_pass > 2


def test_a_diffusion_model_and_a_missing_mask_are_refused(base: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="mask_token_id"):
        run(recipe(base, tmp_path, mask_token_id=-1))
    with pytest.raises(ConfigError, match="context"):
        data = dataclasses.replace(recipe(base, tmp_path).data, length=5000)
        run(recipe(base, tmp_path, data=data))
