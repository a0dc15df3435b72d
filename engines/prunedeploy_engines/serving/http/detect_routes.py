"""``POST /v1/detect``: images in, detections out, as JSON or drawn; ``GET /v1/models``: what can be asked."""

from __future__ import annotations

import asyncio
import io
import json
import math
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from prunedeploy_engines.detection.detections import Detections
from prunedeploy_engines.detection.drawing import draw_detections
from prunedeploy_engines.serving.core.errors import InvalidRequestError, ModelUnavailableError, UnsupportedMediaError
from prunedeploy_engines.serving.core.limits import BodyBudget
from prunedeploy_engines.serving.core.models import ProtocolModels
from prunedeploy_engines.serving.core.served_model import ServedModel
from prunedeploy_engines.serving.core.tensors import header_timeout_s
from prunedeploy_engines.serving.http.multipart import files_of
from prunedeploy_engines.serving.http.request import body_of, notes_of

if TYPE_CHECKING:
    from prunedeploy_engines.serving.http.v2_routes import Handler

JSON = "application/json"
DRAWN = {"image/png": "PNG", "image/jpeg": "JPEG"}
FIELD = "image"
PARAMETERS = ("model", "score_threshold", "iou_threshold")


def detect_routes(models: ProtocolModels, budget: BodyBudget) -> list[tuple[str, str, Handler]]:
    """Method, address and handler of both routes.

    Args:
        models: Answer the requests.
        budget: Counts the bodies that are held.
    """

    async def detect(request: Request) -> Response:
        query = _query(request)
        model = models.repository.get(query.get("model") or models.repository.names[0])
        notes = notes_of(request)
        notes.model, notes.version = model.name, model.version
        score, iou = _fraction(query, "score_threshold"), _fraction(query, "iou_threshold")
        wanted = preferred(request.headers.get("accept", JSON))
        deadline = models.deadline(header_timeout_s(request.headers.get("x-request-timeout")))
        async with body_of(request, models.settings, budget) as body:
            images, fields = _images(body, request.headers.get("content-type", ""), models.settings.max_images)
            if wanted != JSON and len(images) != 1:
                raise InvalidRequestError("Accept: boxes are drawn into one image, not several", fix=f"accept {JSON}")
            found, sizes, pixels = await models.detect(
                model, images, fields, score, iou, deadline, notes, keep=wanted != JSON
            )
        begun = time.monotonic()
        if wanted != JSON:
            drawn = await asyncio.to_thread(_drawn, pixels[0], found[0], DRAWN[wanted])
            if notes.times is not None:
                notes.times.encode_s = time.monotonic() - begun
            return Response(drawn, media_type=wanted)
        listed = json.dumps(_rows(found, sizes), separators=(",", ":"))
        times = {}
        if notes.times is not None:
            notes.times.encode_s = time.monotonic() - begun
            times = notes.times.milliseconds()
        head = json.dumps({"model": model.name, "version": model.version})[:-1]
        return Response(f'{head}, "images": {listed}, "times_ms": {json.dumps(times)}}}', media_type=JSON)

    async def list_models(request: Request) -> Response:
        return JSONResponse({"models": [_about(models, state) for state in models.repository.index()]})

    return [("POST", "/v1/detect", detect), ("GET", "/v1/models", list_models)]


def preferred(accept: str) -> str:
    """JSON or a format for the drawn image, by an ``Accept`` header (RFC 9110, 12.5.1).

    JSON wins a tie, and is the answer where nothing that is offered is acceptable.
    """
    offered = dict.fromkeys((JSON, *DRAWN), 0.0)
    for one in accept.lower().split(","):
        kind, *parameters = (part.strip() for part in one.split(";"))
        quality = next((_quality(part[2:]) for part in parameters if part.startswith("q=")), 1.0)
        # Only what is named asks for a drawn image: clients send */* and image/* without meaning it.
        if kind in offered:
            offered[kind] = quality
        elif kind == "*/*":
            offered[JSON] = max(offered[JSON], quality)
    return max(offered, key=lambda kind: offered[kind])


def _quality(text: str) -> float:
    try:
        return min(1.0, max(0.0, float(text)))
    except ValueError:
        return 0.0


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
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise InvalidRequestError(f"query: {name} is not a number from 0 to 1")
    return value


def _images(body: bytes, content_type: str, most: int) -> tuple[list[bytes], list[str]]:
    """The encoded images of a body, and where each stands in it."""
    kind = content_type.split(";")[0].strip().lower()
    if kind == "multipart/form-data":
        images = files_of(body, content_type, FIELD, most)
        return images, [f"{FIELD}[{index}]" for index in range(len(images))]
    if kind in ("", "application/octet-stream") or kind.startswith("image/"):
        return [body], ["the body"]
    raise UnsupportedMediaError(
        "Content-Type is neither an image's nor multipart/form-data", fix="send the file itself, or fields named image"
    )


def _rows(found: Sequence[Detections], sizes: Sequence[tuple[int, int]]) -> list[dict[str, Any]]:
    return [
        {
            "width": width,
            "height": height,
            "detections": [
                {"box": box, "score": score, "class_id": class_id, "class": one.class_names[class_id]}
                for box, score, class_id in zip(
                    one.boxes_xyxy.tolist(), one.scores.tolist(), one.class_ids.tolist(), strict=True
                )
            ],
        }
        for one, (height, width) in zip(found, sizes, strict=True)
    ]


def _drawn(image: npt.NDArray[np.uint8], found: Detections, file_format: str) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(draw_detections(image, found)).save(file, file_format)
    return file.getvalue()


def _about(models: ProtocolModels, state: Any) -> dict[str, Any]:
    """What a person wants to know of a model; of one that is not loaded, its state only."""
    about = {"name": state.name, "version": state.version, "state": state.state, "reason": state.reason}
    try:
        model: ServedModel = models.repository.get(state.name)
    except ModelUnavailableError:
        return about
    manifest = model.bundle.manifest
    files = manifest.files.values()
    size = sum(one.bytes for one in files if one.role == "onnx" and one.precision == model.precision)
    pruning = None if manifest.pruning is None else manifest.pruning.model_dump(mode="json")
    return {
        **about,
        "runtime": model.runtime,
        "precision": model.precision,
        "bytes": size,
        "input_size": list(model.input_size),
        "class_names": list(manifest.class_names),
        "thresholds": manifest.thresholds.model_dump(),
        "pruning": pruning,
        "metrics": manifest.metrics,
    }
