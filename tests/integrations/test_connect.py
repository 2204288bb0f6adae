"""`vermilion connect` against a real server with a fake engine."""

from __future__ import annotations

import json
import re
import socket
import threading
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
import yaml
from llguidance import LLMatcher, LLTokenizer
from typer.testing import CliRunner, Result

from serving.fake import MODEL, FakeBackend
from serving.threaded import threaded
from vermilion.accounts import database as stores
from vermilion.cli import app
from vermilion.errors import BadParameter, EngineFailure, VermilionError
from vermilion.integrations.clients import CLIENTS
from vermilion.integrations.endpoint import discover

BACKEND = FakeBackend(model=replace(MODEL, context_length=8192))


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with threaded(BACKEND) as url:
        yield url


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """A service with accounts, and a key of it."""
    where = str(tmp_path_factory.mktemp("accounts") / "accounts.db")
    store = stores.connect(where)
    stores.migrate(store)
    store.close()
    with threaded(BACKEND, where) as url:
        reply = httpx.post(f"{url}/v1/accounts", json={"email": "ada@example.org"})
        yield url, reply.json()["key"]["secret"]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    return tmp_path


def fits(text: str, lark: str) -> bool:
    """Whether a grammar takes the whole of a text."""
    tokenizer = LLTokenizer("byte")
    matcher = LLMatcher(tokenizer, lark)
    return matcher.try_consume_tokens(tokenizer.tokenize_str(text)) == len(text) and matcher.is_accepting()


def connect(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["connect", *arguments])


@pytest.mark.parametrize("client", list(CLIENTS))
def test_every_client_gets_its_configuration_and_its_requests_are_answered(client: str, url: str) -> None:
    result = connect(client, "--url", url)
    assert result.exit_code == 0, result.output
    assert url in result.stdout
    assert "FAILED" not in result.stderr
    assert result.stderr.count("ok ") == len(CLIENTS[client].checks)


def test_editors_that_predict_edits_know_the_model_by_the_name_they_look_for(url: str) -> None:
    assert "model: mercury-coder\n" in connect("continue", "--url", url, "--no-check").stdout


@pytest.mark.parametrize("client", ["kilo", "opencode"])
def test_a_model_with_little_context_gets_an_agent_with_few_tools(client: str, url: str) -> None:
    little = discover(url, "")
    agents = [
        json.loads(CLIENTS[client].render(replace(little, context_length=length))).get("agent", {})
        for length in (8192, 131_072)
    ]
    assert [name for name, allowed in agents[0]["vermilion"]["tools"].items() if allowed] == [
        "read",
        "edit",
        "write",
    ]
    assert agents[1] == {}


@pytest.mark.parametrize("client", ["claude", "codex", "copilot", "pi", "qwen"])
def test_an_agent_is_told_the_context_and_trimmed_where_that_is_small(client: str, url: str) -> None:
    found = discover(url, "secret")
    small, large = (
        {
            path.name: text
            for path, text in CLIENTS[client]
            .files(replace(found, context_length=length, max_output=4096))
            .items()
        }
        or {"": CLIENTS[client].render(replace(found, context_length=length, max_output=4096))}
        for length in (8192, 131_072)
    )
    told = "".join(small.values())
    assert "tiny-diffusion" in told and "secret" in told and found.root in told
    limits = {
        int(number) for number in re.findall(r"(?<![\w.])\d{4,6}(?![\w.])", told.replace(found.root, ""))
    }
    assert limits and max(limits) <= 8192
    # Each of them trims in its own way.
    trims = {
        "claude": "CLAUDE_CODE_SIMPLE",
        "codex": "model_instructions_file",
        "copilot": "--available-tools",
        "pi": "reserveTokens",
        "qwen": "QWEN_SYSTEM_MD",
    }
    assert trims[client] in told
    assert trims[client] not in "".join(large.values())


def test_codexs_profile_is_sound_and_leaves_its_configuration_alone(url: str, home: Path) -> None:
    (home / ".codex").mkdir()
    (home / ".codex/config.toml").write_text("model = 'mine'\n")
    for key in ("first", "second"):
        result = connect("codex", "--url", url, "--key", key, "--write", "--no-check")
        assert result.exit_code == 0, result.output
        profile = tomllib.loads((home / ".codex/vermilion.config.toml").read_text())
        assert profile["model_providers"]["vermilion"]["http_headers"] == {"Authorization": f"Bearer {key}"}
        assert profile["model_auto_compact_token_limit"] < profile["model_context_window"]
    assert profile["model_provider"] == "vermilion"
    assert (home / ".codex/config.toml").read_text() == "model = 'mine'\n"
    assert (home / ".codex/vermilion.md").read_text() == "You read and edit files with your tools.\n"
    assert (home / ".codex/vermilion.config.toml").stat().st_mode & 0o077 == 0


