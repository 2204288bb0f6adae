"""Pulling from a hub on this machine that speaks the routes of huggingface.co."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.models.hub_server import COMMIT, Hub, Repository, git_sha1, serving
from vermilion.errors import ModelFileError, ModelNotFound
from vermilion.models import catalog, hub, published_models
from vermilion.models.configuration import spec_of
from vermilion.models.published_models import PublishedModel

CONFIG = {
    "model_type": "sdar", "num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4,
    "intermediate_size": 48, "vocab_size": 200, "max_position_embeddings": 64,
}  # fmt: skip
WEIGHTS = bytes(range(256)) * 8192
FILES = {
    "config.json": json.dumps(CONFIG).encode(),
    "tokenizer.json": b"{}",
    "model-00001-of-00002.safetensors": WEIGHTS,
    "model-00002-of-00002.safetensors": WEIGHTS[::-1],
    "model.safetensors.index.json": b"{}",
    "consolidated.safetensors": WEIGHTS * 2,
    "modeling_sdar.py": b"raise SystemExit('remote code ran')",
    "pytorch_model.bin": WEIGHTS,
    "training_args.pt": b"pickle",
    "LICENSE": b"Apache",
    "onnx/model.safetensors": WEIGHTS,
}
WANTED = {
    "config.json", "tokenizer.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
    "model.safetensors.index.json", "LICENSE",
}  # fmt: skip
TINY = PublishedModel("tiny:1m", "lab/tiny", "sdar", COMMIT)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setattr(hub, "published_models", lambda: {TINY.name: TINY})
    monkeypatch.setattr(catalog, "published_models", lambda: {TINY.name: TINY})
    monkeypatch.setenv("VERMILION_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    for name in (
        "HF_TOKEN",
        "HF_HUB_OFFLINE",
        "TRANSFORMERS_OFFLINE",
        "HTTP_PROXY",
        "http_proxy",
        "ALL_PROXY",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1 << 16)
    with serving(Hub({"lab/tiny": Repository(dict(FILES))})) as one:
        monkeypatch.setenv("HF_ENDPOINT", one.url)
        yield one


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", ["tiny:1m", "lab/tiny", "lab/tiny@main", f"lab/tiny@{COMMIT}"])
def test_a_pull_brings_data_and_never_code(server: Hub, name: str) -> None:
    seen: list[tuple[int, int]] = []
    assert not catalog.is_pulled(name)
    files = catalog.pull(name, lambda done, total: seen.append((done, total)))
    assert names(files.base) == {*WANTED, "source.json"}
    assert {path.name: path.read_bytes() for path in files.base.iterdir() if path.name in WANTED} == {
        file: FILES[file] for file in WANTED
    }
    total = sum(len(FILES[file]) for file in WANTED)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1] == (total, total) and len(seen) > 4
    assert (files.kind, files.name) == ("folder", name)
    assert catalog.find(name) == files and catalog.is_pulled(name)
    source = hub.Source.read(files.base)
    assert source is not None and (source.commit, source.repository) == (COMMIT, "lab/tiny")
    assert not [path for path in server.asked if "modeling" in path or path.endswith((".bin", ".pt"))]


def test_a_family_is_told_by_the_repository_and_not_by_our_name_for_it(
    server: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = PublishedModel("mine:1m", "lab/Qwen3-0.6B-diffusion-bd3lm-v0.1", "a2d-qwen3-block")
    monkeypatch.setattr(hub, "published_models", lambda: {row.name: row})
    config = json.dumps({**CONFIG, "model_type": "a2d-qwen3"}).encode()
    server.repositories[row.repository] = Repository({**FILES, "config.json": config})
    spec = spec_of(catalog.pull("mine:1m"))
    assert (spec.name, spec.family.name) == ("mine:1m", "a2d-qwen3-block")


def test_what_was_pulled_is_listed_with_its_size(server: Hub) -> None:
    catalog.pull("lab/tiny")
    listed = {entry.name: entry for entry in catalog.available()}
    assert listed["lab/tiny"].pulled and listed["lab/tiny"].size_bytes == sum(
        len(FILES[name]) for name in WANTED
    )
    assert not listed["tiny:1m"].pulled
    catalog.remove("lab/tiny")
    assert "lab/tiny" not in {entry.name for entry in catalog.available()}
    with pytest.raises(ModelFileError, match=r"not on this machine\. Run: vermilion pull lab/tiny"):
        catalog.find("lab/tiny")


class Killed(BaseException):
    """Stands for the user's Ctrl-C."""


