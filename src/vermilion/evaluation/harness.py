"""Vermilion as a model of lm-evaluation-harness, so that its tasks can be asked of any decoder.

    python -m vermilion.evaluation.harness run --model vermilion --model_args preset=fast --tasks ...

takes the harness's own arguments. Its parameters: `model`, `denoiser`, `preset`, `decoder` and the decoder's
knobs, `max_tokens`, `device`, `dtype`, `threads`. Log-likelihoods are the base's, so they need a model that
has one; they do not depend on the decoder. Written for lm_eval 0.4.9 and later.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from vermilion.config import EngineConfig, build
from vermilion.decoding.presets import resolve
from vermilion.engine.llm import LLM
from vermilion.errors import BadParameter, BadRequest
from vermilion.evaluation.sampler import Ask, Sampler, load
from vermilion.models.catalog import DEFAULT_MODEL
from vermilion.types import Decoding

Scored = tuple[tuple[str, str], list[int], list[int]]
_KNOBS = frozenset(field.name for field in fields(Decoding))
_ENGINE = ("device", "dtype", "threads")


@register_model("vermilion")
class VermilionLM(TemplateLM):  # type: ignore[misc]
    """What the harness calls; see the head of this file for its parameters."""

    def __init__(
        self,
        model: str = DEFAULT_MODEL,
        preset: str | None = None,
        denoiser: str | None = None,
        max_tokens: int = 256,
        llm: LLM | None = None,
        **settings: Any,
    ) -> None:
        """`llm`: one that is loaded, instead of `model`. Raises BadParameter and the errors of loading."""
        super().__init__()
        # The harness hands these to every model.
        settings = {
            key: value for key, value in settings.items() if key not in ("batch_size", "max_batch_size")
        }
        knobs = {key: value for key, value in settings.items() if key in _KNOBS}
        engine = {key: value for key, value in settings.items() if key in _ENGINE and value is not None}
        unknown = sorted(set(settings) - set(knobs) - set(_ENGINE))
        if unknown:
            raise BadParameter(
                "model_args", unknown[0], ", ".join(("model", "preset", *_ENGINE, *sorted(_KNOBS)))
            )
        if engine.get("device") == "cuda:0" and not torch.cuda.is_available():
            engine["device"] = "auto"  # the harness says cuda:0 wherever nobody chose a device
        config = build(EngineConfig, engine)
        loaded = llm or load(model, Path(denoiser) if denoiser else None, config)
        self.sampler = Sampler("vermilion", loaded, resolve(loaded.model, preset, knobs))
        self.max_tokens = max_tokens

    @property
    def llm(self) -> LLM:
        return self.sampler.llm

    @property
    def eot_token_id(self) -> int:
        return self.llm.model.eos_token_ids[0]

    @property
    def tokenizer_name(self) -> str:
        """The key of cached requests."""
        return self.llm.model.id.replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **given: Any) -> list[int]:
        return list(self.llm.tokenizer.encode(string, special=True))

    def apply_chat_template(
        self, chat_history: list[dict[str, Any]], add_generation_prompt: bool = True
    ) -> str:
        """The conversation as one text, special tokens written out."""
        if self.llm.template is None:
            raise BadRequest(f"{self.llm.model.id} has no chat template.")
        return self.llm.template.render(chat_history, add_generation_prompt=add_generation_prompt)

    def _loglikelihood_tokens(
        self, requests: Sequence[Scored], disable_tqdm: bool = False, **given: Any
    ) -> list[tuple[float, bool]]:
        self._need_a_base()
        answers = []
        for texts, context, continuation in requests:
            # What does not fit is cut on its left, as the harness's own models do.
            tokens = [*context, *continuation][-self._longest :]
            kept = tokens[: -len(continuation)] or tokens[:1]
            readings = self.llm.engine.score(kept, tokens[len(kept) :])
            total = math.fsum(reading.target_logprobs[0] for reading in readings)
            greedy = all(r.token == t for r, t in zip(readings, tokens[len(kept) :], strict=True))
            answers.append((total, greedy))
            if texts != ("", ""):
                self.cache_hook.add_partial("loglikelihood", texts, (total, greedy))
        return answers

    def loglikelihood_rolling(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of whole texts, in windows that do not overlap where they are scored."""
        totals = []
        for request in requests:
            (text,) = request.args
            windows = map(
                make_disjoint_window,
                get_rolling_token_windows(self.tok_encode(text), self.eot_token_id, self._longest - 1, 1),
            )
            parts = self._loglikelihood_tokens([(("", ""), list(a), list(b)) for a, b in windows])
            totals.append(math.fsum(total for total, _ in parts))
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), totals[-1])
        return totals

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """Answers by the decoder, cut before the first stop string."""
        answers = []
        for request in requests:
            text, settings = request.args
            answers.append(self._generate(text, settings))
            self.cache_hook.add_partial("generate_until", (text, settings), answers[-1])
        return answers

    def _generate(self, text: str, settings: Mapping[str, Any]) -> str:
        until = settings.get("until") or []
        stop = tuple(one for one in ([until] if isinstance(until, str) else until) if one)
        most = int(settings.get("max_gen_toks") or self.max_tokens)
        room = self.llm.model.context_length - most
        ids = tuple(self.tok_encode(text)[-room:])
        sampled = settings.get("do_sample", False) or float(settings.get("temperature") or 0) > 0
        temperature = float(settings.get("temperature") or 1.0) if sampled else 0.0
        sampler = Sampler("vermilion", self.llm, self.sampler.decoding, self.sampler.seed, temperature)
        reply = sampler.answer(Ask(ids or (self.eot_token_id,), most, stop=stop)).text
        for one in stop:
            reply = reply.partition(one)[0]
        return reply

    @property
    def _longest(self) -> int:
        return self.llm.model.context_length

    def _need_a_base(self) -> None:
        if not self.llm.engine.traits.has_next_token:
            raise BadRequest(
                f"{self.llm.model.id} predicts no next token, so it has no log-likelihood of a text; choose "
                "tasks of the kind generate_until."
            )


def main() -> None:
    """The harness's own command line, with this model known to it."""
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()


if __name__ == "__main__":
    main()
