"""Gaps: nothing of the text is lost, the middle alone is trained on, a seed decides where it lies."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from vermilion.data.corpus import Corpus, Document
from vermilion.data.fim import GapForm, gap, rearranged
from vermilion.data.packing import DataConfig, Dataset, DataSource, DataState, next_batch
from vermilion.errors import ConfigError
from vermilion.models import catalog
from vermilion.training import toy

MARKS = (11, 12, 13, 14)
BREAK = 20
TEXT = [30, 31, BREAK, 32, 33, 34, BREAK, 35, 36]


def parts(document: Document) -> tuple[list[int], list[int], list[int]]:
    """Prefix, suffix, middle."""
    ids = list(document.ids)
    assert ids[:2] == [11, 12] and ids[-1] == 14
    prefix = ids.index(13)
    return ids[prefix + 1 : document.num_prompt], ids[2:prefix], ids[document.num_prompt : -1]


def test_prefix_middle_and_suffix_are_the_text_and_only_the_middle_is_trained_on() -> None:
    for seed in range(200):
        document = rearranged(TEXT, MARKS, {BREAK}, np.random.default_rng(seed))
        prefix, suffix, middle = parts(document)
        assert [*prefix, *middle, *suffix] == TEXT and middle


def test_half_of_the_gaps_begin_and_end_at_lines_and_all_cuts_are_reached() -> None:
    gaps = []
    for seed in range(2000):
        prefix, _, middle = parts(rearranged(TEXT, MARKS, {BREAK}, np.random.default_rng(seed)))
        gaps.append((len(prefix), len(prefix) + len(middle)))
    lines = {0, 3, 7, 9}
    share = np.mean([first in lines and last in lines for first, last in gaps])
    by_chance = 6 / 45  # pairs of line ends among pairs of the ten cuts
    assert share == pytest.approx(0.5 + 0.5 * by_chance, abs=0.04)
    assert {first for first, _ in gaps} == set(range(9)) and {last for _, last in gaps} == set(range(1, 10))


def test_a_text_of_one_line_still_gets_a_gap() -> None:
    for seed in range(20):
        assert parts(rearranged([1, 2], MARKS, set(), np.random.default_rng(seed)))[2]


def dataset(fim: float) -> Dataset:
    config = DataConfig((DataSource(Path("0")),), 16, 0, seed=3, fim=fim, fim_token_ids=MARKS if fim else ())
    texts = [Document([50 + i] * 9) for i in range(6)] + [Document([60, 61, 62], 2), Document([70] * 40)]
    return Dataset(config, (Corpus.of(texts),), line_breaks=frozenset({BREAK}))


def test_rows_hold_the_share_of_gaps_and_the_same_state_gives_the_same_rows() -> None:
    data, state = dataset(0.5), DataState()
    batch, middle = next_batch(data, 40, state)
    again, _ = next_batch(data, 40, state)
    assert torch.equal(batch.ids_BL, again.ids_BL)
    starts = (batch.position_BL == 0) & (batch.document_BL >= 0)
    gaps = (batch.ids_BL == 11) & starts
    assert 0.2 < float(gaps.sum()) / float(starts.sum()) < 0.6
    assert not ((batch.ids_BL == 11) & ~starts).any()
    answered = batch.ids_BL[(batch.ids_BL == 62)]
    assert len(answered) > 0, "an answer stays as it is"
    given = torch.isin(batch.ids_BL, torch.tensor([11, 12, 13]))
    assert not batch.weight_BL[given].any() and batch.weight_BL[batch.ids_BL == 14].all()
    assert middle.rows == 40


def test_without_a_share_nothing_changes_and_bad_marks_are_refused() -> None:
    assert not (next_batch(dataset(0.0), 20, DataState())[0].ids_BL == 11).any()
    with pytest.raises(ConfigError, match="four different"):
        DataConfig(fim=0.1, fim_token_ids=(1, 2, 3, 3))


def test_gaps_of_a_text_lie_where_cursors_stand_and_fit_their_row(tmp_path: Path) -> None:
    toy._write_texts(tmp_path)
    (tmp_path / "model.safetensors").touch()
    tokenizer = catalog.tokenizer_of(catalog.find(str(tmp_path)))
    text = "".join(f"{'    ' * (n % 3)}name{n} = call({n}, other)\n" for n in range(60))
    kinds = set()
    for seed in range(300):
        row = gap(text, tokenizer, GapForm(MARKS, 300), random.Random(seed))
        if row is None:
            continue
        assert len(row.ids) <= 300
        prefix, suffix, middle = (tokenizer.decode(part) for part in parts(row))
        assert prefix + middle + suffix in text and middle.strip()
        kinds.add(
            (middle.startswith("\n"), middle.endswith("\n"), prefix.endswith("    "), "\n" in middle[1:-1])
        )
    assert {kind[0] for kind in kinds} == {True, False} and len(kinds) >= 6


def test_gaps_on_open_lines_are_whole_lines_in_the_tokens_of_the_text() -> None:
    tokenizer = catalog.tokenizer_of(catalog.find("smollm2-135m-diffusion"))
    text = "".join(f"{'    ' * (n % 3)}name{n} = call({n}, other)\n" for n in range(60))
    whole, breaks = set(text.splitlines()), 0
    for seed in range(60):
        row = gap(text, tokenizer, GapForm(MARKS, 200, open_lines=1.0), random.Random(seed))
        if row is None:
            continue  # nothing is behind the last line
        prefix, suffix, middle = parts(row)
        last = tokenizer.decode(prefix).rpartition("\n")[2]
        lines = (last + tokenizer.decode(middle)).splitlines()
        assert not last.strip() and set(lines) <= whole and tokenizer.decode(suffix)[0] == "\n"
        assert [*prefix, *middle] == tokenizer.encode(tokenizer.decode([*prefix, *middle]))
        breaks += len(lines) > 1
    assert 5 < breaks < 25, "a quarter goes over lines"


def test_a_text_without_words_or_without_an_end_has_no_gap(tmp_path: Path) -> None:
    toy._write_texts(tmp_path)
    (tmp_path / "model.safetensors").touch()
    tokenizer = catalog.tokenizer_of(catalog.find(str(tmp_path)))
    form = GapForm(MARKS, 96)
    assert gap("\n  \n\n", tokenizer, form, random.Random(0)) is None
    text, found = "one line", 0
    for seed in range(60):
        if row := gap(text, tokenizer, form, random.Random(seed)):
            found += 1
            assert parts(row)[1], "a gap lies before something"
    assert found
