"""I-DLM is Qwen3 whose masks see causally: its clean rows are transformers' model, drafts lose nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests import tiny
from tests.goldens import all_logits
from tests.models.test_transformer import IDS, hugging_face
from vermilion.config import EngineConfig
from vermilion.decoding.passes import Pass, Segment
from vermilion.engine.loading import assemble
from vermilion.engine.worker import Worker
from vermilion.models.build import build
from vermilion.models.catalog import ModelFiles
from vermilion.types import Request, Sampling

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")
Record = Callable[[str, object], None]
LENGTH, MASK = 24, 60


def test_its_rows_and_its_text_are_those_of_transformers(tmp_path: Path, record_property: Record) -> None:
    """Masks behind a text are causal rows like any other; lossless text is the greedy text."""
    theirs = hugging_face("qwen3")
    theirs.config.mask_token_id = MASK
    folder = tmp_path / "I-DLM-tiny"
    theirs.save_pretrained(folder)
    built = build(ModelFiles("folder", folder.name, folder, None))
    assert (built.spec.family.name, built.spec.traits.mask_token_id) == ("i-dlm", MASK)
    end, text = len(IDS), list(IDS)
    with torch.inference_mode():
        wanted = theirs(torch.tensor([[*IDS, MASK, MASK, MASK]])).logits[0]
        for _ in range(LENGTH):
            behind = theirs(torch.tensor([text])).logits[0, -1]
            behind[MASK] = -torch.inf
            text.append(int(behind.argmax()))
    clean = Segment(tuple(IDS), 0, 0, sees=0, span=1)
    masks = Segment((MASK,) * 3, end, end, sees=end, span=1, noisy=True)
    ours = all_logits(Worker(built.model, 8, 8, MASK), Pass((clean, masks)))
    error = float((ours - wanted).abs().max())
    assert error < 1e-5
    engine = assemble(built.model, built.spec, tiny.Letters(), EngineConfig(kv_tokens=512))  # type: ignore[arg-type]
    for preset in ("ar", "lossless"):
        sampling = Sampling(max_tokens=LENGTH, ignore_eos=True, stop_repetition=False)
        program = engine.submit(Request(preset, tuple(IDS), sampling, built.spec.presets[preset]))
        while engine.has_work:
            engine.step()
        assert program.tokens == text
    record_property("family", "i-dlm")
    record_property("parity_error", error)
    record_property("trajectory", "strided self-speculation, lossless")
    record_property("reference", f"transformers {transformers.__version__} (Qwen3, greedy)")
