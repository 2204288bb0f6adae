"""Counters, gauges and histograms of one service, in a registry of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from vermilion.types import EngineStats, Usage

if TYPE_CHECKING:
    from vermilion.serving.pooled_model import PooledModel

_TOKENS_PER_PASS = (0.5, 1, 1.5, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64)
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """`stats` is asked at each scrape and gives None while no engine runs; `models` gives those served."""

    def __init__(
        self,
        stats: Callable[[], EngineStats | None],
        models: Callable[[], Sequence[PooledModel]] = lambda: (),
    ) -> None:
        self.registry = CollectorRegistry()
        self._prompt_tokens = self._counter("prompt_tokens", "Prompt tokens, of requests given up too.")
        self._cached_tokens = self._counter("cached_tokens", "Prompt tokens served from the prefix cache.")
        self._completion_tokens = self._counter("completion_tokens", "Tokens generated.")
        self._passes = self._counter("passes", "Forward passes after prefill, summed over finished requests.")
        self._edits = self._counter("edits", "Filled positions that a later pass changed.")
        self._cached_passes = self._counter(
            "cached_passes", "Passes that read an approximate cache, of models that see everything.", "cache"
        )
        self.cancellations = self._counter("cancellations", "Requests given up by the client.")
        self.requests = self._counter("requests", "HTTP requests.", "route", "status")
        self.feedback = self._counter("feedback", "What users made of answers.", "action")
        self.errors = self._counter("errors", "Errors sent to clients, in replies and streams.", "code")
        self._tokens_per_pass = self._histogram(
            "tokens_per_pass", "Completion tokens over passes of a finished request.", _TOKENS_PER_PASS
        )
        self.first_text_s = self._histogram(
            "time_to_first_text_seconds", "From the parsed request to its first settled text.", _SECONDS
        )
        self.request_s = self._histogram(
            "request_duration_seconds", "From the request line to the end of the reply.", _SECONDS, "route"
        )
        self.registry.register(_EngineCollector(stats))
        self.registry.register(_ModelCollector(models))

    def finished(self, usage: Usage) -> None:
        """Counts what one request cost, whole or given up."""
        self._prompt_tokens.inc(usage.prompt_tokens)
        self._cached_tokens.inc(usage.cached_tokens)
        self._completion_tokens.inc(usage.completion_tokens)
        self._passes.inc(usage.passes)
        self._edits.inc(usage.edits)
        if usage.cache:
            self._cached_passes.labels(usage.cache).inc(usage.cached_passes)
        if usage.passes:
            self._tokens_per_pass.observe(usage.tokens_per_pass)

    def render(self) -> bytes:
        """Everything in Prometheus' text format."""
        return generate_latest(self.registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"vermilion_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(f"vermilion_{name}", text, labels, buckets=buckets, registry=self.registry)


class _EngineCollector(Collector):
    """Reads the engine once per scrape instead of pushing on every step."""

    def __init__(self, stats: Callable[[], EngineStats | None]) -> None:
        self._stats = stats

    def collect(self) -> Iterator[Metric]:
        stats = self._stats()
        if stats is None:
            return
        yield _gauge("running_requests", "Requests being decoded.", stats.running)
        yield _gauge("waiting_requests", "Requests queued.", stats.waiting)
        yield _gauge("kv_pages_used", "Key-value pages held by running requests.", stats.pages_used)
        yield _gauge("kv_pages_total", "Key-value pages there are.", stats.pages_total)
        yield _gauge("kv_pages_cached", "Unused pages that hold a shareable prefix.", stats.pages_cached)
        yield _count("engine_passes", "Forward passes, each over every running request.", stats.passes)
        yield _count("preemptions", "Requests set back to free memory.", stats.preemptions)
        yield _count("prefix_hit_tokens", "Prompt tokens found in the prefix cache.", stats.prefix_hit_tokens)
        yield _by_source("drafted_tokens", "Drafts verified, of requests that ended.", stats.drafted)
        yield _by_source("accepted_tokens", "Verified drafts that became text.", stats.accepted)
        timing = stats.timing
        yield _count("pass_rows", "Rows of all forward passes.", timing.rows)
        parts = {"forward": timing.forward_s, "decode": timing.decode_s, "prepare": timing.prepare_s}
        yield _by("part", "pass_seconds", "What the forward passes took.", parts)


class _ModelCollector(Collector):
    """What each served model does, and whether it is in memory."""

    def __init__(self, models: Callable[[], Sequence[PooledModel]]) -> None:
        self._models = models

    def collect(self) -> Iterator[Metric]:
        models = self._models()
        gauges: dict[str, tuple[str, Callable[[PooledModel], float]]] = {
            "model_loaded": ("Whether the model is in memory.", lambda model: model.opened is not None),
            "model_memory_bytes": (
                "Memory of its weights and cache, as foretold; 0 while it is not loaded.",
                lambda model: model.memory_bytes if model.opened else 0,
            ),
            "model_running_requests": ("Its requests being decoded.", lambda model: model.stats().running),
        }
        for name, (text, value) in gauges.items():
            gauge = GaugeMetricFamily(f"vermilion_{name}", text, labels=["model"])
            for model in models:
                gauge.add_metric([model.info.id], value(model))
            yield gauge
        for name, text in (("loads", "How often it was loaded."), ("requests", "Requests that it took up.")):
            count = CounterMetricFamily(f"vermilion_model_{name}", text, labels=["model"])
            for model in models:
                count.add_metric([model.info.id], getattr(model, f"num_{name}"))
            yield count


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"vermilion_{name}", text, value=value)


def _count(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(f"vermilion_{name}", text, value=value)


def _by_source(name: str, text: str, counts: Mapping[str, int]) -> Metric:
    return _by("source", name, text, counts)


def _by(label: str, name: str, text: str, values: Mapping[str, float]) -> Metric:
    family = CounterMetricFamily(f"vermilion_{name}", text, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family
