"""The model that Triton runs behind the detector: its output in, detections in the client's images out.

`triton_repository` copies this file, as it is, into the model's folder; Triton's Python backend runs it there. So it
may import only NumPy and those modules of prunedeploy that need no more (they are copied with it).
"""

from __future__ import annotations

import importlib
import json
import math
from typing import Any

import numpy as np
import numpy.typing as npt

from prunedeploy_engines.detection.letterbox import letterbox_geometry, unletterbox_boxes
from prunedeploy_engines.detection.nms import detections_from, padded
from prunedeploy_engines.runtimes.runner import boxes_and_scores

THRESHOLDS = ("score_threshold", "iou_threshold")


class TritonPythonModel:
    """The detector's outputs and ``image_size`` INT32 ``(N, 2)`` to detections.

    Outputs: ``boxes`` FP32 ``(N, K, 4)`` xyxy in pixels of the client's image, ``scores`` FP32 ``(N, K)``, ``classes``
    INT64 ``(N, K)``, ``num_detections`` INT32 ``(N,)``; K is the largest number of detections, the rest zeros.

    Input size, thresholds, bound on candidates and number of classes stand in the parameter ``detector`` of
    ``config.pbtxt``, a JSON object. A request may bring thresholds of its own as request parameters of the names in
    `THRESHOLDS`.
    """

    def initialize(self, args: dict[str, str]) -> None:
        """Read the settings; Triton calls it once.

        Args:
            args: ``model_config`` is the configuration as JSON.
        """
        # This module exists only inside Triton's Python backend.
        self._triton: Any = importlib.import_module("triton_python_backend_utils")
        parameters = json.loads(args["model_config"])["parameters"]
        settings = json.loads(parameters["detector"]["string_value"])
        self._size = (int(settings["height"]), int(settings["width"]))
        self._thresholds = {name: float(settings[name]) for name in THRESHOLDS}
        self._max_candidates = int(settings["max_candidates"])
        self._stretch = not settings["letterbox"]
        classes = settings["nms_classes"]
        self._nms_classes = None if classes is None else int(classes)

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer requests; a bad one is answered with an error and spoils no other."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        triton = self._triton
        try:
            outputs = self._detections(request)
        except ValueError as error:
            return triton.InferenceResponse(error=triton.TritonError(str(error), triton.TritonError.INVALID_ARG))
        return triton.InferenceResponse([triton.Tensor(name, value) for name, value in outputs.items()])

    def _detections(self, request: Any) -> dict[str, npt.NDArray[Any]]:
        sizes = self._input(request, "image_size")
        if self._nms_classes is None:
            boxes, scores = self._input(request, "boxes"), self._input(request, "scores")
        else:
            counts = self._input(request, "num_detections").reshape(-1)  # Triton has it as (N, 1)
            boxes, scores = boxes_and_scores(self._input(request, "detections"), counts, self._nms_classes)
        thresholds = request_thresholds(request.parameters(), self._thresholds)
        found = []
        for number, (height, width) in enumerate(sizes):
            kept, kept_scores, class_ids = detections_from(
                boxes[number],
                scores[number],
                score_threshold=thresholds["score_threshold"],
                iou_threshold=thresholds["iou_threshold"],
                pre_nms_top_k=self._max_candidates,
            )
            geometry = letterbox_geometry((int(height), int(width)), self._size, self._stretch)
            in_image = unletterbox_boxes(kept, geometry).astype(np.float32, copy=False)
            found.append((in_image, kept_scores, class_ids))
        return padded(found)

    def _input(self, request: Any, name: str) -> npt.NDArray[Any]:
        value: npt.NDArray[Any] = self._triton.get_input_tensor_by_name(request, name).as_numpy()
        return value


def request_thresholds(parameters: str, defaults: dict[str, float]) -> dict[str, float]:
    """The thresholds of one request.

    Args:
        parameters: Its parameters as Triton gives them, a JSON object; numbers may come as text.
        defaults: By name, for what it does not say.

    Raises:
        ValueError: One is not a number in [0, 1].
    """
    given = json.loads(parameters or "{}")
    thresholds = dict(defaults)
    for name in THRESHOLDS:
        if name not in given:
            continue
        try:
            thresholds[name] = float(given[name])
        except (TypeError, ValueError):
            raise ValueError(f"{name} must be a number, got {given[name]!r}") from None
        if isinstance(given[name], bool) or not (math.isfinite(thresholds[name]) and 0 <= thresholds[name] <= 1):
            raise ValueError(f"{name} must be in [0, 1], got {given[name]!r}")
    return thresholds
