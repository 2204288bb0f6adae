"""A base small enough to be made on the spot, so that a whole conversion takes a minute on a laptop.

Two layers over bytes, trained to count aloud: "count from four" gives "four five six seven eight nine".
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tokenizers
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from vermilion.data.corpus import Corpus
from vermilion.data.examples import read_answers
from vermilion.data.packing import DataConfig, Dataset, DataSource, DataState, next_batch
from vermilion.models import catalog
from vermilion.models.families import Architecture
from vermilion.models.transformer import Transformer
from vermilion.text import TOKENIZER_CONFIG_FILE, TOKENIZER_FILE
from vermilion.training import objectives
from vermilion.training.export import hugging_face_tensors
from vermilion.training.forward import Forward
from vermilion.training.masks import Layout

END, START, TURN, MASK = "<|end|>", "<|start|>", "<|turn|>", "<|mask|>"
_SPECIAL = (END, START, TURN, MASK)
_TEMPLATE = (
    "{% for message in messages %}<|start|>{{ message.role }}<|turn|>{{ message.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant<|turn|>{% endif %}"
)
_NUMBERS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
_LENGTH, _ROWS, _STEPS, _RATE = 96, 16, 250, 3e-3


def make(output: Path, seed: int) -> dict[str, Any]:
    """Write OUTPUT/base (a model folder) and OUTPUT/count.jsonl unless they are there.

    Returns the recipe's settings that they decide: base, mask_token_id, data.
    """
    folder, examples = output / "base", output / "count.jsonl"
    data = DataConfig((DataSource(examples),), length=_LENGTH, held_out=0, seed=seed)
    if not (folder / "model.safetensors").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        examples.write_text("".join(json.dumps(row) + "\n" for row in rows()), encoding="utf-8")
        architecture = _write_texts(folder)
        _write_weights(folder, architecture, data)
    mask = catalog.tokenizer_of(catalog.ModelFiles("folder", "toy", folder, None)).special_tokens[MASK]
    return {"base": str(folder), "mask_token_id": mask, "data": data}


def rows() -> list[dict[str, str]]:
    """Prompts and responses: from every number up, and from every number down."""
    up = {f"count from {word}": _NUMBERS[i : i + 6] for i, word in enumerate(_NUMBERS[:-1])}
    down = {f"count down from {word}": _NUMBERS[i::-1][:6] for i, word in enumerate(_NUMBERS[1:], 1)}
    return [{"prompt": prompt, "response": " ".join(words)} for prompt, words in {**up, **down}.items()]


def _write_texts(folder: Path) -> Architecture:
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*_SPECIAL, *letters])}
    built = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    built.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    built.decoder = tokenizers.decoders.ByteLevel()
    built.add_special_tokens([tokenizers.AddedToken(name, special=True) for name in _SPECIAL])
    built.save(str(folder / TOKENIZER_FILE))
    architecture = Architecture(2, 64, 4, 2, 16, 192, len(vocabulary), 512)
    config = {
        "model_type": "llama",
        "num_hidden_layers": architecture.num_layers,
        "hidden_size": architecture.hidden_size,
        "num_attention_heads": architecture.num_heads,
        "num_key_value_heads": architecture.num_kv_heads,
        "intermediate_size": architecture.ffn_size,
        "vocab_size": architecture.vocab_size,
        "max_position_embeddings": architecture.context_length,
        "rope_theta": architecture.rope_theta,
        "rms_norm_eps": architecture.norm_eps,
        "tie_word_embeddings": True,
        "eos_token_id": vocabulary[END],
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    texts = {"chat_template": _TEMPLATE, "eos_token": END}
    (folder / TOKENIZER_CONFIG_FILE).write_text(json.dumps(texts, indent=1), encoding="utf-8")
    return architecture


def _write_weights(folder: Path, architecture: Architecture, data: DataConfig) -> None:
    """Train the base on the next token, then write it under Hugging Face's names."""
    files = catalog.ModelFiles("folder", "toy", folder, None)
    tokenizer, template = catalog.tokenizer_of(files), catalog.chat_template_of(files)
    corpus = Corpus.of(read_answers(data.sources[0].path, tokenizer, template))
    dataset, state = Dataset(data, (corpus,)), DataState()
    model = Transformer(architecture)
    generator = torch.Generator().manual_seed(data.seed)
    for name, parameter in model.named_parameters():
        if "norm" not in name:
            parameter.data.normal_(0, 0.5 / parameter.shape[-1] ** 0.5, generator=generator)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.0)
    forward = Forward(model)
    for step in range(_STEPS):
        batch, state = next_batch(dataset, _ROWS, state)
        seen = forward.seen(Layout(batch.document_BL, batch.position_BL, "causal"))
        hidden_BLH, _ = forward.clean(batch.ids_BL, batch.position_BL, seen)
        weight_BL = objectives.next_token_weight(batch, batch.position_BL, "causal")
        logits_NV = model.logits(hidden_BLH[:, :-1].flatten(0, 1))
        loss_N = F.cross_entropy(logits_NV, batch.ids_BL[:, 1:].reshape(-1), reduction="none")
        for group in optimizer.param_groups:
            group["lr"] = _RATE * min(1.0, (step + 1) / 20, 2 * (1 - step / _STEPS))
        torch.autograd.backward((loss_N * weight_BL[:, 1:].reshape(-1)).sum() / weight_BL.sum())
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    draft = folder / "model.partial"
    save_file(hugging_face_tensors(model), draft)
    draft.replace(folder / "model.safetensors")
