"""`vermilion connect` against a real server with a fake engine."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from serving.fake import FakeBackend, served
from vermilion.cli import app
from vermilion.errors import BadParameter, EngineFailure, VermilionError
from vermilion.integrations.connection import discover
from vermilion.integrations.editors import EDITORS
from vermilion.serving.backend import Served
from vermilion.serving.config import ServeConfig
from vermilion.serving.server import serve


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A service on its own thread and loop."""
    found: list[str] = []
    ready = threading.Event()
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()

    @asynccontextmanager
    async def load() -> AsyncIterator[Served]:
        yield served(FakeBackend())

    def opened(address: str) -> None:
        found.append(address)
        ready.set()

    def run() -> None:
        loop.run_until_complete(serve(ServeConfig(port=0), load, stop, opened))
        loop.close()

    thread = threading.Thread(target=run)
    thread.start()
    assert ready.wait(20)
    yield found[0]
    loop.call_soon_threadsafe(stop.set)
    thread.join(20)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    return tmp_path


def connect(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["connect", *arguments])


@pytest.mark.parametrize("client", list(EDITORS))
def test_every_client_gets_its_configuration_and_its_requests_are_answered(client: str, url: str) -> None:
    result = connect(client, "--url", url)
    assert result.exit_code == 0, result.output
    assert url in result.stdout
    assert "FAILED" not in result.stderr
    assert result.stderr.count("ok ") == len(EDITORS[client].checks)


def test_editors_that_predict_edits_know_the_model_by_the_name_they_look_for(url: str) -> None:
    assert "model: mercury-coder\n" in connect("continue", "--url", url, "--no-check").stdout


@pytest.mark.parametrize("client", ["kilo", "opencode"])
def test_a_model_with_little_context_gets_an_agent_with_few_tools(client: str, url: str) -> None:
    little = discover(url, "")
    agents = [
        json.loads(EDITORS[client].render(replace(little, context_length=length))).get("agent", {})
        for length in (8192, 131_072)
    ]
    assert [name for name, allowed in agents[0]["vermilion"]["tools"].items() if allowed] == [
        "read",
        "edit",
        "write",
    ]
    assert agents[1] == {}


def test_the_address_may_end_in_v1(url: str) -> None:
    assert discover(f"{url}/v1/", "", None).v1 == f"{url}/v1"


def test_a_new_file_is_written_for_its_owner_alone(url: str, home: Path) -> None:
    result = connect("opencode", "--url", url, "--write")
    assert result.exit_code == 0, result.output
    path = home / ".config/opencode/opencode.json"
    assert json.loads(path.read_text())["model"] == "vermilion/tiny-diffusion"
    assert path.stat().st_mode & 0o077 == 0


def test_what_a_json_file_holds_is_kept_and_backed_up(url: str, home: Path) -> None:
    path = home / ".config/zed/settings.json"
    path.parent.mkdir(parents=True)
    before = '{"theme": "One Dark", "language_models": {"ollama": {"api_url": "x"}}}'
    path.write_text(before)
    assert connect("zed", "--url", url, "--write", "--no-check").exit_code == 0
    settings = json.loads(path.read_text())
    assert settings["theme"] == "One Dark"
    assert set(settings["language_models"]) == {"ollama", "openai_compatible"}
    assert path.with_name("settings.json.before-vermilion").read_text() == before


@pytest.mark.parametrize(
    ("client", "name", "content"),
    [
        ("continue", ".continue/config.yaml", "name: Mine\n"),
        ("zed", ".config/zed/settings.json", '// mine\n{"theme": "One Dark"}\n'),
    ],
)
def test_a_file_that_cannot_be_merged_is_left_alone(
    client: str, name: str, content: str, url: str, home: Path
) -> None:
    path = home / name
    path.parent.mkdir(parents=True)
    path.write_text(content)
    result = connect(client, "--url", url, "--write", "--no-check")
    assert isinstance(result.exception, VermilionError)
    assert path.read_text() == content


def test_mistakes_are_told() -> None:
    with pytest.raises(BadParameter, match="address"):
        discover("ftp://x", "", None)
    with pytest.raises(EngineFailure, match="vermilion serve"):
        discover("http://127.0.0.1:9", "", None)
    result = connect("emacs")
    assert isinstance(result.exception, BadParameter)
    assert "aider" in str(result.exception)


def test_an_unknown_model_names_the_served_ones(url: str) -> None:
    with pytest.raises(BadParameter, match="tiny-diffusion"):
        discover(url, "", "gpt-9")
