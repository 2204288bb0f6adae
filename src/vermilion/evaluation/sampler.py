"""A model and a way to decode it, under a name such as `fast` or `threshold:threshold=0.7`."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from vermilion.config import EngineConfig
from vermilion.decoding import presets
from vermilion.decoding.decoders import DECODERS
from vermilion.decoding.given import fit_of
from vermilion.engine.llm import LLM
from vermilion.engine.loading import load_model
from vermilion.errors import BadParameter, EngineFailure
from vermilion.models.families.family_presets import PRESET_NAMES
from vermilion.types import Decoding, Finish, Grammar, ModelInfo, Request, Sampling, Text, Usage

CURVE = (
    "ar", "lossless", "balanced", "fast",
    *(f"threshold:threshold={value},block_length=8" for value in (0.95, 0.9, 0.8, 0.7, 0.6, 0.5)),
    *(f"relaxed:accept_above={value},block_length=4,draft_nodes=4" for value in (0.5, 0.15, 0.02)),
    "entropy:threshold=0.3,block_length=8",
    "cumulative:threshold=0.8,block_length=8",
    "schedule:max_steps=4,block_length=8",
)  # fmt: skip
"""The samplers of `curve`: from the slowest and surest to the fastest and loosest."""


@dataclass(frozen=True, slots=True)
class Ask:
    """One request of a task, and what its grader needs."""

    prompt: str | tuple[int, ...] | tuple[Mapping[str, Any], ...]
    """Text to continue, as such or as token ids, or the messages of a chat."""
    max_tokens: int
    suffix: str = ""
    """Text right of the gap to fill."""
    stop: tuple[str, ...] = ()
    grammar: Grammar | None = None
    ignore_eos: bool = False
    goes_on: bool = False
    """Whether it continues an earlier conversation, so that what is cached of that may serve it. Elsewhere a
    repeated prompt has to cost what it costs the first time."""
    existing: tuple[int, ...] = ()
    """Text that the answer is expected to repeat in great part; it serves as a draft."""
    group: str = ""
    """Figures are given for each group as well."""
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer and its cost."""

    text: str
    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    """Of the answer, as they settled; a stop string may have cut `text` shorter."""
    usage: Usage
    reason: str
    first_text_s: float
    wall_s: float


@dataclass(frozen=True, slots=True)
class Sampler:
    """A loaded model that decodes in one way."""

    name: str
    llm: LLM
    decoding: Decoding
    seed: int = 0
    temperature: float = 0.0
    best_of: int = 1
    """Answers that are made to fill a gap, the first of them greedy; the one that fits best is given, and its
    cost alone."""

    def answer(self, ask: Ask) -> Reply:
        """Raises BadRequest and its kinds for what the model cannot take, EngineFailure when it fails."""
        if self.best_of > 1:
            return self._best(ask)
        engine = self.llm.engine
        prompt = ids_of(self.llm, ask)
        suffix = tuple(self.llm.tokenizer.encode(ask.suffix)) if ask.suffix else ()
        sampling = Sampling(
            max_tokens=ask.max_tokens,
            stop=ask.stop,
            seed=self.seed,
            temperature=self.temperature,
            ignore_eos=ask.ignore_eos,
        )
        if not ask.goes_on:
            engine.flush()
        began = time.perf_counter()
        program = engine.submit(
            Request(
                "eval",
                prompt,
                sampling,
                self.decoding,
                suffix=suffix,
                grammar=ask.grammar,
                existing=ask.existing,
            )
        )
        pieces: list[str] = []
        first_s = 0.0
        finish: Finish | None = None
        while finish is None:
            for _, event in engine.step():
                if isinstance(event, Text):
                    first_s = first_s or time.perf_counter() - began
                    pieces.append(event.text)
                elif isinstance(event, Finish):
                    finish = event
        if finish.reason == "error":
            raise EngineFailure(finish.message)
        wall_s = time.perf_counter() - began
        tokens = tuple(program.tokens[len(program.task.prompt) :][: finish.usage.completion_tokens])
        return Reply("".join(pieces), prompt, tokens, finish.usage, finish.reason, first_s or wall_s, wall_s)

    def _best(self, ask: Ask) -> Reply:
        one = replace(self, best_of=1)
        drawn = [replace(one, temperature=0.0).answer(ask)]
        for number in range(1, self.best_of):
            drawn.append(replace(one, seed=self.seed + number).answer(replace(ask, goes_on=True)))
        suffix = tuple(self.llm.tokenizer.encode(ask.suffix))
        asked, fits = Request("eval", ids_of(self.llm, ask), suffix=suffix), dict[str, float]()
        for text in dict.fromkeys(reply.text for reply in drawn):
            fit = fit_of(asked, text, self.llm.tokenizer)
            readings = self.llm.engine.score(fit.prompt, fit.given)
            fits[text] = sum(reading.target_logprobs[0] for reading in readings)
        return max(drawn, key=lambda reply: fits[reply.text])