def test_an_interrupted_pull_goes_on_where_it_stopped(server: Hub) -> None:
    def stop(done: int, total: int) -> None:
        if done > len(WEIGHTS) * 1.5:
            raise Killed

    with pytest.raises(Killed):
        catalog.pull("tiny:1m", stop)
    assert not catalog.is_pulled("tiny:1m")
    (part,) = hub.HubModel("tiny:1m", "").folder.glob("*.part")
    arrived = part.stat().st_size
    assert arrived > 0
    before = len(server.ranges)
    files = catalog.pull("tiny:1m")
    assert server.ranges[before:] == [("model-00002-of-00002.safetensors", arrived)]
    assert (files.base / "model-00002-of-00002.safetensors").read_bytes() == WEIGHTS[::-1]
    assert not list(files.base.glob("*.part"))


def test_a_broken_connection_is_resumed_or_kept(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    server.break_off_at = 458_752
    catalog.pull("tiny:1m")
    assert server.ranges[:2] == [
        ("model-00001-of-00002.safetensors", 0),
        ("model-00001-of-00002.safetensors", 458_752),
    ]
    catalog.remove("tiny:1m")
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    server.break_off_at, server.refuse_resuming = 458_752, True
    with pytest.raises(ModelFileError, match="lab/tiny cannot be fetched"):
        catalog.pull("tiny:1m")
    server.break_off_at, server.refuse_resuming = 0, False
    catalog.pull("tiny:1m")
    assert ("model-00001-of-00002.safetensors", 458_752) in server.ranges[2:]


def test_a_wrong_file_is_refused_and_deleted(server: Hub) -> None:
    server.corrupt = "model-00002-of-00002.safetensors"
    with pytest.raises(ModelFileError, match=r"model-00002-of-00002\.safetensors is not the published file"):
        catalog.pull("tiny:1m")
    assert not catalog.is_pulled("tiny:1m")
    server.corrupt = ""
    catalog.pull("tiny:1m")
    assert server.ranges[-1] == ("model-00002-of-00002.safetensors", 0)
    assert server.ranges.count(("model-00001-of-00002.safetensors", 0)) == 1


def test_a_small_file_is_held_to_what_git_says(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = git_sha1(FILES["config.json"])
    monkeypatch.setattr("tests.models.hub_server.git_sha1", lambda content: listed)
    with pytest.raises(ModelFileError, match=r"tokenizer\.json is not the published file"):
        catalog.pull("tiny:1m")


def test_a_second_pull_checks_and_mends_without_fetching_the_rest(server: Hub) -> None:
    files = catalog.pull("tiny:1m")
    server.ranges.clear()
    server.asked.clear()
    assert catalog.pull("tiny:1m") == files and not server.asked
    path = files.base / "model-00001-of-00002.safetensors"
    path.write_bytes(bytes(len(WEIGHTS)))
    catalog.pull("tiny:1m")
    assert path.read_bytes() == WEIGHTS
    assert server.ranges == [("model-00001-of-00002.safetensors", 0)]
    path.unlink()
    assert not catalog.is_pulled("tiny:1m")


def test_the_revision_is_pinned(server: Hub) -> None:
    server.repositories["lab/tiny"].commit = "6" * 40
    with pytest.raises(ModelFileError, match=f"lab/tiny has no revision '{COMMIT}'"):
        catalog.pull("tiny:1m")
    catalog.pull("lab/tiny")
    source = hub.Source.read(hub.HubModel("lab/tiny", "").folder)
    assert source is not None and source.commit == "6" * 40
    # A mirror that serves another commit than the one it was asked for.
    server.repositories["lab/tiny"] = Repository(dict(FILES), commit="main")
    with pytest.raises(ModelFileError, match="has no revision"):
        catalog.pull("tiny:1m")


def test_a_gated_repository_needs_the_token_which_stays_at_the_hub(
    server: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.repositories["lab/tiny"].gated = True
    with pytest.raises(ModelFileError, match=r"lab/tiny is gated: accept its licence at http.*set HF_TOKEN"):
        catalog.pull("tiny:1m")
    monkeypatch.setenv("HF_TOKEN", server.token)
    server.tokens_seen.clear()
    catalog.pull("tiny:1m")
    seen = {path.startswith("/network/"): token for path, token in server.tokens_seen}
    assert seen == {False: f"Bearer {server.token}", True: ""}


@pytest.mark.parametrize("name", ["lab/nothing", "nobody/tiny"])
def test_an_unknown_repository_is_told(server: Hub, name: str) -> None:
    with pytest.raises(ModelFileError, match=f"{name} is no repository of http"):
        catalog.pull(name)


def test_an_unknown_name_gets_the_nearest(server: Hub) -> None:
    for action in (catalog.find, catalog.pull, catalog.remove):
        with pytest.raises(ModelNotFound, match=r"'tiny:2m' not found\. Known models: tiny:1m"):
            action("tiny:2m")
    with pytest.raises(ModelNotFound):
        catalog.pull("../secrets")


def test_without_a_network_it_says_what_to_do(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ModelFileError, match=r"cannot be fetched from http://127\.0\.0\.1:9 .*HF_ENDPOINT"):
        catalog.pull("tiny:1m")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelFileError, match="HF_HUB_OFFLINE forbids"):
        catalog.pull("tiny:1m")


def test_room_on_the_disk_is_checked_before_anything_is_fetched(
    server: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, 10**6))
    with pytest.raises(ModelFileError, match=r"needs 0\.0 GB more and .* has 0\.0 GB free.*VERMILION_HOME"):
        catalog.pull("tiny:1m")
    assert not server.ranges


def test_a_repository_of_pickles_is_refused(server: Hub) -> None:
    server.repositories["lab/tiny"].files = {"config.json": b"{}", "pytorch_model.bin": WEIGHTS}
    with pytest.raises(ModelFileError, match=r"no safetensors and no GGUF; pickle files .* never read"):
        catalog.pull("lab/tiny")


def test_one_of_several_ggufs_is_named(server: Hub) -> None:
    ggufs = {f"tiny-{kind}.gguf": WEIGHTS[: 10_000 + i] for i, kind in enumerate(("Q4_K_M", "Q8_0"))}
    server.repositories["lab/gguf"] = Repository({"tokenizer.json": b"{}", **ggufs})
    with pytest.raises(ModelFileError, match=r"several GGUF files: tiny-Q4_K_M\.gguf, .*lab/gguf:Q4_K_M"):
        catalog.pull("lab/gguf")
    files = catalog.pull("lab/gguf:q8_0")
    assert (files.kind, files.base.name, files.name) == ("gguf", "tiny-Q8_0.gguf", "lab/gguf:q8_0")
    assert names(files.text_folder) == {"tokenizer.json", "tiny-Q8_0.gguf", "source.json"}


def test_a_folder_needs_no_pulling(server: Hub, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    with pytest.raises(ModelFileError, match=r"is not a model folder; it lacks config\.json"):
        catalog.pull(str(folder))
    for name in ("config.json", "tokenizer.json", "model-00001-of-00002.safetensors"):
        (folder / name).write_bytes(FILES[name])
    assert catalog.pull(str(folder)) == catalog.find(str(folder))
    assert not server.asked


def test_checksums_are_those_of_git_and_sha256() -> None:
    assert git_sha1(b"hello\n") == "ce013625030ba8dba906f756967f9e9ca394464a"  # git hash-object
    assert hashlib.sha256(WEIGHTS).hexdigest() != hashlib.sha256(WEIGHTS[::-1]).hexdigest()


def test_every_row_of_the_catalogue_can_be_named() -> None:
    for name, row in published_models.published_models().items():
        found = hub.named(name)
        assert found == hub.HubModel(name, row.repository, row.revision)
