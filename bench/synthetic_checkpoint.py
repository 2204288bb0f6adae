"""Writes a checkpoint of a published shape with random weights: what it costs to load and run.

Usage: python bench/synthetic_checkpoint.py --shape dream-7b --folder /tmp/dream-7b

Safetensors in bfloat16 with a config and a tokenizer of the vocabulary's size; `--gguf FILE` writes the same
weights as llama.cpp reads them, projections in Q4_1 (or `--format Q4_0`), embedding and head in Q8_0.
"""

from __future__ import annotations

import argparse
import itertools
import json
import string
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from vermilion.models.configuration import spec_from_config
from vermilion.models.families import ModelSpec
from vermilion.models.tensor_files import Part, parts

SHAPES: dict[str, dict[str, Any]] = {
    # As the published config.json of Efficient-Large-Model/Fast_dLLM_v2_1.5B, its base Qwen2.5-1.5B.
    "fast-dllm-v2-1.5b": {
        "model_type": "Fast_dLLM_Qwen", "num_hidden_layers": 28, "hidden_size": 1536,
        "num_attention_heads": 12, "num_key_value_heads": 2, "intermediate_size": 8960,
        "vocab_size": 151936, "rms_norm_eps": 1e-6,
        "max_position_embeddings": 32768, "rope_theta": 1e6, "tie_word_embeddings": True, "bd_size": 32,
        "mask_token_id": 151665, "eos_token_id": 151645,
    },
    # Dream-org/Dream-v0-Instruct-7B.
    "dream-7b": {
        "model_type": "Dream", "num_hidden_layers": 28, "hidden_size": 3584, "num_attention_heads": 28,
        "num_key_value_heads": 4, "intermediate_size": 18944, "vocab_size": 152064, "rms_norm_eps": 1e-6,
        "max_position_embeddings": 131072, "rope_theta": 1e6, "tie_word_embeddings": False,
        "mask_token_id": 151666, "eos_token_id": 151643,
    },
    # Small enough for a test.
    "tiny": {
        "model_type": "Dream", "num_hidden_layers": 3, "hidden_size": 256, "num_attention_heads": 4,
        "num_key_value_heads": 2, "intermediate_size": 512, "vocab_size": 4096, "rms_norm_eps": 1e-6,
        "max_position_embeddings": 2048, "rope_theta": 1e6, "tie_word_embeddings": False,
        "mask_token_id": 4090, "eos_token_id": 4091,
    },
}  # fmt: skip
SHARD_BYTES = 4_000_000_000
POOL = 1 << 22
"""Numbers that all tensors are cut from, each from another place on: drawing billions would take minutes."""
BLOCK = 32


@dataclass(frozen=True)
class Repeated:
    """The pool's bytes in one format, of which tensors take as many blocks as they need."""

    data: bytes
    block_bytes: int

    def write(self, file: BinaryIO, first: int, count: int) -> None:
        at, left = first * self.block_bytes % len(self.data), count * self.block_bytes
        while left:
            taken = min(left, len(self.data) - at)
            file.write(memoryview(self.data)[at : at + taken])
            at, left = 0, left - taken


def pool() -> np.ndarray[Any, Any]:
    """Normal numbers as initialisations have them, rounded to bfloat16."""
    drawn = np.random.default_rng(0).normal(0, 0.02, POOL).astype(np.float32)
    return (drawn.view(np.uint32) & 0xFFFF0000).view(np.float32)


def tensors(spec: ModelSpec) -> list[Part]:
    found, _ = parts(spec.architecture, spec.family.names, {})
    return found


def cuts(spec: ModelSpec) -> Iterator[tuple[Part, int, int]]:
    """(tensor, its first block of the pool, how many)"""
    first = 0
    for part in tensors(spec):
        count = -(-int(np.prod(part.shape)) // BLOCK)
        yield part, first, count
        first += count + 7


def write_safetensors(folder: Path, spec: ModelSpec) -> None:
    bits = Repeated((pool().view(np.uint32) >> 16).astype(np.uint16).tobytes(), 2 * BLOCK)
    ones = np.full(1 << 16, 0x3F80, np.uint16).tobytes()
    shards: list[list[tuple[Part, int, int]]] = [[]]
    size = 0
    for part, first, count in cuts(spec):
        if size > SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1].append((part, first, count))
        size += 2 * int(np.prod(part.shape))
    for index, held in enumerate(shards, 1):
        name = f"model-{index:05}-of-{len(shards):05}" if len(shards) > 1 else "model"
        header, at = {}, 0
        for part, _, _ in held:
            end = at + 2 * int(np.prod(part.shape))
            header[part.published] = {"dtype": "BF16", "shape": part.shape, "data_offsets": [at, end]}
            at = end
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with (folder / f"{name}.safetensors").open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for part, first, count in held:
                if is_norm(part):
                    file.write(ones[: 2 * part.shape[0]])
                else:
                    bits.write(file, first, count)


