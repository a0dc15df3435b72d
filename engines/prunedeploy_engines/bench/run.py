"""Running what `rows` planned, and the JSON document that comes of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prunedeploy_engines.bench.document import SCHEMA_VERSION, device_name, measured_rows, row_settings
from prunedeploy_engines.bench.latency import LatencySamples, achieved_gflops
from prunedeploy_engines.bench.rows import Choice, Planned
from prunedeploy_engines.errors import EngineError, PrunedeployError

if TYPE_CHECKING:
    from prunedeploy_engines.bench.rounds import BenchResult
    from prunedeploy_engines.bench.server import ServerResult

Row = dict[str, Any]
Progress = Callable[[str], None]

ROUNDS = 10
"""Turns per row."""


@dataclass(frozen=True)
class Effort:
    """How long to measure.

    Attributes:
        seconds: Timed seconds per row; of a server, per trial.
        min_calls: Timed calls per row, at least; of a server, queries per trial.
        warmup_s: Untimed seconds before the first round.
        latency_bound_ms: Bound on the latency of a server.
        profile: Also profile the layers.
    """

    seconds: float
    min_calls: int
    warmup_s: float
    latency_bound_ms: float | None = None
    profile: bool = False


def run_plan(planned: Planned, choice: Choice, effort: Effort, progress: Progress) -> dict[str, Any]:
    """Measure and write the document.

    Raises:
        PrunedeployError: Nothing at all could be measured; it is the first reason.
    """
    from prunedeploy_engines.machine.energy import open_rapl
    from prunedeploy_engines.machine.environment import machine_info
    from prunedeploy_engines.machine.state import device_state, state_notes

    before = device_state()
    failures: list[EngineError] = []

    def unusable(name: str, error: EngineError) -> None:
        failures.append(error)
        if name in planned.rows:
            planned.rows[name]["reason"] = str(error)

    if choice.scenario == "server":
        peaks = _serve(planned, choice, effort, progress, unusable)
    else:
        peaks = _measure(planned, effort, progress, unusable)
    _compare_floods(list(planned.rows.values()))
    notes = _profile(planned) if effort.profile else []
    after = device_state()
    machine = machine_info()
    rows = list(planned.rows.values())
    for row in rows:
        row["device"] = device_name(machine, before, row.get("engine"))
        row["figure"] = None if row["latency_ms"] is None else figure_of(row)
    document = {
        "schema_version": SCHEMA_VERSION,
        "scenario": {"name": choice.scenario, "latency_bound_ms": effort.latency_bound_ms},
        "settings": {
            "seconds": effort.seconds,
            "min_calls": effort.min_calls,
            "warmup_s": effort.warmup_s,
            "rounds": ROUNDS,
            "seed": choice.seed,
        },
        "rows": rows,
        "peak_matmul_gflops": peaks[0]["gflops"] if peaks else None,
        "peaks": peaks,
        "machine": machine,
        "device_state": {"before": before, "after": after},
        "energy_unreadable": open_rapl()[1],
        "notes": [*state_notes(before, after), *notes],
    }
    if not measured_rows(document):
        raise _first_problem(planned, failures)
    return document


def figure_of(row: Row) -> dict[str, Any]:
    """The one figure that the row's scenario is about."""
    key, name = {
        "single-stream": ("p90", "90th percentile of the latency, ms"),
        "offline": ("images_per_s", "images per second"),
        "server": ("images_per_s", "queries per second"),
    }[row["scenario"]]
    return {"name": name, "value": row["latency_ms"][key]}


def _first_problem(planned: Planned, failures: list[EngineError]) -> PrunedeployError:
    if failures:
        return failures[0]
    reasons = [str(row["reason"]) for row in planned.rows.values() if row["reason"]]
    return EngineError(reasons[0]) if reasons else planned.problems[0]


def _measure(
    planned: Planned, effort: Effort, progress: Progress, unusable: Callable[[str, EngineError], None]
) -> list[dict[str, Any]]:
    """Fill in the rows' figures.

    Returns:
        The peaks of the runtimes.
    """
    from prunedeploy_engines.bench.rounds import bench_models

    measured = bench_models(
        planned.specs,
        seconds=effort.seconds,
        min_calls=effort.min_calls,
        warmup_s=effort.warmup_s,
        rounds=ROUNDS,
        progress=progress,
        on_unusable=unusable,
    )
    peaks = {key: _peak(measured[key]) for key in dict.fromkeys(planned.peaks.values()) if key in measured}
    for key, row in planned.rows.items():
        if key in measured:
            peak = peaks.get(planned.peaks.get(key, ""))
            _fill(row, measured[key], None if peak is None else peak["gflops"])
    _mark_best_batches(list(planned.rows.values()))
    return list(peaks.values())


def _peak(result: BenchResult) -> dict[str, Any]:
    described = result.describe
    gflops = achieved_gflops(described["macs"], result.latency.summary()["p50"])
    return {"gflops": gflops, **{key: described[key] for key in ("runtime", "threads", "precision", "matmul_size")}}


