"""The options that several commands share, as dataclasses whose fields are typer options."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

DEFAULT_MODEL = "smollm2-135m-diffusion"

Model = Annotated[str, typer.Option(help="A name of `vermilion models`, owner/name of the hub, or a folder.")]
Preset = Annotated[
    str | None,
    typer.Option(help="lossless, ar, balanced, fast or quality, as the model has them; else its default."),
]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float64.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...")]
Offline = Annotated[bool, typer.Option("--offline", help="Fetch no model; fail if it is not on this disk.")]
_PROCESSES = "Processes, or GPUs, that share the model, on PyTorch."
System = Annotated[str | None, typer.Option(help="Instructions before the conversation.")]


@dataclass(frozen=True, slots=True)
class AnswerOptions:
    """Options of one answer; None leaves the choice to the preset or the command."""

    model: Model = DEFAULT_MODEL
    preset: Preset = None
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Most tokens of the answer.")] = None
    temperature: Annotated[
        float, typer.Option(min=0.0, max=2.0, help="0 always takes the likeliest token.")
    ] = 0.0
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same text.")] = 0
    decoder: Annotated[
        str | None, typer.Option(help="Another decoder than the preset's: threshold, entropy, cumulative ...")
    ] = None
    threshold: Annotated[
        float | None,
        typer.Option(min=0.0, help="Confidence (or entropy) at which the decoder settles a position."),
    ] = None
    block_length: Annotated[int | None, typer.Option(min=1, max=64, help="Positions denoised together.")] = (
        None
    )
    revise_below: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Reopen tokens that the base model finds less likely than this."),
    ] = None
    dtype: Dtype = "auto"
    device: Device = "auto"
    tensor_parallel: Annotated[int, typer.Option(min=1, help=_PROCESSES)] = 1
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object: text, usage.")] = False
    offline: Offline = False


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """How to start a service; None takes the configuration file's value, else the default."""

    models: Annotated[
        list[str] | None,
        typer.Argument(
            help="Names of `vermilion models`, owner/name of the hub, or folders. The first answers requests "
            "that name none; the others are loaded when they are asked for."
        ),
    ] = None
    host: Annotated[
        str | None, typer.Option(envvar="VERMILION_HOST", help="Address to listen on; 127.0.0.1 unless set.")
    ] = None
    port: Annotated[
        int | None,
        typer.Option(
            min=0, max=65535, envvar=["VERMILION_PORT", "SAGEMAKER_BIND_TO_PORT"], help="8000 unless set."
        ),
    ] = None
    model: Annotated[
        str | None, typer.Option(envvar="VERMILION_MODEL", help="The one of MODELS, where none is given.")
    ] = None
    memory_budget: Annotated[
        str | None, typer.Option(help="Memory for all models together, such as 12GB; four fifths unless set.")
    ] = None
    preset: Annotated[
        str | None, typer.Option(envvar="VERMILION_PRESET", help="Decoding of requests that name none.")
    ] = None
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1 ...")] = None
    dtype: Annotated[str | None, typer.Option(help="auto, float32, bfloat16 or float64.")] = None
    backend: Annotated[
        str | None, typer.Option(help="native (C++ kernels, on CPUs), torch or auto; auto unless set.")
    ] = None
    quantize: Annotated[
        str | None, typer.Option(help="q8, q4 or none on the native backend; int8 or fp8 on a GPU.")
    ] = None
    threads: Annotated[int | None, typer.Option(min=0, help="CPU threads of a pass; 0 for all.")] = None
    tensor_parallel: Annotated[int | None, typer.Option(min=1, help=_PROCESSES)] = None
    accounts: Annotated[
        str | None,
        typer.Option(
            envvar="VERMILION_ACCOUNTS", help="Ask for keys, kept in this file or PostgreSQL database."
        ),
    ] = None
    open: Annotated[
        bool | None,
        typer.Option(
            "--open", envvar="VERMILION_OPEN", help="Listen beyond this machine without asking for keys."
        ),
    ] = None
    config: Annotated[
        Path | None, typer.Option(help="A TOML file with model, models and the tables [serve] and [engine].")
    ] = None
    upstream: Annotated[
        list[str] | None,
        typer.Option(help="Serve the model of another server with OpenAI's API, by its address; repeatable."),
    ] = None
    ray: Annotated[
        bool,
        typer.Option("--ray", help="Run on a Ray cluster, this machine's own unless RAY_ADDRESS is set."),
    ] = False
    adapter: Annotated[
        list[str] | None,
        typer.Option(help="NAME=FOLDER of a LoRA to serve beside the model, under NAME; repeatable."),
    ] = None
    set: Annotated[
        list[str] | None, typer.Option("--set", help="One setting, e.g. engine.max_rows=256; repeatable.")
    ] = None
    offline: Offline = False


@dataclass(frozen=True, slots=True)
class BenchOptions:
    """What a benchmark runs."""

    model: Model = DEFAULT_MODEL
    presets: Annotated[
        str | None, typer.Option(help="Separated by commas; all of the model's unless given.")
    ] = None
    concurrency: Annotated[str, typer.Option(help="Streams at once, separated by commas.")] = "1"
    prompts: Annotated[int, typer.Option(min=1, help="How many of the fixed prompts.")] = 6
    max_tokens: Annotated[int, typer.Option(min=2, help="Tokens of each answer.")] = 64
    repeats: Annotated[int, typer.Option(min=1, help="Rounds; medians are reported.")] = 5
    peer: Annotated[str, typer.Option(help="Another engine to run in turns with ours: llama.cpp.")] = ""
    peer_file: Annotated[
        Path | None, typer.Option(help="GGUF that the peer reads where the model is none; compares passes.")
    ] = None
    passes: Annotated[bool, typer.Option("--passes", help="Only what a pass costs by its rows.")] = False
    prompt_tokens: Annotated[int, typer.Option(min=0, help="Bring every prompt to this length.")] = 0
    quantize: Annotated[str, typer.Option(help="q8, q4 or none on a CPU; int8 or fp8 on a GPU.")] = "q8"
    threads: Annotated[int, typer.Option(min=0, help="CPU threads of a pass; 0 for all.")] = 0
    dtype: Dtype = "auto"
    device: Device = "auto"
    output: Annotated[Path | None, typer.Option(help="JSON Lines file that takes the rows.")] = None
    offline: Offline = False


def with_options(kind: type[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Turns the last parameter of a command, a `kind`, into one command-line option per field."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(command, eval_str=True)
        *own, last = signature.parameters.values()
        hints = get_type_hints(kind, include_extras=True)
        shared = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hints[name])
            for name, default in ((field.name, field.default) for field in fields(kind))
        ]

        def with_fields(**values: Any) -> None:
            options = kind(**{parameter.name: values.pop(parameter.name) for parameter in shared})
            command(**values, **{last.name: options})

        own = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own]
        with_fields.__signature__ = signature.replace(parameters=[*own, *shared])  # type: ignore[attr-defined]
        with_fields.__annotations__ = {parameter.name: parameter.annotation for parameter in [*own, *shared]}
        with_fields.__name__, with_fields.__doc__ = command.__name__, command.__doc__
        return with_fields

    return decorate
