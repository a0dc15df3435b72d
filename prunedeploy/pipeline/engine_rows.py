"""The rows ``engines`` of ``results.json``: every file that is deployed, on every runtime it was measured on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from prunedeploy.pipeline.context import StageResult
from prunedeploy.pipeline.engine_figures import lowest_of
from prunedeploy.pipeline.left_out import LeftOut
from prunedeploy.pipeline.stages.corruptions import mean_figures
from prunedeploy.pipeline.stages.export import ENGINE, Artefact, runner_key
from prunedeploy.pipeline.stages.flood import flood_figures
from prunedeploy_engines.builder.from_onnx import read_engine_file
from prunedeploy_engines.files import file_sha256
from prunedeploy_engines.runtimes.onnx_file import OnnxHeader, read_onnx_header

FIGURES = ("map_clean", "map_pgd_transfer", "map50_clean", "map50_pgd_transfer", "intervals")


@dataclass(frozen=True)
class EngineMeasurements:
    """What was measured of the pruned network's files; by `runner_key`, unless said otherwise.

    Attributes:
        figures: ``evaluation.json`` of the network.
        latency: ``rows`` of ``latency.json``.
        corruptions: ``corruptions.json`` of the network; None if it was not measured under any.
        adaptive: ``adaptive.json``; empty if no file was attacked itself.
        square: ``square.json`` of each; empty if none was asked.
        flood: ``flood.json``; None if none was flooded.
    """

    figures: Mapping[str, Any]
    latency: Mapping[str, Any]
    corruptions: Mapping[str, Any] | None = None
    adaptive: Mapping[str, Any] = field(default_factory=dict)
    square: Mapping[str, Any] = field(default_factory=dict)
    flood: Mapping[str, Any] | None = None


def engine_rows(
    artefacts: Sequence[Artefact],
    engines: Sequence[StageResult],
    missing: Sequence[Mapping[str, str]],
    left_out: Sequence[LeftOut],
    measured: EngineMeasurements,
) -> list[dict[str, Any]]:
    """Describe what is deployed, and what was asked for and is not.

    Args:
        artefacts: ONNX files.
        engines: Stages that built TensorRT engines.
        missing: Engines that could not be built here: target, precision, reason.
        left_out: What failed a gate; it has a row without a file.
        measured: What was measured of the files.
    """
    failed = {(one.file, one.runtime) for one in left_out}
    rows = [
        row
        for artefact in artefacts
        for row in _onnx_rows(artefact, measured)
        if (artefact.name, row["runtime"]) not in failed
    ]
    unknown = {"map_clean": None, "map_pgd_transfer": None, "computes_in": None, "latency_ms": None}
    for stage in engines:
        for plan in sorted(stage.folder.glob("*.plan")):
            about = read_engine_file(plan)
            rows.append({
                "runtime": about.library, "target": about.target, "precision": about.precision,
                "file": f"bundle/engines/{about.target}/{plan.name}", "bytes": about.bytes, "sha256": about.sha256,
                **unknown,
                "note": f"built ahead of time with {about.library} {about.version}; not run: no such GPU here",
            })  # fmt: skip
    without_a_file = [("tensorrt", one["target"], one["precision"], one["reason"]) for one in missing]
    without_a_file += [
        (one.runtime or ("tensorrt" if one.gate == "engine" else ENGINE), one.target or "cpu", one.precision, one.line)
        for one in left_out
    ]
    return rows + [
        {
            "runtime": runtime,
            "target": target,
            "precision": precision,
            "file": None,
            "bytes": None,
            **unknown,
            "note": why,
        }
        for runtime, target, precision, why in without_a_file
    ]


def _onnx_rows(artefact: Artefact, measured: EngineMeasurements) -> Iterator[dict[str, Any]]:
    for runtime in (ENGINE, "openvino"):
        key = runner_key(runtime, artefact)
        if key not in measured.figures and f"pruned|{key}|1" not in measured.latency:
            continue
        found = measured.figures.get(key, {})
        of_file = [summary for name, summary in measured.latency.items() if name.rpartition("|")[0] == f"pruned|{key}"]
        latency = measured.latency.get(f"pruned|{key}|1") or next(iter(of_file), None)
        note = None
        header = read_onnx_header(artefact.file)
        if artefact.target == "gpu":
            note = "for TensorRT and ONNX Runtime's GPU providers; mAP measured on the CPU, latency not"
        if (steps := (header.quantisation or {}).get("trained_steps")) is not None:
            own = f"its weights are its own, trained for {steps} steps with its roundings"
            note = "; ".join([*([note] if note else []), own])
        if header.nms is not None:
            note = "; ".join([*([note] if note else []), f"{header.nms.limit}, and its mAP is that of those"])
        yield {
            "runtime": runtime,
            "target": artefact.target or "cpu",
            "precision": artefact.precision,
            "file": f"bundle/{artefact.name}",
            "bytes": artefact.file.stat().st_size,
            "sha256": file_sha256(artefact.file),
            **figures_of_file(key, found, measured),
            "computes_in": None if latency is None else latency["engine"].get("computes_in"),
            "latency_ms": latency,
            **flood_figures(measured.flood, key),
            "quantisation": _quantisation(header),
            "note": note,
        }


def figures_of_file(key: str, found: Mapping[str, Any], measured: EngineMeasurements) -> dict[str, Any]:
    """Every mAP of a file on a runtime.

    What was measured on as many images as ``map_clean`` stands beside it; on fewer, within ``adaptive``, ``square`` and
    ``corruptions``, each with its ``images``.
    """
    row = {name: found.get(name.removesuffix("_transfer")) for name in FIGURES}
    images = found.get("n_images")
    under = measured.corruptions or {}
    if key in under.get("runners", {}):
        means = mean_figures(under, key, under["images"])
        row |= means if under["images"] == images else {"corruptions": {"images": under["images"], **means}}
    on_fewer: dict[str, Any] = {"intervals": {}}
    for name, said, figures, intervals in _attacks_on_file(key, measured):
        if said.get("images") == images or not figures:
            row = {**row, **{of: value for of, value in figures.items() if of not in row}, name: said}
            row["intervals"] = {**intervals, **(row["intervals"] or {})}
        else:
            row[name] = {**said, **figures, "intervals": intervals}
            on_fewer |= {**figures, "images": said["images"], "intervals": {**on_fewer["intervals"], **intervals}}
    # Figures of different images are not compared: those count that were attacked most.
    for of, count in ((on_fewer, on_fewer.get("images")), (row, images)):
        if (lowest := lowest_of(of)) is not None:
            return {**row, "lowest": {**lowest, "images": count}}
    return row


def _attacks_on_file(
    key: str, measured: EngineMeasurements
) -> Iterator[tuple[str, dict[str, Any], dict[str, Any], dict[str, Any]]]:
    """Name of each block, what it says, its figures and their intervals."""
    if key in measured.adaptive:
        one = measured.adaptive[key]
        figures = {name: value for name, value in one.items() if name.endswith("_adaptive")}
        said = {name: value for name, value in one.items() if name not in {*figures, "adaptive", "intervals"}}
        yield "adaptive", {**said, **one.get("adaptive", {})}, figures, one.get("intervals", {})
    if key in measured.square:
        one = measured.square[key]
        said = {name: value for name, value in one.items() if name not in {"figures", "intervals"}}
        yield "square", said, one["figures"], one["intervals"]


def _quantisation(header: OnnxHeader) -> dict[str, Any] | None:
    """How an int8 file was made, without the long list of every convolution's cost."""
    made = header.quantisation
    return None if made is None else {key: value for key, value in made.items() if key != "costs_db"}