def _fill(row: Row, result: BenchResult, peak: float | None) -> None:
    summary, engine = result.latency.summary(), result.describe
    gflops = None if row["macs"] is None else achieved_gflops(row["macs"] * row["batch"], summary["p50"])
    row |= {
        "engine": engine,
        "computes_in": engine.get("computes_in"),
        "latency_ms": summary,
        "samples_ms": list(result.latency.samples_ms),
        "round_sizes": list(result.latency.round_sizes),
        "gflops": gflops,
        "peak_gflops": peak,
        "fraction_of_peak": gflops / peak if peak and gflops is not None else None,
        "images": result.images,
        "energy_j_per_image": result.energy_j_per_image,
        "energy_source": result.energy_source,
        "layers": None,
        "server": None,
    }


def _compare_floods(rows: list[Row]) -> None:
    """Say how many times the p99 of the same row without a flood each flooded row has."""
    clean = {(row["model"], *row_settings(row)): row["latency_ms"] for row in rows if row["flood"] is None}
    for row in rows:
        before = clean.get((row["model"], *row_settings({**row, "flood": None})))
        if row["flood"] is not None and before is not None and row["latency_ms"] is not None:
            row["flood_ratio"] = row["latency_ms"]["p99"] / before["p99"]


def _mark_best_batches(rows: list[Row]) -> None:
    """Say which batch of each model gives most images a second: the offline figure."""
    best: dict[tuple[Any, ...], Row] = {}
    for row in rows:
        if row["latency_ms"] is not None:
            key = (row["model"], *row_settings({**row, "batch": None}))
            if key not in best or row["latency_ms"]["images_per_s"] > best[key]["latency_ms"]["images_per_s"]:
                best[key] = row
    for row in rows:
        row["best_batch"] = any(row is one for one in best.values())


def _serve(
    planned: Planned, choice: Choice, effort: Effort, progress: Progress, unusable: Callable[[str, EngineError], None]
) -> list[dict[str, Any]]:
    from prunedeploy_engines.bench.server import bench_servers

    assert effort.latency_bound_ms is not None
    models = {key: spec for key, spec in planned.specs.items() if key in planned.rows}
    results = bench_servers(
        models,
        bound_ms=effort.latency_bound_ms,
        seconds=effort.seconds,
        min_queries=effort.min_calls,
        warmup_s=effort.warmup_s,
        seed=choice.seed,
        progress=progress,
        on_unusable=unusable,
    )
    for key, result in results.items():
        _fill_server(planned.rows[key], result, effort.latency_bound_ms)
    return []


def _fill_server(row: Row, result: ServerResult, bound_ms: float) -> None:
    row |= {
        "engine": result.describe,
        "computes_in": result.describe.get("computes_in"),
        "images": result.images,
        **dict.fromkeys(("gflops", "peak_gflops", "fraction_of_peak", "energy_j_per_image", "layers")),
        "server": {
            "latency_bound_ms": bound_ms,
            "queries_per_s": None if result.confirmed is None else result.confirmed.rate,
            "unloaded_ms": result.unloaded.summary(),
            "trials": [trial.summary() for trial in result.trials],
        },
    }
    if result.confirmed is None:
        row["reason"] = result.reason
        return
    samples = LatencySamples(result.confirmed.latencies_ms, 1, row["kind"], (len(result.confirmed.latencies_ms),))
    row |= {
        "latency_ms": samples.summary(),
        "samples_ms": list(samples.samples_ms),
        "round_sizes": list(samples.round_sizes),
    }
    # In a server's latency waiting is included: its spread is the queue's, not the machine's.
    row["latency_ms"] |= {"noisy": False, "images_per_s": result.confirmed.rate}


def _profile(planned: Planned) -> list[str]:
    """Fill in the rows' layers.

    Returns:
        Why some have none.
    """
    models = {key: planned.specs[key] for key, row in planned.rows.items() if row["latency_ms"] is not None}
    without = [key for key, spec in models.items() if "factory" in spec]
    notes = ["PyTorch rows have no profile of single layers"] if without else []
    for key, layers in profile_models({key: spec for key, spec in models.items() if key not in without}).items():
        if isinstance(layers, str):
            notes.append(f"no profile: {layers}")
        else:
            planned.rows[key]["layers"] = layers
    return notes


def profile_models(models: Mapping[str, Mapping[str, Any]]) -> dict[str, list[dict[str, Any]] | str]:
    """Profile models one after the other, a process each.

    Args:
        models: Specifications, see `bench.spec`.

    Returns:
        Per name its most expensive layers (see `layer_times.LayerTime`), or why there are none.
    """
    from prunedeploy_engines.bench.spec import complete_spec
    from prunedeploy_engines.bench.worker_process import Worker

    profiles: dict[str, list[dict[str, Any]] | str] = {}
    for name, spec in models.items():
        with Worker(name) as worker:
            try:
                profiles[name] = worker.ask("profile", spec=complete_spec(name, spec))["layers"]
            except EngineError as error:
                profiles[name] = str(error)
    return profiles


def steps(planned: Planned, choice: Choice, effort: Effort) -> int:
    """How many turns there will be, for a progress bar; of a server's search, about."""
    if choice.scenario == "server":
        return 12 * sum(key in planned.rows for key in planned.specs)
    return ROUNDS * len(planned.specs) if math.isfinite(effort.seconds) else 0
