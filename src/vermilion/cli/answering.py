"""Loads a model, shows one answer as it settles, and reports its cost."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from vermilion.cli.answer_view import AnswerView, Figures, Stopwatch
from vermilion.cli.keyboard import muted
from vermilion.cli.options import AnswerOptions
from vermilion.cli.printing import animated, console, errors, note, print_plain
from vermilion.errors import BadParameter, EngineFailure
from vermilion.types import Decoding, Event, Finish, FinishReason, Sampling, Text

if TYPE_CHECKING:
    from vermilion.engine.llm import LLM

DEFAULT_MAX_TOKENS = 512
DECODING_KNOBS = ("decoder", "threshold", "block_length", "revise_below")


@dataclass(frozen=True, slots=True)
class AnswerSettings:
    """How to answer, and how to show it."""

    sampling: Sampling
    decoding: Decoding
    suffix: str = ""
    json: bool = False
    quiet: bool = False
    """Show nothing; the text is only returned."""


@dataclass(frozen=True, slots=True)
class ShownAnswer:
    text: str
    reason: FinishReason
    figures: Figures | None
    """None for an answer that Ctrl-C stopped."""


@contextmanager
def loaded(options: AnswerOptions) -> Iterator[LLM]:
    """The model, pulled first if need be; closed afterwards. Raises the errors of loading."""
    from vermilion.cli import pulling
    from vermilion.config import EngineConfig, build

    settings = {name: getattr(options, name) for name in ("dtype", "device", "tensor_parallel")}
    config = build(EngineConfig, settings)
    _knobs(options)  # a mistake in them is told before the model is read
    with muted():
        pulling.ensure(options.model, options.offline)
        with errors().status(f"Loading {options.model}"):
            from vermilion.engine.llm import LLM

            llm = LLM(options.model, config=config)
    with closing(llm):
        yield llm


def decoding_of(options: AnswerOptions, llm: LLM, preset: str | None = None) -> Decoding:
    """The preset, by default the options', with the given knobs over it. Raises BadParameter."""
    from vermilion.decoding.decoders import DECODERS
    from vermilion.decoding.presets import resolve

    decoding = resolve(llm.model, preset or options.preset, _knobs(options))
    if options.threshold is not None and "threshold" not in DECODERS[decoding.decoder].knobs:
        having = [name for name, decoder in DECODERS.items() if "threshold" in decoder.knobs]
        raise BadParameter("--threshold", options.threshold, "with --decoder " + ", ".join(having))
    return decoding


def _knobs(options: AnswerOptions) -> dict[str, object]:
    """Those given. Raises BadParameter for a value, or a preset, that no model takes."""
    from vermilion.decoding.presets import check

    knobs = {name: getattr(options, name) for name in DECODING_KNOBS}
    given = {name: value for name, value in knobs.items() if value is not None}
    check(options.preset, given)
    return given


def sampling_of(options: AnswerOptions, max_tokens: int = DEFAULT_MAX_TOKENS) -> Sampling:
    """`max_tokens` where the options name none."""
    return Sampling(
        temperature=options.temperature, seed=options.seed, max_tokens=options.max_tokens or max_tokens
    )


def opening(system: str | None, prompt: str | None = None) -> list[dict[str, str]]:
    """The first messages of a conversation."""
    turns = (("system", system), ("user", prompt))
    return [{"role": role, "content": content} for role, content in turns if content is not None]


def answer(llm: LLM, prompt: str | Sequence[int], settings: AnswerSettings) -> ShownAnswer:
    """Shows one answer as it settles and returns it; what had settled, when Ctrl-C stopped it.

    Raises EngineFailure when the engine ends it with an error.
    """
    stopwatch = Stopwatch.start()
    pieces: list[str] = []
    finish: Finish | None = None
    canvas = animated() and not (settings.json or settings.quiet)
    # Closing it cancels the answer.
    stream = llm.stream(prompt, settings.sampling, settings.decoding, suffix=settings.suffix, canvas=canvas)
    try:
        with muted(), closing(stream), _shown(settings, canvas) as show:
            for event in stream:
                stopwatch.see(event)
                if isinstance(event, Text):
                    pieces.append(event.text)
                elif isinstance(event, Finish):
                    finish = event
                show(event)
    except KeyboardInterrupt:
        note("stopped")
    if finish and finish.reason == "error":
        raise EngineFailure(finish.message or "The engine could not finish the answer.")
    figures = stopwatch.figures(finish) if finish else None
    shown = ShownAnswer("".join(pieces), finish.reason if finish else "abort", figures)
    if settings.json:
        print_plain(_as_json(llm, shown))
    elif figures:
        note(str(figures) if canvas or settings.quiet else f"\n{figures}")
    return shown


@contextmanager
def _shown(settings: AnswerSettings, canvas: bool) -> Iterator[Callable[[Event], None]]:
    if canvas:
        with AnswerView(console()) as view:
            yield view.show
    elif settings.json or settings.quiet:
        yield lambda event: None
    else:
        yield lambda event: print_plain(event.text) if isinstance(event, Text) else None


def _as_json(llm: LLM, shown: ShownAnswer) -> str:
    answered: dict[str, Any] = {"model": llm.model.id, "text": shown.text, "finish_reason": shown.reason}
    if shown.figures:
        usage = shown.figures.usage
        answered["usage"] = {**asdict(usage), "tokens_per_pass": round(usage.tokens_per_pass, 3)}
        answered["seconds"] = round(shown.figures.seconds, 4)
        answered["first_text_s"] = shown.figures.first_text_s and round(shown.figures.first_text_s, 4)
    return json.dumps(answered, ensure_ascii=False) + "\n"
