"""Every way of converting: what is trained is what inference reads, and the base is what it was, or not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.training.conftest import WORDS
from vermilion.config import EngineConfig, build, load
from vermilion.data.packing import DataConfig, DataSource
from vermilion.engine.llm import LLM
from vermilion.engine.loading import load_model
from vermilion.errors import ConfigError, ModelFileError
from vermilion.models import catalog
from vermilion.models.build import build as build_model
from vermilion.models.transformer import Transformer
from vermilion.training import finetune, toy
from vermilion.training.convert import convert, prepare
from vermilion.training.corruption import CorruptionConfig
from vermilion.training.forward import Forward, NoisyRows
from vermilion.training.loop import train
from vermilion.training.masks import Layout, number_blocks
from vermilion.training.objectives import ObjectiveConfig
from vermilion.training.recipe import Recipe, Stage
from vermilion.types import Decoding, Sampling

WAYS = {
    "adapter": {},
    "copy": {"method": "copy"},
    "tied": {"method": "tied", "objective": ObjectiveConfig(next_token=1.0, denoise=0.5, teacher=0.0)},
    "aligned": {"shift": False},
    "block": {
        "method": "tied",
        "context": "block",
        "shift": False,
        "objective": ObjectiveConfig(teacher=0.0),
    },
    "block-shift": {
        "method": "tied",
        "context": "block",
        "objective": ObjectiveConfig(next_token=1.0, teacher=0.0),
    },
    "full": {
        "method": "tied",
        "context": "full",
        "shift": False,
        "objective": ObjectiveConfig(teacher=0.0, weighting="inverse_rate"),
        "corruption": CorruptionConfig(full=0, prefix=0, random=0, linear=1),
    },
}


def recipe(base: Path, output: Path, way: str, **changes: object) -> Recipe:
    settings = {
        **toy.make(base, 0),
        "output": output,
        "steps": 2,
        "rows": 4,
        "rank": 4,
        "learning_rate": 1e-2,
        "warmup_steps": 1,
        "stages": (Stage(1.0, 4),),
        "adapter_dtype": "float32",
        "plot": False,
        **WAYS[way],
    }
    return Recipe(**{**settings, **changes})  # type: ignore[arg-type]


def read(folder: Path) -> Transformer:
    return build_model(catalog.find(str(folder))).model


def hidden(model: Transformer, one: Recipe, mask_token_id: int) -> list[torch.Tensor]:
    """Clean and noisy rows, masks shown as inference shows them."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(4, 200, (2, 16), generator=generator)
    document, position = torch.zeros_like(ids), torch.arange(16).expand(2, -1)
    masked = torch.rand(ids.shape, generator=generator) < 0.5
    layout = Layout(
        document, number_blocks(document, position, 4, torch.zeros(2, 1, dtype=torch.int64)), one.context
    )
    forward = Forward(model)
    with torch.no_grad():
        seen = forward.seen(layout)
        clean, past = forward.clean(ids, position, seen)
        rows = NoisyRows(ids.masked_fill(masked, mask_token_id), masked)
        noisy = forward.noisy(rows, position, seen, None if one.context == "full" else past)
    return [clean, noisy]


@pytest.mark.parametrize("way", WAYS)
def test_what_was_trained_is_what_is_read(base: Path, tmp_path: Path, way: str) -> None:
    one = recipe(base, tmp_path, way)
    run = prepare(one, catalog.find(one.base))
    before = hidden(run.model, one, one.mask_token_id)
    folder, _ = convert(one)
    run = prepare(one, catalog.find(one.base))
    train(run)  # takes up the finished run
    trained = hidden(run.model, one, one.mask_token_id)
    reloaded = hidden(read(folder), one, one.mask_token_id)
    for ours, theirs in zip(trained, reloaded, strict=True):
        torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-5)
    assert torch.equal(before[0], trained[0]) == (one.method != "tied")
    assert not torch.equal(before[1], trained[1])


