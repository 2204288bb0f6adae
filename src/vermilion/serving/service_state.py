"""The state of one running service: what it serves, what runs, and whether it is on its way out."""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace

from vermilion.accounts.gate import Accounts
from vermilion.errors import Draining, VermilionError
from vermilion.serving.admin.answer_log import AnswerLog
from vermilion.serving.admin.metrics import Metrics
from vermilion.serving.backend import OrganisationView, Served
from vermilion.serving.console.console_sessions import ConsoleSessions, SignInLimit
from vermilion.serving.http import auth
from vermilion.serving.http.parsing import LARGE_AT_ONCE
from vermilion.serving.jobs.background import BackgroundJobs, NoBackgroundJobs
from vermilion.serving.serve_config import ServeConfig
from vermilion.serving.wire.response_store import ResponseStore
from vermilion.types import Event

Arrivals = asyncio.Queue[tuple[int, Event] | Exception]
"""Events of one call on their way to its client, each with the index of its choice."""

_LAST_FRAMES_S = 2


class ModelLoading(VermilionError):
    """The port is open, the model not yet loaded."""

    status = 503
    code = "model_loading"
    retry_after_s = 5

    def __init__(self) -> None:
        super().__init__("The model is still loading. Try again shortly; /ready turns 200 when it is there.")


class CutShort(Draining):
    """The service stopped before a running answer was whole."""

    def __init__(self) -> None:
        message = "The service stopped before this answer was finished. Try again shortly."
        VermilionError.__init__(self, message)


class ServiceState:
    """Lives in one event loop. `served` is None until the model is loaded."""

    def __init__(
        self, config: ServeConfig, served: Served | None = None, accounts: Accounts | None = None
    ) -> None:
        self.config = config
        self.served = served
        self.accounts = accounts
        self.background: BackgroundJobs | NoBackgroundJobs = NoBackgroundJobs("the model is still loading.")
        self.draining = False
        self.large_bodies = asyncio.Semaphore(LARGE_AT_ONCE)
        self.answer_log = AnswerLog()
        self.console_sessions = ConsoleSessions()
        self.sign_in_limit = SignInLimit()
        self.responses = ResponseStore(config.max_response_store_bytes, config.max_response_age_s)
        self.calibrations: OrderedDict[str, list[list[float]]] = OrderedDict()
        """What the model says of the options of a form about nothing; `generation/decisions.py` fills it."""
        self.adapter_loads: Counter[str] = Counter()
        """How often what an adapter's name means has changed, so that nothing measured before is used."""
        self.metrics = Metrics(lambda: self.served.backend.stats() if self.served else None)
        self._running: set[Arrivals] = set()
        self._idle = asyncio.Event()
        self._idle.set()

    def admit(self) -> Served:
        """The model, for a new request, as its organisation sees it. Raises `Draining` or `ModelLoading`."""
        if self.draining:
            raise Draining()
        if self.served is None:
            raise ModelLoading()
        owner = self.owner()
        hidden = frozenset(name for name, of in self.adapter_owners.items() if of != owner)
        if not hidden:
            return self.served
        return replace(self.served, backend=OrganisationView(self.served.backend, hidden))

    @property
    def adapter_owners(self) -> Mapping[str, str]:
        """Organisation of each fine-tuned model that is served; other adapters are everybody's."""
        return {} if isinstance(self.background, NoBackgroundJobs) else self.background.tuner.owners

    def offline(self) -> BackgroundJobs:
        """Files, jobs and batches. Raises `NoBackgroundJobs`, `Draining` and `ModelLoading`."""
        self.admit()
        if isinstance(self.background, NoBackgroundJobs):
            raise self.background
        return self.background

    def owner(self) -> str:
        """Whose files and jobs this task's request may see: an organisation's; empty without accounts."""
        visit = auth.VISIT.get()
        return visit.key.organisation_id if visit else ""

    @contextmanager
    def changing_adapter(self, name: str) -> Iterator[None]:
        """Within it `name` may mean the old adapter or the new one; nothing measured then is used later."""
        self.adapter_loads[name] += 1
        try:
            yield
        finally:
            self.adapter_loads[name] += 1

    @contextmanager
    def running(self) -> Iterator[Arrivals]:
        """A mailbox for the events of one call; while it is open a drain waits for it."""
        arrivals: Arrivals = asyncio.Queue()
        self._running.add(arrivals)
        self._idle.clear()
        try:
            yield arrivals
        finally:
            self._running.discard(arrivals)
            if not self._running:
                self._idle.set()

    async def drain(self, timeout_s: float) -> None:
        """Takes no new requests, returns when the running ones have ended; past the time cuts them short."""
        self.draining = True
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            for arrivals in self._running:
                arrivals.put_nowait(CutShort())
            # A client that does not read its stream must not hold up the end.
            with suppress(TimeoutError):
                async with asyncio.timeout(_LAST_FRAMES_S):
                    await self._idle.wait()