def test_zed_is_told_every_capability_that_its_settings_demand(url: str) -> None:
    settings = json.loads(CLIENTS["zed"].render(discover(url, "")))
    (model,) = settings["language_models"]["openai_compatible"]["Vermilion"]["available_models"]
    assert model["capabilities"].keys() == {"tools", "images", "parallel_tool_calls", "prompt_cache_key"}


def test_the_address_may_end_in_v1(url: str) -> None:
    assert discover(f"{url}/v1/", "", None).v1 == f"{url}/v1"


def test_a_service_that_still_loads_is_waited_for() -> None:
    loaded = threading.Event()
    told: list[str] = []

    def waiting(words: str) -> None:
        told.append(words)
        loaded.set()

    with threaded(BACKEND, loaded=loaded) as url:
        assert discover(url, "", None, waiting).model == "tiny-diffusion"
    assert told == [f"{url} still loads its model ..."]


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
    # The error is one line, so what is to be added stands before it.
    assert isinstance(result.exception, VermilionError)
    assert "\n" not in str(result.exception)
    assert CLIENTS[client].render(discover(url, "unused")) in result.stdout
    assert path.read_text() == content


def test_a_file_of_ours_is_written_anew_and_one_that_fits_is_left(url: str, home: Path) -> None:
    for client, name in (
        ("continue", ".continue/config.yaml"),
        ("opencode", ".config/opencode/opencode.json"),
    ):
        assert connect(client, "--url", url, "--write", "--no-check").exit_code == 0
        (home / name).write_text((home / name).read_text().replace(url, "http://127.0.0.1:9"))
        assert connect(client, "--url", url, "--write", "--no-check").exit_code == 0
        before = (home / name).read_text()
        assert url in before
        again = connect(client, "--url", url, "--write", "--no-check")
        assert (again.exit_code, (home / name).read_text()) == (0, before)
    assert "holds it already" in again.stdout


def test_aider_gets_a_grammar_of_its_format_for_a_model_with_little_context(url: str, home: Path) -> None:
    (home / ".aider.conf.yml").write_text("dark-mode: true\n")
    result = connect("aider", "--url", url, "--write", "--no-check")
    # The one file is the user's, the other is written all the same.
    assert ".aider.conf.yml exists" in str(result.exception)
    (settings,) = yaml.safe_load((home / ".aider.model.settings.yml").read_text())
    assert settings["name"] == "openai/tiny-diffusion"
    grammar = settings["extra_params"]["extra_body"]["response_format"]
    body = {"messages": [{"role": "user", "content": "hi"}], "response_format": grammar}
    assert httpx.post(f"{url}/v1/chat/completions", json=body).status_code == 200
    assert fits("```\na = 1\n\nb = 2\n```", grammar["value"])
    assert not fits("Sure!\n```\na = 1\n```", grammar["value"])
    assert not fits("```\na = 1\n```\n", grammar["value"])
    large = replace(discover(url, ""), context_length=131_072)
    assert list(CLIENTS["aider"].files(large)) == [home / ".aider.conf.yml"]


def test_a_service_with_accounts_takes_a_key_and_says_what_it_lacks(
    guarded: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, key = guarded
    for given in ([], ["--key", "vm-wrong"]):
        refused = connect("kilo", "--url", url, *given)
        assert isinstance(refused.exception, EngineFailure)
        assert "401" in str(refused.exception) and "--key" in str(refused.exception)
    asked = connect("kilo", "--url", url, "--key", key)
    assert asked.exit_code == 0, asked.output
    assert key in asked.stdout
    monkeypatch.setenv("VERMILION_API_KEY", key)
    assert connect("continue", "--url", url).exit_code == 0


@pytest.mark.parametrize("greeting", [b"SSH-2.0-OpenSSH_9.2\r\n", b"", b"HTTP/1.1 200 OK\r\n\r\n<html>"])
def test_another_service_at_the_address_is_told_from_ours(greeting: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(greeting)

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(EngineFailure, match=r"is Vermilion running there|Nothing answers"):
            discover(f"http://127.0.0.1:{server.getsockname()[1]}", "")
        thread.join(20)


@pytest.mark.parametrize(
    "url", ["ftp://x", "http://", "http://[::1", "http://x:port", "two words", "http://ü"]
)
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(BadParameter, match="an address such as"):
        discover(url, "")


def test_mistakes_are_told() -> None:
    with pytest.raises(EngineFailure, match=r"refused.*vermilion serve --port 9"):
        discover("http://127.0.0.1:9", "", None)
    with pytest.raises(BadParameter, match="--key"):
        discover("http://127.0.0.1:9", "clé\n", None)
    result = connect("emacs")
    assert isinstance(result.exception, BadParameter)
    assert "aider" in str(result.exception)


def test_an_unknown_model_names_the_served_ones(url: str) -> None:
    with pytest.raises(BadParameter, match="tiny-diffusion"):
        discover(url, "", "gpt-9")
