"""The Ray Serve application on fake engines, in a process of its own.

    python -m ray_serve.cluster FOLDER PORT

Each engine's first word is the id of its process. A line `redeploy` on the standard input replaces every
process in turn; its end stops the cluster.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path

import psutil

from serving.fake import MODEL, FakeBackend, FakeTemplate, FakeTokenizer, served
from vermilion.accounts.accounts_config import AccountsConfig
from vermilion.config import EngineConfig
from vermilion.serving.pooled_model import Opened
from vermilion.serving.ray_config import RayConfig
from vermilion.serving.serve_config import ServeConfig
from vermilion.serving.settings import Settings
from vermilion.types import Event, Finish, Request

NUM_WORDS = 20
STEP_S = 0.01
WORDS = tuple(f"word{number} " for number in range(NUM_WORDS - 1))
OTHER = "other-diffusion"
"""A model that has no engine until it is asked for, and then up to two."""


@dataclass(frozen=True, slots=True)
class Cluster:
    process: subprocess.Popen[str]
    url: str
    folder: Path

    def engines(self) -> list[psutil.Process]:
        """The default model's."""
        return self._named(f"engine-{MODEL.id}")

    def ingresses(self) -> list[psutil.Process]:
        return self._named(":ingress")

    def _named(self, name: str) -> list[psutil.Process]:
        found = []
        for each in psutil.Process(self.process.pid).children(recursive=True):
            try:
                title = " ".join(each.cmdline())
            except psutil.Error:
                continue
            if name in title:
                found.append(each)
        return found

    def redeploy(self) -> None:
        """Returns when every process is a new one."""
        assert self.process.stdin is not None and self.process.stdout is not None
        print("redeploy", file=self.process.stdin, flush=True)
        lines = list(takewhile(lambda line: line != "redeployed\n", self.process.stdout))
        assert self.process.poll() is None, lines

    def cancelled(self) -> int:
        """How many answers engines have given up."""
        return sum(path.name.startswith("cancelled-") for path in self.folder.iterdir())


@contextmanager
def started(folder: Path) -> Iterator[Cluster]:
    """With accounts in `folder`, which has an adapter of the name `legal` as well."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment |= {"RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
    environment.setdefault("RAY_SERVE_USE_GRPC_BY_DEFAULT", "1")
    command = [sys.executable, "-m", "ray_serve.cluster", str(folder), str(port)]
    pipe = subprocess.PIPE
    with (
        (folder / "cluster.log").open("w") as log,
        subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=log, text=True, env=environment) as process,
    ):
        assert process.stdin is not None and process.stdout is not None
        try:
            url = process.stdout.readline().strip()
            assert url, (folder / "cluster.log").read_text()[-4000:]
            yield Cluster(process, url, folder)
        finally:
            process.stdin.close()
            process.wait(60)


class NotedBackend(FakeBackend):
    """Leaves a file for each answer that is cancelled."""

    folder = Path()

    async def generate(self, request: Request) -> AsyncGenerator[Event, None]:
        ended = False
        try:
            async for event in super().generate(request):
                ended = isinstance(event, Finish)
                yield event
        finally:
            if not ended:
                (self.folder / f"cancelled-{request.id}").touch()


def opened(settings: Settings, name: str) -> Opened:
    words = (f"{os.getpid()} ", *WORDS)
    backend = NotedBackend(words=words, step_s=STEP_S, model=replace(MODEL, id=name, context_length=4096))
    backend.folder = Path(settings.serve.accounts.url).parent
    return Opened(served(backend), lambda: None)


def settings_of(folder: Path, port: int) -> Settings:
    accounts = AccountsConfig(url=str(folder / "accounts.db"))
    return Settings(
        MODEL.id,
        ServeConfig(port=port, accounts=accounts, data_folder=folder / "data", drain_timeout_s=10),
        EngineConfig(threads=1),
        adapters={"legal": folder / "legal"},
        models=(OTHER,),
        ray=RayConfig(2, 2, target_requests=2, upscale_delay_s=0.5, imbalance=4),
    )


def main() -> None:
    import ray
    from ray import serve

    from vermilion.ray_serve.application import NAME, ModelAccess, application
    from vermilion.ray_serve.replica_models import KnownModel

    def known(settings: Settings, name: str) -> KnownModel:
        return KnownModel(replace(MODEL, id=name, context_length=4096), FakeTokenizer(), FakeTemplate())

    folder, port = Path(sys.argv[1]), int(sys.argv[2])
    ray.init(
        num_cpus=8,
        object_store_memory=100 * 1024**2,
        include_dashboard=False,
        log_to_driver=False,
        _temp_dir=os.environ.get("RAY_TEST_FOLDER"),
    )
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    deployed = application(settings_of(folder, port), ModelAccess(opened, known))
    serve.run(deployed, name=NAME, route_prefix="/")
    print(f"http://127.0.0.1:{port}", flush=True)
    for _ in sys.stdin:
        serve.run(deployed, name=NAME, route_prefix="/")
        print("redeployed", flush=True)
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    main()
