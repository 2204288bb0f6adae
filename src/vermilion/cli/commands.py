"""The `vermilion` command. What a command needs is imported inside it, so that `--help` stays instant."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer
import typer.core

import vermilion
from vermilion.cli import pulling
from vermilion.cli.ask import complete, run
from vermilion.cli.build_data import data
from vermilion.cli.connect import connect
from vermilion.cli.conversation import chat
from vermilion.cli.doctor import doctor
from vermilion.cli.evaluate import EvalOptions, evaluate, report
from vermilion.cli.list_models import app as models
from vermilion.cli.manage_accounts import app as accounts
from vermilion.cli.options import DEFAULT_MODEL, BenchOptions, ServeOptions, with_options
from vermilion.cli.printing import complain, note, print_plain
from vermilion.cli.talk import app as voice
from vermilion.cli.train import convert, train
from vermilion.errors import BadParameter, ConfigError, VermilionError

_ORDER = (
    "run", "chat", "complete", "voice", "serve", "demo", "connect", "accounts", "models", "pull", "rm",
    "doctor", "bench", "eval", "report", "data", "convert", "train",
)  # fmt: skip
"""Of `--help`: use, service, models, measurements, training."""


class _Commands(typer.core.TyperGroup):
    def list_commands(self, ctx: Any) -> list[str]:
        return sorted(self.commands, key=_ORDER.index)


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    # Rich would take [serve] in a help text for markup.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; a mistake of the user's is one red line, status 2, any other failure 1."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    try:
        app(args=arguments, standalone_mode=True)
    except VermilionError as error:
        complain(error)
        return 2 if error.status < 500 or isinstance(error, ConfigError) else 1
    return 0


def _print_version(wanted: bool) -> None:
    if wanted:
        print_plain(f"vermilion {vermilion.__version__}\n")
        raise typer.Exit


for command in (run, chat, complete, convert, train, connect, report, doctor):
    app.command()(command)
app.add_typer(accounts, name="accounts")
app.add_typer(data, name="data")
app.add_typer(models, name="models")
app.add_typer(voice, name="voice")
app.command("eval")(with_options(EvalOptions)(evaluate))


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version.")
    ] = False,
) -> None:
    """Diffusion language models to run, serve, read and train."""


@app.command()
@with_options(ServeOptions)
def serve(options: ServeOptions) -> None:
    """Serve a model over HTTP, as OpenAI's clients expect it. Ctrl-C lets running answers finish."""
    from vermilion.cli import launch

    launch.serve(options, lambda url: note(f"{url} is open, its console at {url}/console; loading the model"))


@app.command()
def pull(
    model: Annotated[
        str, typer.Argument(help="A name of `vermilion models`, or owner/name[@revision] of the model hub.")
    ] = DEFAULT_MODEL,
) -> None:
    """Download a model. Files that are already here are checked, not fetched again.

    HF_ENDPOINT names a mirror of the hub, HF_TOKEN opens gated models, VERMILION_HOME says where models lie.
    """
    pulling.pull(model)


@app.command()
def rm(model: Annotated[str, typer.Argument(help="A name of `vermilion models`.")]) -> None:
    """Delete a pulled model from this disk."""
    from vermilion.models import catalog

    catalog.remove(model)
    note(f"{model} is removed")


@app.command()
@with_options(BenchOptions)
def bench(*, options: BenchOptions) -> None:
    """Measure the presets side by side. Prints a table, then one JSON document."""
    from vermilion.config import EngineConfig, build
    from vermilion.decoding.presets import check
    from vermilion.evaluation import speed

    presets = tuple(options.presets.split(",")) if options.presets else ()
    for preset in presets:
        check(preset)
    try:
        concurrency = tuple(int(number) for number in options.concurrency.split(","))
    except ValueError:
        concurrency = (0,)
    if min(concurrency) < 1:
        raise BadParameter("--concurrency", options.concurrency, "whole numbers from 1, separated by commas")
    pulling.ensure(options.model, options.offline)
    settings = {name: getattr(options, name) for name in ("dtype", "device", "quantize", "threads")}
    engine = build(EngineConfig, {**settings, "prefix_cache": False, "max_running": max(concurrency)})
    speed.main(
        speed.BenchConfig(
            options.model, presets, concurrency, options.prompts, options.max_tokens, options.repeats,
            options.output, options.peer, options.peer_file, options.passes, options.prompt_tokens, engine,
        )
    )  # fmt: skip


@app.command()
def demo(
    url: Annotated[str, typer.Option(help="A running service.")] = "http://127.0.0.1:8000",
    prompt: Annotated[str | None, typer.Option(help="What to ask it.")] = None,
    wait_s: Annotated[float, typer.Option(help="How long it may take to become ready.")] = 60.0,
    pid: Annotated[int | None, typer.Option(help="Give up when this process, the service, ends.")] = None,
) -> None:
    """Send a first request to a running service. Prints the answer and the client setting."""
    from vermilion.cli import demo as first

    url = url.rstrip("/").removesuffix("/v1")
    prompt = prompt or first.PROMPT
    first.wait_until_ready(url, wait_s, pid)
    note(f"> {prompt}")
    outcome = first.ask(url, prompt, print_plain)
    print_plain(f"\n\n{outcome}\n{first.client_line(url)}\n")
