"""`vermilion voice`: calls with a model, in a process of their own beside the service."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vermilion.cli.options import DEFAULT_MODEL, with_options
from vermilion.cli.printing import note, print_plain
from vermilion.errors import ModelFileError

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from vermilion.voice.call import Agent
    from vermilion.voice.call_processes import CallProcess

_LOAD_WAIT_S = 300.0

app = typer.Typer(
    help="Talk with a model: a page for calls, or one turn from a file.", invoke_without_command=True
)

Service = Annotated[str, typer.Option(help="The service that answers; started here if none runs there.")]
Key = Annotated[
    str, typer.Option(envvar="VERMILION_API_KEY", help="An API key, where the service asks for one.")
]
AsrModel = Annotated[
    str | None,
    typer.Option(help="base, tiny.en, pocketsphinx, a folder, or owner/name of the hub; else the best here."),
]
Tts = Annotated[str | None, typer.Option(help="piper, flite or kokoro (slow); else piper, or flite.")]
_SERVICE = "http://127.0.0.1:8000"


@dataclass(frozen=True, slots=True)
class TalkOptions:
    """Who listens, who answers and who speaks."""

    service: Service = _SERVICE
    key: Key = "unused"
    model: Annotated[str | None, typer.Option(help="One of the served models; the first unless set.")] = None
    asr_model: AsrModel = None
    tts: Tts = None
    persona: Annotated[str | None, typer.Option(help="A TOML file, or restaurant.")] = None


@dataclass(frozen=True, slots=True)
class SwitchboardOptions(TalkOptions):
    """Where calls come in."""

    port: Annotated[int, typer.Option(min=0, max=65535, help="Where the page is.")] = 7860
    host: Annotated[str, typer.Option(help="Others than this machine need an address of it here.")] = (
        "127.0.0.1"
    )
    allow_host: Annotated[
        list[str] | None,
        typer.Option(help="A name besides localhost that the page may be asked under, as a proxy's."),
    ] = None
    processes: Annotated[
        int, typer.Option(min=1, max=64, help="How many answer calls, each with the models of speech.")
    ] = 1


@app.callback()
@with_options(SwitchboardOptions)
def voice(
    context: typer.Context,
    browser: Annotated[bool, typer.Option("--open/--no-open", help="Open the page in a browser.")] = True,
    *,
    options: SwitchboardOptions,
) -> None:
    """Talk with a model. Starts the service if none runs, fetches what is missing, opens the page."""
    if context.invoked_subcommand:
        return
    _need_extra()
    from vermilion.voice import voice_app

    listener, page = voice_app.listen(options.host, options.port)

    def opened() -> None:
        note(f"Talk at {page}. Ctrl-C ends it.")
        if browser:
            import webbrowser

            webbrowser.open(page)

    _pull_missing(options)
    with _service(options):
        if options.processes > 1:
            from vermilion.voice.call_processes import answer_in_processes

            answer_in_processes(options.processes, listener, partial(_answer, options), opened)
        else:
            agent = _agent(options)
            opened()
            voice_app.serve(agent, options.host, options.allow_host or (), [listener])


@app.command()
@with_options(TalkOptions)
def say(
    files: Annotated[list[Path], typer.Argument(help="Recordings, one a turn, of any rate.")],
    output: Annotated[Path | None, typer.Option(help="A WAV file for what was answered.")] = None,
    *,
    options: TalkOptions,
) -> None:
    """Have a conversation without a microphone. Prints what was heard and answered, and after how long."""
    _need_extra()
    from vermilion.voice import headless

    turns = [headless.read_speech(file) for file in files]
    _pull_missing(options)
    with _service(options):
        conversation = headless.converse(_agent(options), turns)
    for who, text in conversation.record.lines:
        print_plain(f"{who}: {text}\n")
    for number, latency in enumerate(conversation.record.latencies, 1):
        stages = ", ".join(f"{name} {ms:.0f}" for name, ms in latency.stages_ms.items())
        note(f"turn {number}: {latency.total_ms:.0f} ms to the first sound ({stages})")
    if output is not None:
        headless.write_speech(output, conversation.samples, conversation.sample_rate)
        note(f"{output} has {len(conversation.samples) / conversation.sample_rate:.1f} s of answers")


@app.command()
def doctor(
    service: Service = _SERVICE,
    key: Key = "unused",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Where the page is to be.")] = 7860,
) -> None:
    """Check what a call needs. Prints packages, weights, microphone, ports and the time of every stage."""
    from vermilion.voice import voice_checks

    failed = 0
    for check in voice_checks.checks(service.rstrip("/"), key, port):
        failed += not check.ok
        print_plain(f"{'ok' if check.ok else 'FAILED':<7} {check.name:<12} {check.detail}\n")
    if failed:
        raise typer.Exit(1)


@app.command()
def pull(
    asr_model: AsrModel = None,
    tts: Tts = None,
) -> None:
    """Download the weights of speech. Those that are here are checked, not fetched again."""
    _pull([name for name, _ in _weights(asr_model, tts)])


def _weights(asr_model: str | None, tts: str | None) -> list[tuple[str, bool]]:
    """What a choice needs of `SPEECH_MODELS`, the best for want of one, and whether it was a choice."""
    from vermilion.speech.speech_models import SPEECH_MODELS

    mouths = {"piper": "piper-joe", "kokoro": "kokoro"}
    wanted = [
        (f"whisper-{asr_model or 'base'}", asr_model is not None),
        (mouths.get(tts or "piper", ""), tts is not None),
    ]
    return [(name, chosen) for name, chosen in wanted if name in SPEECH_MODELS]


def _pull_missing(options: TalkOptions) -> None:
    """What was chosen must be had; what was left to us may be done without."""
    from vermilion.speech import speech_models

    for name, chosen in _weights(options.asr_model, options.tts):
        if speech_models.is_pulled(name):
            continue
        try:
            _pull([name])
        except ModelFileError as error:
            if chosen:
                raise
            note(f"{error}")


def _pull(names: list[str]) -> None:
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    from vermilion.cli.printing import errors
    from vermilion.speech import speech_models

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=errors(), disable=not errors().is_terminal) as progress:
        for name in names:
            task = progress.add_task(name, total=None)
            folder = speech_models.pull(name, partial(_show_progress, progress, task))
            note(f"{name} is in {folder}")


def _show_progress(progress: Progress, task: TaskID, done: int, total: int) -> None:
    progress.update(task, completed=done, total=total)


@contextlib.contextmanager
def _service(options: TalkOptions) -> Iterator[None]:
    """The service running, which is started and ended here if nobody else did."""
    from vermilion.cli import pulling
    from vermilion.cli.demo import wait_until_ready
    from vermilion.voice import model_service

    url, model = _url(options), options.model or DEFAULT_MODEL
    with contextlib.ExitStack() as stack:
        pid = None
        if not model_service.answers(url):
            pulling.ensure(model, offline=False)
            note(f"Starting the service at {url}")
            pid = stack.enter_context(model_service.started(url, model))
        wait_until_ready(url, _LOAD_WAIT_S, pid)
        yield


def _agent(options: TalkOptions) -> Agent:
    """Everything loaded."""
    from vermilion.integrations.endpoint import discover
    from vermilion.speech.recognizer import find_recognizer
    from vermilion.speech.synthesizer import find_synthesizer
    from vermilion.voice.call import Agent
    from vermilion.voice.persona import find_persona

    persona = find_persona(options.persona)
    recognizer, synthesizer = find_recognizer(options.asr_model), find_synthesizer(options.tts)
    endpoint = discover(_url(options), options.key, options.model, note)
    agent = Agent(recognizer, synthesizer, persona, endpoint.v1, endpoint.model, options.key)
    agent.warm()
    return agent


def _answer(options: SwitchboardOptions, place: CallProcess) -> None:
    """One of several processes."""
    _need_extra()
    from vermilion.voice import voice_app
    from vermilion.voice.other_processes import OtherProcesses

    agent = _agent(options)
    place.ready.set()
    others = OtherProcesses(place.others)
    voice_app.serve(agent, options.host, options.allow_host or (), place.listeners, others)


def _url(options: TalkOptions) -> str:
    return options.service.rstrip("/").removesuffix("/v1")


def _need_extra() -> None:
    if find_spec("pipecat") is None:
        raise ModelFileError("Calls need more packages. Run: pip install 'vermilion[voice]'")
    from loguru import logger

    # Its debugging lines would quote what callers say.
    logger.remove()
    logger.add(sys.stderr, level="WARNING")
