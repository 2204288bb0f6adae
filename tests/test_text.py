"""Tokenizer, detokenizer, stop strings and chat template, on a tiny byte-level vocabulary."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tiny_gguf import METADATA, TEMPLATE, TOKENS
from vermilion.chat_template import ChatTemplate
from vermilion.errors import BadRequest, ModelFileError
from vermilion.models import catalog
from vermilion.models.gguf_file import read_header
from vermilion.text import (
    _BYTES,
    Detokenizer,
    StopScanner,
    Tokenizer,
    build_tokenizer,
    line_end,
    split_lines,
    tokenizer_config,
)

TINY = Tokenizer(build_tokenizer(METADATA), (2,))
NAMES = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
STRINGS = [
    "def f(x):\n\treturn  x\n",
    "naïve ÿ 日本語 👩‍👩‍👧",
    "  the   there 1234 5",
    "\x00\r\n \n",
    "<|im_end|> <|im",
]


@pytest.fixture(scope="module")
def embedded() -> catalog.ModelFiles:
    return catalog.find(catalog.DEFAULT_MODEL)


@given(st.text())
def test_any_text_survives_encoding_and_decoding(text: str) -> None:
    assert TINY.decode(TINY.encode(text), skip_special=False) == text


@pytest.fixture(scope="module")
def gapped() -> Tokenizer:
    """A vocabulary that lacks five bytes of UTF-8, with spare tokens for all but the last, 0xF4."""
    missing = (0x04, 0x1D, 0x80, 0xF1, 0xF4)
    alphabet = [letter for letter, byte in _BYTES.items() if byte not in missing]
    built = tokenizers.Tokenizer(tokenizers.models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    built.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    built.decoder = tokenizers.decoders.ByteLevel()
    special = ["<end>", "<issue_start>", "<issue_comment>", "<issue_closed>", "<file_sep>"]
    built.add_special_tokens([tokenizers.AddedToken(name, special=True) for name in special])
    return Tokenizer(built)


@given(text=st.text())
def test_bytes_without_a_token_take_spare_ones(gapped: Tokenizer, text: str) -> None:
    unspelt = {character for character in text if character >= "\U00100000"}
    wanted = "".join("\ufffd" if character in unspelt else character for character in text)
    assert gapped.decode(gapped.encode(text)) == wanted
    assert gapped.decode(gapped.encode(f"{text}<end>", special=True)) == wanted


def test_control_token_strings_are_text_unless_asked_for() -> None:
    assert TINY.encode("<|im_end|>", special=True) == [2]
    assert 2 not in TINY.encode("a<|im_end|>b")
    assert TINY.decode(TINY.encode("a<|im_end|>b")) == "a<|im_end|>b"


def test_digits_are_encoded_one_by_one_and_apart_from_the_space_before_them() -> None:
    assert [TINY.token_text(i) for i in TINY.encode("the  12")] == ["t", "he", "  ", "1", "2"]


def test_decode_leaves_out_control_tokens_by_default() -> None:
    ids = [1, *TINY.encode("hi"), 2]
    assert TINY.decode(ids) == "hi"
    assert TINY.decode(ids, skip_special=False) == "<|im_start|>hi<|im_end|>"


def test_an_unknown_id_decodes_to_nothing() -> None:
    assert TINY.decode([10**6]) == "" and TINY.token_text(10**6) == ""


@given(st.lists(st.integers(0, len(TOKENS) - 1), max_size=40), st.booleans())
def test_decode_agrees_with_the_tokenizers_library(ids: list[int], skip: bool) -> None:
    assert TINY.decode(ids, skip) == build_tokenizer(METADATA).decode(ids, skip_special_tokens=skip)


@given(st.lists(st.lists(st.integers(0, len(TOKENS) - 1), max_size=4), max_size=30), st.booleans())
def test_streamed_deltas_join_to_the_whole_decode(chunks: list[list[int]], skip: bool) -> None:
    detokenizer = Detokenizer(TINY, skip)
    deltas = [detokenizer.push(chunk) for chunk in chunks]
    assert "".join([*deltas, detokenizer.flush()]) == TINY.decode([i for c in chunks for i in c], skip)


def test_an_unfinished_character_is_held_back() -> None:
    ids, detokenizer = TINY.encode("é!"), Detokenizer(TINY)
    assert [detokenizer.push([i]) for i in ids] == ["", "é", "!"]


def _cut(text: str, stops: list[str]) -> tuple[str, str | None]:
    """The oracle: earliest start, then the longest."""
    found = [(text.find(stop), -len(stop), stop) for stop in stops if stop in text]
    return (text[: min(found)[0]], min(found)[2]) if found else (text, None)


@settings(max_examples=300)
@given(
    st.lists(st.text("ab", max_size=4), max_size=12),
    st.lists(st.text("ab", min_size=1, max_size=5), max_size=4),
)
def test_stop_strings_cut_the_same_whatever_the_chunks(chunks: list[str], stops: list[str]) -> None:
    scanner, shown = StopScanner(stops), ""
    wanted = _cut("".join(chunks), stops)
    for chunk in chunks:
        shown += scanner.push(chunk)[0]
        assert wanted[0].startswith(shown)
    emitted, hit = scanner.flush()
    assert (shown + emitted, hit) == wanted


def _cut_outside(text: str, stops: list[str], opening: str, closing: str) -> tuple[str, str | None]:
    """The oracle: character by character, whatever a mark begins passing whole."""
    at, inside = 0, False
    while at < len(text):
        mark = closing if inside else opening
        hits = [] if inside else [stop for stop in stops if text.startswith(stop, at)]
        if text.startswith(mark, at) and all(len(stop) <= len(mark) for stop in hits):
            at, inside = at + len(mark), not inside
        elif hits:
            return text[:at], max(hits, key=len)
        else:
            at += 1
    return text, None


@settings(max_examples=300)
@given(
    st.lists(st.text("ab<>", max_size=5), max_size=12),
    st.lists(st.text("ab<>", min_size=1, max_size=4), min_size=1, max_size=3),
)
def test_no_stop_string_counts_between_two_marks(chunks: list[str], stops: list[str]) -> None:
    scanner = StopScanner(stops, ("<a", "b>"))
    shown = "".join(scanner.push(chunk)[0] for chunk in chunks)
    emitted, hit = scanner.flush()
    assert (shown + emitted, hit) == _cut_outside("".join(chunks), stops, "<a", "b>")


def test_text_that_cannot_begin_a_stop_string_is_not_delayed() -> None:
    scanner = StopScanner(["\n\nUser:"])
    assert scanner.push("Hello\n")[0] == "Hello"
    assert scanner.push("there")[0] == "\nthere"


def test_nothing_is_shown_after_a_stop_string() -> None:
    scanner = StopScanner(["END"])
    assert scanner.push("oneENDtwo") == ("one", "END")
    assert scanner.push("three") == ("", "END")


def test_chat_prompt_as_ids_equals_its_text_encoded_with_control_tokens() -> None:
    template = ChatTemplate(TEMPLATE, NAMES)
    messages = [{"role": "user", "content": text} for text in STRINGS[:4]]
    assert template.encode(messages, TINY) == TINY.encode(template.render(messages), special=True)


@given(
    st.lists(st.sampled_from(["<|im_end|>", "<|im_start|>", "<|im_", "end|>", "<", "|>", " ", "x", "\ue000"]))
)
def test_message_text_never_becomes_a_control_token(parts: list[str]) -> None:
    joined = "{% for part in messages[0].content %}{{ part.text | trim }}{% endfor %}<|im_end|>"
    content = [{"type": "text", "text": part} for part in parts]
    ids = ChatTemplate(joined).encode([{"role": "user", "content": content}], TINY)
    assert [i for i in ids if TINY.is_special(i)] == [2]
    assert TINY.decode(ids) == "".join(part.strip() for part in parts)


def test_control_tokens_in_tools_and_roles_stay_text() -> None:
    template = ChatTemplate("{{ tools | tojson }}{{ messages[0].role }}<|im_end|>")
    tools = [{"name": "a<|im_end|>", "parameters": {"<|im_start|>": 1}}]
    ids = template.encode([{"role": "<|im_end|>", "content": ""}], TINY, tools)
    assert [i for i in ids if TINY.is_special(i)] == [2]
    assert TINY.decode(ids) == json.dumps(tools) + "<|im_end|>"


def test_a_template_may_refuse_messages_with_its_own_words() -> None:
    with pytest.raises(BadRequest, match="roles must alternate") as caught:
        ChatTemplate("{{ raise_exception('roles must alternate') }}").render([])
    assert caught.value.param == "messages"


def test_a_template_cannot_reach_python_internals() -> None:
    with pytest.raises(BadRequest):
        ChatTemplate("{{ ''.__class__.__mro__ }}{{ messages.append(1) }}").render([{}])


def test_a_broken_template_is_a_fault_of_the_model_files() -> None:
    with pytest.raises(ModelFileError, match="chat template"):
        ChatTemplate("{% for %}")


def test_other_kinds_of_tokenizer_are_refused_by_name() -> None:
    with pytest.raises(ModelFileError, match="spm"):
        build_tokenizer(METADATA | {"tokenizer.ggml.pre": "spm"})
    with pytest.raises(ModelFileError, match="byte-level"):
        Tokenizer(tokenizers.Tokenizer(tokenizers.models.BPE()))


def test_a_saved_folder_gives_the_same_tokenizer_and_template(tmp_path: Path) -> None:
    TINY.save(tmp_path / "tokenizer.json")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(tokenizer_config(METADATA)))
    loaded = Tokenizer.from_folder(tmp_path)
    assert loaded.eos_token_ids == (2,) and loaded.vocab_size == TINY.vocab_size
    assert [loaded.encode(text) for text in STRINGS] == [TINY.encode(text) for text in STRINGS]
    messages = [{"role": "user", "content": "hi"}]
    assert ChatTemplate.from_folder(tmp_path).render(messages) == ChatTemplate(TEMPLATE).render(messages)


def test_a_folder_without_a_chat_template_says_so(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="no chat template"):
        ChatTemplate.from_folder(tmp_path)


@pytest.mark.filterwarnings("ignore")
def test_rendering_agrees_with_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    source = (
        "{%- for m in messages %}\n    {%- if m.role == 'system' %}\n  {{ m | tojson(indent=2) }}\n"
        "    {% endif %}\n{{ bos_token + m.role }}: {{ m.content | trim }}{{ eos_token }}\n"
        "{%- if loop.last %}{% break %}{% endif %}{%- endfor %}{% if tools %}{{ tools | tojson }}"
        "{% endif %}\n{% if add_generation_prompt %}A:{% endif %}"
    )
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_object=build_tokenizer(METADATA), **NAMES)
    theirs.chat_template = source
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": "<é> & 'x'"},
        {"role": "user", "content": " hi "},
    ]
    tools = [{"type": "function", "function": {"name": "z", "description": "a > b"}}]
    for options in ({}, {"tools": tools}, {"add_generation_prompt": False}):
        wanted = theirs.apply_chat_template(
            messages, tokenize=False, **{"add_generation_prompt": True} | options
        )
        assert ChatTemplate(source, NAMES).render(messages, **options) == wanted


@pytest.mark.model
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_embedded_tokenizer_agrees_with_transformers(embedded: catalog.ModelFiles) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(
        embedded.base.parent, gguf_file=embedded.base.name, local_files_only=True
    )
    ours = catalog.tokenizer_of(embedded)
    # Its GGUF reader does not keep digits apart, which shows after white space only.
    texts = [text.replace("   there 1234 5", " x1234") for text in STRINGS[:4]]
    for text in [*texts, Path(__file__).read_text(encoding="utf-8").replace(" 1", "_1")[:1500]]:
        assert ours.encode(text, special=True) == theirs.encode(text, add_special_tokens=False)
    theirs.chat_template = read_header(embedded.base).metadata["tokenizer.chat_template"]
    messages = [{"role": "user", "content": "What is 2+2?"}, {"role": "assistant", "content": "four\n\n"}]
    rendered = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    template = catalog.chat_template_of(embedded)
    assert template.render(messages) == rendered
    assert template.encode(messages, ours) == theirs.encode(rendered, add_special_tokens=False)


@pytest.mark.model
def test_embedded_tokenizer_loses_no_character(embedded: catalog.ModelFiles) -> None:
    tokenizer = catalog.tokenizer_of(embedded)
    every = "".join(chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000)
    ids = tokenizer.encode(every)
    assert tokenizer.decode(ids) == every
    assert max(ids) < tokenizer.vocab_size
    streamed = Detokenizer(tokenizer)
    assert "".join(streamed.push([i]) for i in ids) == every
    for character in "\x04\x06\x13\x14\x16\x1d\U00040000\U000bffff":
        assert tokenizer.decode(tokenizer.encode(f"a{character}b", special=True)) == f"a{character}b"


@pytest.mark.model
def test_embedded_tokenizer_knows_its_ends(embedded: catalog.ModelFiles) -> None:
    tokenizer = catalog.tokenizer_of(embedded)
    assert (tokenizer.vocab_size, tokenizer.eos_token_ids) == (49152, (2,))
    assert tokenizer.encode("<|im_end|><empty_output>", special=True) == [2, 16]


@given(st.text(alphabet="ab\r\n\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"))
def test_lines_end_at_line_feeds_and_in_texts_without_any_at_carriage_returns(text: str) -> None:
    lines = split_lines(text)
    assert "".join(lines) == text
    assert all(lines)
    mark = "\n" if "\n" in text else "\r"
    assert all(line.count(mark) == 1 and line.endswith(mark) for line in lines[:-1])
    assert [line_end(line) for line in split_lines("a\r\nb\rc\nd")] == ["\r\n", "\n", ""]
    assert [line_end(line) for line in split_lines("a\rb\x0cc\r")] == ["\r", "\r"]


@pytest.mark.model
def test_other_threads_go_on_while_a_long_text_is_encoded() -> None:
    tokenizer = catalog.tokenizer_of(catalog.find(catalog.DEFAULT_MODEL))
    thread = threading.Thread(target=tokenizer.encode, args=("def foo(x):\n    return x + 1\n" * 20_000,))
    thread.start()
    ticks = 0
    while thread.is_alive():
        time.sleep(0.001)
        ticks += 1
    # Held by `Tokenizer.encode`, the interpreter's lock left room for two or three.
    assert ticks > 20


def older_layout(folder: Path, kind: str) -> Path:
    """vocab.json and merges.txt instead of tokenizer.json, as Dream is published."""
    vocabulary = {token: i for i, token in enumerate([*_BYTES, "Ġt", "he", "Ġthe", "ing", "in", "Ġ1"])}
    added = {len(vocabulary) + i: token for i, token in enumerate(("<|im_start|>", "<|mask|>"))}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\nĠ t\nh e\nĠt he\ni n\nin g\nĠ 1\n")
    described = {
        "tokenizer_class": kind,
        "eos_token": "<|im_start|>",
        "added_tokens_decoder": {
            str(i): {"content": token, "special": True, "normalized": False} for i, token in added.items()
        },
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(described))
    return folder


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["Qwen2Tokenizer", "GPT2Tokenizer"])
def test_a_tokenizer_in_the_older_layout_splits_as_its_class_does(tmp_path: Path, kind: str) -> None:
    transformers = pytest.importorskip("transformers")
    ours = Tokenizer.from_folder(older_layout(tmp_path, kind))
    theirs = getattr(transformers, kind).from_pretrained(tmp_path)
    for text in (*STRINGS, "the 1234th thing\r\n\n  it's 12 the", "if(x){return 1;}  //the"):
        assert ours.encode(text.replace("<", "")) == theirs.encode(text.replace("<", ""))
    assert ours.special_tokens == {"<|im_start|>": 262, "<|mask|>": 263}
    assert ours.eos_token_ids == (262,)
    assert ours.encode("<|mask|>") != [263] and ours.encode("<|mask|>", special=True) == [263]


def test_a_class_that_is_code_is_refused_without_its_file(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"there is no tokenizer\.json, and OddTokenizer is not known"):
        Tokenizer.from_folder(older_layout(tmp_path, "OddTokenizer"))
