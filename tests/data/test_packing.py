"""Documents on disk and the rows packed from them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from vermilion.data.corpus import Corpus, Document, write_corpus
from vermilion.data.examples import read_answers
from vermilion.data.packing import (
    DataConfig,
    Dataset,
    DataSource,
    DataState,
    fitting_length,
    held_out,
    next_batch,
)
from vermilion.errors import ConfigError
from vermilion.models import catalog
from vermilion.training import toy

EOS = 1


def documents(count: int, num_prompt: int = 0, seed: int = 0) -> list[Document]:
    generator = np.random.default_rng(seed)
    return [
        Document([*generator.integers(2, 90, generator.integers(4, 30)).tolist(), EOS], num_prompt)
        for _ in range(count)
    ]


def dataset(*corpora: list[Document], length: int = 32, held: int = 2, fill: int = 3) -> Dataset:
    sources = tuple(DataSource(Path(f"{i}"), share=1.0 + i) for i in range(len(corpora)))
    config = DataConfig(sources, length, held, seed=4)
    return Dataset(config, tuple(Corpus.of(each) for each in corpora), (), (EOS,), fill)


@pytest.mark.parametrize(("vocab_size", "dtype"), [(97, "uint16"), (1 << 17, "uint32")])
def test_a_corpus_reads_back_as_written(
    tmp_path: Path, vocab_size: int, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vermilion.data.corpus._SHARD_TOKENS", 50)
    given = [*documents(9, num_prompt=2), Document([vocab_size - 1])]
    write_corpus(tmp_path, given, vocab_size)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["dtype"] == dtype and len(manifest["shards"]) > 1
    corpus = Corpus.open(tmp_path)
    assert [corpus[i] for i in range(len(corpus))] == given
    assert corpus.largest_id() == vocab_size - 1


def test_a_damaged_corpus_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no corpus"):
        Corpus.open(tmp_path)
    write_corpus(tmp_path, documents(3), 97)
    with (tmp_path / "00000.tokens").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(ConfigError, match=r"00000\.tokens: \d+ bytes; manifest.json says"):
        Corpus.open(tmp_path)


def test_going_on_from_a_state_equals_reading_on() -> None:
    data, state, seen = dataset(documents(7), documents(5, 3, seed=1)), DataState(), []
    for _ in range(12):
        batch, state = next_batch(data, 3, state)
        seen.append((batch, state))
    middle = DataState(seen[4][1].rows, tuple(tuple(json.loads(json.dumps(c))) for c in seen[4][1].cursors))
    for batch, after in seen[5:]:
        again, middle = next_batch(data, 3, middle)
        assert torch.equal(again.ids_BL, batch.ids_BL) and torch.equal(again.weight_BL, batch.weight_BL)
        assert middle == after


def test_an_epoch_holds_every_text_once_and_no_held_out_one() -> None:
    texts = documents(8)
    data, state, tokens = dataset(texts, fill=0), DataState(), 0
    pieces = []
    while state.cursors == () or state.cursors[0][0] == 0:
        batch, state = next_batch(data, 1, state)
        used = batch.document_BL[0] >= 0
        pieces.extend(batch.ids_BL[0, used].tolist())
        tokens += int(used.sum())
    expected = sorted(token for text in texts[2:] for token in text.ids)
    first_epoch = sum(len(text.ids) for text in texts[2:])
    assert sorted(pieces[:first_epoch]) == expected


def test_rows_say_where_documents_positions_and_fill_are() -> None:
    batch, _ = next_batch(dataset(documents(9, num_prompt=2)), 6, DataState())
    for ids, document, position, weight, fill in zip(
        batch.ids_BL, batch.document_BL, batch.position_BL, batch.weight_BL, batch.fill_BL, strict=True
    ):
        for number in set(document.tolist()) - {-1}:
            at = (document == number).nonzero()[:, 0]
            assert position[at].tolist() == list(range(len(at)))
            assert weight[at].tolist() == [0, 0] + [1] * (len(at) - 2)
            real = ids[at][~fill[at]].tolist()
            assert real[-1] == EOS and EOS not in real[:-1]
            assert int(fill[at].sum()) <= 3 and (ids[at][fill[at]] == EOS).all()
        padding = document == -1
        assert not weight[padding].any() and not fill[padding].any()


def test_long_texts_are_cut_and_go_on_while_answers_stay_with_their_prompts() -> None:
    long = Document(list(range(2, 82)))
    batch, state = next_batch(dataset([long] * 3, held=0, fill=0), 2, DataState())
    assert batch.ids_BL.flatten().tolist() == list(range(2, 66))
    assert state.cursors[0][2] == 64
    answers = [Document(list(range(2, 22)), 5)] * 3
    batch, _ = next_batch(dataset(answers, held=0, fill=0), 2, DataState())
    assert (batch.ids_BL[:, :20] == torch.arange(2, 22)).all()
    assert (batch.document_BL[:, 20:] == -1).all()


def test_what_is_held_out_is_packed_and_never_trained_on() -> None:
    texts = documents(6)
    batch = held_out(dataset(texts, fill=0))
    assert batch is not None
    kept = [token for row in range(len(batch.ids_BL)) for token in batch.ids_BL[row].tolist()]
    document = batch.document_BL.flatten().tolist()
    shown = [token for token, number in zip(kept, document, strict=True) if number >= 0]
    assert shown == [token for text in texts[:2] for token in text.ids]
    assert batch.ids_BL.shape[1] <= 32 and int((batch.document_BL >= 0).sum(1).max()) == batch.ids_BL.shape[1]
    assert held_out(dataset(texts, held=0)) is None


def test_validation_sources_take_the_place_of_held_out_examples() -> None:
    texts, others = documents(30), documents(3, seed=9)
    config = DataConfig((DataSource(Path("0")),), 32, held_out=-1)
    alone = Dataset(config, (Corpus.of(texts),))
    assert alone.num_held_out(alone.corpora[0]) == 3
    given = Dataset(config, (Corpus.of(texts),), (Corpus.of(others),))
    assert given.num_held_out(given.corpora[0]) == 0
    batch = held_out(given)
    assert batch is not None
    assert int((batch.document_BL >= 0).sum()) == sum(len(text.ids) for text in others)


def test_an_epoch_is_as_many_rows_as_reading_everything_once_takes() -> None:
    data, state, rows = dataset(documents(9, num_prompt=2)), DataState(), 0
    while state.cursors == () or state.cursors[0][0] == 0:
        _, state = next_batch(data, 1, state)
        rows += 1
    assert data.rows_of_an_epoch() == rows


def test_rows_fit_the_longest_document_within_bounds() -> None:
    corpora = [Corpus.of([Document([2] * size)]) for size in (10, 300, 5000)]
    assert [fitting_length([one], 7) for one in corpora] == [256, 320, 1024]


def test_shares_decide_how_often_a_source_is_read() -> None:
    data, state = dataset(documents(9), [Document([95] * 40)] * 9, held=0), DataState()
    batch, _ = next_batch(data, 300, state)
    share = float((batch.ids_BL[:, 0] == 95).float().mean())
    assert abs(share - 2 / 3) < 0.08


def test_nothing_to_train_on_is_refused() -> None:
    with pytest.raises(ConfigError, match="nothing is left"):
        dataset(documents(2))
    with pytest.raises(ConfigError, match="at least one"):
        Dataset(DataConfig(), ())


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> catalog.ModelFiles:
    folder = tmp_path_factory.mktemp("texts")
    toy._write_texts(folder)
    return catalog.ModelFiles("folder", "toy", folder, None)


def test_answers_go_through_the_chat_template_with_the_prompt_given(
    tmp_path: Path, base: catalog.ModelFiles
) -> None:
    tokenizer, template = catalog.tokenizer_of(base), catalog.chat_template_of(base)
    turns = [("user", "hi"), ("assistant", "yo"), ("user", "bye <|end|>"), ("assistant", "ciao")]
    messages = [{"role": role, "content": content} for role, content in turns]
    lines = [{"prompt": "hi", "response": "yo"}, {"messages": messages}]
    file = tmp_path / "answers.jsonl"
    file.write_text("\n".join(json.dumps(line) for line in lines) + "\n\n")
    first, second = read_answers(file, tokenizer, template)
    shown = tokenizer.decode(first.ids, skip_special=False)
    assert shown == "<|start|>user<|turn|>hi<|end|><|start|>assistant<|turn|>yo<|end|>"
    assert tokenizer.decode(first.ids[first.num_prompt :], skip_special=False) == "yo<|end|>"
    assert tokenizer.decode(second.ids[second.num_prompt :], skip_special=False) == "ciao<|end|>"
    end = tokenizer.special_tokens["<|end|>"]
    assert list(second.ids).count(end) == 4, "an end written by a user is text, not a token"


def test_a_cut_answer_has_no_end_and_a_raw_text_no_template(tmp_path: Path, base: catalog.ModelFiles) -> None:
    tokenizer, template = catalog.tokenizer_of(base), catalog.chat_template_of(base)
    lines = [
        {"prefix": "def f(", "response": "x):", "finish_reason": "length"},
        {"prefix": "a\u2028b", "response": "c", "finish_reason": "stop"},
        {"prompt": "hi", "response": "y", "finish_reason": "length"},
    ]
    file = tmp_path / "answers.jsonl"
    file.write_text("\n".join(json.dumps(line, ensure_ascii=False) for line in lines))
    cut, ended, chat = read_answers(file, tokenizer, template)
    assert tokenizer.decode(cut.ids, skip_special=False) == "def f(x):"
    assert tokenizer.decode(cut.ids[cut.num_prompt :]) == "x):"
    assert tokenizer.decode(ended.ids, skip_special=False) == "a\u2028bc<|end|>"
    assert tokenizer.decode(chat.ids, skip_special=False).endswith("y")
