"""Several adapters on one base in one batch: each request gets the text that merged weights would give it."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests import peft, tiny
from tests.engine.test_matches_reference import outcome, prompt
from vermilion.decoding.reference import Reference, infill
from vermilion.engine.engine import Engine
from vermilion.engine.llm import LLM
from vermilion.engine.loading import Loaded, read_adapter
from vermilion.engine.service import Service
from vermilion.engine.worker import Worker
from vermilion.errors import ModelFileError, ModelNotFound
from vermilion.models import adapters
from vermilion.models.adapters import DENOISER
from vermilion.models.transformer import Transformer
from vermilion.types import Decoding, Finish, Request, Sampling, Usage

SHAPES = {"whole": (3, peft.ALL), "narrow": (1, ("k_proj", "up_proj")), "wide": (8, ("q_proj", "o_proj"))}
"""Rank and projections of each adapter."""
DECODINGS = [
    Decoding("ar"),
    Decoding("lossless", block_length=4, draft_nodes=8),
    Decoding("lossless", block_length=6, draft_nodes=5, branches=2),
    Decoding("threshold", threshold=0.3, block_length=8),
]
CASES = [("causal-shift", decoding) for decoding in DECODINGS] + [
    (kind, DECODINGS[3]) for kind in tiny.TRAITS if kind != "causal-shift"
]


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    return {
        name: peft.write(tmp_path / name, tiny.ARCHITECTURE, rank, projections, seed=rank)
        for name, (rank, projections) in SHAPES.items()
    }


def add(engine: Engine, folders: dict[str, Path]) -> Engine:
    for name, folder in folders.items():
        engine.adapters.add(name, read_adapter(engine, folder))
    return engine


def merged(model: Transformer, folder: Path) -> Transformer:
    """`model` with an adapter's products added to its own weights, from the files alone."""
    stored = load_file(folder / "adapter_model.safetensors")
    with torch.no_grad():
        for linear, names in model.products():
            for part, name in enumerate(names):
                stem = f"base_model.model.{name}.lora_"
                if f"{stem}A.weight" in stored:
                    linear.part_weight(part).add_(2 * stored[f"{stem}B.weight"] @ stored[f"{stem}A.weight"])
    return model