def test_a_draft_head_learns_what_follows_and_leaves_the_denoiser_alone(base: Path, tmp_path: Path) -> None:
    first, _ = convert(recipe(base, tmp_path / "denoiser", "adapter"))
    settings = {"method": "draft_head", "adapter": first / "adapter", "steps": 60, "rows": 8, "micro_rows": 8}
    all_masked = CorruptionConfig(full=1, prefix=0, random=0)
    one = recipe(base, tmp_path / "head", "adapter", rank=32, corruption=all_masked, **settings)
    losses: list[float] = []
    folder, _ = convert(one, lambda figures: losses.append(figures["loss"]))
    # Told the token before, it must soon say the next of these few numbers better than the denoiser does.
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    for name in ("adapter_model.safetensors", "denoiser.safetensors"):
        ours, theirs = (load_file(f / "adapter" / name) for f in (folder, first))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    model = read(folder)
    assert model.draft_head is not None and model.draft_head.down.part_weight(0).shape == (32, 2 * 64)
    assert float(model.draft_head.up.part_weight(0).abs().max()) > 0
    # Gone on with, it starts where it stopped.
    again = recipe(base, tmp_path / "again", "adapter", **{**settings, "adapter": folder / "adapter"})
    taken_up = prepare(again, catalog.find(again.base)).model.draft_head
    assert taken_up is not None and torch.equal(
        taken_up.up.part_weight(0), model.draft_head.up.part_weight(0)
    )


def test_a_draft_head_needs_a_denoiser(base: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="needs one"):
        convert(recipe(base, tmp_path, "adapter", method="draft_head"))


@pytest.mark.slow
@pytest.mark.parametrize("way", [way for way in WAYS if way != "adapter"])
def test_it_is_learnt_by_heart_and_served(base: Path, tmp_path: Path, way: str) -> None:
    """Overfit: the engine repeats the training answers, several tokens in a pass."""
    one = recipe(
        base,
        tmp_path,
        way,
        steps=500 if way == "full" else 220,
        rows=8,
        micro_rows=8,
        rank=16,
        alpha=32.0,
        learning_rate=4e-3,
        warmup_steps=10,
        save_every=1000,
    )
    folder, _ = convert(one)
    llm = LLM(loaded=load_model(str(folder), EngineConfig(kv_tokens=512, threads=1)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(toy, "_NUMBERS", WORDS)
        examples = toy.rows()
    right, passes = 0, []
    for example in examples:
        prompt = llm.chat_prompt([{"role": "user", "content": example["prompt"]}])
        length = 4 if one.context == "block" or not one.shift else 3
        decoding = Decoding("threshold", threshold=0.9, block_length=length)
        room = one.data.length - len(prompt) if one.context == "full" else 40
        (answer,) = llm.generate([prompt], Sampling(max_tokens=room), decoding)
        right += answer.text == example["response"]
        passes.append(answer.usage.tokens_per_pass)
    assert right >= len(examples) - 1
    assert max(passes) > 1.3


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
def test_checkpoints_in_hugging_faces_layout_convert(tmp_path: Path, kind: str) -> None:
    import transformers

    toy._write_texts(tmp_path)
    vocab_size = json.loads((tmp_path / "config.json").read_text())["vocab_size"]
    sizes = {
        "vocab_size": vocab_size,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "tie_word_embeddings": kind != "llama",
        "eos_token_id": 0,
    }
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, **sizes)
    theirs = transformers.AutoModelForCausalLM.from_config(config).eval()
    theirs.save_pretrained(tmp_path)
    (tmp_path / "a.jsonl").write_text('{"prompt": "a", "response": "bcdefgh"}\n' * 4)
    data = DataConfig((DataSource(tmp_path / "a.jsonl"),), length=32, held_out=1)
    one = Recipe(
        str(tmp_path), tmp_path / "run", data=data, steps=2, rows=2, rank=2, mask_token_id=3, plot=False
    )
    folder, _ = convert(one)
    model = read(folder)
    ids = torch.randint(4, vocab_size, (1, 12), generator=torch.Generator().manual_seed(1))
    position = torch.arange(12)[None]
    with torch.no_grad():
        forward = Forward(model)
        clean, _ = forward.clean(
            ids, position, forward.seen(Layout(torch.zeros_like(ids), position, "causal"))
        )
        torch.testing.assert_close(
            model.logits(clean[0]), theirs(input_ids=ids).logits[0], rtol=1e-3, atol=1e-4
        )
    assert model.mask_embedding is not None


def test_a_whole_converted_model_is_tuned_with_its_denoiser(base: Path, tmp_path: Path) -> None:
    for way in ("adapter", "copy", "tied"):
        model, _ = convert(recipe(base, tmp_path / way, way))
        settings = finetune.with_defaults(
            {
                "base": str(model),
                "output": str(tmp_path / f"{way}-full"),
                "method": "full",
                "steps": 2,
                "rows": 2,
                "plot": False,
                "autocast": False,
                "objective": {"denoise": 0.3},
                "adapter_dtype": "float32",
                "data": {"sources": [{"path": str(base / "count.jsonl")}], "length": 96, "held_out": 1},
            }
        )
        one = build(Recipe, settings)
        folder, _ = finetune.tune(one)
        run = finetune.prepare(one, catalog.find(one.base))
        train(run)
        mask = run.adapter.traits.mask_token_id
        for ours, theirs in zip(hidden(run.model, one, mask), hidden(read(folder), one, mask), strict=True):
            torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-5)


