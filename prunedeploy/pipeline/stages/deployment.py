"""How a build's files are deployed: what their bundle says of input, thresholds and suppression."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from prunedeploy.models import read_cfg
from prunedeploy.pipeline.context import BuildContext, StageResult
from prunedeploy.pipeline.stages.export import Artefact
from prunedeploy.pipeline.stages.operating_point import FILE as POINTS
from prunedeploy_engines.bundle import BundleFile
from prunedeploy_engines.detection.letterbox import GREY


@dataclass(frozen=True)
class Deployment:
    """The ONNX files, and how they are used.

    Attributes:
        files: By their names in the bundle.
        settings: ``class_names``, ``input``, ``thresholds``, ``nms`` and ``operating_points``, as `write_bundle` takes
            them.
    """

    files: dict[str, BundleFile]
    settings: dict[str, Any]

    def score_threshold(self, precision: str) -> float:
        """The score that served detections are above, in [0, 1]; as `Bundle.score_threshold`."""
        point = self.settings["operating_points"].get(precision, {})
        return float(point.get("score_threshold", self.settings["thresholds"]["score"]))


def deployment(
    context: BuildContext, model: StageResult, points: StageResult, artefacts: Sequence[Artefact]
) -> Deployment:
    """How the files of the pruned network are deployed.

    Args:
        context: The build.
        model: Stage that made the pruned network.
        points: Its operating points.
        artefacts: Its files.
    """
    config, cfg = context.config, read_cfg(model.folder / "model.cfg")
    height, width = cfg.input_size
    chosen = _points_by_precision(points, artefacts)
    first = artefacts[0].precision
    score = chosen[first]["score_threshold"] if first in chosen else config.evaluation.score_threshold
    return Deployment(
        {one.name: BundleFile(one.file, "onnx", one.precision, one.target) for one in artefacts},
        {
            "class_names": context.class_names,
            "input": {
                "height": height,
                "width": width,
                "letterbox_colour": list(GREY),
                "greyscale": config.data.greyscale,
                "channels": cfg.input_shape[0],
                "letterbox": cfg.letterbox,
            },
            "thresholds": {"score": score, "iou": config.evaluation.iou_threshold},
            "nms": {"max_candidates": config.nms.max_candidates},
            "operating_points": chosen,
        },
    )


def _points_by_precision(points: StageResult, artefacts: Sequence[Artefact]) -> dict[str, dict[str, Any]]:
    """The operating points of the bundle's files, of int8 that of the file for CPUs, where one could be chosen."""
    found = points.read(POINTS)
    there = {one.precision: found[one.name] for one in sorted(artefacts, key=lambda one: one.target == "cpu")}
    return {
        precision: {key: value for key, value in point.items() if key != "why_not"}
        for precision, point in there.items()
        if point["why_not"] is None
    }
