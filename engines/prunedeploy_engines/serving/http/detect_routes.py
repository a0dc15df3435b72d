"""``POST /v1/detect``: images in, detections out, as JSON or drawn; ``GET /v1/models``: what can be asked."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from prunedeploy_engines.detection.detections import Detections
from prunedeploy_engines.detection.drawing import draw_detections
from prunedeploy_engines.serving.core.errors import (
    InvalidRequestError,
    ModelUnavailableError,
    UnsupportedMediaError,
    check_in_time,
)
from prunedeploy_engines.serving.core.repository import ModelState
from prunedeploy_engines.serving.core.served_model import VERSION
from prunedeploy_engines.serving.core.service import Service
from prunedeploy_engines.serving.core.tensors import header_timeout_s, number
from prunedeploy_engines.serving.http.multipart import files_of
from prunedeploy_engines.serving.http.request import NotedRoute, body_of, notes_of

JSON = "application/json"
DRAWN = {"image/png": "PNG", "image/jpeg": "JPEG"}
FORM = "multipart/form-data"
FIELD = "image"
PARAMETERS = ("model", "score_threshold", "iou_threshold")


def detect_routes(service: Service) -> list[NotedRoute]:
    """Both of them.

    Args:
        service: Answers the requests.
    """

    async def detect(request: Request) -> Response:
        query = _query(request)
        model = service.repository.get(query.get("model") or service.repository.names[0])
        notes = notes_of(request)
        notes.model, notes.version = model.name, VERSION
        score, iou = _fraction(query, "score_threshold"), _fraction(query, "iou_threshold")
        wanted = preferred(request.headers.get("accept", JSON))
        kind = request.headers.get("content-type", "")
        _check_kind(kind)
        deadline = service.deadline(notes, header_timeout_s(request.headers.get("x-request-timeout")))
        async with body_of(request, service) as body:
            with model.admission.visit("files", deadline) as visit:
                body.visit = visit
                images, fields = _images(await body.read(), kind, service.settings.max_images)
                visit.know(deadline, len(images))
                if wanted != JSON and len(images) != 1:
                    line = "Accept: boxes are drawn into one image, not several"
                    raise InvalidRequestError(line, fix=f"accept {JSON}")
                found, pixels = await model.detect(images, fields, score, iou, deadline, notes, visit.queued)
        if wanted != JSON:
            with notes.encoding():
                drawn = await asyncio.to_thread(_drawn, pixels[0], found[0], DRAWN[wanted])
            check_in_time(deadline)
            return Response(drawn, media_type=wanted)
        check_in_time(deadline)
        with notes.encoding():
            listed = json.dumps(list(map(_row, found, pixels)), separators=(",", ":"))
        times = {} if notes.times is None else notes.times.milliseconds()
        remarks = {"remarks": notes.remarks} if notes.remarks else {}
        head = json.dumps({"model": model.name, "version": VERSION, **remarks})[:-1]
        return Response(f'{head}, "images": {listed}, "times_ms": {json.dumps(times)}}}', media_type=JSON)

    async def list_models(request: Request) -> Response:
        return JSONResponse({"models": [_about(service, state) for state in service.repository.index()]})

    return [NotedRoute("/v1/detect", detect, methods=["POST"]), NotedRoute("/v1/models", list_models)]


def preferred(accept: str) -> str:
    """JSON or a format for the drawn image, by an ``Accept`` header (RFC 9110, 12.5.1).

    JSON wins a tie, and is the answer where nothing that is offered is acceptable.
    """
    offered = dict.fromkeys((JSON, *DRAWN), 0.0)
    for one in accept.lower().split(","):
        kind, *parameters = (part.strip() for part in one.split(";"))
        quality = next((number(part[2:]) for part in parameters if part.startswith("q=")), 1.0)
        quality = min(1.0, max(0.0, quality))  # of what is no number, 0
        # Only what is named asks for a drawn image: clients send */* and image/* without meaning it.
        if kind in offered:
            offered[kind] = quality
        elif kind == "*/*":
            offered[JSON] = max(offered[JSON], quality)
    return max(offered, key=lambda kind: offered[kind])


def _query(request: Request) -> dict[str, str]:
    query = dict(request.query_params.multi_items())
    if len(query) != len(request.query_params.multi_items()):
        raise InvalidRequestError("the query has a parameter twice")
    for name in query:
        if name not in PARAMETERS:
            raise InvalidRequestError(f"query: {name[:40]!r} is none of {', '.join(PARAMETERS)}")
    return query


def _fraction(query: Mapping[str, str], name: str) -> float | None:
    text = query.get(name)
    if text is None:
        return None
    value = number(text)
    if not 0 <= value <= 1:
        raise InvalidRequestError(f"query: {name} is not a number from 0 to 1")
    return value


def _check_kind(content_type: str) -> None:
    kind = _kind(content_type)
    if kind not in ("", FORM, "application/octet-stream") and not kind.startswith("image/"):
        raise UnsupportedMediaError(
            f"Content-Type is neither an image's nor {FORM}", fix="send the file itself, or fields named image"
        )


def _kind(content_type: str) -> str:
    return content_type.split(";")[0].strip().lower()


def _images(body: bytes, content_type: str, most: int) -> tuple[list[bytes], list[str]]:
    """The encoded images of a body, and where each stands in it."""
    if _kind(content_type) != FORM:
        return [body], ["the body"]
    images = files_of(body, content_type, FIELD, most)
    return images, [f"{FIELD}[{index}]" for index in range(len(images))]


def _row(found: Detections, pixels: npt.NDArray[np.uint8]) -> dict[str, Any]:
    listed = zip(found.boxes_xyxy.tolist(), found.scores.tolist(), found.class_ids.tolist(), strict=True)
    return {
        "width": pixels.shape[1],
        "height": pixels.shape[0],
        "detections": [
            {"box": box, "score": score, "class_id": class_id, "class": found.class_names[class_id]}
            for box, score, class_id in listed
        ],
    }


def _drawn(image: npt.NDArray[np.uint8], found: Detections, file_format: str) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(draw_detections(image, found)).save(file, file_format)
    return file.getvalue()


def _about(service: Service, state: ModelState) -> dict[str, Any]:
    """What a person wants to know of a model; of one that is not loaded, its state only."""
    try:
        model = service.repository.get(state.name)
    except ModelUnavailableError:
        return asdict(state)
    manifest = model.bundle.manifest
    files = manifest.files.values()
    return {
        **asdict(state),
        "runtime": model.runtime,
        "precision": model.precision,
        "bytes": sum(one.bytes for one in files if one.role == "onnx" and one.precision == model.precision),
        "input_size": list(model.bundle.input_size),
        "class_names": list(manifest.class_names),
        "thresholds": {**manifest.thresholds.model_dump(), "score": model.bundle.score_threshold(model.precision)},
        "pruning": None if manifest.pruning is None else manifest.pruning.model_dump(mode="json"),
        "metrics": manifest.metrics,
    }
