"""`vermilion connect`: the configuration of an editor or agent, printed or written, and tested."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vermilion.errors import BadParameter, BadRequest, EngineFailure

if TYPE_CHECKING:
    from vermilion.integrations.clients import Client
    from vermilion.integrations.endpoint import Endpoint

_LOCAL = "http://127.0.0.1:8000"
_CLIENTS = (
    "aider, claude, cline, codex, continue, copilot, jetbrains, kilo, opencode, pi, proxyai, qwen or zed."
)
_OWN_FILE = "vermilion."
"""How files begin that nobody else writes."""
_OURS = (
    "# Written by `vermilion connect`, which replaces this file the next time; without this line it does not."
)


def connect(
    client: Annotated[str, typer.Argument(help=_CLIENTS)],
    url: Annotated[str, typer.Option(help="Where the service runs.")] = _LOCAL,
    key: Annotated[
        str, typer.Option(envvar="VERMILION_API_KEY", help="An API key, where the service asks for one.")
    ] = "unused",
    model: Annotated[str | None, typer.Option(help="One of the served models; the first unless set.")] = None,
    write: Annotated[bool, typer.Option("--write", help="Put it into the client's own file.")] = False,
    check: Annotated[bool, typer.Option("--check/--no-check", help="Try the client's requests.")] = True,
) -> None:
    """Configure an editor or agent for a running service, and test it."""
    from vermilion.integrations.clients import CLIENTS
    from vermilion.integrations.endpoint import discover

    settings = CLIENTS.get(client)
    if settings is None:
        raise BadParameter("CLIENT", client, ", ".join(CLIENTS))
    endpoint = discover(url, key, model, lambda words: print(words, file=sys.stderr))
    files = settings.files(endpoint)
    if write:
        _write_all(files, settings)
    for path, text in {} if write else files.items():
        print(f"{settings.title} reads {path}:\n", file=sys.stderr)
        print(text, end="", flush=True)
        print(file=sys.stderr)
    if not files:
        print(settings.render(endpoint), end="", flush=True)
    if settings.after:
        print(f"\n{settings.after}", file=sys.stderr)
    if check:
        _check(endpoint, settings)


def _check(endpoint: Endpoint, settings: Client) -> None:
    """Makes the client's requests and prints how each went. Raises EngineFailure if one failed."""
    from vermilion.integrations.endpoint import check as ask

    failed = []
    for route, body in settings.checks:
        result = ask(endpoint, route, {"model": endpoint.model, **body})
        mark = "ok" if result.ok else "FAILED"
        print(f"{mark:<7}{route}  {result.seconds:.2f} s  {result.detail}", file=sys.stderr)
        failed += [] if result.ok else [route]
    if failed:
        raise EngineFailure(f"The service did not answer as {settings.title} needs: {', '.join(failed)}.")


def _write_all(files: Mapping[Path, str], settings: Client) -> None:
    """Writes each text into its file. Tries all, then raises BadRequest for those it must keep."""
    if not files:
        raise BadRequest(f"{settings.title} keeps its settings to itself; run this without --write.")
    refused = []
    for path, text in files.items():
        try:
            print(_write(path, text))
        except BadRequest as error:
            print(f"To be added to {path}:\n", file=sys.stderr)
            print(text, end="", flush=True)
            print(file=sys.stderr)
            refused.append(str(error))
        except OSError as error:
            refused.append(f"{path} cannot be written: {error.strerror}.")
    if refused:
        raise BadRequest(" ".join(refused))


def _write(path: Path, text: str) -> str:
    """Merges the configuration into `path`; returns a message that says what was done.

    Raises BadRequest for a file whose other contents would be lost or misread.
    """
    if path.name.startswith(_OWN_FILE):
        _replace(path, text)
        return f"{path} is written"
    mergeable = path.suffix == ".json"
    ours = text if mergeable else f"{_OURS}\n{text}"
    before = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    if not before.strip() or (not mergeable and before.startswith(_OURS)):
        _replace(path, ours)
        return f"{path} is written"
    if not mergeable:
        raise BadRequest(f"{path} exists; add the lines above to it by hand, or move it away.")
    try:
        present = json.loads(before)
    except ValueError:
        present = None
    if not isinstance(present, dict):
        raise BadRequest(f"{path} is not plain JSON (it may hold comments); add the lines above by hand.")
    merged = _merged(present, json.loads(text))
    if merged == present:
        return f"{path} holds it already"
    backup = path.with_name(f"{path.name}.before-vermilion")
    if not backup.exists():
        shutil.copy2(path, backup)
    _replace(path, json.dumps(merged, indent=2) + "\n")
    return f"{path} is extended; as it was before: {backup}"


def _merged(present: Mapping[str, Any], added: Mapping[str, Any]) -> dict[str, Any]:
    """`present` overridden by `added`, tables merged key by key."""
    merged = dict(present)
    for key, value in added.items():
        old = merged.get(key)
        both = isinstance(old, Mapping) and isinstance(value, Mapping)
        merged[key] = _merged(old, value) if both else value  # type: ignore[arg-type]
    return merged


def _replace(path: Path, text: str) -> None:
    """Writes the file atomically and readable by its owner only, since it may hold a key."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.partial")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with open(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    draft.replace(path)
