"""Fetches a model from a hub: huggingface.co, or the mirror that HF_ENDPOINT names.

huggingface_hub speaks the protocol: tokens, mirrors, proxies, redirects, retries. It drops what an
interrupted download had, though, so each file is streamed here into a part that a later pull goes on with.
Only data is fetched: safetensors, GGUF, JSON, tokenizers and templates, never code and never pickles.
"""

from __future__ import annotations

import fnmatch
import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vermilion.errors import ModelFileError
from vermilion.models.download import Progress
from vermilion.models.home import home, locked
from vermilion.models.hub import HubFile, HubModel, Source, pulled

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo

_TEXTS = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "vocab.json",
    "special_tokens_map.json", "added_tokens.json", "merges.txt", "chat_template.jinja", "LICENSE*",
    "*.safetensors.index.json", "adapter/*.json", "adapter/*.safetensors",
)  # fmt: skip
_SPARE_BYTES = 1 << 26
_OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
_CHUNK_BYTES = 1 << 20


def fetch(model: HubModel, on_progress: Progress) -> Source:
    """Make `model` usable offline; an interrupted fetch goes on where it stopped.

    What is there already is checked in full and not fetched again. Raises ModelFileError, with what to do.
    """
    model.folder.mkdir(parents=True, exist_ok=True)
    with locked(model.folder.with_suffix(".lock")):
        source = pulled(model)
        if source is not None and not _damaged(model.folder, source.files):
            return source
        commit, files = _described(model)
        source = Source(model.name, model.repository, commit, _chosen(model, files))
        _check_space(model, source)
        total, before = source.size_bytes, 0
        for file in source.files:

            def report(done: int, before: int = before) -> None:
                on_progress(before + done, total)

            _fetch_file(model, commit, file, report)
            before += file.size_bytes
        source.write(model.folder)
        for part in model.folder.glob("**/*.part"):  # of another commit
            part.unlink()
        return source


def _described(model: HubModel) -> tuple[str, list[HubFile]]:
    """The commit and all its files; raises ModelFileError where the hub gives none."""
    from huggingface_hub import HfApi

    info: ModelInfo = _asked(
        model,
        lambda: HfApi(endpoint=_endpoint()).model_info(
            model.repository, revision=model.revision or None, files_metadata=True, timeout=30
        ),
    )
    if not info.sha or not info.siblings:
        raise ModelFileError(f"{model.repository}: the hub lists no files.")
    if len(model.revision) == 40 and info.sha != model.revision:
        raise ModelFileError(
            f"{model.repository}: {_endpoint() or 'the hub'} serves commit {info.sha} for {model.revision}. "
            "Check HF_ENDPOINT."
        )
    files = [
        HubFile(each.rfilename, each.size or 0, each.lfs.sha256 if each.lfs else "", each.blob_id or "")
        for each in info.siblings
    ]
    return info.sha, files


def _chosen(model: HubModel, files: Sequence[HubFile]) -> tuple[HubFile, ...]:
    """What is fetched: configs and tokenizers, and the weights, one format of them."""
    texts = [file for file in files if any(fnmatch.fnmatchcase(file.name, text) for text in _TEXTS)]
    top = [file for file in files if "/" not in file.name]
    tensors = [file for file in top if file.name.endswith(".safetensors")]
    ggufs = [file for file in top if file.name.endswith(".gguf")]
    if model.part or not tensors:
        return (*texts, _one_gguf(model, ggufs))
    ours = [file for file in tensors if file.name.startswith("model")]
    # Some publishers add all weights once more in one file, under another name.
    return (*texts, *(ours or tensors))


def _one_gguf(model: HubModel, ggufs: Sequence[HubFile]) -> HubFile:
    fitting = [file for file in ggufs if model.part.lower() in file.name.lower()]
    if len(fitting) == 1:
        return fitting[0]
    if not ggufs:
        raise ModelFileError(
            f"{model.repository} has no safetensors and no GGUF; pickle files such as *.bin and *.pt are "
            "never read."
        )
    names = ", ".join(file.name for file in ggufs[:12])
    raise ModelFileError(
        f"{model.repository} has several GGUF files: {names}. Name one by a part of its name, as "
        f"{model.repository}:Q4_K_M."
    )


def _check_space(model: HubModel, source: Source) -> None:
    missing = sum(file.size_bytes for file in source.files if not (model.folder / file.name).is_file()) - sum(
        part.stat().st_size for part in model.folder.glob("**/*.part")
    )
    free = shutil.disk_usage(model.folder).free
    if missing + _SPARE_BYTES > free:
        raise ModelFileError(
            f"{model.name} needs {missing / 1e9:.1f} GB more and {home()} has {free / 1e9:.1f} GB free. Free "
            "some, or let VERMILION_HOME name a folder on another disk."
        )


