"""`vermilion run`, `chat` and `complete`: a question at the terminal, and its answer as it settles."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vermilion.cli.answer_view import AnswerView, Figures, Stopwatch
from vermilion.cli.options import AnswerOptions, with_options
from vermilion.cli.printing import animated, complain, console, errors, note, print_plain
from vermilion.errors import BadParameter, BadRequest, EngineFailure, VermilionError
from vermilion.types import Decoding, Event, Finish, FinishReason, Sampling, Text

if TYPE_CHECKING:
    from vermilion.engine.llm import LLM

DEFAULT_MAX_TOKENS = 512
DEFAULT_COMPLETION_TOKENS = 64
DECODERS_WITH_THRESHOLD = ("threshold", "entropy", "cumulative")
DECODING_KNOBS = ("decoder", "threshold", "block_length", "revise_below")
INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it."""

System = Annotated[str | None, typer.Option(help="Instructions before the conversation.")]


@with_options(AnswerOptions)
def run(
    prompt: Annotated[str, typer.Argument(help="What to ask; - or nothing reads it from stdin.")] = "-",
    system: System = None,
    raw: Annotated[bool, typer.Option("--raw", help="Continue the text; no chat template.")] = False,
    *,
    options: AnswerOptions,
) -> None:
    """Answer one prompt."""
    prompt = _piped() if prompt == "-" else prompt
    if not prompt.strip():
        raise BadParameter("PROMPT", prompt, "text that is not blank")
    if raw and system is not None:
        raise BadRequest("--system has no place in --raw text; put it into the prompt.")
    with _loaded(options) as llm:
        decoding = _decoding(options, llm)
        tokens: str | list[int] = prompt if raw else llm.chat_prompt(_opening(system, prompt))
        reply = _answer(llm, tokens, Question(_sampling(options), decoding, json=options.json))
    if reply.reason == "abort":
        raise typer.Exit(INTERRUPTED)


@with_options(AnswerOptions)
def chat(system: System = None, *, options: AnswerOptions) -> None:
    """Talk in turns. /reset forgets the conversation, /exit leaves, Ctrl-C stops an answer."""
    with _loaded(options) as llm:
        question = Question(_sampling(options), _decoding(options, llm), json=options.json)
        messages = _opening(system)
        for line in _lines():
            if line == "/exit":
                break
            if line == "/reset":
                messages = _opening(system)
                continue
            asked = [*messages, {"role": "user", "content": line}]
            try:
                reply = _answer(llm, llm.chat_prompt(asked), question)
            except VermilionError as error:
                complain(error)
                continue
            if not (animated() or options.json):
                print(flush=True)
            if reply.text:
                messages = [*asked, {"role": "assistant", "content": reply.text}]


@with_options(AnswerOptions)
def complete(
    place: Annotated[str, typer.Argument(help="FILE:LINE, the end of a line, or FILE:LINE:COL.")],
    write: Annotated[bool, typer.Option("--write", help="Put the completion into the file.")] = False,
    diff: Annotated[bool, typer.Option("--diff", help="Show what would change.")] = False,
    *,
    options: AnswerOptions,
) -> None:
    """Complete a file at a cursor, from the text before and after it."""
    from vermilion.cli import cursor

    here = cursor.parse(place)
    if not here.text.strip():
        raise BadRequest(f"{here.path}: there is no text to go by.")
    with _loaded(options) as llm:
        question = Question(
            _sampling(options, DEFAULT_COMPLETION_TOKENS),
            _decoding(options, llm),
            suffix=here.after,
            json=options.json,
            quiet=write or diff,
        )
        reply = _answer(llm, here.before, question)
    if reply.reason == "abort":
        raise typer.Exit(INTERRUPTED)
    if diff:
        print_plain(here.diff(reply.text))
    if write:
        here.write(reply.text)


@dataclass(frozen=True, slots=True)
class Question:
    """How to answer, and how to show it."""

    sampling: Sampling
    decoding: Decoding
    suffix: str = ""
    json: bool = False
    quiet: bool = False


@dataclass(frozen=True, slots=True)
class Reply:
    text: str
    reason: FinishReason


