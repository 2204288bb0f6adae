"""From a checkpoint's own description (config.json, GGUF metadata) and the family table to a `ModelSpec`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from vermilion.errors import ModelFileError
from vermilion.models.catalog import ModelFiles
from vermilion.models.denoiser_file import DENOISER_FILE, DRAFTER_FILE, DenoiserFile
from vermilion.models.families import (
    AUTOREGRESSIVE,
    Architecture,
    Family,
    GGUFKind,
    ModelSpec,
    RopeScaling,
    Traits,
    family_of,
    family_of_gguf,
)
from vermilion.models.gguf_file import GGUFHeader, read_header
from vermilion.models.hub import Source
from vermilion.text import read_json

_TRAITS = {each.name for each in fields(Traits)}
_ACTIVATIONS = {"swish": "silu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}
"""Other names that configs have for ours."""
_REQUIRED = {
    "num_layers", "hidden_size", "num_heads", "ffn_size", "vocab_size", "context_length",
}  # fmt: skip


def spec_of(files: ModelFiles, header: GGUFHeader | None = None) -> ModelSpec:
    """What `files` hold, from their descriptions alone; `header` is a GGUF's, where it was read already.

    Raises ModelFileError for a type that no family has, for an entry that is missing or of the wrong kind,
    and for a shape that the backbone does not compute.
    """
    drafter = files.adapter / DRAFTER_FILE if files.adapter else None
    drafts = drafter is not None and drafter.is_file()
    denoiser = None
    if files.adapter and not (drafts and not (files.adapter / DENOISER_FILE).is_file()):
        denoiser = DenoiserFile.read(files.adapter)
    if files.kind == "gguf":
        spec = spec_from_gguf(header or read_header(files.base), files.name, denoiser)
    else:
        path = files.base / "config.json"
        if not path.is_file():
            raise ModelFileError(f"{path} is missing.")
        # A row may tell its checkpoints by the name that they are published under.
        source = Source.read(files.base)
        known_as = f"{files.name} ({source.repository})" if source is not None else files.name
        spec = replace(spec_from_config(read_json(path), known_as, denoiser), name=files.name)
        ends = read_json(files.base / "generation_config.json").get("eos_token_id")
        if ends is not None:
            # It is what the publisher generates with, and often says more than config.json.
            spec = _ending_at(spec, ends)
    if drafter is None or not drafts:
        return spec
    return replace(spec, traits=replace(spec.traits, drafter=int(read_json(drafter).get("block_length", 0))))


def _ending_at(spec: ModelSpec, ends: int | list[int]) -> ModelSpec:
    ids = tuple(ends) if isinstance(ends, list) else (ends,)
    return replace(spec, traits=replace(spec.traits, eos_token_ids=ids))


def spec_from_config(config: Mapping[str, Any], name: str, denoiser: DenoiserFile | None = None) -> ModelSpec:
    """The spec of a Hugging Face config.json, with the denoiser beside it. Raises as `spec_of`."""
    family = family_of(config, name)
    if family.inner:
        config = {**config, **(config.get(family.inner) or {})}
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    given = {**rope, **{key: value for key, value in config.items() if value is not None}}
    found = {field: given[key] for field, key in family.keys.items() if given.get(key) is not None}
    try:
        found |= family.derived(config)
    except KeyError as error:
        raise ModelFileError(f"{name}: config.json lacks {error.args[0]}.") from error
    missing = sorted(
        family.keys.get(field, field) for field in _REQUIRED - found.keys() - family.fixed.keys()
    )
    if missing:
        raise ModelFileError(f"{name}: config.json lacks {', '.join(missing)}.")
    found["rope_scaling"] = rope_scaling(rope)
    try:
        found["layers"] = family.layers(config)
    except KeyError as error:
        raise ModelFileError(f"{name}: config.json lacks {error.args[0]}.") from error
    except ModelFileError as error:
        raise ModelFileError(f"{name}: {error}") from error
    return _spec(family, {**found, **family.fixed}, name, denoiser)


def rope_scaling(rope: Mapping[str, Any]) -> RopeScaling | None:
    """Of a config's `rope_scaling` or `rope_parameters`; None for plain angles."""
    kind = rope.get("rope_type", rope.get("type", "default"))
    other = ("rope_theta", "partial_rotary_factor")
    numbers = {
        key: value for key, value in rope.items() if isinstance(value, float | int) and key not in other
    }
    return None if kind == "default" else RopeScaling(kind, numbers)