def _fetch_file(model: HubModel, commit: str, file: HubFile, on_progress: Callable[[int], None]) -> None:
    path = model.folder / file.name
    if path.is_file() and not _damaged(model.folder, [file]):
        on_progress(file.size_bytes)
        return
    path.parent.mkdir(exist_ok=True)
    part = path.with_name(f"{path.name}.{(file.sha256 or file.git_sha1)[:16]}.part")
    _asked(model, lambda: _stream(model, commit, file, part, on_progress))
    if _digest(part, file) != (file.sha256 or file.git_sha1):
        part.unlink()
        raise ModelFileError(
            f"{model.repository}: {file.name} is not the published file (checksum differs); it was deleted. "
            "Pull again; if it stays so, check the mirror or proxy in between."
        )
    part.replace(path)


def _stream(
    model: HubModel, commit: str, file: HubFile, part: Path, on_progress: Callable[[int], None]
) -> None:
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils._headers import build_hf_headers

    url = hf_hub_url(model.repository, file.name, revision=commit, endpoint=_endpoint())
    begun = part.stat().st_size if part.exists() else 0
    if begun > file.size_bytes:
        part.unlink()
        begun = 0
    on_progress(begun)
    with part.open("ab") as sink:
        http_get(
            url, sink, resume_size=begun, headers=build_hf_headers(library_name="vermilion"),
            expected_size=file.size_bytes, tqdm_class=_reporting(begun, on_progress),
        )  # fmt: skip
    on_progress(file.size_bytes)


def _reporting(begun: int, on_progress: Callable[[int], None]) -> type[Any]:
    """What http_get takes for a progress bar, that shows nothing and tells how far the file is."""

    class Reporting:
        done = begun

        def __init__(self, *given: Any, **options: Any) -> None: ...

        def __enter__(self) -> Reporting:
            return self

        def __exit__(self, *error: object) -> None: ...

        def update(self, num_bytes: int) -> None:
            self.done += num_bytes
            on_progress(self.done)

    return Reporting


def _damaged(folder: Path, files: Iterable[HubFile]) -> list[str]:
    """Those whose contents are not the published ones; they are deleted."""
    wrong = [file for file in files if _digest(folder / file.name, file) != (file.sha256 or file.git_sha1)]
    for file in wrong:
        (folder / file.name).unlink(missing_ok=True)
    return [file.name for file in wrong]


def _digest(path: Path, file: HubFile) -> str:
    """SHA-256 of a large file; of others SHA-1 as git computes it."""
    if not path.is_file():
        return ""
    digest = hashlib.sha256() if file.sha256 else hashlib.sha1(f"blob {path.stat().st_size}\0".encode())
    with path.open("rb") as opened:
        while chunk := opened.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _endpoint() -> str | None:
    """The library reads HF_ENDPOINT once, when it is imported."""
    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or None


def _asked(model: HubModel, call: Callable[[], Any]) -> Any:
    """What `call` gives; what goes wrong with the hub becomes a ModelFileError that says what to do."""
    offline = [name for name in _OFFLINE if os.environ.get(name, "").lower() in ("1", "true", "yes", "on")]
    if offline:
        raise ModelFileError(f"{model.name} is not on this machine, and {offline[0]} forbids to fetch it.")
    from huggingface_hub import errors

    hub = _endpoint() or "https://huggingface.co"
    try:
        return call()
    except errors.GatedRepoError:
        message = f"is gated: accept its licence at {hub}/{model.repository}, then set HF_TOKEN"
    except errors.RevisionNotFoundError:
        message = f"has no revision {model.revision!r}"
    except errors.RepositoryNotFoundError:
        message = f"is no repository of {hub}, or a private one: set HF_TOKEN for those that you may read"
    except errors.HfHubHTTPError as error:
        message = f"cannot be fetched: {hub} answers {error.response.status_code}"
    except (errors.HTTPError, OSError) as error:  # type: ignore[attr-defined]
        if isinstance(error, OSError) and error.errno is not None:
            raise
        reason = next(iter(str(error).splitlines()), type(error).__name__)[:200]
        message = (
            f"cannot be fetched from {hub} ({reason}). What has arrived is kept: pull again to go on. "
            "HF_ENDPOINT names a mirror, HTTPS_PROXY a proxy; a folder can be given instead of a name"
        )
    raise ModelFileError(f"{model.repository} {message}.")
