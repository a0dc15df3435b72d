"""The files of a bundle with what they passed, and the networks before and after. Needs neither PyTorch nor onnx."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from prunedeploy_engines.bundle import Bundle
from prunedeploy_engines.bundle.manifest import FileEntry
from prunedeploy_engines.runtimes.onnx_file import read_onnx_header

PLAIN = "model.onnx"
"""The fp32 file: a gate that names no file is of this one."""

Results = Mapping[str, Any]


def bundle_document(bundle: Bundle, results: Results | None) -> dict[str, Any]:
    """What a bundle holds: plain values for JSON.

    Args:
        bundle: The bundle, its files verified.
        results: ``results.json`` of the build that made it, which knows the other networks and the gates; None if it is
            not there.

    Returns:
        ``created``, ``input``, ``classes``, ``thresholds``, ``operating_points``, ``files``, ``networks``, ``pruning``,
        ``widths`` (one row per convolution, before and after) and ``left_out``.

    Raises:
        EngineError: A model in it is not an ONNX file.
    """
    manifest = bundle.manifest
    pruning = {} if manifest.pruning is None else manifest.pruning.model_dump(mode="json")
    widths = pruning.pop("layers", None) or []
    points = {
        precision: point.model_dump(mode="json", exclude={"curve"})
        for precision, point in manifest.operating_points.items()
    }
    return {
        "created": manifest.created,
        "input": manifest.input.model_dump(mode="json"),
        "classes": list(manifest.class_names),
        "thresholds": manifest.thresholds.model_dump(mode="json"),
        "operating_points": points,
        "files": [_file(bundle.path, name, entry, results) for name, entry in manifest.files.items()],
        "networks": _networks(manifest.metrics, results),
        "pruning": pruning or None,
        "widths": widths,
        "left_out": [one["line"] for one in (results or {}).get("left_out", [])],
    }


def results_beside(bundle: Path) -> Results | None:
    """``results.json`` of the build whose output folder a bundle lies in; None if it lies elsewhere."""
    path = bundle.resolve().parent / "results.json"
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and bundle.resolve().name == "bundle" else None


def _file(folder: Path, name: str, entry: FileEntry, results: Results | None) -> dict[str, Any]:
    row = {"name": name, **entry.model_dump(mode="json")}
    if entry.role != "onnx":
        return row
    header = read_onnx_header(folder / name)
    return {
        **row,
        "opset": header.opset,
        "uint8_input": header.uint8_input,
        "nms": None if header.nms is None else asdict(header.nms),
        "quantisation": header.quantisation,
        "gates": None if results is None else list(_gates(name, results)),
    }


def _gates(name: str, results: Results) -> Iterator[dict[str, Any]]:
    """What a file was measured against; that it is in the bundle means that it passed."""
    for gate in results.get("gates", []):
        if gate.get("model") == "pruned" and gate.get("artefact", PLAIN) == name:
            yield {**{key: value for key, value in gate.items() if key != "model"}, "passed": gate.get("passed", True)}


def _networks(metrics: Mapping[str, Any], results: Results | None) -> list[dict[str, Any]]:
    """The networks of the build, or the only one that a bundle by itself knows."""
    rows = (results or {}).get("models") or [{"name": "pruned", **metrics}]
    keys = ("name", "params", "filters", "weights", "zero_weights", "macs", "onnx_bytes", "map_clean", "map_pgd")
    return [{key: row.get(key) for key in keys} for row in rows]