def ids_of(llm: LLM, ask: Ask) -> tuple[int, ...]:
    """The prompt as token ids; a chat goes through the model's template."""
    if isinstance(ask.prompt, str):
        return tuple(llm.tokenizer.encode(ask.prompt))
    messages = [dict(one) for one in ask.prompt if not isinstance(one, int)]
    return tuple(llm.chat_prompt(messages)) if messages else tuple(ask.prompt)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Spec:
    """A sampler by its name, before a model is loaded."""

    name: str
    model: str
    preset: str | None
    knobs: Mapping[str, object]

    def decoding(self, model: ModelInfo) -> Decoding:
        """On the loaded model. Raises BadParameter where it cannot decode so."""
        return presets.resolve(model, self.preset, self.knobs)


def parse(text: str, model: str) -> list[Spec]:
    """The samplers that `text` names, separated by blanks; `model` where none is given.

    Each is `[MODEL@]WAY[:KNOB=VALUE,...]`; WAY is a preset, a decoder, or `curve` for a set of them. Raises
    BadParameter.
    """
    specs = []
    for word in text.split():
        owner, at, way = word.rpartition("@")
        for name in CURVE if way == "curve" else (way,):
            specs.append(Spec(f"{owner}{at}{name}", owner or model, *_way(name)))
    if not specs:
        raise BadParameter("--samplers", text, f"{', '.join(PRESET_NAMES)}, a decoder, or curve")
    return specs


def _way(way: str) -> tuple[str | None, dict[str, object]]:
    """`fast`, or `threshold:threshold=0.7,block_length=8`, as a preset and knobs. Raises BadParameter."""
    name, _, written = way.partition(":")
    if name not in PRESET_NAMES and name not in DECODERS:
        known = ", ".join(dict.fromkeys([*PRESET_NAMES, *DECODERS]))
        raise BadParameter("--samplers", name, f"{known}, curve")
    preset = name if name in PRESET_NAMES else None
    knobs: dict[str, object] = {} if preset else {"decoder": name}
    for pair in written.split(",") if written else []:
        knob, equals, value = pair.partition("=")
        if not equals:
            raise BadParameter("--samplers", pair, "KNOB=VALUE")
        knobs[knob] = _number(knob, value)
    presets.check(preset, knobs)
    return preset, knobs


def _number(knob: str, value: str) -> int | float | str:
    kinds = {field.name: field.type for field in fields(Decoding)}
    try:
        return int(value) if kinds.get(knob) == "int" else float(value) if knob in kinds else value
    except ValueError:
        return value


def load(model: str, denoiser: Path | None = None, config: EngineConfig | None = None) -> LLM:
    """`denoiser`: an adapter folder, such as a training checkpoint's, in place of the model's own."""
    return LLM(model, loaded=load_model(model, config or EngineConfig(), denoiser))