def test_settings_that_contradict_each_other_are_refused(base: Path, tmp_path: Path) -> None:
    for said, changes in {
        "leaves the base frozen": {"context": "block"},
        "next_token 0": {"objective": ObjectiveConfig(next_token=1.0)},
        "set teacher": {"method": "tied", "context": "block"},
        "no row is an autoregressive": {
            "method": "tied",
            "context": "full",
            "objective": ObjectiveConfig(next_token=1.0, teacher=0.0),
        },
        "nothing would be learnt": {"method": "tied", "objective": ObjectiveConfig(denoise=0.0)},
        "needs it above 0": {
            "method": "tied",
            "objective": ObjectiveConfig(denoise=0.0, next_token=1.0, teacher=0.0),
        },
    }.items():
        with pytest.raises(ConfigError, match=said):
            recipe(base, tmp_path, "adapter", **changes)
    one = recipe(base, tmp_path, "adapter", method="lora")
    with pytest.raises(ConfigError, match="vermilion train"):
        convert(one)


def test_a_copy_with_missing_or_unknown_parts_is_refused(base: Path, tmp_path: Path) -> None:
    folder, _ = convert(recipe(base, tmp_path, "copy"))
    facts = json.loads((folder / "adapter" / "denoiser.json").read_text())
    assert facts["weights"] == "copy"
    path = folder / "adapter" / "model.safetensors"
    tensors = load_file(path)
    save_file(dict(list(tensors.items())[1:]), path)
    with pytest.raises(ModelFileError, match="1 missing"):
        build_model(catalog.find(str(folder)))
    (folder / "adapter" / "denoiser.json").write_text(json.dumps(facts | {"weights": "ghost"}))
    with pytest.raises(ModelFileError, match="'ghost'"):
        build_model(catalog.find(str(folder)))


RECIPES = Path(__file__).resolve().parents[2] / "recipes"


@pytest.mark.parametrize("name", ["toy", "copy", "tied"])
def test_a_recipes_method_is_what_its_name_says(name: str) -> None:
    file = RECIPES / ("toy.toml" if name == "toy" else f"smollm2-135m-{name}.toml")
    assert load(Recipe, file).method == ("adapter" if name == "toy" else name)
