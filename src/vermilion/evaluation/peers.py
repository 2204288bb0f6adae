"""Other engines on the same model file, prompts and threads, for `vermilion bench --peer`.

A peer runs in this process and only while it is asked, so that its rounds can alternate with ours.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from vermilion.errors import ConfigError

PEERS = ("llama.cpp",)
_NGRAM = 3
"""Tokens of the pattern that llama.cpp's prompt lookup searches for; what our own lookup uses."""
_RESERVE = 64
"""Slots of a context that llama.cpp keeps besides the prompt and the answer."""


@dataclass(frozen=True, slots=True)
class Setup:
    """How a peer is to run."""

    threads: int
    num_streams: int = 1
    max_prompt: int = 1024
    """Tokens of the longest prompt."""
    max_tokens: int = 64
    prompt_lookup: bool = False
    """llama.cpp's own speculation: n-grams of the text so far propose what follows."""


@dataclass(frozen=True, slots=True)
class PeerRound:
    """All prompts once."""

    num_tokens: int
    wall_s: float
    prompt_ms: float
    """Median time that reading one prompt took."""


def require_package() -> None:
    """Raises ConfigError where llama.cpp's package is missing."""
    if find_spec("xllamacpp") is None:
        raise ConfigError("--peer llama.cpp needs the extra `peers`. Run: pip install 'vermilion[peers]'")


class LlamaCpp:
    """llama.cpp's server, called in process."""

    def __init__(self, gguf: Path, setup: Setup) -> None:
        """Raises ConfigError where the package is missing."""
        require_package()
        import xllamacpp

        parameters = xllamacpp.CommonParams()
        parameters.model.path = str(gguf)
        parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = setup.threads
        parameters.n_parallel = setup.num_streams
        parameters.n_ctx = setup.num_streams * (setup.max_prompt + setup.max_tokens + _RESERVE)
        parameters.n_gpu_layers = 0
        parameters.cache_prompt = False
        parameters.cache_ram_mib = 0
        parameters.verbosity = -1
        if setup.prompt_lookup:
            speculative = parameters.speculative
            speculative.types = [xllamacpp.common_speculative_type.COMMON_SPECULATIVE_TYPE_NGRAM_SIMPLE]
            speculative.ngram_simple.size_n = _NGRAM
        self._setup = setup
        self._server = xllamacpp.Server(parameters)

    def round(self, prompts: Sequence[Sequence[int]]) -> PeerRound:
        """Greedy answers to all prompts, as many at a time as the setup has streams."""
        began = time.perf_counter()
        with ThreadPoolExecutor(self._setup.num_streams) as pool:
            replies = list(pool.map(self._answer, prompts))
        wall_s = time.perf_counter() - began
        return PeerRound(
            num_tokens=sum(reply["usage"]["completion_tokens"] for reply in replies),
            wall_s=wall_s,
            prompt_ms=float(np.median([reply["timings"]["prompt_ms"] for reply in replies])),
        )

    def text(self, prompt: Sequence[int]) -> str:
        """The greedy answer to one prompt."""
        answer: str = self._answer(prompt)["choices"][0]["text"]
        return answer

    def timed(self, prompt: Sequence[int], num_tokens: int, *, goes_on: bool) -> float:
        """Seconds for exactly `num_tokens` greedy tokens behind a prompt; where it goes on from the last one,
        what is cached of that counts."""
        began = time.perf_counter()
        self._answer(prompt, n_predict=num_tokens, ignore_eos=True, cache_prompt=goes_on)
        return time.perf_counter() - began

    def pass_ms(self, prefix: Sequence[int], ids: Sequence[int]) -> float:
        """Milliseconds in which `ids` are evaluated together behind a prefix that an earlier call left in the
        cache; logits are computed of the last one alone."""
        reply = self._answer([*prefix, *ids], n_predict=1, ignore_eos=True, cache_prompt=True)
        return float(reply["timings"]["prompt_ms"])

    def _answer(self, prompt: Sequence[int], **changed: Any) -> dict[str, Any]:
        body = {
            "prompt": list(prompt),
            "n_predict": self._setup.max_tokens,
            "temperature": 0,
            "cache_prompt": False,
        }
        reply: dict[str, Any] = self._server.handle_completions(body | changed)
        if "choices" not in reply:
            raise ConfigError(f"llama.cpp refused a prompt of {len(prompt)} tokens: {reply}")
        return reply


@dataclass(frozen=True, slots=True)
class PeerRow:
    """One way of running a peer at one concurrency. Medians over the rounds."""

    preset: str
    concurrency: int
    tokens_per_s: float
    tokens_per_s_spread: float
    prompt_ms: float


@contextmanager
def opened(peer: str, gguf: Path, setups: Sequence[Setup]) -> Iterator[dict[tuple[str, int], LlamaCpp]]:
    """The peer's ways of running the model, by name and number of streams: the file as it is, with Q4_0 in
    place of Q4_1, and with its own prompt lookup. Raises ConfigError."""
    if peer not in PEERS:
        raise ConfigError(f"--peer: {peer!r} is not known; allowed: {', '.join(PEERS)}.")
    with TemporaryDirectory() as folder, requantized(gguf, Path(folder)) as coarse:
        yield {
            (name, setup.num_streams): LlamaCpp(path, replace(setup, prompt_lookup=lookup))
            for setup in setups
            for name, path, lookup in (
                (peer, gguf, False),
                (f"{peer} Q4_0", coarse, False),
                (f"{peer} lookup", gguf, True),
            )
        }


def peer_row(name: str, concurrency: int, rounds: Sequence[PeerRound]) -> PeerRow:
    """What one way of running a peer came to."""
    speeds = [one.num_tokens / one.wall_s for one in rounds]
    median = float(np.median(speeds))
    prompt_ms = float(np.median([one.prompt_ms for one in rounds]))
    return PeerRow(name, concurrency, median, (max(speeds) - min(speeds)) / median, prompt_ms)


@contextmanager
def requantized(gguf: Path, folder: Path) -> Iterator[Path]:
    """The model with its Q4_1 matrices stored as Q4_0, for which llama.cpp has its fastest kernels.

    Coarser than the file itself, so only its speed is comparable. The file lies in `folder`.
    """
    from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter, dequantize, quantize

    reader = GGUFReader(gguf)
    path = folder / f"{gguf.stem}.requantized-Q4_0.gguf"
    architecture = reader.fields["general.architecture"].contents()
    writer = GGUFWriter(path, architecture)
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        kind = field.types[0]
        sub_kind = field.types[-1] if len(field.types) > 1 else None
        writer.add_key_value(name, field.contents(), kind, sub_kind)
    for tensor in reader.tensors:
        data, quantization = tensor.data, tensor.tensor_type
        if quantization == GGMLQuantizationType.Q4_1:
            quantization = GGMLQuantizationType.Q4_0
            data = quantize(dequantize(data, GGMLQuantizationType.Q4_1), quantization)
        writer.add_tensor(tensor.name, data, raw_dtype=quantization)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)