def is_norm(part: Part) -> bool:
    return part.name.endswith("norm.weight")


def vocabulary(spec: ModelSpec) -> dict[str, int]:
    """All bytes as byte-level BPE spells them, then words of four letters, none of which is ever merged."""
    from tokenizers.pre_tokenizers import ByteLevel

    control = {"<|mask|>": spec.traits.mask_token_id, "<|end|>": spec.traits.eos_token_ids[0]}
    words = map("".join, itertools.product(string.ascii_lowercase, repeat=4))
    spelt = itertools.chain(sorted(ByteLevel.alphabet()), words)
    taken = set(control.values())
    free = (i for i in range(spec.architecture.vocab_size) if i not in taken)
    return {**dict(zip(spelt, free, strict=False)), **control}


def write_texts(folder: Path, spec: ModelSpec, config: dict[str, Any]) -> None:
    known = vocabulary(spec)
    special = [
        {"id": i, "content": token, "special": True, "single_word": False, "lstrip": False, "rstrip": False,
         "normalized": False}
        for token, i in known.items() if token.startswith("<|")
    ]  # fmt: skip
    plain = {token: i for token, i in known.items() if not token.startswith("<|")}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    tokenizer = {
        "version": "1.0", "added_tokens": special, "normalizer": None, "pre_tokenizer": level,
        "post_processor": None, "decoder": level, "model": {"type": "BPE", "vocab": plain, "merges": []},
    }  # fmt: skip
    template = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"chat_template": template, "eos_token": "<|end|>"})
    )


def write_gguf(path: Path, spec: ModelSpec, projections: str) -> None:
    """Of a model with Qwen2's layers, which llama.cpp has."""
    from gguf import GGMLQuantizationType, GGUFWriter, quant_shape_to_byte_shape, quantize

    a = spec.architecture
    writer = GGUFWriter(path, "qwen2")
    writer.add_block_count(a.num_layers)
    writer.add_context_length(a.context_length)
    writer.add_embedding_length(a.hidden_size)
    writer.add_feed_forward_length(a.ffn_size)
    writer.add_head_count(a.num_heads)
    writer.add_head_count_kv(a.num_kv_heads)
    writer.add_rope_freq_base(a.rope_theta)
    writer.add_layer_norm_rms_eps(a.norm_eps)
    known = vocabulary(spec)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list([token for token, _ in sorted(known.items(), key=lambda each: each[1])])
    writer.add_token_types(
        [3 if "<|" in t else 1 for t, _ in sorted(known.items(), key=lambda each: each[1])]
    )
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(spec.traits.eos_token_ids[0])
    numbers, kinds = pool().reshape(-1, BLOCK), GGMLQuantizationType
    formats = {
        kind: Repeated(quantize(numbers, kind).tobytes(), quant_shape_to_byte_shape((1, BLOCK), kind)[1])
        for kind in (kinds[projections], kinds.Q8_0, kinds.F32)
    }
    names = {ours.name: theirs.published for ours, theirs in _gguf_names(spec)}
    planned = []
    for part, first, count in cuts(spec):
        wide = len(part.shape) > 1
        outer = part.name.startswith(("model.embed", "lm_head"))
        kind = kinds.F32 if not wide else kinds.Q8_0 if outer else kinds[projections]
        shape = quant_shape_to_byte_shape(part.shape, kind) if wide else part.shape
        dtype = np.dtype(np.uint8 if wide else np.float32)
        nbytes = int(np.prod(shape)) * dtype.itemsize
        writer.add_tensor_info(names[part.name], shape, dtype, nbytes, kind if wide else None)
        planned.append((part, kind, first, count))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    assert writer.fout is not None
    file = writer.fout[0]
    for part, kind, first, count in planned:
        file.write(bytes(-file.tell() % writer.data_alignment))
        if is_norm(part):
            file.write(np.ones(part.shape, np.float32).tobytes())
        else:
            formats[kind].write(file, first, count)
    file.write(bytes(-file.tell() % writer.data_alignment))
    writer.close()


def _gguf_names(spec: ModelSpec) -> Iterator[tuple[Part, Part]]:
    from vermilion.models.families.names import GGUF

    theirs, _ = parts(spec.architecture, GGUF, {})
    yield from zip(tensors(spec), theirs, strict=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, required=True)
    parser.add_argument("--folder", type=Path, help="of the safetensors checkpoint")
    parser.add_argument("--gguf", type=Path, help="file of llama.cpp's twin")
    parser.add_argument("--format", choices=("Q4_1", "Q4_0"), default="Q4_1", help="of its projections")
    options = parser.parse_args()
    config = SHAPES[options.shape]
    spec = spec_from_config(config, options.shape)
    if options.folder:
        options.folder.mkdir(parents=True, exist_ok=True)
        write_texts(options.folder, spec, config)
        write_safetensors(options.folder, spec)
    if options.gguf:
        write_gguf(options.gguf, spec, options.format)


if __name__ == "__main__":
    main()
