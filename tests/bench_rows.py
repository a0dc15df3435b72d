"""Rows of a benchmark as the program writes them, made up: for tests of what reads them."""

from __future__ import annotations

from typing import Any

import numpy as np

from prunedeploy_engines.bench.latency import LatencySamples


def bench_row(median: float = 10.0, seed: int = 0, rounds: int = 10, **changed: Any) -> dict[str, Any]:
    """A measured row whose samples lie around a median, in milliseconds."""
    rng = np.random.default_rng(seed)
    blocks = [median * (1 + rng.normal(0, 0.01) + np.abs(rng.normal(0, 0.01, 20))) for _ in range(rounds)]
    samples = tuple(float(sample) for block in blocks for sample in block)
    batch = changed.get("batch", 1)
    row: dict[str, Any] = {
        "model": "pruned",
        "path": "runs/pruned",
        "device": "Some CPU",
        "runtime": "onnxruntime",
        "provider": "cpu",
        "precision": "fp32",
        "batch": batch,
        "threads": 2,
        "kind": "host",
        "scenario": "single-stream",
        "sha256": "0" * 64,
        "computes_in": {"fp32": 1.0},
        "latency_ms": LatencySamples(samples, batch).summary(),
        "samples_ms": list(samples),
        "round_sizes": [len(block) for block in blocks],
        "reason": None,
        "notes": [],
    }
    return {**row, **changed}


def bench_document(rows: list[dict[str, Any]], **changed: Any) -> dict[str, Any]:
    """A document of such rows."""
    machine = {"cpu": {"name": "Some CPU", "usable_cpus": 2}, "os": "Linux", "libraries": {"onnxruntime": "1.32.0"}}
    state = {"before": {"power_mode": None, "governors": ["performance"]}, "after": {}}
    return {"schema_version": 1, "rows": rows, "machine": machine, "device_state": state, "notes": [], **changed}