def hugging_face_config(spec: ModelSpec) -> dict[str, Any]:
    """The config.json that `spec_from_config` reads back as the same architecture.

    Raises ModelFileError for a size that the family's config has no entry for.
    """
    a, default, keys = (
        spec.architecture,
        {each.name: each.default for each in fields(Architecture)},
        spec.family.keys,
    )
    values = {name: getattr(a, name) for name in default}
    unsaid = values.keys() - keys.keys() - spec.family.fixed.keys() - {"rope_scaling"}
    lost = sorted(name for name in unsaid if values[name] != default[name])
    if lost:
        raise ModelFileError(f"{spec.name}: {', '.join(lost)} cannot be written into a config.json.")
    told = {keys[name]: values[name] for name in default if name in keys}
    if a.rope_scaling is not None:
        told["rope_scaling"] = {"rope_type": a.rope_scaling.kind, **a.rope_scaling.parameters}
    eos = {keys["eos_token_ids"]: list(spec.traits.eos_token_ids)}
    return {"model_type": spec.family.model_types[0], **spec.family.where, **told, **eos}


def spec_from_gguf(header: GGUFHeader, name: str, denoiser: DenoiserFile | None = None) -> ModelSpec:
    """The spec of a GGUF's metadata, with the denoiser beside it. Raises as `spec_of`."""
    metadata = header.metadata
    family = family_of_gguf(metadata.get("general.architecture"), name)
    assert family.gguf is not None
    found = _gguf_fields(header, family.gguf, name)
    return _spec(family, {**found, **family.fixed}, name, denoiser)


def _gguf_fields(header: GGUFHeader, kind: GGUFKind, name: str) -> dict[str, Any]:
    metadata, prefix = header.metadata, kind.architecture

    def number(key: str) -> Any:
        if f"{prefix}.{key}" not in metadata:
            raise ModelFileError(f"{name}: metadata lacks {prefix}.{key}.")
        return metadata[f"{prefix}.{key}"]

    hidden_size, num_heads = number("embedding_length"), number("attention.head_count")
    head_dim = metadata.get(f"{prefix}.attention.key_length", hidden_size // num_heads)
    eos = metadata.get("tokenizer.ggml.eos_token_id")
    scaling = metadata.get(f"{prefix}.rope.scaling.type", "none")
    return {
        "num_layers": number("block_count"),
        "hidden_size": hidden_size,
        "num_heads": num_heads,
        "num_kv_heads": number("attention.head_count_kv"),
        "head_dim": head_dim,
        "ffn_size": number("feed_forward_length"),
        "vocab_size": metadata.get(
            f"{prefix}.vocab_size", len(metadata.get("tokenizer.ggml.tokens", ()))
        ),
        "context_length": number("context_length"),
        "rope_theta": number("rope.freq_base"),
        "rope_fraction": metadata.get(f"{prefix}.rope.dimension_count", head_dim) / head_dim,
        "rope_scaling": None if scaling == "none" else RopeScaling(scaling),
        # Stored as fp32: 1e-5 comes back as 9.99999974e-06.
        "norm_eps": float(f"{number('attention.layer_norm_rms_epsilon'):.6g}"),
        "tied_embeddings": all(entry.name != f"{kind.names.head}.weight" for entry in header.tensors),
        "eos_token_ids": () if eos is None else eos,
    }  # fmt: skip


def _spec(family: Family, found: Mapping[str, Any], name: str, denoiser: DenoiserFile | None) -> ModelSpec:
    block_length = found.get("block_length", 0)
    other = {*_TRAITS, "block_length"}
    architecture = _architecture({k: v for k, v in found.items() if k not in other})
    needs = list(architecture.beyond_backbone())
    if needs:
        raise ModelFileError(f"{name} has {', '.join(needs)}, which is not supported.")
    told = {k: v for k, v in found.items() if k in _TRAITS}
    eos = told.get("eos_token_ids", ())
    told["eos_token_ids"] = tuple(eos) if isinstance(eos, list | tuple) else (eos,)
    if denoiser is not None:
        traits = denoiser.traits(told["eos_token_ids"])
        return ModelSpec(name, architecture, traits, family, denoiser.block_length)
    if family.traits is None:
        return ModelSpec(
            name, architecture, replace(AUTOREGRESSIVE, eos_token_ids=told["eos_token_ids"]), family
        )
    ends = dict.fromkeys([*told["eos_token_ids"], *family.traits.eos_token_ids])
    told["eos_token_ids"] = tuple(end for end in ends if end < architecture.vocab_size)
    return ModelSpec(name, architecture, replace(family.traits, **told), family, block_length)


def _architecture(found: Mapping[str, Any]) -> Architecture:
    hidden_size, num_heads = found["hidden_size"], found["num_heads"]
    derived = {
        "num_kv_heads": num_heads,
        "head_dim": hidden_size // num_heads,
        "norm_eps": 1e-6,
        "tied_embeddings": False,
    }
    whole = {**derived, **found}
    whole["activation"] = _ACTIVATIONS.get(whole.get("activation", "silu"), whole.get("activation", "silu"))
    whole["rope_theta"] = float(whole.get("rope_theta", 10_000.0))
    for name in ("qkv_bias", "output_bias", "ffn_bias", "tied_embeddings"):
        whole[name] = bool(whole.get(name, False))
    return Architecture(**whole)