def _answer(llm: LLM, prompt: str | Sequence[int], question: Question) -> Reply:
    """Shows one answer as it settles and returns it; what had settled, when Ctrl-C stopped it.

    Raises EngineFailure when the engine ends it with an error.
    """
    stopwatch = Stopwatch.start()
    pieces: list[str] = []
    finish: Finish | None = None
    canvas = animated() and not (question.json or question.quiet)
    # Closing it cancels the answer.
    stream = llm.stream(prompt, question.sampling, question.decoding, suffix=question.suffix, canvas=canvas)
    try:
        with closing(stream), _shown(question, canvas) as show:
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
    reply = Reply("".join(pieces), finish.reason if finish else "abort")
    figures = stopwatch.figures(finish) if finish else None
    if question.json:
        print_plain(_as_json(llm, reply, figures))
    elif figures:
        note(str(figures) if canvas or question.quiet else f"\n{figures}")
    return reply


@contextmanager
def _shown(question: Question, canvas: bool) -> Iterator[Callable[[Event], None]]:
    if canvas:
        with AnswerView(console()) as view:
            yield view.show
    elif question.json or question.quiet:
        yield lambda event: None
    else:
        yield lambda event: print_plain(event.text) if isinstance(event, Text) else None


def _as_json(llm: LLM, reply: Reply, figures: Figures | None) -> str:
    answer: dict[str, Any] = {"model": llm.model.id, "text": reply.text, "finish_reason": reply.reason}
    if figures:
        usage = figures.usage
        answer["usage"] = {**asdict(usage), "tokens_per_pass": round(usage.tokens_per_pass, 3)}
        answer["seconds"] = round(figures.seconds, 4)
        answer["first_text_s"] = figures.first_text_s and round(figures.first_text_s, 4)
    return json.dumps(answer, ensure_ascii=False) + "\n"


@contextmanager
def _loaded(options: AnswerOptions) -> Iterator[LLM]:
    from vermilion.config import EngineConfig, build

    config = build(EngineConfig, {"dtype": options.dtype, "device": options.device})
    _knobs(options)  # a mistake in them is told before the model is read
    with errors().status(f"Loading {options.model}"):
        from vermilion.engine.llm import LLM

        llm = LLM(options.model, config=config)
    with closing(llm):
        yield llm


def _knobs(options: AnswerOptions) -> dict[str, object]:
    """Those given. Raises BadParameter for a value, or a preset, that no model takes."""
    from vermilion.decoding.presets import check

    knobs = {name: getattr(options, name) for name in DECODING_KNOBS}
    given = {name: value for name, value in knobs.items() if value is not None}
    check(options.preset, given)
    return given


def _decoding(options: AnswerOptions, llm: LLM) -> Decoding:
    from vermilion.decoding.presets import resolve

    decoding = resolve(llm.model, options.preset, _knobs(options))
    if options.threshold is not None and decoding.decoder not in DECODERS_WITH_THRESHOLD:
        raise BadParameter(
            "--threshold", options.threshold, "with --decoder " + ", ".join(DECODERS_WITH_THRESHOLD)
        )
    return decoding


def _sampling(options: AnswerOptions, max_tokens: int = DEFAULT_MAX_TOKENS) -> Sampling:
    return Sampling(
        temperature=options.temperature, seed=options.seed, max_tokens=options.max_tokens or max_tokens
    )


def _opening(system: str | None, prompt: str | None = None) -> list[dict[str, str]]:
    turns = (("system", system), ("user", prompt))
    return [{"role": role, "content": content} for role, content in turns if content is not None]


def _piped() -> str:
    if sys.stdin.isatty():
        raise BadRequest("No prompt. Give one, as in: vermilion run 'Why is the sky blue?'")
    return sys.stdin.read()


def _lines() -> Iterator[str]:
    """What the user types, line by line, without blank ones, until the input ends."""
    asking = sys.stdin.isatty()
    if asking:
        with suppress(ImportError):  # not on Windows
            import readline  # noqa: F401 - gives input() editing and history
    while True:
        try:
            line = input("> " if asking else "").strip()
        except EOFError:
            return
        except KeyboardInterrupt:
            note("\n/exit or Ctrl-D leaves")
            continue
        if line:
            yield line
