"""A worker whose model several processes hold: this one leads, the others run the same passes.

Every process has its share of the weights and of the keys and values. Jobs go to all of them; each computes
every reading, so that none has to be told what another found. Whatever goes wrong in one of them may have put
it out of step with the others, so it ends all of them (`ProcessLost`); nothing waits for a process that is
gone, for its connections close with it.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from vermilion.config import EngineConfig
from vermilion.decoding.forward_jobs import Job
from vermilion.decoding.passes import Reading
from vermilion.engine.follower import Start, joined, open_worker, part_of_model
from vermilion.engine.worker import Worker
from vermilion.errors import ConfigError, ProcessLost
from vermilion.models import adapters
from vermilion.models.adapters import Adapter
from vermilion.models.build import BuiltModel
from vermilion.models.catalog import ModelFiles
from vermilion.types import EngineInfo, Timing

_START_S = 120.0
"""For a process to import what it needs."""
_END_S = 5.0

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SharedAdapter:
    """An adapter's part here, and where the other processes find theirs."""

    folder: Path
    own: Adapter


class Followers:
    """The other processes of a model, which begin to read their parts of it at once."""

    def __init__(self, files: ModelFiles, config: EngineConfig) -> None:
        """Raises ProcessLost, or what a part that does not fit raises."""
        self._meeting = tempfile.TemporaryDirectory(prefix="vermilion-")
        self._pipes: list[Connection] = []
        self._processes: list[subprocess.Popen[bytes]] = []
        self._finish = weakref.finalize(self, _end, self._processes, self._pipes, self._meeting)
        self.lost = ""
        self.store = str(Path(self._meeting.name) / "store")
        for rank in range(1, config.tensor_parallel):
            self._add(Start(files, config, rank, self.store))
        self.hear()

    def _add(self, start: Start) -> None:
        ours, theirs = Pipe()
        command = [sys.executable, "-m", "vermilion.engine.follower", str(theirs.fileno())]
        with theirs:
            process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
        self._processes.append(process)
        self._pipes.append(ours)
        self._send(ours, start)

    def tell(self, *command: Any) -> None:
        """Every process is to carry this out behind what it was told before. Raises ProcessLost."""
        if self.lost:
            raise ProcessLost(self.lost)
        for pipe in self._pipes:
            self._send(pipe, command)

    def hear(self) -> None:
        """Wait until every process has done what it was told. Raises ProcessLost."""
        missing = list(self._pipes)
        while missing:
            ready = wait(missing, _START_S)
            if not ready:
                raise self.give_up("it does not answer")
            for pipe in ready:
                assert isinstance(pipe, Connection)
                try:
                    pipe.recv()
                except (EOFError, OSError):
                    raise self.give_up(self.why() or "its connection is closed") from None
                missing.remove(pipe)

    def give_up(self, reason: str) -> ProcessLost:
        """End all of them; the error to raise, now and whenever one is told something."""
        if not self.lost:
            self.lost = (
                f"A process that shares this model is lost ({reason}): its requests have ended, and it must "
                "be loaded again."
            )
            log.error("%s", self.lost)
            self.close(at_once=True)
        return ProcessLost(self.lost)

    def close(self, *, at_once: bool = False) -> None:
        if at_once:
            for process in self._processes:
                process.kill()
        self._finish()

    def _send(self, pipe: Connection, message: object) -> None:
        try:
            pipe.send(message)
        except OSError:
            raise self.give_up(self.why() or "its connection is closed") from None

    def why(self) -> str:
        """Which processes have ended, and how; empty where none has."""
        codes = []
        for rank, process in enumerate(self._processes, 1):
            try:
                codes.append(f"rank {rank} ended with status {process.wait(1.0)}")
            except subprocess.TimeoutExpired:
                continue
        return ", ".join(codes)


def _end(
    processes: Sequence[subprocess.Popen[bytes]],
    pipes: Sequence[Connection],
    meeting: tempfile.TemporaryDirectory[str],
) -> None:
    """They end when their pipes do."""
    for pipe in pipes:
        pipe.close()
    for process in processes:
        try:
            process.wait(_END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    meeting.cleanup()


class SharedWorker:
    """As `Worker`, over the parts of a model."""

    def __init__(self, own: Worker, followers: Followers) -> None:
        self._own = own
        self._followers = followers

    @property
    def timing(self) -> Timing:
        return self._own.timing

    def info(self) -> EngineInfo:
        return self._own.info()

    def run(self, jobs: Sequence[Job]) -> list[list[Reading]]:
        """As `Worker.run`. Raises ProcessLost."""
        return self._together("run", jobs)

    def draft(self, jobs: Sequence[Job]) -> list[list[Reading]]:
        """As `Worker.draft`. Raises ProcessLost."""
        return self._together("draft", jobs)

    def _together(self, verb: str, jobs: Sequence[Job]) -> list[list[Reading]]:
        self._followers.tell(verb, jobs)
        try:
            answers: list[list[Reading]] = getattr(self._own, verb)(jobs)
        except Exception as error:
            # The edge between processes: whatever it was, it may have left the others in another place.
            log.exception("a pass of a shared model failed")
            raise self._followers.give_up(self._followers.why() or str(error).partition("\n")[0]) from error
        return answers

    def release(self, request: str) -> None:
        self._own.release(request)
        self._tell_if_there("release", request)

    def read_adapter(self, folder: Path) -> SharedAdapter:
        """Raises ModelFileError where it does not fit the model."""
        return SharedAdapter(folder, adapters.read(folder, self._own.model))

    def attach(self, name: str, adapter: object) -> None:
        assert isinstance(adapter, SharedAdapter)
        self._followers.tell("attach", name, adapter.folder)
        self._own.attach(name, adapter.own)

    def detach(self, name: str) -> None:
        self._own.detach(name)
        self._tell_if_there("detach", name)

    def _tell_if_there(self, *command: str) -> None:
        """Requests end and give back what they hold also where no process is left to hear of it."""
        try:
            self._followers.tell(*command)
        except ProcessLost:
            log.debug("nobody is left to %s", command[0])


@dataclass(frozen=True, slots=True)
class SharedModel:
    """This process's part of a model, and the others."""

    built: BuiltModel
    followers: Followers

    def worker(self, num_pages: int, page_size: int) -> SharedWorker:
        """Raises ProcessLost."""
        self.followers.tell("open", num_pages, page_size)
        own = open_worker(self.built, num_pages, page_size)
        self.followers.hear()
        return SharedWorker(own, self.followers)


def open_shared(files: ModelFiles, config: EngineConfig) -> SharedModel:
    """Every process reads its part. Raises ConfigError, ModelFileError and ProcessLost."""
    if os.name != "posix":
        raise ConfigError("engine.tensor_parallel: processes share a model on Linux and macOS alone; set 1.")
    followers = Followers(files, config)
    try:
        start = Start(files, config, 0, followers.store)
        share = joined(start)
        built = part_of_model(start, share)
        followers.hear()
    except BaseException:
        followers.close(at_once=True)
        raise
    return SharedModel(built, followers)
