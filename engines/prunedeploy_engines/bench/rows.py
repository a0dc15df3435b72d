"""What `prunedeploy bench` measures: from models and options to rows and the specifications of their processes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prunedeploy_engines.bench.accuracy import accuracy_of
from prunedeploy_engines.bench.models import ModelFile, Subject, find_file
from prunedeploy_engines.errors import PrunedeployError
from prunedeploy_engines.files import file_sha256
from prunedeploy_engines.machine.environment import usable_cpus

RUNTIMES = ("onnxruntime", "openvino", "torch", "tensorrt")
PRECISIONS = ("fp32", "fp16", "int8")
PROVIDERS = ("cpu", "cuda", "tensorrt")
KINDS = {"compute": "compute", "host": "host", "end-to-end": "end_to_end"}

IMAGES = "images"
"""The flood that is no case of `flood.CASES`: images that are fed."""

_PEAK_RUNTIMES = ("onnxruntime", "openvino")


@dataclass(frozen=True)
class Choice:
    """What the options ask for; every combination is a row.

    Attributes:
        runtimes: Some of `RUNTIMES`.
        precisions: Some of `PRECISIONS`.
        batches: Images per call.
        threads: Threads of a CPU runtime; None is one per physical core.
        kinds: Values of `KINDS`.
        providers: ONNX Runtime's providers.
        inference_precision: OpenVINO's inference precision; None lets it choose.
        images: Folder or .npy file; None is random pixels.
        scenario: One of `scenarios.SCENARIOS`.
        floods: None is a row as it is; a name of `flood.CASES` one whose suppression is flooded with that; `IMAGES` one
            on flooded images.
        flood_images: Flooded images, by the name of the model that they flood; as ``images``.
        seed: Seed of random pixels and arrivals.
    """

    runtimes: Sequence[str] = ("onnxruntime",)
    precisions: Sequence[str] = ("fp32",)
    batches: Sequence[int] = (1,)
    threads: Sequence[int | None] = (None,)
    kinds: Sequence[str] = ("host",)
    providers: Sequence[str] = ("cpu",)
    inference_precision: str | None = "f32"
    images: Path | None = None
    scenario: str = "single-stream"
    floods: Sequence[str | None] = (None,)
    flood_images: Mapping[str, Path] = field(default_factory=dict)
    seed: int = 0


@dataclass
class Planned:
    """Rows and what to run for them.

    Attributes:
        rows: By key, in the order of the table; those that cannot run here have a ``reason``.
        specs: By the same keys.
        peaks: Key of the MatMul that a row is compared with.
        problems: Why rows cannot run, in order.
    """

    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    specs: dict[str, dict[str, Any]] = field(default_factory=dict)
    peaks: dict[str, str] = field(default_factory=dict)
    problems: list[PrunedeployError] = field(default_factory=list)


def plan_rows(subjects: Sequence[Subject], choice: Choice) -> Planned:
    """Say what to measure and what to report.

    Raises:
        PrunedeployError: Nothing at all can be measured; it is the first reason.
    """
    planned = Planned()
    for subject in subjects:
        for runtime, provider, precision in _engines(subject, choice):
            model, problem = None, None
            try:
                model = find_file(subject, runtime, provider, precision)
            except PrunedeployError as error:
                problem = error
                planned.problems.append(error)
            common = _row(subject, model, precision, runtime)
            calls = itertools.product(_calls(runtime, provider, choice), _floods(subject, choice))
            for (threads, kind, batch), flood in calls:
                # mAP is not that of a flooded row.
                shown = {key: None if flood and key.startswith("map") else value for key, value in common.items()}
                row = {
                    **shown,
                    "runtime": runtime,
                    "provider": provider,
                    "batch": batch,
                    "threads": threads,
                    "kind": kind,
                    "flood": flood,
                    "scenario": choice.scenario,
                    "reason": None if problem is None else str(problem),
                }
                _add(planned, row, model, choice)
    if not planned.specs:
        raise planned.problems[0]
    return planned


def _engines(subject: Subject, choice: Choice) -> Iterator[tuple[str, str | None, str | None]]:
    """Runtime, provider and precision of a model's rows; a single file has the precision that it has."""
    one_file = subject.is_engine or subject.source.onnx is not None
    for runtime in ["tensorrt"] if subject.is_engine else choice.runtimes:
        for provider in choice.providers if runtime == "onnxruntime" else [None]:
            for precision in [None] if one_file else choice.precisions:
                yield runtime, provider, precision


