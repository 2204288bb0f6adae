"""The command line against a model that answers from a script."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.cli.scripted import USAGE, FakeLLM, settles, typed, vermilion
from vermilion import cli
from vermilion.cli.ask import DEFAULT_COMPLETION_TOKENS
from vermilion.config import EngineConfig
from vermilion.serving.serve_config import ServeConfig
from vermilion.types import Canvas, Event, Finish, Sampling, Text, Usage

pytestmark = pytest.mark.usefixtures("fake_llm")


def test_run_prints_the_settled_text_alone_and_the_figures_on_stderr(
    capsys: pytest.CaptureFixture[str],
) -> None:
    FakeLLM.answers = [settles("The sky ", "is blue.")]
    assert vermilion("run", "Why?", "--system", "Be short.") == 0
    output = capsys.readouterr()
    assert output.out == "The sky is blue."
    assert "6 tokens" in output.err and "2.00 tokens per pass" in output.err
    assert FakeLLM.asked[0]["messages"] == [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "Why?"},
    ]
    assert FakeLLM.closed == 1


def test_run_hands_every_option_on() -> None:
    FakeLLM.answers = [settles("x")]
    options = "--raw --max-tokens 9 --temperature 0.5 --seed 7 --dtype float64 --device cpu"
    how = "--preset ar --decoder threshold --threshold 0.8 --block-length 16"
    assert vermilion("run", "Once", *options.split(), *how.split()) == 0
    asked = FakeLLM.asked[0]
    assert asked["prompt"] == "Once"
    assert asked["sampling"] == Sampling(max_tokens=9, temperature=0.5, seed=7)
    decoding, config = asked["decoding"], asked["config"]
    assert (decoding.decoder, decoding.threshold, decoding.block_length) == ("threshold", 0.8, 16)
    assert (config.dtype, config.device) == ("float64", "cpu")


@pytest.mark.parametrize("arguments", [("run",), ("run", "-")])
def test_run_reads_a_piped_prompt(arguments: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> None:
    typed(monkeypatch, "From a pipe\n")
    FakeLLM.answers = [settles("ok")]
    assert vermilion(*arguments, "--raw") == 0
    assert FakeLLM.asked[0]["prompt"] == "From a pipe\n"


def test_run_as_json_is_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    FakeLLM.answers = [settles("é\n", "b")]
    assert vermilion("run", "x", "--json") == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["text"] == "é\nb"
    assert answer["finish_reason"] == "stop"
    assert answer["usage"]["completion_tokens"] == 6
    assert answer["usage"]["tokens_per_pass"] == 2.0


def test_run_draws_the_canvas_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    canvas = Canvas("red green", settled=((0, 3),), masked=((4, 9),))
    FakeLLM.answers = [[canvas, Text("red \x1b[2Jgreen"), Finish("stop", USAGE)]]
    assert vermilion("run", "colours") == 0
    output = capsys.readouterr()
    assert FakeLLM.asked[-1]["canvas"] is True
    assert "░░░░░" in output.out
    assert "red ␛[2Jgreen\n" in output.out
    assert "tokens/s" not in output.out


def test_ctrl_c_keeps_what_settled(capsys: pytest.CaptureFixture[str]) -> None:
    FakeLLM.answers = [[Text("half"), KeyboardInterrupt()]]
    assert vermilion("run", "x") == 130
    assert capsys.readouterr().out == "half"
    assert FakeLLM.closed == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("run", "  "), "PROMPT"),
        (("run", "x", "--preset", "warp"), "'warp' is not allowed; allowed: ar, lossless"),
        (("run", "x", "--raw", "--system", "y"), "--system"),
        (("run", "x", "--dtype", "float8"), "allowed: auto, float32"),
        (("run", "x", "--temperature", "9"), "temperature"),
        (("run", "x", "--block-length", "65"), "block-length"),
        (("complete", "app.py"), "FILE:LINE"),
        (("complete", "missing.py:3"), "missing.py: no such file"),
        (("complete", "FOLDER:1"), "cannot be read"),
        (("complete", "FOLDER/code.py:99"), "1 to 4"),
        (("complete", "FOLDER/code.py:0"), "1 to 4"),
        (("complete", "FOLDER/code.py:1:99"), "1 to 12"),
        (("complete", "FOLDER/empty.py:1"), "no text"),
        (("complete", "FOLDER/image.png:1"), "UTF-8"),
        (("nonsense",), "nonsense"),
    ],
)
def test_a_mistake_is_explained_in_a_line_and_loads_no_model(
    arguments: Sequence[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "code.py").write_text("def add(a):\n    pass\n\n")
    (tmp_path / "empty.py").write_text("\n")
    (tmp_path / "image.png").write_bytes(b"\x89PNG\xff")
    assert vermilion(*(argument.replace("FOLDER", str(tmp_path)) for argument in arguments)) == 2
    output = capsys.readouterr()
    assert said in output.err
    assert "Traceback" not in output.err
    assert output.out == ""
    assert FakeLLM.closed == 0


def test_a_threshold_needs_a_decoder_that_has_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert vermilion("run", "x", "--preset", "ar", "--threshold", "0.8") == 2
    assert "with --decoder threshold" in capsys.readouterr().err


def test_an_engine_error_ends_with_status_1(capsys: pytest.CaptureFixture[str]) -> None:
    FakeLLM.answers = [[Text("a"), Finish("error", Usage(), "The step failed.")]]
    assert vermilion("run", "x") == 1
    assert "Error: The step failed." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("place", "before"), [("2", "def add(a, b):\n    return"), ("2:5", "def add(a, b):\n    ")]
)
def test_complete_asks_for_the_text_between_before_and_after(
    place: str, before: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = "def add(a, b):\n    return\n\nprint(add(1, 2))\n"
    (tmp_path / "a:b.py").write_text(code)
    FakeLLM.answers = [settles(" a", " + b")]
    assert vermilion("complete", f"{tmp_path}/a:b.py:{place}") == 0
    asked = FakeLLM.asked[0]
    assert asked["prompt"] == before
    assert asked["prompt"] + asked["suffix"] == code
    assert asked["sampling"].max_tokens == DEFAULT_COMPLETION_TOKENS
    assert capsys.readouterr().out == " a + b"


def test_complete_writes_in_the_files_own_line_endings_and_mode(tmp_path: Path) -> None:
    file = tmp_path / "run.sh"
    file.write_bytes(b"if true\r\nfi\r\n")
    file.chmod(0o755)
    FakeLLM.answers = [settles("; then\n  echo é")]
    assert vermilion("complete", f"{file}:1", "--write") == 0
    assert file.read_bytes() == "if true; then\r\n  echo é\r\nfi\r\n".encode()
    assert file.stat().st_mode & 0o777 == 0o755
    assert list(tmp_path.iterdir()) == [file]


def test_complete_shows_a_diff_and_leaves_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "a.py"
    file.write_text("x = 1\ny =")
    FakeLLM.answers = [settles(" 2")]
    assert vermilion("complete", f"{file}:2", "--diff") == 0
    assert capsys.readouterr().out.splitlines()[2:] == [
        "@@ -1,2 +1,2 @@",
        " x = 1",
        "-y =",
        "\\ No newline at end of file",
        "+y = 2",
        "\\ No newline at end of file",
    ]
    assert file.read_text() == "x = 1\ny ="


@pytest.mark.parametrize(
    ("content", "place", "written", "shown"),
    [
        ("a = 1\r\nb =", ":2", "a = 1\r\nb = 2\r\nc", ["-b =", "+b = 2\r", "+c"]),
        ("a = 1\rb =", ":2", "a = 1\rb = 2\rc", ["-b =", "+b = 2", "+c"]),
        ("a = '\x0c\u2028\x85'\nb =\n", ":2", "a = '\x0c\u2028\x85'\nb = 2\nc\n", ["-b =", "+b = 2", "+c"]),
        ("a = 1\rb = 2\nc =", ":2", "a = 1\rb = 2\nc = 2\nc", ["-c =", "+c = 2", "+c"]),
    ],
)
def test_lines_end_where_the_file_ends_them(
    content: str,
    place: str,
    written: str,
    shown: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "a.py"
    file.write_bytes(content.encode())
    FakeLLM.answers = [settles(" 2\nc")]
    assert vermilion("complete", f"{file}{place}", "--write", "--diff") == 0
    assert file.read_bytes() == written.encode()
    lines = capsys.readouterr().out.split("\n")[2:]
    assert [line for line in lines if line[:1] in ("-", "+")] == shown


def test_complete_does_not_overwrite_a_file_changed_meanwhile(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "a.py"
    file.write_text("x =")

    def edited_while_answering() -> Iterator[Event | BaseException]:
        file.write_text("y =")
        yield from settles(" 1")

    FakeLLM.answers = [edited_while_answering()]  # type: ignore[list-item]
    assert vermilion("complete", f"{file}:1", "--write") == 2
    assert "changed" in capsys.readouterr().err
    assert file.read_text() == "y ="


def test_complete_shows_the_model_the_surroundings_of_a_long_file(tmp_path: Path) -> None:
    file = tmp_path / "long.py"
    file.write_text("".join(f"line_{number} = {number}\n" for number in range(2000)))
    FakeLLM.answers = [settles("x")]
    assert vermilion("complete", f"{file}:1000:1") == 0
    before, after = FakeLLM.asked[0]["prompt"], FakeLLM.asked[0]["suffix"]
    assert before.startswith("line_") and before.endswith("line_998 = 998\n") and 5900 < len(before) <= 6000
    assert after.startswith("line_999") and after.endswith("\n") and 1900 < len(after) <= 2000


def test_models_come_and_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VERMILION_HOME", str(tmp_path))
    pulled = []

    def pull(name: str, on_progress: Callable[[int, int], None]) -> object:
        on_progress(1, 2)
        pulled.append(name)
        return SimpleNamespace(text_folder=tmp_path / "models" / name)

    monkeypatch.setattr("vermilion.models.catalog.pull", pull)
    monkeypatch.setattr("vermilion.models.configuration.spec_of", lambda files: None)
    assert vermilion("pull") == 0
    assert vermilion("models") == 0
    assert vermilion("rm", pulled[0]) == 0
    output = capsys.readouterr()
    lines = output.out.splitlines()
    assert len(lines) > 30
    assert lines[0].split() == ["model", "family", "size", "licence", "q4", "q8", "bf16", "disk", "preset"]
    assert lines[1].split() == ["smollm2-135m-diffusion", "Apache-2.0", "98", "MB"]
    (row,) = [line for line in lines if line.startswith("sdar:1.7b ")]
    assert " ".join(row.split()) == "sdar:1.7b sdar 2.0B Apache-2.0 2.5 GB 3.1 GB 5.0 GB 4.1 GB balanced"
    assert str(tmp_path) in output.err
    assert vermilion("rm", "gpt-9") == 2
    told = capsys.readouterr().err
    assert "Known models: smollm2-135m-diffusion" in told and "`vermilion models` lists all" in told


def test_models_are_listed_and_shown_as_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VERMILION_HOME", str(tmp_path))
    assert vermilion("models", "--json") == 0
    listed = json.loads(capsys.readouterr().out)
    assert listed["machine"]["memory_bytes"] > 10**9
    rows = {row["name"]: row for row in listed["models"]}
    assert not any(row["on_disk"] for row in rows.values())
    assert vermilion("models", "--here", "--json") == 0
    assert json.loads(capsys.readouterr().out)["models"] == []
    assert vermilion("models", "show", "llada:8b", "--json") == 0
    row = json.loads(capsys.readouterr().out)
    assert row == rows["llada:8b"]
    assert (row["licence"], row["context_length"], row["parameters"]) == ("MIT", 4096, 8_015_581_184)
    assert vermilion("models", "show", "llada:8b") == 0
    shown = capsys.readouterr().out
    assert "GSAI-ML/LLaDA-8B-Instruct at 08b83a6feb34df1a6011b80c3c00c7563e963b07" in shown
    assert "memory, q4      9.8 GB" in shown and "524 MB per 1,000 tokens" in shown
    assert vermilion("models", "show", "llada:9b") == 2
    assert "Known models: llada:8b" in capsys.readouterr().err


def test_serve_takes_the_file_then_set_then_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "serve.toml"
    file.write_text('model = "a"\n[serve]\nport = 1\nhost = "::1"\n[engine]\nmax_rows = 8\nthreads = 1\n')
    started = {}

    def run(config: ServeConfig, load: partial[object], opened: Callable[[str], None]) -> None:
        started.update(serve=config, engine=load.args[0].engine, model=load.args[0].model)

    monkeypatch.setattr("vermilion.serving.http.server.run", run)
    options = "--set serve.port=2 --set engine.max_rows=9 --port 3 --preset fast --dtype bfloat16"
    assert vermilion("serve", "--config", str(file), *options.split()) == 0
    assert started == {
        "model": "a",
        "serve": ServeConfig(host="::1", port=3, default_preset="fast"),
        "engine": EngineConfig(max_rows=9, threads=1, dtype="bfloat16"),
    }


@pytest.mark.parametrize(
    ("option", "said"),
    [
        (("--host", "0.0.0.0"), "--open"),
        (("--preset", "warp"), "default_preset: 'warp'"),
        (("--set", "serve.prot=1"), "Did you mean serve.port?"),
        (("--config", "/none.toml"), "no such configuration file"),
    ],
)
def test_serve_refuses_a_wrong_setting(
    option: Sequence[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert vermilion("serve", *option) == 2
    assert said in capsys.readouterr().err


def test_serve_says_that_the_port_is_taken(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert vermilion("serve", "--port", str(port)) == 2
    assert f"port {port}" in capsys.readouterr().err


def test_help_is_quick_and_loads_nothing_heavy() -> None:
    script = (
        "import sys; from vermilion import cli\n"
        "try: cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'numpy', 'fastapi', 'tokenizers', 'jinja2'} & set(sys.modules)\n"
        "sys.exit(f'loads {heavy}' if heavy else 0)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[2])}
    started_s = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "complete" in done.stdout and "serve" in done.stdout
    # 0.3 s on an idle machine; the bound leaves room for a busy one and still catches an import of torch.
    assert time.monotonic() - started_s < 3
