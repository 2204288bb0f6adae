"""The models of one service, within a memory budget: loaded when they are asked for, unloaded when idle."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from time import monotonic

from vermilion.errors import ConfigError, ModelFileError, ModelNotFound, VermilionError
from vermilion.serving.backend import Served
from vermilion.serving.pooled_model import ModelLoading, ModelNotPulled, ModelUnavailable, Opened, PooledModel
from vermilion.types import EngineStats, ModelInfo, Timing

_RETRY_S = 30.0
"""How long a failure to load stands before a request tries again."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Described:
    """What is known of a model before it is loaded."""

    info: ModelInfo
    memory_bytes: int
    pulled: bool = True


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Where the pool's models come from. Both block, and run on threads."""

    open: Callable[[str], Opened]
    """Reads a model into memory. Raises `ModelFileError` and `ConfigError`."""
    describe: Callable[[str], Described]
    """From its description alone. Raises `ModelNotFound`, and `ModelFileError` for faulty files."""


def _nothing(name: str) -> Opened:
    raise ModelFileError(f"{name} cannot be loaded.")


@dataclass(eq=False)
class ModelPool:
    """Lives in one event loop. The first model is the default: it answers requests that name none."""

    source: ModelSource
    budget_bytes: int = 0
    """Memory for all loaded models together; 0 for no limit."""
    wait_s: float = 60.0
    """How long a request waits for its model."""
    models: dict[str, PooledModel] = field(default_factory=dict)
    """By the id under which a model is served."""
    _loading: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    _released: asyncio.Event = field(default_factory=asyncio.Event)
    _failed_s: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, *loaded: Served) -> ModelPool:
        """Of models that are loaded already and stay, the default first."""
        infos = {served.backend.model.id: served.backend.model for served in loaded}

        def describe(name: str) -> Described:
            if name not in infos:
                raise ModelNotFound(name[:100], tuple(infos))
            return Described(infos[name], 0)

        pool = cls(ModelSource(_nothing, describe))
        for (id, info), served in zip(infos.items(), loaded, strict=True):
            model = pool.models[id] = PooledModel(id, info, 0, pool.ensure)
            model.hold(served)
        return pool

    @property
    def default(self) -> PooledModel:
        return next(iter(self.models.values()))

    @property
    def used_bytes(self) -> int:
        """Foretold, of what is in memory."""
        return sum(model.memory_bytes for model in self if model.opened is not None)

    def __iter__(self) -> Iterator[PooledModel]:
        return iter(self.models.values())

    async def add(self, name: str) -> PooledModel:
        """Serve one more model, which is not loaded yet. Raises as `ModelSource.describe`."""
        known = next((model for model in self if model.name == name), None)
        described = await asyncio.to_thread(self.source.describe, name)
        if known is not None:
            if known.opened is None and known.state in ("not_pulled", "failed"):
                known.info, known.memory_bytes = described.info, described.memory_bytes
                known.state, known.error = ("on_disk" if described.pulled else "not_pulled"), ""
            return known
        if described.info.id in self.models:
            other = self.models[described.info.id].name
            raise ConfigError(f"{name} and {other} would both be served as {described.info.id}.")
        model = PooledModel(
            name, described.info, described.memory_bytes, self.ensure, self._released.set,
            "on_disk" if described.pulled else "not_pulled",
        )  # fmt: skip
        self.models[described.info.id] = model
        return model

    async def ensure(self, model: PooledModel) -> None:
        """Returns when the model is loaded; many may wait for one load. Raises `ModelNotPulled`,
        `ModelUnavailable`, and `ModelLoading` when it takes longer than `wait_s`."""
        deadline = asyncio.get_running_loop().time() + self.wait_s
        model.num_waiting += 1
        try:
            while model.opened is None or model.leaving:
                async with asyncio.timeout_at(deadline):
                    await asyncio.shield(self._task(model))
        except TimeoutError:
            raise ModelLoading(model.info.id) from None
        finally:
            model.num_waiting -= 1
            self._released.set()

    def _task(self, model: PooledModel) -> asyncio.Task[None]:
        """The load of `model`, which many may wait for; begun where there is none."""
        task = self._loading.get(model.info.id)
        if task is None:
            self._check_worth_trying(model)
            task = self._loading[model.info.id] = asyncio.create_task(self._load(model))
            task.add_done_callback(partial(self._loaded, model.info.id))
        return task

    async def load_default(self) -> None:
        """Before there are requests. Raises what `ModelSource.open` raises."""
        await self.default.load(await asyncio.to_thread(self.source.open, self.default.name))

    async def unload(self, model: PooledModel) -> None:
        """Returns when it is out of memory; requests that run on it end first."""
        async with self._turn:
            await self._empty(model)

    async def close(self) -> None:
        for task in list(self._loading.values()):
            task.cancel()
        await asyncio.gather(*self._loading.values(), return_exceptions=True)
        for model in self:
            opened = model.unload()
            if opened is not None:
                await asyncio.to_thread(opened.close)

    def stats(self) -> EngineStats | None:
        """Of all loaded models together; None while none is."""
        loaded = [model.stats() for model in self if model.opened is not None]
        return total_stats(loaded) if loaded else None

    def _check_worth_trying(self, model: PooledModel) -> None:
        if model.state == "not_pulled":
            raise ModelNotPulled(model.name)
        if model.state == "failed" and monotonic() - self._failed_s.get(model.info.id, 0.0) < _RETRY_S:
            raise ModelUnavailable(f"{model.info.id} could not be loaded: {model.error}")

    def _loaded(self, id: str, task: asyncio.Task[None]) -> None:
        self._loading.pop(id, None)
        if not task.cancelled():
            task.exception()  # nobody may wait any more who would look at it

    async def _load(self, model: PooledModel) -> None:
        """One after the other, so that the memory of each is known when the next one is weighed."""
        async with self._turn:
            if model.opened is not None and not model.leaving:
                return
            await self._make_room(model)
            model.state = "loading"
            _log.info("loading %s", model.info.id)
            try:
                await model.load(await asyncio.to_thread(self.source.open, model.name))
            except asyncio.CancelledError:
                model.state = "on_disk"
                raise
            except Exception as error:
                # The edge of one model: the others go on.
                _log.warning(
                    "%s could not be loaded", model.info.id, exc_info=not isinstance(error, VermilionError)
                )
                model.state, model.error = "failed", str(error) or type(error).__name__
                self._failed_s[model.info.id] = monotonic()
                raise ModelUnavailable(f"{model.info.id} could not be loaded: {model.error}") from error
            _log.info("%s is loaded", model.info.id)

    async def _make_room(self, model: PooledModel) -> None:
        """Unloads what was used longest ago, idle models first, until `model` fits. Raises
        `ModelUnavailable`."""
        if not self.budget_bytes:
            return
        if model.memory_bytes > self.budget_bytes:
            raise ModelUnavailable(
                f"{model.info.id} needs {model.memory_bytes / 1e9:.1f} GB and engine.memory_budget is "
                f"{self.budget_bytes / 1e9:.1f} GB."
            )
        while self.used_bytes + model.memory_bytes > self.budget_bytes:
            loaded = [each for each in self if each.opened is not None and each is not model]
            if not loaded:
                return
            victim = min(loaded, key=lambda each: (each.num_users > 0, each.last_used_s))
            try:
                async with asyncio.timeout(self.wait_s):
                    await self._empty(victim)
            except TimeoutError:
                raise ModelUnavailable(
                    f"{model.info.id} has no room: {victim.info.id} is busy. Try again later, or raise "
                    "engine.memory_budget."
                ) from None

    async def _empty(self, model: PooledModel) -> None:
        """Waits for the requests that run on `model`, and those that it was loaded for, then frees it."""
        while model.num_waiting and model.opened is not None and not model.leaving:
            self._released.clear()
            await self._released.wait()
        model.leaving = True
        try:
            while model.num_users:
                self._released.clear()
                await self._released.wait()
        except BaseException:
            model.leaving = False
            raise
        opened = model.unload()
        if opened is not None:
            _log.info("unloading %s", model.info.id)
            await asyncio.to_thread(opened.close)


def total_stats(all_stats: Sequence[EngineStats]) -> EngineStats:
    """Of several engines together."""
    drafted, accepted = Counter[str](), Counter[str]()
    for one in all_stats:
        drafted.update(one.drafted)
        accepted.update(one.accepted)
    kept = ("drafted", "accepted", "timing")
    numbers = [each.name for each in fields(EngineStats) if each.name not in kept]
    sums = {name: sum(getattr(one, name) for one in all_stats) for name in numbers}
    timing = sum((one.timing for one in all_stats), Timing())
    return EngineStats(drafted=drafted, accepted=accepted, timing=timing, **sums)
