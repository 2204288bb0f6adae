"""Fine-tuning jobs: what a client asks for, what it is shown, and what happened so far."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from vermilion.errors import BadParameter, BadRequest
from vermilion.serving.jobs.file_contents import content_of
from vermilion.serving.jobs.job_store import JobStore, NotHere, Record, link
from vermilion.serving.wire.openai_bodies import WIRE

LEARNING_RATE = 1e-3
"""What a multiplier of 1 means; the default of `vermilion train`."""
FINAL = ("succeeded", "failed", "cancelled")
_AUTO_EPOCHS, _AUTO_ROWS = 2, 4

Auto = Literal["auto"]


class Hyperparameters(BaseModel):
    model_config = WIRE

    n_epochs: Auto | Annotated[int, Field(ge=1, le=50)] | None = None
    batch_size: Auto | Annotated[int, Field(ge=1, le=256)] | None = None
    learning_rate_multiplier: Auto | Annotated[float, Field(gt=0, le=100)] | None = None


class Supervised(BaseModel):
    model_config = WIRE

    hyperparameters: Hyperparameters | None = None


class Method(BaseModel):
    model_config = WIRE

    type: Literal["supervised"]
    supervised: Supervised | None = None


class JobBody(BaseModel):
    """Body of POST /v1/fine_tuning/jobs."""

    model_config = WIRE

    model: str = Field(description="The served model, or a fine-tuned one to go on from.")
    training_file: str
    validation_file: str | None = None
    method: Method | None = None
    hyperparameters: Hyperparameters | None = Field(None, description="The older place of the same.")
    suffix: str | None = Field(None, min_length=1, max_length=64, pattern=r"^[\w.-]+$")
    seed: int | None = Field(None, ge=0, lt=2**31)
    metadata: dict[str, str] | None = None
    integrations: list[dict[str, Any]] | None = None

    @property
    def asked(self) -> Hyperparameters:
        nested = self.method.supervised if self.method else None
        return (nested.hyperparameters if nested else None) or self.hyperparameters or Hyperparameters()

    @property
    def num_epochs(self) -> float:
        return _number(self.asked.n_epochs, _AUTO_EPOCHS)

    @property
    def chosen(self) -> dict[str, float]:
        return {
            "n_epochs": self.num_epochs,
            "batch_size": _number(self.asked.batch_size, _AUTO_ROWS),
            "learning_rate_multiplier": _number(self.asked.learning_rate_multiplier, 1.0),
        }


def num_training_bytes(store: JobStore, owner: str, body: JobBody) -> int:
    """Raises what `create` raises."""
    return _examples(store, owner, body.training_file, "training_file").stat().st_size


def create(
    store: JobStore, of: tuple[str, str], body: JobBody, base: tuple[str, str], adapter: Path | None
) -> Record:
    """A queued job with its own copies of the files, `of` an organisation and the key that is charged; `base`
    is the model that it tunes, by its id and by where `vermilion train` finds it, `adapter` where training
    starts from, if anywhere.

    Raises BadParameter, and NotHere for files that are not there.
    """
    if body.integrations:
        raise BadRequest("integrations: none are supported.", "integrations", "unsupported_parameter")
    owner, key_id = of
    files = {"training": body.training_file, "validation": body.validation_file}
    sources = {name: _examples(store, owner, id, f"{name}_file") for name, id in files.items() if id}
    record = store.new("job", owner)
    folder = store.path(record)
    for name, source in sources.items():
        link(source, folder / f"{name}.jsonl")
    if adapter is not None:
        # The model it starts from may be deleted while the job waits.
        (folder / "start").mkdir()
        for path in adapter.iterdir():
            if path.is_file():
                link(path, folder / "start" / path.name)
    chosen = body.chosen
    middle = f":{body.suffix}" if body.suffix else ""
    base_id, found_at = base
    record.own = {
        "base": base_id,
        "source": found_at,
        "name": f"ft:{base_id}{middle}:{secrets.token_hex(4)}",
        "wish": None,
        "key_id": key_id,
        "charged": False,
        "number": len(store.all("job")),
    }
    record.body |= {
        "object": "fine_tuning.job",
        "model": body.model,
        "fine_tuned_model": None,
        "finished_at": None,
        "error": None,
        "hyperparameters": chosen,
        "organization_id": owner or "org-local",
        "result_files": [],
        "seed": secrets.randbelow(2**31) if body.seed is None else body.seed,
        "status": "queued",
        "trained_tokens": None,
        "training_file": body.training_file,
        "validation_file": body.validation_file,
        "estimated_finish": None,
        "integrations": [],
        "metadata": body.metadata,
        "method": {"type": "supervised", "supervised": {"hyperparameters": chosen}},
    }
    store.save(record)
    tell(store, record, "The job is queued.")
    return record


def _examples(store: JobStore, owner: str, id: str, param: str) -> Path:
    try:
        record = store.find("file", id, owner)
    except NotHere as error:
        error.param = param
        raise
    if record.body["purpose"] != "fine-tune":
        raise BadParameter(param, id, "a file of purpose fine-tune", f"This is {record.body['purpose']}.")
    return content_of(store, record)


def _number(given: float | str | None, usual: float) -> float:
    return given if isinstance(given, int | float) else usual


def train_arguments(store: JobStore, record: Record, base: str) -> list[str]:
    """What `vermilion train` is called with."""
    folder, chosen = store.path(record), record.body["hyperparameters"]
    settings = {
        "epochs": float(chosen["n_epochs"]),
        "rows": chosen["batch_size"],
        "learning_rate": LEARNING_RATE * chosen["learning_rate_multiplier"],
        "seed": record.body["seed"],
        "plot": "false",
    }
    if (folder / "start").is_dir():
        settings["adapter"] = folder / "start"
    arguments = ["train", str(folder / "training.jsonl"), "--output", str(run_folder(store, record))]
    arguments += ["--model", base]
    if (folder / "validation.jsonl").exists():
        arguments += ["--validation", str(folder / "validation.jsonl")]
    return arguments + [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]


def run_folder(store: JobStore, record: Record) -> Path:
    return store.path(record) / "run"


def adapter_folder(store: JobStore, record: Record) -> Path:
    """Where a job's adapter is once it has succeeded."""
    return run_folder(store, record) / "adapter"


