"""A model that two processes share gives the tokens that one process gives, and ends cleanly."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests import tiny
from tests.engine.drafted import randomize
from vermilion.config import EngineConfig
from vermilion.decoding.presets import resolve
from vermilion.engine.engine import Engine
from vermilion.engine.loading import load_model
from vermilion.engine.shared_worker import SharedWorker
from vermilion.errors import ConfigError
from vermilion.models.build import expected_shapes
from vermilion.models.catalog import ModelFiles
from vermilion.models.configuration import spec_of
from vermilion.models.drafter import Drafter, DrafterShape, write
from vermilion.training import toy
from vermilion.types import Event, Finish, Request, Sampling, Text

MOE = {
    "model_type": "sdar_moe",
    "block_size": 8,
    "mask_token_id": 3,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "head_dim": 16,
}


def checkpoint(folder: Path, **changes: Any) -> Path:
    """Random weights, sharp enough that answers are not noise."""
    folder.mkdir(parents=True)
    toy._write_texts(folder)
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    spec = spec_of(ModelFiles("folder", "m", folder, None))
    generator = torch.Generator().manual_seed(5)
    shapes = expected_shapes(spec.architecture, spec.family.names)
    tensors = {
        name: torch.ones(shape) if "norm" in name else torch.randn(shape, generator=generator) * 0.3
        for name, shape in shapes.items()
    }
    save_file(tensors, folder / "model.safetensors")
    return folder


def drafted(folder: Path) -> Path:
    """An autoregressive base with a denoiser and a drafter."""
    checkpoint(folder, num_hidden_layers=4)
    architecture = spec_of(ModelFiles("folder", "m", folder, None)).architecture
    shape = DrafterShape.of(architecture, 2, 4, 6)
    drafter = Drafter(architecture, shape, torch.arange(0, architecture.vocab_size, 2))
    randomize(drafter, torch.Generator().manual_seed(6))
    write(folder / "adapter", drafter, torch.float32, {})
    return folder


def engine(folder: Path, processes: int) -> Engine:
    config = EngineConfig(
        tensor_parallel=processes, backend="torch", device="cpu", dtype="float64", threads=2, kv_tokens=1024
    )
    return load_model(str(folder), config).engine


def requests(one: Engine, num: int = 3) -> list[Request]:
    samplings = [Sampling(max_tokens=12), Sampling(max_tokens=20, temperature=0.9, seed=7)]
    return [
        Request(
            f"{preset}-{i}", tuple((5 * i + 7 * j) % 90 + 4 for j in range(6 + 9 * i)), samplings[i % 2],
            resolve(one.model, preset),
        )
        for preset in one.model.presets for i in range(num)
    ]  # fmt: skip


def texts(events: dict[str, list[Event]]) -> dict[str, str]:
    return {name: "".join(e.text for e in got if isinstance(e, Text)) for name, got in events.items()}


@pytest.mark.parametrize("kind", ["autoregressive, with a drafter", "blocks of experts"])
def test_two_processes_give_the_tokens_of_one(kind: str, tmp_path: Path) -> None:
    folder = drafted(tmp_path / "m") if "drafter" in kind else checkpoint(tmp_path / "m", **MOE)
    alone, two = engine(folder, 1), engine(folder, 2)
    assert isinstance(two.worker, SharedWorker)
    wanted = tiny.run(alone, requests(alone))
    found = tiny.run(two, requests(two))
    assert texts(found) == texts(wanted) and len(set(texts(wanted).values())) > 2
    if "drafter" in kind:
        assert two._drafted["drafter"] > 0
    else:  # what is drafted depends on what was measured, and with it the number of passes
        assert all(found[name][-1] == got[-1] for name, got in wanted.items())
    _close(two)


def _close(one: Engine) -> None:
    assert isinstance(one.worker, SharedWorker)
    processes = one.worker._followers._processes
    one.worker._followers.close()
    assert [process.returncode for process in processes] == [0]


def test_a_process_that_dies_ends_requests_with_the_reason_and_nothing_waits(tmp_path: Path) -> None:
    two = engine(checkpoint(tmp_path / "m"), 2)
    assert isinstance(two.worker, SharedWorker)
    for request in requests(two):
        two.submit(request)
    two.step()
    began = time.monotonic()
    two.worker._followers._processes[0].send_signal(signal.SIGKILL)
    events = [event for _ in range(50) if two.has_work for event in two.step()]
    finishes = [event for _, event in events if isinstance(event, Finish)]
    assert len(finishes) == len(requests(two)) and not two.has_work
    assert all("rank 1 ended with status -9" in each.message for each in finishes if each.reason == "error")
    assert any(each.reason == "error" for each in finishes)
    # What comes later is told so at once.
    two.submit(requests(two)[0])
    [(_, event)] = two.step()
    assert isinstance(event, Finish) and "must be loaded again" in event.message
    assert time.monotonic() - began < 20


def test_what_cannot_be_shared_is_refused_before_a_process_starts(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "m")
    with pytest.raises(ConfigError, match=r"3 processes cannot share.*Allowed: 1, 2\."):
        engine(folder, 3)
    with pytest.raises(ConfigError, match=r"native backend cannot run .* engine.tensor_parallel asks for 2"):
        load_model(str(folder), EngineConfig(backend="native", tensor_parallel=2, device="cpu"))
