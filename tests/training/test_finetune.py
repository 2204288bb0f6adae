"""`vermilion train`: an adapter that answers as the examples do, in files that others read."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.training.conftest import WORDS
from vermilion.cli import train as command
from vermilion.config import EngineConfig, build
from vermilion.engine.llm import LLM
from vermilion.engine.loading import load_model
from vermilion.errors import ConfigError
from vermilion.gap_template import GapTemplate
from vermilion.models import catalog
from vermilion.models.adapters import DENOISER, pairs_of, read_pairs
from vermilion.models.linear import AdapterRows
from vermilion.training import finetune, loop, toy
from vermilion.training.checkpoint import latest
from vermilion.training.convert import convert
from vermilion.training.export import hugging_face_tensors
from vermilion.training.recipe import Recipe, Stage
from vermilion.training.run import TUNED, trainable
from vermilion.types import Decoding, Sampling

EXAMPLES = [{"prompt": f"count from {word}", "response": f"no, {word}!"} for word in WORDS]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusion model that counts, converted in a few steps."""
    folder = tmp_path_factory.mktemp("model")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(toy, "_NUMBERS", WORDS)
        patch.setattr(toy, "_STEPS", 60)
        recipe = Recipe("toy", folder, steps=20, rows=4, rank=4, stages=(Stage(1.0, 5),), plot=False)
        return convert(recipe)[0]


@pytest.fixture
def examples(tmp_path: Path) -> Path:
    path = tmp_path / "examples.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in EXAMPLES))
    return path


def recipe(model: Path, examples: Path, output: Path, **changes: object) -> Recipe:
    given = finetune.with_defaults(
        {
            "base": str(model),
            "output": str(output),
            "steps": 6,
            "rank": 4,
            "alpha": 4.0,
            "autocast": False,
            "plot": False,
            "validate_every": 2,
            "save_every": 2,
            "adapter_dtype": "float32",
            **changes,
        }
    )
    given["data"] = {"sources": [{"path": str(examples)}], "length": 96, "held_out": 1}
    return build(Recipe, given)


def test_it_learns_the_answers_and_the_merged_model_gives_them(
    model: Path, examples: Path, tmp_path: Path
) -> None:
    one = recipe(model, examples, tmp_path / "run", steps=150, learning_rate=1e-2, merge=True, rank=8)
    one = replace(one, data=replace(one.data, held_out=0))
    folder, progress = finetune.tune(one)
    assert folder == tmp_path / "run" / "adapter" and progress.step == 150
    llm = LLM(loaded=load_model(str(tmp_path / "run" / "model"), EngineConfig(kv_tokens=512, threads=1)))
    for example in EXAMPLES:
        prompt = llm.chat_prompt([{"role": "user", "content": example["prompt"]}])
        (answer,) = llm.generate([prompt], Sampling(max_tokens=40), Decoding("lossless"))
        assert answer.text == example["response"]


