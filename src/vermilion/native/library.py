"""The kernels' library as ctypes sees it: the structures of kernels/model.h and kernels/interface.h."""

from __future__ import annotations

import ctypes
from ctypes import c_char_p, c_double, c_float, c_int32, c_int64, c_uint64, c_void_p
from functools import cache
from typing import Any

from vermilion.native.compile import FOLDER, LIBRARY_NAME

LAYOUT_VERSION = 7
NUM_PARTS = 3


class MatrixStruct(ctypes.Structure):
    _fields_ = (
        ("tiles", c_void_p),
        ("outputs", c_int32),
        ("inputs", c_int32),
        ("bits", c_int32),
        ("padding", c_int32),
    )


class LowRankStruct(ctypes.Structure):
    _fields_ = (("down", MatrixStruct), ("up", MatrixStruct * NUM_PARTS))


class ProductStruct(ctypes.Structure):
    _fields_ = (
        ("parts", MatrixStruct * NUM_PARTS),
        ("noisy", MatrixStruct * NUM_PARTS),
        ("bias", c_void_p * NUM_PARTS),
        ("denoiser", LowRankStruct),
    )


class RotationStruct(ctypes.Structure):
    _fields_ = (("inverse_frequencies", c_void_p), ("size", c_int32), ("factor", c_float))


class ExpertsStruct(ctypes.Structure):
    _fields_ = (
        *((name, c_int32) for name in ("num_experts", "num_active", "num_groups", "num_active_groups")),
        ("sigmoid", c_int32),
        ("normalized", c_int32),
        ("scale", c_float),
        ("ffn_size", c_int32),
        ("router", c_void_p),
        ("router_bias", c_void_p),
        *((name, ctypes.POINTER(MatrixStruct)) for name in ("gate", "up", "down")),
        ("expert_scale", c_void_p),
        ("scaled_router", c_int32),
    )


class LayerStruct(ctypes.Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("attention_norm", "ffn_norm", "query_norm", "key_norm")),
        *((name, c_void_p) for name in ("attention_shift", "ffn_shift", "attention_gate", "ffn_gate")),
        *((name, c_void_p) for name in ("attention_out_norm", "ffn_out_norm", "dense_out_norm")),
        *((name, c_void_p) for name in ("expert_out_norm", "expert_norm")),
        ("qkv", ProductStruct),
        ("gate", MatrixStruct),
        *((name, ProductStruct) for name in ("output", "gate_up", "down")),
        ("experts", ExpertsStruct),
        *((name, c_int32) for name in ("num_kv_heads", "head_dim", "head_norm_size", "ffn_size", "window")),
        *((name, c_int32) for name in ("rotation", "joint_norm", "late_norm", "value_norm")),
        *((name, c_float) for name in ("attention_scale", "scale", "noisy_scale")),
    )


class SelfConditioningStruct(ctypes.Structure):
    _fields_ = (
        ("norm", c_void_p),
        *((name, MatrixStruct) for name in ("gate", "up", "down")),
    )


class DrafterStruct(ctypes.Structure):
    _fields_ = (
        ("num_layers", c_int32),
        ("num_taps", c_int32),
        ("vocab_size", c_int32),
        ("padding", c_int32),
        ("taps", c_void_p),
        ("layers", ctypes.POINTER(LayerStruct)),
        ("inject", MatrixStruct),
        ("head", MatrixStruct),
        ("vocabulary", c_void_p),
        ("inject_norm", c_void_p),
        ("norm", c_void_p),
        ("mask_embedding", c_void_p),
        ("down", MatrixStruct),
        ("up", MatrixStruct),
    )


class ModelStruct(ctypes.Structure):
    _fields_ = (
        *((name, c_int32) for name in ("num_layers", "hidden_size", "hidden_norm_size", "num_heads")),
        ("vocab_size", c_int32),
        ("num_rotations", c_int32),
        ("norm_eps", c_float),
        ("mask_token", c_int32),
        ("activation", c_int32),
        ("centred", c_int32),
        ("embedding_scale", c_float),
        ("logit_softcap", c_float),
        ("query_period", c_int32),
        ("query_growth", c_double),
        ("layers", ctypes.POINTER(LayerStruct)),
        ("rotations", ctypes.POINTER(RotationStruct)),
        ("embedding", MatrixStruct),
        ("head", MatrixStruct),
        ("norm", c_void_p),
        ("norm_shift", c_void_p),
        ("head_bias", c_void_p),
        ("embedding_norm", c_void_p),
        ("mask_embedding", c_void_p),
        ("draft_down", MatrixStruct),
        ("draft_up", MatrixStruct),
        ("drafter", DrafterStruct),
        ("conditioning", SelfConditioningStruct),
    )


class AnswersStruct(ctypes.Structure):
    _fields_ = (
        ("answers", c_void_p),
        ("targets", c_void_p),
        ("top_tokens", c_void_p),
        ("top_logprobs", c_void_p),
        ("given", c_void_p),
        ("given_tokens", c_void_p),
        ("given_logprobs", c_void_p),
        ("tapped", c_void_p),
        ("logits", c_void_p),
        ("signals", c_void_p),
        ("num_given", c_int32),
    )


class LibraryMissing(Exception):
    """The library is not there or does not load; the message says why."""


@cache
def load() -> Any:
    """The library with its functions' types declared; raises LibraryMissing."""
    path = FOLDER / LIBRARY_NAME
    if not path.is_file():
        raise LibraryMissing(f"{path} is not built; run: python -m vermilion.native.compile")
    try:
        library = ctypes.CDLL(str(path))
        version = library.vermilion_layout_version()
    except (OSError, AttributeError) as error:
        raise LibraryMissing(f"{path} does not load: {error}") from error
    if version != LAYOUT_VERSION:
        raise LibraryMissing(f"{path} is of another version; run: python -m vermilion.native.compile")
    functions: dict[str, tuple[Any, tuple[Any, ...]]] = {
        "vermilion_instruction_set": (c_char_p, (c_char_p,)),
        "vermilion_open": (c_void_p, (ctypes.POINTER(ModelStruct), c_int32, c_int32, c_int32, c_char_p)),
        "vermilion_close": (None, (c_void_p,)),
        "vermilion_run": (None, (c_void_p, c_char_p, ctypes.POINTER(AnswersStruct))),
        "vermilion_adapt": (None, (c_void_p, c_int32, ctypes.POINTER(LowRankStruct))),
        "vermilion_packed_size": (c_int64, (c_int64, c_int32, c_int32)),
        "vermilion_pack": (c_int32, (c_void_p, c_int32, c_int64, c_int32, c_int32, c_void_p)),
        "vermilion_noise": (c_double, (c_uint64, c_int32, c_int32)),
    }
    for name, (result, arguments) in functions.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


def instruction_set(wanted: str = "") -> str | None:
    """The instruction set that this processor runs, or `wanted` if it has that; None if not.

    Raises LibraryMissing.
    """
    name = load().vermilion_instruction_set(wanted.encode())
    return name.decode() if name else None


def pointer(array: Any) -> c_void_p:
    """Of a numpy array's first element."""
    return c_void_p(array.ctypes.data)
