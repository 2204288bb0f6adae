"""The programs of docs/CLOUDS.md run as they stand, against a service on the fake engine."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from serving.fake import MODEL, FakeBackend
from serving.threaded import threaded
from vermilion import cli
from vermilion.cli import launch

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "CLOUDS.md").read_text(encoding="utf-8")
PROGRAMS = re.findall(r"```python\n(.+?)```", PAGE, re.DOTALL)
COMMANDS = [line for block in re.findall(r"```sh\n(.+?)```", PAGE, re.DOTALL) for line in block.splitlines()]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with threaded(FakeBackend(model=replace(MODEL, context_length=4096))) as url:
        while httpx.get(f"{url}/ready").status_code != httpx.codes.OK:
            pass
        yield url


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("program", PROGRAMS, ids=[f"program{number}" for number in range(len(PROGRAMS))])
def test_a_program_of_the_page_gets_its_answer(
    program: str, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    exec(compile(program.replace("http://localhost:8000", url), "CLOUDS.md", "exec"), {"__name__": "page"})
    assert "Hello, world!" in capsys.readouterr().out


def run(words: list[str]) -> int:
    try:
        return cli.main(words)
    except SystemExit as ended:
        return int(ended.code or 0)


def test_the_commands_of_the_page_give_keys_and_start_a_service(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("VERMILION_ACCOUNTS", raising=False)
    started: list[launch.Settings] = []
    monkeypatch.setattr(launch, "serve", lambda options, _: started.append(launch.settings_of(options)))
    organisation, printed = "", ""
    for command in COMMANDS:
        words = [organisation if word == "ORG" else word for word in shlex.split(command)]
        assert words[0] == "vermilion"
        assert run(words[1:]) == 0, command
        told = capsys.readouterr()
        printed += told.out
        found = re.search(r"Organisation (org_\w+)", told.err)
        organisation = found[1] if found else organisation
    assert re.search(r"^AWS_ACCESS_KEY_ID=AKVM\w{12}$", printed, re.MULTILINE)
    assert started[-1].serve.accounts.url == "accounts.db"


def test_the_variables_of_a_container_configure_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Any] = []
    monkeypatch.setattr(launch, "serve", lambda options, _: started.append(launch.settings_of(options)))
    named = {
        "VERMILION_MODEL": "/opt/ml/model",
        "VERMILION_PRESET": "fast",
        "VERMILION_OPEN": "1",
        "VERMILION_HOST": "0.0.0.0",
        "SAGEMAKER_BIND_TO_PORT": "8080",
    }
    for name, value in named.items():
        assert name in PAGE
        monkeypatch.setenv(name, value)
    run(["serve"])
    run(["serve", "--port", "9000", "--model", "smollm2-135m-diffusion"])
    monkeypatch.setenv("VERMILION_PORT", "8081")
    run(["serve"])
    first, second, third = started
    assert (first.model, first.serve.default_preset) == ("/opt/ml/model", "fast")
    assert (first.serve.host, first.serve.port, first.serve.open) == ("0.0.0.0", 8080, True)
    assert (second.model, second.serve.port, third.serve.port) == ("smollm2-135m-diffusion", 9000, 8081)