def tell(
    store: JobStore,
    record: Record,
    message: str,
    level: str = "info",
    figures: Mapping[str, float] | None = None,
) -> None:
    """One more event, for clients to read."""
    event = {
        "id": f"ftevent-{secrets.token_hex(12)}",
        "object": "fine_tuning.job.event",
        "created_at": int(time.time()),
        "level": level,
        "message": message,
        "type": "metrics" if figures else "message",
        "data": dict(figures or {}),
    }
    with (store.path(record) / "events.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(event, ensure_ascii=False) + "\n")


def events(store: JobStore, record: Record) -> list[dict[str, Any]]:
    """Oldest first."""
    return _lines(store.path(record) / "events.jsonl")


def figures(store: JobStore, record: Record) -> list[dict[str, Any]]:
    """Of every step that has been trained, as `vermilion train` logs them."""
    return _lines(run_folder(store, record) / "log.jsonl")


def checkpoints(store: JobStore, record: Record) -> list[dict[str, Any]]:
    """What the run has kept, oldest first."""
    by_step = {int(row["step"]): row for row in figures(store, record)}
    rows = []
    for folder in sorted((run_folder(store, record) / "checkpoints").glob("[0-9]*")):
        step = int(folder.name)
        rows.append(
            {
                "id": f"ftckpt-{record.id.removeprefix('ftjob-')}-{step}",
                "object": "fine_tuning.job.checkpoint",
                "created_at": int(folder.stat().st_mtime),
                "fine_tuning_job_id": record.id,
                "fine_tuned_model_checkpoint": f"{record.own['name']}:ckpt-step-{step}",
                "step_number": step,
                "metrics": {"step": step, **shown(by_step.get(step, {}))},
            }
        )
    return rows


def shown(row: Mapping[str, float]) -> dict[str, float]:
    """A logged step in OpenAI's names."""
    names = {"loss": "train_loss", "held_out_next": "valid_loss", "right": "train_mean_token_accuracy"}
    return {theirs: row[ours] for ours, theirs in names.items() if ours in row}


class LogReader:
    """The rows of a running job's log, each once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def rows(self) -> list[dict[str, Any]]:
        """What has been written since the last call."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._offset)
            content = file.read()
        whole = content[: content.rfind(b"\n") + 1]
        self._offset += len(whole)
        return [json.loads(line) for line in whole.splitlines()]


def log_reader(store: JobStore, record: Record) -> LogReader:
    """Of the figures of every step, as `vermilion train` logs them."""
    return LogReader(run_folder(store, record) / "log.jsonl")


def _lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a JSON Lines file that somebody may be writing."""
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    return [json.loads(line) for line in text.split("\n")[:-1]]
