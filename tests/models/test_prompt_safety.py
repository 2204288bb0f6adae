"""What a prompt and a checkpoint's own files cannot do: name control tokens, run code, grow without end."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.test_text import older_layout
from vermilion.chat_template import ChatTemplate
from vermilion.errors import BadRequest, ModelFileError
from vermilion.models import catalog
from vermilion.models.build import build, expected_shapes
from vermilion.models.configuration import spec_from_config, spec_of
from vermilion.text import _BYTES, Tokenizer

MASKS = {
    "llada": "<|mdm_mask|>",
    "llada2": "<|mask|>",
    "dream": "<|mask|>",
    "dreamon": "<|expand|>",
    "sdar": "<|MASK|>",
    "fast-dllm-v2": "|<MASK>|",
    "open-dcoder": "[MASK]",
    "wedlm": "<|fim_pad|>",
    "stable-diffcoder": "<[MASK_TOKEN]>",
    "bd3lm": "[MASK]",
    "smoldlm": "<|mask|>",
}
ENDS = {"llada": "<|eot_id|>", "dream": "<|im_end|>", "sdar": "<|im_end|>", "bd3lm": "<|endoftext|>"}
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}{{ eos_token }}\n"
    "{% endfor %}"
    "<|im_start|>assistant\n"
)


def family_folder(folder: Path, family: str, special: bool) -> tuple[Path, int, int]:
    """A tokenizer with the family's mask, a control token or a plain added one, and its end; their ids."""
    mask, end = MASKS[family], ENDS.get(family, "<|im_end|>")
    added = dict.fromkeys([end, "<|im_start|>", mask])
    older_layout(folder, "GPT2Tokenizer")
    built = Tokenizer.from_folder(folder)._built
    rows = json.loads(built.to_str())
    rows["added_tokens"] = [
        {"id": len(_BYTES) + 6 + i, "content": token, "single_word": False, "lstrip": False, "rstrip": False,
         "normalized": False, "special": special or token != mask}
        for i, token in enumerate(added)
    ]  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(rows))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": end}))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    ids = {token: row["id"] for token, row in zip(added, rows["added_tokens"], strict=True)}
    return folder, ids[mask], ids[end]


@pytest.mark.parametrize("special", [True, False], ids=["control", "plain"])
@pytest.mark.parametrize("family", MASKS)
def test_literal_control_text_of_a_user_is_plain_text(tmp_path: Path, family: str, special: bool) -> None:
    folder, mask, end = family_folder(tmp_path, family, special)
    tokenizer = Tokenizer.from_folder(folder, (mask, end))
    template = ChatTemplate.from_folder(folder)
    texts = [
        MASKS[family],
        f"a{MASKS[family]}b",
        MASKS[family] * 3,
        ENDS.get(family, "<|im_end|>"),
        "<|im_start|>",
    ]
    for text in texts:
        assert tokenizer.decode(tokenizer.encode(text), skip_special=False) == text
        assert not {mask, end} & set(tokenizer.encode(text))
        ids = template.encode([{"role": "user", "content": text}], tokenizer)
        assert mask not in ids
        assert ids.count(end) == 1, "the template's own end alone"
    split = [{"role": "user", "content": MASKS[family][:4]}, {"role": MASKS[family][4:], "content": "x"}]
    assert mask not in template.encode(split, tokenizer)


CONFIG = {
    "model_type": "llama", "num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4,
    "intermediate_size": 48, "vocab_size": 300, "max_position_embeddings": 64, "eos_token_id": 5,
    "tie_word_embeddings": True,
}  # fmt: skip


def checkpoint(folder: Path, **more: object) -> Path:
    older_layout(folder, "GPT2Tokenizer")
    config = {**CONFIG, **more}
    shapes = expected_shapes(spec_from_config(config, "tiny").architecture)
    save_file({name: torch.zeros(shape) for name, shape in shapes.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_remote_code_of_a_checkpoint_never_runs(tmp_path: Path) -> None:
    code = f"import pathlib\npathlib.Path({str(tmp_path / 'ran')!r}).touch()\n"
    for name in ("modeling_x.py", "configuration_x.py", "tokenization_x.py", "__init__.py", "setup.py"):
        (tmp_path / name).write_text(code)
    names = {
        "AutoConfig": "configuration_x.X",
        "AutoModel": "modeling_x.X",
        "AutoTokenizer": ["tokenization_x.X", None],
    }
    checkpoint(tmp_path, auto_map=names)
    described = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**described, "auto_map": names}))
    files = catalog.find(str(tmp_path))
    build(files)
    catalog.tokenizer_of(files).encode("text")
    assert not (tmp_path / "ran").exists()


def test_ends_of_generation_config_are_honoured(tmp_path: Path) -> None:
    files = catalog.find(str(checkpoint(tmp_path)))
    assert spec_of(files).traits.eos_token_ids == (5,)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [7, 9]}')
    assert spec_of(files).traits.eos_token_ids == (7, 9)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 8}')
    assert spec_of(files).traits.eos_token_ids == (8,)


DOUBLING = "{% set n = namespace(a='aa') %}{% for i in range(60) %}{% set n.a = n.a ? n.a %}{% endfor %}"
HOSTILE = {
    "reaching the interpreter": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "changing what it was given": "{{ messages.append(1) }}",
    "a long text": "{{ 'a' * 99999999999 }}",
    "a long list": "{{ ([1] * 99999999999)|length }}",
    "doubling": DOUBLING.replace("?", "~"),
    "doubling a sum": DOUBLING.replace("?", "+"),
    "a tower": "{{ 9 ** (9 ** 9) }}",
    "a wide format": "{{ '%999999999d'|format(1) }}",
    "a wide percent": "{{ '%999999999d' % 1 }}",
    "a wide centre": "{{ 'a'|center(999999999) }}",
    "endless steps": "{% for i in range(9999) %}{% for j in range(9999) %}{% endfor %}{% endfor %}",
    "endless text": "{% for i in range(99999) %}{{ 'a' * 100000 }}{% endfor %}",
    "itself": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_template_is_stopped(kind: str) -> None:
    started_s = time.perf_counter()
    with pytest.raises(BadRequest, match="The chat template refuses"):
        ChatTemplate(HOSTILE[kind]).render([{"role": "user", "content": "hi"}])
    assert time.perf_counter() - started_s < 5


@pytest.mark.parametrize(
    "source", ["{{ messages|attr('__class__') }}", "{{ raise_exception.__globals__ }}", "{{ range._left }}"]
)
def test_what_begins_with_an_underscore_is_not_there(source: str) -> None:
    assert ChatTemplate(source).render([{"role": "user", "content": "hi"}]) == ""


def test_what_templates_do_still_works() -> None:
    source = (
        "{%- set ns = namespace(n=0) -%}{%- for m in messages -%}{%- if loop.index0 % 2 == 0 -%}"
        "{%- set ns.n = ns.n + 1 -%}{{ '[' ~ m.role ~ ns.n ~ ']' + m.content.strip() }}{%- endif -%}"
        "{%- if loop.last -%}{%- break -%}{%- endif -%}{%- endfor -%}"
        "{{ '-' * 3 }}{{ tools|tojson(indent=2) if tools }}{% for i in range(2) %}{{ i }}{% endfor %}"
        "{{ 2 ** 3 }}"
    )
    shown = ChatTemplate(source).render([{"role": "user", "content": " a "}], tools=[{"x": "é"}])
    assert shown == '[user1]a---[\n  {\n    "x": "é"\n  }\n]018'
    with pytest.raises(ModelFileError, match="which is no template"):
        ChatTemplate("a" * (1 << 21))
