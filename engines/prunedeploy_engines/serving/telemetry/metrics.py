"""Figures for Prometheus, in a registry of the server's own."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from prunedeploy_engines.serving.telemetry.request_notes import STAGES, RequestNotes
from prunedeploy_engines.serving.telemetry.statistics import Statistics

_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
_SIZES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """What is counted: told of queues and batches from any thread, and of every request when it is answered.

    A label never holds what a client chose: routes are patterns, and models those that exist.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.statistics = Statistics()
        kept: dict[str, Any] = {"namespace": "prunedeploy", "registry": self.registry}
        timed = {"buckets": _SECONDS, **kept}
        self._requests = Counter("requests", "Requests answered", ("protocol", "route", "model", "status"), **kept)
        self._errors = Counter("errors", "Requests refused or failed", ("protocol", "kind"), **kept)
        self._seconds = Histogram("request_seconds", "From request to answer", ("protocol", "route"), **timed)
        self._stages = Histogram("stage_seconds", "Stage of an answered request", ("model", "stage"), **timed)
        self._images = Counter("images", "Images of answered requests", ("model",), **kept)
        self._queue = Gauge("queue_depth", "Images that wait", ("model",), **kept)
        self._batches = Histogram("batch_size", "Images computed together", ("model",), buckets=_SIZES, **kept)
        self._batch_seconds = Histogram("batch_seconds", "Computing a batch", ("model",), **timed)
        self._ready = Gauge("model_ready", "1 while a model is loaded", ("model",), **kept)

    def queue_depth(self, model: str, images: int) -> None:
        """So many images of a model wait now."""
        self._queue.labels(model).set(images)

    def batch(self, model: str, images: int, seconds: float) -> None:
        """A batch was computed."""
        self.statistics.batch(model, images, seconds)
        self._batches.labels(model).observe(images)
        self._batch_seconds.labels(model).observe(seconds)

    def model_state(self, model: str, ready: bool) -> None:
        """A model was loaded or unloaded."""
        self._ready.labels(model).set(ready)

    def request(self, notes: RequestNotes, status: str, seconds: float) -> None:
        """Count an answered request.

        Args:
            notes: Its notes.
            status: HTTP status, or the name of gRPC's.
            seconds: It took.
        """
        self.statistics.request(notes, seconds)
        self._requests.labels(notes.protocol, notes.route, notes.model, status).inc()
        self._seconds.labels(notes.protocol, notes.route).observe(seconds)
        if notes.error:
            self._errors.labels(notes.protocol, notes.error).inc()
        elif notes.times is not None:
            self._images.labels(notes.model).inc(notes.images)
            for stage, seconds_of in self._stages_of(notes.model):
                seconds_of.observe(getattr(notes.times, stage))

    @lru_cache(maxsize=1024)  # noqa: B019 - there is one object for the life of a server
    def _stages_of(self, model: str) -> list[tuple[str, Histogram]]:
        return [(f"{stage}_s", self._stages.labels(model, stage)) for stage in STAGES]

    def text(self) -> bytes:
        """All of it, in Prometheus' text format."""
        return generate_latest(self.registry)
