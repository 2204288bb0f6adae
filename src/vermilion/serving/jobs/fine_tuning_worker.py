"""Runs fine-tuning jobs, one at a time, in the order in which they came."""

from __future__ import annotations

import asyncio
import csv
import io
import logging
import time
from typing import Any

from vermilion.accounts.gate import Accounts
from vermilion.accounts.refusals import AccountsUnavailable
from vermilion.errors import ModelFileError, ModelNotFound, VermilionError
from vermilion.serving.jobs import file_contents, fine_tuning_jobs, quotas
from vermilion.serving.jobs.job_store import JobStore, Record
from vermilion.serving.jobs.training_process import TrainingProcess, gone
from vermilion.serving.model_pool import ModelPool
from vermilion.serving.pooled_model import PooledModel

_LOOK_S = 0.5
"""How often a running job's log is read."""
_EVERY = 10
"""Steps between two events with figures; validations are always told."""

_log = logging.getLogger(__name__)


class FineTuningWorker:
    """The queue. `run` serves it until it is cancelled; the others are called between its steps."""

    def __init__(self, store: JobStore, models: ModelPool, accounts: Accounts | None) -> None:
        self._store = store
        self._models = models
        self._accounts = accounts
        self._wake = asyncio.Event()
        self.owners: dict[str, str] = {}
        """Organisation of each model that it has served; an entry outlives the model."""

    def wake(self) -> None:
        """There is a new job, or a wish about an old one."""
        self._wake.set()

    async def run(self) -> None:
        await self._restore()
        while True:
            await self._charge_ended()
            record = next((r for r in self._store.all("job") if r.body["status"] == "queued"), None)
            if record is None:
                self._wake.clear()
                await self._wake.wait()
                continue
            try:
                await self._train(record)
            except ModelNotFound as error:
                self._fail(record, error.code or "model_not_found", str(error))
            except Exception:
                # The edge of one job: the queue goes on.
                _log.exception("fine-tuning job %s failed", record.id)
                self._fail(record, "internal_error", "An internal error occurred; the log says more.")

    def wish(self, record: Record, wish: str) -> None:
        """`cancel` or `pause` a job that is not over."""
        if record.body["status"] == "running":
            record.own["wish"] = wish
            self._store.save(record)
        else:
            self._halt(record, wish)
        self.wake()

    async def _restore(self) -> None:
        """Serve what earlier jobs made, take up those that a stop of the service cut short."""
        for record in self._store.all("job"):
            status = record.body["status"]
            if status == "running":
                await gone(record.own.get("pid"))
                record.body["status"] = "queued"
                self._store.save(record)
                fine_tuning_jobs.tell(
                    self._store, record, "The service was restarted; training goes on from its last save."
                )
            elif status == "succeeded" and not record.own.get("deleted"):
                try:
                    await self._serve(record)
                except VermilionError as error:
                    _log.warning("%s is not served: %s", record.own["name"], error)

    async def _charge_ended(self) -> None:
        """Write the jobs that are over into the ledger, where there are accounts."""
        for record in self._store.all("job"):
            if record.body["status"] not in fine_tuning_jobs.FINAL or record.own.get("charged", True):
                continue
            rows = await asyncio.to_thread(fine_tuning_jobs.figures, self._store, record)
            num_tokens = int(rows[-1]["tokens"]) if rows else 0
            try:
                model = self._base_id(record)
                await quotas.charge_training(self._accounts, record, model, num_tokens)
            except AccountsUnavailable:
                _log.warning("fine-tuning job %s is charged later: the accounts cannot be reached", record.id)
                continue
            record.own["charged"] = True
            self._store.save(record)

    def _base_id(self, record: Record) -> str:
        """The model that a job tunes; jobs of former versions tune the first."""
        return str(record.own.get("base") or self._models.default.model.id)

    def _base(self, record: Record) -> PooledModel:
        """Raises `ModelNotFound` where the service does not serve it any more."""
        base = self._models.models.get(self._base_id(record))
        if base is None:
            raise ModelNotFound(self._base_id(record), tuple(self._models.models))
        return base

    async def _serve(self, record: Record) -> None:
        folder = fine_tuning_jobs.adapter_folder(self._store, record)
        # Before anybody can see it.
        self.owners[record.own["name"]] = record.owner
        await self._base(record).attach(record.own["name"], folder)

    async def _train(self, record: Record) -> None:
        served = self._base(record).served
        source = record.own.get("source") or (served.source if served is not None else "")
        arguments = fine_tuning_jobs.train_arguments(self._store, record, source)
        trainer = await TrainingProcess.start(arguments, self._store.path(record))
        record.body["status"] = "running"
        record.own |= {"pid": trainer.pid, "wish": None}
        self._store.save(record)
        fine_tuning_jobs.tell(self._store, record, "Training has begun.")
        log = fine_tuning_jobs.log_reader(self._store, record)
        await asyncio.to_thread(log.rows)
        try:
            while trainer.code is None and record.own["wish"] is None:
                await trainer.wait(_LOOK_S)
                self._follow(record, await asyncio.to_thread(log.rows))
        finally:
            # Also when the service stops: the job then stays `running`, and is taken up at the next start.
            await trainer.stop()
        if record.own["wish"] is not None:
            self._halt(record, record.own["wish"])
        elif trainer.code:
            self._fail(record, "training_failed", trainer.said())
        elif not await asyncio.to_thread(self._is_whole, record):
            record.body["status"] = "queued"
            self._store.save(record)
            fine_tuning_jobs.tell(
                self._store, record, "Training was interrupted; it goes on from its last save.", "warn"
            )
        else:
            await self._succeed(record)

    def _is_whole(self, record: Record) -> bool:
        """Whether the run that has ended well went to its end: a signal makes it save and end early."""
        rows = fine_tuning_jobs.figures(self._store, record)
        return bool(rows) and rows[-1].get("done", 1.0) >= 1.0

    def _follow(self, record: Record, rows: list[dict[str, Any]]) -> None:
        """Tell of new steps."""
        for row in rows:
            step = int(row["step"])
            if step % _EVERY and "held_out_next" not in row and step > 1:
                continue
            seen = fine_tuning_jobs.shown(row)
            words = ", ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in seen.items())
            fine_tuning_jobs.tell(
                self._store, record, f"Step {step}: {words}", figures={"step": step, **seen}
            )
        if rows and rows[-1].get("done"):
            last = rows[-1]
            left_s = last["seconds"] * (1 - last["done"]) / last["done"]
            record.body["estimated_finish"] = int(time.time() + left_s)

    async def _succeed(self, record: Record) -> None:
        try:
            await self._serve(record)
        except ModelFileError as error:
            self._fail(record, "training_failed", str(error))
            return
        rows = await asyncio.to_thread(fine_tuning_jobs.figures, self._store, record)
        results = await asyncio.to_thread(
            file_contents.keep,
            self._store,
            record.owner,
            "fine-tune-results",
            "step_metrics.csv",
            _table(rows),
        )
        record.body["fine_tuned_model"] = record.own["name"]
        record.body["trained_tokens"] = int(rows[-1]["tokens"]) if rows else 0
        record.body["result_files"] = [results.id]
        self._end(record, "succeeded")
        fine_tuning_jobs.tell(self._store, record, f"The fine-tuned model is served as {record.own['name']}.")

    def _fail(self, record: Record, code: str, message: str) -> None:
        record.body["error"] = {"code": code, "message": message or "Training failed.", "param": None}
        self._end(record, "failed")
        fine_tuning_jobs.tell(self._store, record, record.body["error"]["message"], "error")

    def _halt(self, record: Record, wish: str) -> None:
        record.own["wish"] = None
        if wish == "cancel":
            self._end(record, "cancelled")
            fine_tuning_jobs.tell(self._store, record, "The job is cancelled.")
        else:
            record.body["status"] = "paused"
            record.body["estimated_finish"] = None
            self._store.save(record)
            fine_tuning_jobs.tell(self._store, record, "The job is paused.")

    def _end(self, record: Record, status: str) -> None:
        record.body |= {"status": status, "finished_at": int(time.time()), "estimated_finish": None}
        self._store.save(record)


def _table(rows: list[dict[str, Any]]) -> io.BytesIO:
    """The steps' figures as OpenAI's result files have them."""
    names = ("train_loss", "valid_loss", "train_mean_token_accuracy")
    text = io.StringIO()
    writer = csv.DictWriter(text, ("step", *names), lineterminator="\n")
    writer.writeheader()
    writer.writerows({"step": int(row["step"]), **fine_tuning_jobs.shown(row)} for row in rows)
    return io.BytesIO(text.getvalue().encode())
