"""Counts and times of every model since the server began, in the form of Triton's statistics extension."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from prunedeploy_engines.serving.telemetry.request_notes import RequestNotes

_PARTS = {
    "queue": ("queue_s",),
    "compute_input": ("decode_s", "preprocess_s"),
    "compute_infer": ("compute_s",),
    "compute_output": ("postprocess_s", "encode_s"),
}


@dataclass
class _Total:
    """How often something happened, and the seconds that it took in all."""

    count: int = 0
    seconds: float = 0.0

    def add(self, seconds: float) -> None:
        self.count += 1
        self.seconds += seconds

    def as_json(self) -> dict[str, int]:
        return {"count": self.count, "ns": round(1e9 * self.seconds)}


@dataclass
class _Requests:
    """Counts and times of one model, by its protocol name."""

    images: int = 0
    last_ms: int = 0
    totals: dict[str, _Total] = field(default_factory=lambda: defaultdict(_Total))


class Statistics:
    """Is told of requests and batches by `Metrics`; batches come from the runners' threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: dict[str, _Requests] = defaultdict(_Requests)
        self._batches: dict[str, dict[int, _Total]] = defaultdict(lambda: defaultdict(_Total))

    def batch(self, bundle: str, images: int, seconds: float) -> None:
        """A batch was computed."""
        with self._lock:
            self._batches[bundle][images].add(seconds)

    def request(self, notes: RequestNotes, seconds: float) -> None:
        """A request was answered; those that name no model do not count."""
        if not notes.model or (notes.times is None and not notes.error):
            return
        with self._lock:
            model = self._requests[notes.model]
            if notes.error or notes.times is None:
                model.totals["fail"].add(seconds)
                return
            model.images += notes.images
            model.last_ms = round(1e3 * time.time())
            model.totals["success"].add(seconds)
            for part, stages in _PARTS.items():
                model.totals[part].add(sum(getattr(notes.times, stage) for stage in stages))

    def as_json(self, name: str, version: str, bundle: str) -> dict[str, Any]:
        """An element of ``model_stats``.

        Args:
            name: Protocol name of the model.
            version: Its version.
            bundle: Name of the bundle, whose network runs for both of its protocol names.
        """
        with self._lock:
            model = self._requests.get(name, _Requests())
            batches = {size: total.as_json() for size, total in sorted(self._batches.get(bundle, {}).items())}
            none = _Total()
            named = ("success", "fail", *_PARTS, "cache_hit", "cache_miss")
            return {
                "name": name,
                "version": version,
                "last_inference": model.last_ms,
                "inference_count": model.images,
                "execution_count": sum(one["count"] for one in batches.values()),
                "inference_stats": {part: model.totals.get(part, none).as_json() for part in named},
                "batch_stats": [
                    {
                        "batch_size": size,
                        "compute_input": none.as_json(),
                        "compute_infer": one,
                        "compute_output": none.as_json(),
                    }
                    for size, one in batches.items()
                ],
            }
