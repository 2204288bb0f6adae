"""The state of one running service: what it serves, what runs, and whether it is on its way out."""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace

from vermilion.accounts.gate import Accounts
from vermilion.errors import Draining, ModelNotFound, VermilionError
from vermilion.serving.admin.answer_log import AnswerLog
from vermilion.serving.admin.metrics import Metrics
from vermilion.serving.audio.speech_threads import SpeechModels
from vermilion.serving.backend import OrganisationView, Served
from vermilion.serving.console.console_sessions import ConsoleSessions, SignInLimit
from vermilion.serving.generation import model_names
from vermilion.serving.http import auth
from vermilion.serving.http.parsing import LARGE_AT_ONCE
from vermilion.serving.jobs.background import BackgroundJobs, NoBackgroundJobs
from vermilion.serving.model_pool import ModelPool
from vermilion.serving.pooled_model import ModelLoading, PooledModel
from vermilion.serving.serve_config import ServeConfig
from vermilion.serving.wire.response_store import ResponseStore
from vermilion.speech.recognizer import find_recognizer
from vermilion.speech.synthesizer import find_synthesizer
from vermilion.types import Event, ModelInfo

Arrivals = asyncio.Queue[tuple[int, Event] | Exception]
"""Events of one call on their way to its client, each with the index of its choice."""

_LAST_FRAMES_S = 2


class CutShort(Draining):
    """The service stopped before a running answer was whole."""

    def __init__(self) -> None:
        message = "The service stopped before this answer was finished. Try again shortly."
        VermilionError.__init__(self, message)


class ServiceState:
    """Lives in one event loop. `served`, the default model, is None until it is loaded."""

    def __init__(
        self,
        config: ServeConfig,
        served: Served | None = None,
        accounts: Accounts | None = None,
        speech: SpeechModels | None = None,
    ) -> None:
        self.config = config
        self.models = ModelPool.of(served) if served is not None else None
        self.accounts = accounts
        self.speech = speech or SpeechModels(
            lambda: find_recognizer(config.recognizer or None),
            lambda: find_synthesizer(config.synthesizer or None),
        )
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
        self.metrics = Metrics(
            lambda: self.models.stats() if self.models else None, lambda: list(self.models or ())
        )
        self._running: set[Arrivals] = set()
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def served(self) -> Served | None:
        """The default model."""
        return self.models.default.served if self.models else None

    def admit(self) -> Served:
        """The default model, for a new request, as its organisation sees it. Raises `Draining` or
        `ModelLoading`."""
        if self.draining:
            raise Draining()
        if self.served is None:
            raise ModelLoading()
        return self._seen(self.served)

    async def choose(self, names: Sequence[str]) -> Served:
        """The model that the first of these spellings of one name means, loaded, as the organisation sees it;
        the default for no name and for names that only clients of one model know. Raises as `admit`, what
        `ModelPool.ensure` raises, and `ModelNotFound` where there are several models and none is meant."""
        default = self.admit()
        if self.models is None or not names or len(self.models.models) == 1:
            return default
        pooled, _ = self.find(*names)
        if pooled.served is None:
            await self.models.ensure(pooled)
        assert pooled.served is not None
        return self._seen(pooled.served)

    def listed(self) -> list[tuple[PooledModel, ModelInfo]]:
        """The served models, each with what this task's organisation sees of it; the default first. Raises as
        `admit`."""
        self.admit()
        hidden = self._hidden()
        return [
            (
                each,
                replace(
                    each.model, adapters=tuple(name for name in each.model.adapters if name not in hidden)
                ),
            )
            for each in self.models or ()
        ]

    def find(self, *names: str) -> tuple[PooledModel, ModelInfo]:
        """The model that the first of these spellings of one name means. Raises as `admit`, and
        `ModelNotFound`."""
        listed = self.listed()
        model = model_names.meant(names, [model for _, model in listed], self.config)
        if model is None:
            known = (name for _, each in listed for name in model_names.names(each, self.config))
            raise ModelNotFound(names[0][:100], tuple(known))
        return next(pair for pair in listed if pair[1] is model)

    def _hidden(self) -> frozenset[str]:
        owner = self.owner()
        return frozenset(name for name, of in self.adapter_owners.items() if of != owner)

    def _seen(self, served: Served) -> Served:
        hidden = self._hidden()
        return replace(served, backend=OrganisationView(served.backend, hidden)) if hidden else served

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