def _calls(runtime: str, provider: str | None, choice: Choice) -> Iterator[tuple[int | None, str, int]]:
    """Threads, kind and batch of the rows of one model on one runtime; threads are a CPU's."""
    for threads in [None] if _on_gpu(runtime, provider) else choice.threads:
        for kind in choice.kinds:
            for batch in choice.batches:
                yield threads, kind, batch


def _floods(subject: Subject, choice: Choice) -> list[str | None]:
    """The rows of one call of a model: as it is, and flooded."""
    return [flood for flood in choice.floods if flood != IMAGES or subject.name in choice.flood_images]


def _on_gpu(runtime: str, provider: str | None) -> bool:
    return runtime == "tensorrt" or provider in ("cuda", "tensorrt")


def _row(subject: Subject, model: ModelFile | None, precision: str | None, runtime: str) -> dict[str, Any]:
    """What is known of a row before it is measured."""
    found = model or ModelFile(precision, {})
    metrics = {} if subject.bundle is None else subject.bundle.manifest.metrics
    return {
        "model": subject.name,
        "path": str(subject.source.given),
        "file": None if found.file is None else found.file.name,
        "sha256": None if found.file is None else file_sha256(found.file),
        "precision": found.precision,
        "macs": subject.source.macs(),
        **accuracy_of(metrics, precision=found.precision or "unknown", runtime=runtime, file=found.name),
        "notes": _notes(subject),
        "latency_ms": None,
    }


def _notes(subject: Subject) -> list[str]:
    """What a latency of this model does not show by itself."""
    percent = round(100 * subject.zero_share)
    if percent == 0:
        return []
    filters = ""
    if subject.filters is not None:
        before, after = subject.filters
        filters = f"; {before - after} of {before} filters are gone"
        if after == before:
            filters = f"; all of its {before} filters are left"
    return [f"{percent} % of its weights are zeros, from which dense kernels gain nothing{filters}"]


def _add(planned: Planned, row: dict[str, Any], model: ModelFile | None, choice: Choice) -> None:
    """Put a row and what it needs into the plan."""
    engine = [row["runtime"], row["provider"] if _on_gpu(row["runtime"], row["provider"]) else None, row["precision"]]
    words = [
        row["model"],
        " ".join(filter(None, engine)),
        f"batch {row['batch']}",
        *_in_words(row["threads"]),
        row["kind"],
        *([] if row["flood"] is None else [f"flooded by {row['flood']}"]),
    ]
    key = ", ".join(words)
    planned.rows[key] = row
    if model is None:
        return
    spec = {
        **model.spec,
        **{key: row[key] for key in ("runtime", "batch", "kind", "threads")},
        "images": choice.flood_images[row["model"]] if row["flood"] == IMAGES else choice.images,
        "flood": None if row["flood"] == IMAGES else row["flood"],
        "seed": choice.seed,
    }
    if row["runtime"] == "torch":
        spec["arguments"] = {**spec["arguments"], "threads": row["threads"]}
    if row["provider"] is not None:
        spec["providers"] = [row["provider"]]
    if row["runtime"] == "openvino":
        spec["inference_precision"] = choice.inference_precision
    planned.specs[key] = spec
    if row["runtime"] in _PEAK_RUNTIMES and not _on_gpu(row["runtime"], row["provider"]):
        precision = "int8" if row["precision"] == "int8" else "fp32"  # CPUs compute fp16 files in fp32
        most = usable_cpus()
        # More threads than CPUs get in each other's way, and what they reach is not the peak.
        probed = None if row["threads"] is None else min(row["threads"], most)
        peak = ", ".join([f"MatMul {row['runtime']} {precision}", *_in_words(probed)])
        probe = {"runtime": "matmul", "on": row["runtime"], "precision": precision, "threads": probed}
        if row["threads"] is not None and row["threads"] > most:
            row["notes"] = [*row["notes"], f"{row['threads']} threads share {most} CPU{'s' * (most > 1)}"]
        planned.specs.setdefault(peak, probe)
        planned.peaks[key] = peak


def _in_words(threads: int | None) -> list[str]:
    return [] if threads is None else [f"{threads} thread{'s' * (threads > 1)}"]