def batch(decoding: Decoding) -> list[Request]:
    """Two requests for the base and for each adapter, in no order, some with the same prompt."""
    names = ["wide", "", "whole", "narrow", "", "wide", "narrow", "whole"]
    greedy = Sampling(max_tokens=19, ignore_eos=True)
    sampled = Sampling(max_tokens=13, temperature=0.8, seed=5)
    return [
        Request(f"{i}", prompt(20, i // 4), sampled if i % 2 else greedy, decoding, adapter=name)
        for i, name in enumerate(names)
    ]


@pytest.mark.parametrize(("kind", "decoding"), CASES, ids=str)
def test_a_mixed_batch_gives_each_request_its_own_adapters_text(
    kind: str, decoding: Decoding, folders: dict[str, Path]
) -> None:
    requests = batch(decoding)
    models = {"": tiny.model(kind)}
    models |= {name: merged(tiny.model(kind), folder) for name, folder in folders.items()}
    expected = [
        Reference(models[r.adapter], tiny.TRAITS[kind]).generate(r.prompt, r.sampling, r.decoding)
        for r in requests
    ]
    assert len({result.tokens for result in expected}) == len(expected)

    alone = [outcome(add(tiny.engine(kind, tiny.model(kind)), folders), [request])[0] for request in requests]
    assert alone == expected
    crowded = add(tiny.engine(kind, tiny.model(kind), prefill_chunk=8, max_rows=40), folders)
    assert outcome(crowded, requests) == expected
    # Again: this time the prompts are in the prefix cache, once per adapter.
    assert outcome(crowded, requests) == expected


def test_the_reference_says_the_same_of_an_adapter_as_of_merged_weights(folders: dict[str, Path]) -> None:
    model, traits = tiny.model("causal-shift"), tiny.TRAITS["causal-shift"]
    for name, folder in folders.items():
        adapters.attach(model, name, adapters.read(folder, model))
    for request in batch(DECODINGS[1]):
        folder = folders.get(request.adapter)
        other = merged(tiny.model("causal-shift"), folder) if folder else tiny.model("causal-shift")
        asked = (request.prompt, request.sampling, request.decoding)
        expected = Reference(other, traits).generate(*asked)
        assert Reference(model, traits).generate(*asked, request.adapter) == expected
        gap = replace(request, suffix=prompt(9, 50))
        assert infill(model, traits, gap) == infill(other, traits, replace(gap, adapter=""))


def test_short_memory_changes_nothing(folders: dict[str, Path]) -> None:
    requests = [
        replace(r, sampling=replace(r.sampling, max_tokens=60, ignore_eos=True)) for r in batch(DECODINGS[1])
    ]
    roomy = add(tiny.engine("causal-shift", tiny.model("causal-shift")), folders)
    expected = outcome(roomy, requests)
    tight = add(tiny.engine("causal-shift", tiny.model("causal-shift"), kv_tokens=216, max_rows=64), folders)
    assert [result.tokens for result in outcome(tight, requests)] == [result.tokens for result in expected]
    assert tight.scheduler.preemptions > 0


def test_an_adapter_loaded_under_an_old_name_shares_no_stored_keys(folders: dict[str, Path]) -> None:
    engine = tiny.engine("causal-shift", tiny.model("causal-shift"))
    request = replace(batch(DECODINGS[0])[0], adapter="mine")
    texts = {}
    for name, folder in folders.items():
        engine.adapters.add("mine", read_adapter(engine, folder))
        texts[name] = outcome(engine, [request])[0].tokens
        fresh = add(tiny.engine("causal-shift", tiny.model("causal-shift")), {"mine": folder})
        assert texts[name] == outcome(fresh, [request])[0].tokens
    assert len(set(texts.values())) == len(texts)
    assert engine.scheduler.prefix_hit_tokens == 0
    outcome(engine, [request])
    assert engine.scheduler.prefix_hit_tokens > 0


def test_organisations_share_no_stored_keys_and_learn_what_a_prompt_has_cost() -> None:
    engine = tiny.engine("causal-shift", tiny.model("causal-shift"))
    cached = []
    for number, salt in enumerate(("", "acme", "other", "acme", "")):
        request = Request(f"{number}", prompt(40, 0), Sampling(max_tokens=4), cache_salt=salt)
        engine.submit(request)
        assert engine.prefilled(request.id) == Usage()
        events = engine.step()
        assert engine.prefilled(request.id).prompt_tokens == 40
        while not (found := [event for _, event in events if isinstance(event, Finish)]):
            events = engine.step()
        cached.append(found[0].usage.cached_tokens > 0)
    assert cached == [False, False, False, True, True]


def test_what_runs_on_an_unloaded_adapter_goes_on_to_its_end(folders: dict[str, Path]) -> None:
    engine = add(tiny.engine("causal-shift", tiny.model("causal-shift")), folders)
    request = replace(batch(DECODINGS[0])[0], adapter="whole")
    expected = outcome(engine, [request])[0].tokens
    program = engine.submit(request)
    engine.step()
    engine.adapters.remove("whole")
    with pytest.raises(ModelNotFound, match=r"'whole' not found\. Known models: narrow, wide"):
        engine.submit(replace(request, id="late"))
    assert isinstance(engine.worker, Worker)
    held = next(engine.worker.model.products())[0].adapters
    assert held.keys() == {DENOISER, "#1", "#2", "#3"}
    while engine.has_work:
        engine.step()
    assert tuple(program.tokens[len(request.prompt) :]) == expected
    assert held.keys() == {DENOISER, *(f"#{1 + [*folders].index(name)}" for name in ("narrow", "wide"))}


def test_the_python_api_names_an_adapter(folders: dict[str, Path]) -> None:
    def llm(**settings: object) -> LLM:
        engine = tiny.engine("causal-shift", tiny.model("causal-shift"))
        return LLM(loaded=Loaded(engine, engine.tokenizer, None), **settings)  # type: ignore[arg-type]

    several = llm(adapters=folders)
    wanted = Sampling(max_tokens=12, ignore_eos=True)
    texts = {name: several.using(name).generate("Dear reader", wanted)[0].text for name in ("", *folders)}
    assert len(set(texts.values())) == 4
    assert (
        llm(adapters={"x": folders["wide"]}).using("x").generate("Dear reader", wanted)[0].text
        == texts["wide"]
    )
    open_stream = several.using("wide").stream("Dear reader", wanted)
    events = [next(open_stream)]
    several.unload_adapter("wide")
    events += open_stream
    assert isinstance(events[-1], Finish) and events[-1].usage.completion_tokens == 12
    with pytest.raises(ModelNotFound):
        several.using("wide")


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_service_loads_and_unloads_while_others_are_answered(folders: dict[str, Path]) -> None:
    engine = tiny.engine("causal-shift", tiny.model("causal-shift"))
    service = Service(engine, max_waiting=4)
    steps = threading.Semaphore(0)
    run = engine.worker.run

    def held(jobs: object) -> object:
        assert steps.acquire(timeout=20)
        return run(jobs)  # type: ignore[arg-type]

    engine.worker.run = held  # type: ignore[assignment,method-assign]
    try:
        longest = Request("long", (5, 9, 33), Sampling(max_tokens=200, ignore_eos=True), Decoding("ar"))
        answer = service.generate(longest)
        steps.release(2)
        await anext(answer)
        steps.release(400)
        await service.load_adapter("whole", folders["whole"])
        assert service.model.adapters == ("whole",)
        asked = Request("b", prompt(9, 1), Sampling(max_tokens=9), Decoding("ar"), adapter="whole")
        finish = [event async for event in service.generate(asked)][-1]
        assert isinstance(finish, Finish) and finish.reason in ("stop", "length")
        await service.unload_adapter("whole")
        with pytest.raises(ModelNotFound):
            await service.unload_adapter("whole")
        with pytest.raises(ModelNotFound):
            await anext(service.generate(replace(asked, id="c")))
        steps.release(400)
        rest = [event async for event in answer]
        assert isinstance(rest[-1], Finish) and rest[-1].usage.completion_tokens == 200
    finally:
        steps.release(10_000)
        service.close()


def test_an_adapter_that_does_not_fit_is_refused_by_its_tensor(tmp_path: Path) -> None:
    model = tiny.model("causal-shift")
    other = replace(tiny.ARCHITECTURE, ffn_size=64)
    with pytest.raises(
        ModelFileError, match=r"layers.0.mlp.down_proj.lora_A.* \[2, 64\], expected \[2, 48\]"
    ):
        adapters.read(peft.write(tmp_path / "a", other, 2, ("down_proj",)), model)
    deeper = replace(tiny.ARCHITECTURE, num_layers=3)
    with pytest.raises(ModelFileError, match=r"layers.2.self_attn.q_proj.* fits no projection"):
        adapters.read(peft.write(tmp_path / "b", deeper, 2, ("q_proj",)), model)
    folder = peft.write(tmp_path / "c", tiny.ARCHITECTURE, 2, ("v_proj",))
    tensors = load_file(folder / "adapter_model.safetensors")
    tensors.pop("base_model.model.model.layers.1.self_attn.v_proj.lora_B.weight")
    save_file(tensors, folder / "adapter_model.safetensors")
    with pytest.raises(ModelFileError, match=r"no full lora_A and lora_B pair for .*layers.1.self_attn.v"):
        adapters.read(folder, model)
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "IA3"}))
    with pytest.raises(ModelFileError, match="only a plain LoRA"):
        adapters.read(folder, model)
