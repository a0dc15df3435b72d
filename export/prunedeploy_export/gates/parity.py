"""The gates that an exported artefact passes before it is deployed.

Each gate compares what the artefact gives with what its parent, the PyTorch network, gives for the same
images. It returns what it measured, for the bundle's record, or raises `GateError`. NaN and infinity
never pass.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from prunedeploy_engines.errors import GateError
from prunedeploy_export.gates.matching import Detected, FloatArray, Matches

Outputs = tuple[FloatArray, FloatArray]
"""Boxes ``(N, M, 4)`` xyxy in input pixels and scores ``(N, M, C)`` in [0, 1], as a `Runner` gives them."""

TENSOR_TOLERANCE = 1e-4
MIN_IOU = 0.99
SCORE_TOLERANCE = 1e-3

_FIX = "do not deploy it; export again, in a higher precision if this one is not fp32"
_FIX_PARENT = "the network itself is broken: train it again"


@dataclass(frozen=True)
class TensorParity:
    """What `check_tensor_parity` measured.

    Attributes:
        boxes: max|a - b| / max|a| of the boxes; ``scores`` the same of the scores.
        tolerance: What was allowed.
        images: Number of images compared.
        within: Share of the predictions that are within the tolerance, of the worse output.
        allowed_share: Smallest share allowed.
    """

    boxes: float
    scores: float
    tolerance: float
    images: int
    within: float
    allowed_share: float


@dataclass(frozen=True)
class DetectionParity:
    """What `check_detection_parity` measured, over the detections of both sides.

    Attributes:
        images: Number of images compared.
        detections: Number of the reference's detections that needed a match. With none, nothing was proven.
        min_iou: Lowest IoU of a detection with its match, None without any.
        max_score_difference: Largest difference of a score from its match's, None without any.
        coin_flips: Detections whose match was dropped by NMS, in a tie; see `check_detection_parity`.
        matched_share: Share of both sides' detections that have a match, None without detections.
        allowed_share: Smallest share allowed, but for one detection.
        allowed_iou: Lowest IoU allowed.
        allowed_score_difference: Largest difference allowed.
        score_threshold: Score threshold of NMS.
        iou_threshold: IoU threshold of NMS.
    """

    images: int
    detections: int
    min_iou: float | None
    max_score_difference: float | None
    coin_flips: int
    matched_share: float | None
    allowed_share: float
    allowed_iou: float
    allowed_score_difference: float
    score_threshold: float
    iou_threshold: float


@dataclass(frozen=True)
class MapParity:
    """What `check_map_parity` measured; mAPs in [0, 1], None where undefined.

    Attributes:
        reference: mAP of the parent.
        candidate: mAP of the artefact.
        deviation: Candidate minus reference, 0 where both are undefined.
        tolerance: What was allowed.
    """

    reference: float | None
    candidate: float | None
    deviation: float
    tolerance: float


def check_tensor_parity(
    reference_outputs: Outputs,
    candidate_outputs: Outputs,
    tolerance: float = TENSOR_TOLERANCE,
    *,
    share: float = 1.0,
    artefact: object = None,
) -> TensorParity:
    """Gate 1: require max|a - b| <= tolerance * max|a| of each output.

    A prediction is one of an image's M rows of boxes and scores. With a ``share`` below 1 the maximum on the left is
    taken of each prediction by itself, and that many of them must be within the tolerance.

    Args:
        reference_outputs: a, boxes and scores of the parent.
        candidate_outputs: b, boxes and scores of the artefact for the same images.
        tolerance: Relative to the output's largest value.
        share: Smallest share of the predictions within the tolerance, in [0, 1].
        artefact: Name of the artefact for the message, e.g. its path.

    Returns:
        The relative deviation of each output.

    Raises:
        GateError: An output deviates by more or is not finite; the message names it and the values.
        ValueError: The outputs' shapes differ or are not those of boxes and scores.
    """
    measured, shares = [], []
    for name, reference, candidate in _paired(reference_outputs, candidate_outputs, artefact):
        difference = np.abs(reference.astype(np.float64) - candidate)
        largest = float(np.abs(reference).max(initial=0.0))
        worst = float(difference.max(initial=0.0))
        within = float((difference.max(axis=2) <= tolerance * largest).mean())  # over (N, M)
        if within < share:
            at = np.unravel_index(int(difference.argmax()), difference.shape)
            few = "" if share == 1 else f"; {_percent(within)} of the predictions are within it, not {_percent(share)}"
            what = (
                f"tensor parity: {name}{_index(at)} is {candidate[at]:.7g}, the parent's {reference[at]:.7g}: "
                f"max|a - b| = {worst:.3g} is more than {tolerance:g} * max|a| = {tolerance * largest:.3g}{few}"
            )
            raise GateError(what, artefact, _FIX, gate="tensor")
        measured.append(worst / largest if largest else 0.0)
        shares.append(within)
    return TensorParity(measured[0], measured[1], tolerance, len(reference_outputs[0]), min(shares), share)


def check_detection_parity(
    reference_outputs: Outputs,
    candidate_outputs: Outputs,
    *,
    score_threshold: float = 0.25,
    iou_threshold: float = 0.45,
    min_iou: float = MIN_IOU,
    score_tolerance: float = SCORE_TOLERANCE,
    share: float = 1.0,
    artefact: object = None,
) -> DetectionParity:
    """Gate 2: require that after NMS both sides have the same detections.

    Every detection of either side whose score clears the threshold by ``score_tolerance`` needs a match on
    the other side: same class, IoU of at least ``min_iou`` and a score within ``score_tolerance``. Nearer to
    the threshold a detection may be on one side only.

    Between boxes that score alike, or overlap by just the threshold, NMS decides by the last bit. A box that
    NMS dropped is therefore a match too, if it meets the three conditions; such coin flips are counted. No
    wrong detection passes for that: one that a side invented has no such box on the other side, nor has one
    that it lost. And a box that both sides have but one side dropped was dropped in a tie, or for an
    invented detection, which fails.

    With a ``share`` below 1 that share of both sides' detections needs a match, and one detection alone never fails:
    8 bits move some scores of any real network by more than a tolerance that says something about the others.

    Args:
        reference_outputs: Boxes and scores of the parent.
        candidate_outputs: Boxes and scores of the artefact for the same images.
        score_threshold: Score threshold of a detection, in [0, 1].
        iou_threshold: IoU threshold of NMS, in [0, 1].
        min_iou: Lowest IoU of a match.
        score_tolerance: Largest difference of the scores of a match.
        share: Smallest share of the detections that have a match, in [0, 1].
        artefact: Name of the artefact for the message, e.g. its path.

    Returns:
        How far matches are apart at most.

    Raises:
        GateError: Too many detections have no match (the first is named), or an output is not finite.
        ValueError: The outputs' shapes differ or are not those of boxes and scores.
    """
    list(_paired(reference_outputs, candidate_outputs, artefact))  # the checks only
    matched: list[Matches] = []
    detections, first = 0, ""
    for image, pair in enumerate(zip(*reference_outputs, *candidate_outputs, strict=True)):
        reference = Detected(pair[0], pair[1], score_threshold, iou_threshold)
        candidate = Detected(pair[2], pair[3], score_threshold, iou_threshold)
        for side, one, other in (("parent", reference, candidate), ("artefact", candidate, reference)):
            found = one.matches(other, score_threshold + score_tolerance, min_iou, score_tolerance)
            matched.append(found)
            if one is reference:
                detections += len(found.ious) + len(found.unmatched)
            if found.unmatched and not first:
                lost = found.unmatched[0]
                first = (
                    f"image {image}: the {side}'s detection of class {lost.class_id}, "
                    f"box {np.round(lost.box_xyxy, 2).tolist()}, score {lost.score:.4f} has no match with "
                    f"IoU >= {min_iou:g} and a score within {score_tolerance:g}: "
                    f"{other.nearest(lost.box_xyxy, lost.class_id)}"
                )
    ious, differences, dropped = (
        np.concatenate([getattr(found, name) for found in matched] or [np.empty(0)])
        for name in ("ious", "score_differences", "dropped")
    )
    unmatched = sum(len(found.unmatched) for found in matched)
    total = len(ious) + unmatched
    if unmatched and (share == 1 or (unmatched > 1 and len(ious) / total < share)):
        few = f"{unmatched} of {total} have no match, at least {_percent(share)} must have one; the first: "
        raise GateError(f"matched detections: {few if share < 1 else ''}{first}", artefact, _FIX, gate="detections")
    return DetectionParity(
        images=len(reference_outputs[0]),
        detections=detections,
        min_iou=float(ious.min()) if len(ious) else None,
        max_score_difference=float(differences.max()) if len(ious) else None,
        coin_flips=int(dropped.sum()),
        matched_share=len(ious) / total if total else None,
        allowed_share=share,
        allowed_iou=min_iou,
        allowed_score_difference=score_tolerance,
        score_threshold=score_threshold,
        iou_threshold=iou_threshold,
    )


def check_map_parity(
    reference_map: float | None,
    candidate_map: float | None,
    tolerance: float,
    *,
    may_gain: bool = False,
    artefact: object = None,
) -> MapParity:
    """Gate 3: require that the mAPs on the same images differ by at most ``tolerance``.

    Args:
        reference_map: mAP of the parent in [0, 1]; None where it is undefined, for lack of boxes.
        candidate_map: mAP of the artefact.
        tolerance: Absolute.
        may_gain: The candidate's may be higher by any amount: the tolerance limits what it loses.
        artefact: Name of the artefact for the message, e.g. its path.

    Returns:
        The deviation.

    Raises:
        GateError: They differ by more, one of them is NaN, or one is undefined and the other is not.
    """
    if reference_map is None and candidate_map is None:
        return MapParity(None, None, 0.0, tolerance)
    deviation = math.nan if reference_map is None or candidate_map is None else candidate_map - reference_map
    if not (-deviation if may_gain else abs(deviation)) <= tolerance:
        shown = ["undefined" if value is None else f"{value:.4f}" for value in (candidate_map, reference_map)]
        limit = f"it may be lower by {tolerance:g}" if may_gain else f"they may differ by {tolerance:g}"
        what = f"mAP parity: mAP is {shown[0]}, the parent's {shown[1]}, and {limit}"
        raise GateError(what, artefact, _FIX, gate="map")
    return MapParity(reference_map, candidate_map, deviation, tolerance)


def _paired(
    reference_outputs: Outputs, candidate_outputs: Outputs, artefact: object
) -> Iterator[tuple[str, FloatArray, FloatArray]]:
    """Each output's name and two arrays, checked for shape and for being finite."""
    shapes = [[np.shape(array) for array in outputs] for outputs in (reference_outputs, candidate_outputs)]
    boxes, scores = shapes[0]
    fits = len(boxes) == len(scores) == 3 and boxes == (*scores[:2], 4) and 0 not in boxes
    if not fits or shapes[0] != shapes[1]:
        raise ValueError(
            "reference and candidate must both be boxes (N, M, 4) and scores (N, M, C) with N, M >= 1, "
            f"got {shapes[0]} and {shapes[1]}"
        )
    outputs = zip(("boxes", "scores"), reference_outputs, candidate_outputs, strict=True)
    for name, reference, candidate in outputs:
        for side, array, fix in (("parent", reference, _FIX_PARENT), ("artefact", candidate, _FIX)):
            wrong = np.argwhere(~np.isfinite(array))
            if len(wrong):
                first = tuple(wrong[0])
                value = f"{name}{_index(first)} = {array[first]}"
                what = f"{len(wrong)} values of the {side}'s {name} are not finite, the first one is {value}"
                raise GateError(what, artefact, fix)
        yield name, reference, candidate


def _percent(share: float) -> str:
    return f"{100 * share:.4g} %"


def _index(position: Iterable[Any]) -> str:
    return str([int(i) for i in position])
