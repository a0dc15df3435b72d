"""The rows ``engines`` of ``results.json``: every file that is deployed, on every runtime it was measured on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from prunedeploy.pipeline.context import StageResult
from prunedeploy.pipeline.left_out import LeftOut
from prunedeploy.pipeline.stages.corruptions import mean_figures
from prunedeploy.pipeline.stages.export import ENGINE, Artefact, runner_key
from prunedeploy_engines.builder.from_onnx import read_engine_file
from prunedeploy_engines.files import file_sha256
from prunedeploy_engines.runtimes.onnx_file import OnnxHeader, read_onnx_header

FIGURES = ("map_clean", "map_pgd_transfer", "map50_clean", "map50_pgd_transfer", "intervals")


def engine_rows(
    artefacts: Sequence[Artefact],
    engines: Sequence[StageResult],
    missing: Sequence[Mapping[str, str]],
    left_out: Sequence[LeftOut],
    figures: Mapping[str, Any],
    latency: Mapping[str, Any],
    corruptions: Mapping[str, Any] | None = None,
    adaptive: Mapping[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """Describe what is deployed, and what was asked for and is not.

    Args:
        artefacts: ONNX files.
        engines: Stages that built TensorRT engines.
        missing: Engines that could not be built here: target, precision, reason.
        left_out: What failed a gate; it has a row without a file.
        figures: ``evaluation.json`` of the pruned network.
        latency: ``rows`` of ``latency.json``.
        corruptions: ``corruptions.json`` of the pruned network; None if it was not measured under any.
        adaptive: ``adaptive.json``; None if no file was attacked itself.
    """
    failed = {(one.file, one.runtime) for one in left_out}
    rows = [
        row
        for artefact in artefacts
        for row in _onnx_rows(artefact, figures, latency, corruptions, adaptive or {})
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


def _onnx_rows(
    artefact: Artefact,
    figures: Mapping[str, Any],
    latency: Mapping[str, Any],
    corruptions: Mapping[str, Any] | None,
    adaptive: Mapping[str, Any],
) -> Iterator[dict[str, Any]]:
    for runtime in (ENGINE, "openvino"):
        key = runner_key(runtime, artefact)
        if key not in figures and f"pruned|{key}|1" not in latency:
            continue
        found = figures.get(key, {})
        summaries = [summary for name, summary in latency.items() if name.rpartition("|")[0] == f"pruned|{key}"]
        measured = latency.get(f"pruned|{key}|1") or next(iter(summaries), None)
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
            **{name: found.get(name.removesuffix("_transfer")) for name in FIGURES},
            **mean_figures(corruptions, key, found.get("n_images")),
            **_adaptive(adaptive.get(key), found),
            "computes_in": None if measured is None else measured["engine"].get("computes_in"),
            "latency_ms": measured,
            "quantisation": _quantisation(header),
            "note": note,
        }


def _adaptive(row: Mapping[str, Any] | None, found: Mapping[str, Any]) -> dict[str, Any]:
    """What attacks on a file's twin left: figures beside those of transfer if they are of as many images.

    ``adaptive`` has how they came about; of fewer images, the figures too. Or ``why_not``.
    """
    if row is None:
        return {}
    figures = {name: value for name, value in row.items() if name.endswith("_adaptive")}
    said = {name: value for name, value in row.items() if name not in {*figures, "adaptive", "intervals"}}
    said |= row.get("adaptive", {})
    if row.get("images") != found.get("n_images"):
        return {"adaptive": {**said, **figures, "intervals": row.get("intervals", {})}}
    return {**figures, "intervals": {**found.get("intervals", {}), **row["intervals"]}, "adaptive": said}


def _quantisation(header: OnnxHeader) -> dict[str, Any] | None:
    """How an int8 file was made, without the long list of every convolution's cost."""
    made = header.quantisation
    return None if made is None else {key: value for key, value in made.items() if key != "costs_db"}