def test_only_the_lora_learns_and_it_is_written_as_peft_reads_it(
    model: Path, examples: Path, tmp_path: Path
) -> None:
    one = recipe(model, examples, tmp_path, target_modules=["q_proj", "down_proj"])
    one = replace(one, data=replace(one.data, fim_token_ids=(3, 4, 5, 6)))
    run = finetune.prepare(one, catalog.find(one.base))
    before = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
    loop.train(run)
    changed = {name for name, new in run.model.state_dict().items() if not torch.equal(new, before[name])}
    assert changed == trainable(run.model, "lora").keys()
    newest = latest(tmp_path / "checkpoints")
    assert newest is not None
    pairs, scale = read_pairs(newest / "adapter", run.model)
    assert scale == 1.0 and {name.rpartition(".")[2] for name in pairs} == {"q_proj", "down_proj"}
    for name, (a, b) in pairs_of(run.model, TUNED).items():
        torch.testing.assert_close(pairs[name], (a, b))
    config = json.loads((newest / "adapter" / "adapter_config.json").read_text())
    assert sorted(config["target_modules"]) == ["down_proj", "q_proj"]
    assert not (newest / "adapter" / "denoiser.json").exists()
    template = GapTemplate.read(newest / "adapter", run.model.architecture.vocab_size)
    assert template == GapTemplate((3, 4, 5, 6), max(1, one.data.length // 4))


def test_every_row_runs_through_it_as_if_it_were_merged(model: Path, examples: Path, tmp_path: Path) -> None:
    one = recipe(model, examples, tmp_path, alpha=3.0)
    run = finetune.prepare(one, catalog.find(one.base))
    linear, names = next(run.model.products())
    tuned, denoiser = AdapterRows(TUNED, 0, 7), AdapterRows(DENOISER, 3, 7)
    with torch.no_grad():
        for b in linear.adapters[TUNED].b:  # type: ignore[union-attr]
            b.normal_()
        x = torch.randn(7, 64, generator=torch.Generator().manual_seed(0))
        merged = hugging_face_tensors(run.model)
        changed = [merged[f"{name}.weight"] - linear.part_weight(part) for part, name in enumerate(names)]
        expected = linear(x, [denoiser]) + x @ torch.cat(changed).T
        torch.testing.assert_close(linear(x, [denoiser, tuned]), expected, rtol=1e-4, atol=1e-5)


def test_a_run_that_was_stopped_goes_on_to_the_same_adapter(
    model: Path, examples: Path, tmp_path: Path
) -> None:
    finetune.tune(recipe(model, examples, tmp_path / "whole"))
    broken = recipe(model, examples, tmp_path / "broken")

    def stop(figures: Mapping[str, float]) -> None:
        if figures["step"] == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    assert finetune.tune(broken, stop)[1].step in (3, 4)
    assert finetune.tune(broken)[1].step == 6
    ours, theirs = (
        load_file(tmp_path / name / "adapter" / "adapter_model.safetensors") for name in ("whole", "broken")
    )
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    logged = [(tmp_path / name / "log.jsonl").read_text().splitlines() for name in ("whole", "broken")]
    assert [json.loads(line)["step"] for line in logged[1]] == list(range(1, 7))


def test_an_adapter_may_be_trained_further(model: Path, examples: Path, tmp_path: Path) -> None:
    first, _ = finetune.tune(recipe(model, examples, tmp_path / "first", target_modules=["v_proj"]))
    one = recipe(model, examples, tmp_path / "second", adapter=str(first), rank=99)
    run = finetune.prepare(one, catalog.find(one.base))
    given = load_file(first / "adapter_model.safetensors")
    for name, (a, _) in pairs_of(run.model, TUNED).items():
        assert name.endswith("v_proj") and torch.equal(a, given[f"base_model.model.{name}.lora_A.weight"])
    assert run.adapter.rank == 4


def test_it_stops_early_and_keeps_the_best_state(
    model: Path, examples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = iter([3.0, 2.0, 2.5, 2.1, 1.0])
    monkeypatch.setattr(loop, "validate", lambda run, forward: {"held_out_next": next(figures)})
    one = recipe(model, examples, tmp_path, steps=100, validate_every=1, patience=2)
    folder, progress = finetune.tune(one)
    assert (progress.step, progress.best_step, progress.best) == (4, 2, 2.0)
    kept = load_file(tmp_path / "checkpoints" / "0000002" / "state.safetensors")
    written = load_file(folder / "adapter_model.safetensors")
    name = f"layers.0.qkv.adapters.{TUNED}.b.0"
    assert torch.equal(
        written["base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"], kept[f"parameter.{name}"]
    )


def test_what_cannot_be_tuned_is_refused(model: Path, examples: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="target_modules"):
        recipe(model, examples, tmp_path, target_modules=["lm_head"])
    with pytest.raises(ConfigError, match="vermilion convert"):
        finetune.tune(
            recipe(model, examples, tmp_path, method="tied", objective={"denoise": 1.0, "teacher": 0.0})
        )
    bare = recipe(model.parent / "base", examples, tmp_path, objective={"denoise": 1.0})
    with pytest.raises(ConfigError, match="no denoiser"):
        finetune.prepare(bare, catalog.find(bare.base))


def test_the_command_fills_in_what_a_recipe_leaves_out(
    model: Path,
    examples: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given: list[Recipe] = []

    def stand_in(one: Recipe, on_step):  # type: ignore[no-untyped-def]
        given.append(one)
        return tmp_path / "adapter", loop.Progress(step=3, tokens=10)

    monkeypatch.setattr(finetune, "tune", stand_in)
    file = tmp_path / "mine.toml"
    file.write_text("rank = 2\n[objective]\ndenoise = 0.3\n")
    command.train(examples, tmp_path, str(model), None, file, ["epochs=1"])
    one = given[0]
    assert (one.rank, one.epochs, one.objective.denoise, one.objective.next_token) == (2, 1.0, 0.3, 1.0)
    assert one.data.sources[0].path == examples and one.base == str(model)
    assert capsys.readouterr().out == f"{tmp_path / 'adapter'}\n"
