"""The `vermilion` command. What a command needs is imported inside it, so that `--help` stays instant."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from vermilion.errors import BadParameter, BadRequest, ConfigError, EngineFailure, VermilionError
from vermilion.integrations.command import connect
from vermilion.options import DEFAULT_MODEL, AnswerOptions, BenchOptions, ServeOptions, with_options
from vermilion.terminal import AnswerView, Figures, Stopwatch, neutralise
from vermilion.training.command import convert
from vermilion.types import Decoding, Event, Finish, FinishReason, Sampling, Text

if TYPE_CHECKING:
    from vermilion.engine.llm import LLM

DEFAULT_MAX_TOKENS = 512
DEFAULT_COMPLETION_TOKENS = 64
DECODERS_WITH_THRESHOLD = ("threshold", "entropy", "cumulative")
DECODING_KNOBS = ("decoder", "threshold", "block_length", "revise_below")
INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it."""

app = typer.Typer(
    help="Diffusion language models to run, serve, read and train.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
System = Annotated[str | None, typer.Option(help="Instructions before the conversation.")]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; a mistake of the user's is one red line, status 2, any other failure 1."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    try:
        app(args=arguments, standalone_mode=True)
    except VermilionError as error:
        _complain(error)
        return 2 if error.status < 500 or isinstance(error, ConfigError) else 1
    return 0


@app.command()
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
    decoding = _decoding(options)
    with _loaded(options) as llm:
        tokens: str | list[int] = prompt if raw else llm.chat_prompt(_opening(system, prompt))
        reply = _answer(llm, tokens, Question(_sampling(options), decoding, json=options.json))
    if reply.reason == "abort":
        raise typer.Exit(INTERRUPTED)


@app.command()
@with_options(AnswerOptions)
def chat(system: System = None, *, options: AnswerOptions) -> None:
    """Talk in turns. /reset forgets the conversation, /exit leaves, Ctrl-C stops an answer."""
    question = Question(_sampling(options), _decoding(options), json=options.json)
    with _loaded(options) as llm:
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
                _complain(error)
                continue
            if not (_animated() or options.json):
                print(flush=True)
            if reply.text:
                messages = [*asked, {"role": "assistant", "content": reply.text}]


@app.command()
@with_options(AnswerOptions)
def complete(
    place: Annotated[str, typer.Argument(help="FILE:LINE, the end of a line, or FILE:LINE:COL.")],
    write: Annotated[bool, typer.Option("--write", help="Put the completion into the file.")] = False,
    diff: Annotated[bool, typer.Option("--diff", help="Show what would change.")] = False,
    *,
    options: AnswerOptions,
) -> None:
    """Complete a file at a cursor, from the text before and after it."""
    from vermilion import cursor

    here = cursor.parse(place)
    if not here.text.strip():
        raise BadRequest(f"{here.path}: there is no text to go by.")
    question = Question(
        _sampling(options, DEFAULT_COMPLETION_TOKENS),
        _decoding(options),
        suffix=here.after,
        json=options.json,
        quiet=write or diff,
    )
    with _loaded(options) as llm:
        reply = _answer(llm, here.before, question)
    if reply.reason == "abort":
        raise typer.Exit(INTERRUPTED)
    if diff:
        _print_plain(here.diff(reply.text))
    if write:
        here.write(reply.text)


@app.command()
@with_options(ServeOptions)
def serve(options: ServeOptions) -> None:
    """Serve a model over HTTP, as OpenAI's clients expect it. Ctrl-C lets running answers finish."""
    try:
        from vermilion import launch
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("vermilion"):
            raise
        raise ConfigError(f"{error.name} is missing; run: pip install 'vermilion[serve]'") from None

    launch.serve(options, lambda url: _note(f"{url} is open; loading the model"))


@app.command()
def pull(model: Annotated[str, typer.Argument(help="A name of `vermilion models`.")] = DEFAULT_MODEL) -> None:
    """Make a model usable offline; what is here already is checked and not fetched again."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    from vermilion.models import catalog

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=_errors(), disable=not _errors().is_terminal) as progress:
        task = progress.add_task(model, total=None, visible=False)
        files = catalog.pull(
            model, lambda done, total: progress.update(task, completed=done, total=total, visible=True)
        )
    _note(f"{model} is in {files.base.parent}")


@app.command()
def models() -> None:
    """List the models there are, and which are on this disk."""
    from vermilion.models import catalog

    for entry in catalog.available():
        state = "here" if entry.pulled else "not pulled"
        _print_plain(f"{entry.name}  {state}  {entry.size_bytes / 1e6:.0f} MB  {entry.licence}\n")
        _print_plain(f"    {entry.description}\n")


@app.command()
def rm(model: Annotated[str, typer.Argument(help="A name of `vermilion models`.")]) -> None:
    """Delete a pulled model from this disk."""
    from vermilion.models import catalog

    catalog.remove(model)
    _note(f"{model} is removed")


app.command()(convert)
app.command()(connect)


@app.command()
@with_options(BenchOptions)
def bench(*, options: BenchOptions) -> None:
    """Measure the presets side by side; a table, then one JSON document."""
    from vermilion.config import EngineConfig, build
    from vermilion.decoding.presets import resolve
    from vermilion.evaluation import speed

    presets = tuple(options.presets.split(","))
    for preset in presets:
        resolve(preset, None)
    try:
        concurrency = tuple(int(number) for number in options.concurrency.split(","))
    except ValueError:
        concurrency = (0,)
    if min(concurrency) < 1:
        raise BadParameter("--concurrency", options.concurrency, "whole numbers from 1, separated by commas")
    settings = {"dtype": options.dtype, "device": options.device, "prefix_cache": False}
    engine = build(EngineConfig, {**settings, "max_running": max(concurrency)})
    speed.main(
        speed.BenchConfig(
            options.model, presets, concurrency, options.prompts, options.max_tokens, options.repeats,
            options.output, engine,
        )
    )  # fmt: skip


@app.command()
def demo(
    url: Annotated[str, typer.Option(help="A running service.")] = "http://127.0.0.1:8000",
    prompt: Annotated[str | None, typer.Option(help="What to ask it.")] = None,
    wait_s: Annotated[float, typer.Option(help="How long it may take to become ready.")] = 60.0,
    pid: Annotated[int | None, typer.Option(help="Give up when this process, the service, ends.")] = None,
) -> None:
    """Send a first request to a running service and say how to point a client at it."""
    from vermilion import demo as first

    url = url.rstrip("/").removesuffix("/v1")
    prompt = prompt or first.PROMPT
    first.wait_until_ready(url, wait_s, pid)
    _note(f"> {prompt}")
    outcome = first.ask(url, prompt, _print_plain)
    _print_plain(f"\n\n{outcome}\n{first.client_line(url)}\n")


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
    canvas = _animated() and not (question.json or question.quiet)
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
        _note("stopped")
    if finish and finish.reason == "error":
        raise EngineFailure(finish.message or "The engine could not finish the answer.")
    reply = Reply("".join(pieces), finish.reason if finish else "abort")
    figures = stopwatch.figures(finish) if finish else None
    if question.json:
        _print_plain(_as_json(llm, reply, figures))
    elif figures:
        _note(str(figures) if canvas or question.quiet else f"\n{figures}")
    return reply


@contextmanager
def _shown(question: Question, canvas: bool) -> Iterator[Callable[[Event], None]]:
    if canvas:
        with AnswerView(_console()) as view:
            yield view.show
    elif question.json or question.quiet:
        yield lambda event: None
    else:
        yield lambda event: _print_plain(event.text) if isinstance(event, Text) else None


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
    with _errors().status(f"Loading {options.model}"):
        from vermilion.engine.llm import LLM

        llm = LLM(options.model, config=config)
    with closing(llm):
        yield llm


def _decoding(options: AnswerOptions) -> Decoding:
    from vermilion.decoding.presets import resolve

    knobs = {name: getattr(options, name) for name in DECODING_KNOBS}
    decoding = resolve(options.preset, {name: value for name, value in knobs.items() if value is not None})
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
            _note("\n/exit or Ctrl-D leaves")
            continue
        if line:
            yield line


def _print_plain(text: str) -> None:
    """Text for stdout: exact in a pipe or file, harmless on a terminal."""
    sys.stdout.write(neutralise(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def _console() -> Console:
    return Console(highlight=False)


def _animated() -> bool:
    console = _console()
    return console.is_terminal and not console.is_dumb_terminal


def _errors() -> Console:
    return Console(stderr=True, highlight=False, soft_wrap=True)


def _note(text: str) -> None:
    _errors().print(text, style="dim", markup=False)


def _complain(error: VermilionError) -> None:
    _errors().print(f"Error: {neutralise(str(error))}".replace("\n", " "), style="red", markup=False)
