"""Square on `prunedeploy serve`, which gives nothing but detections: `POST /v1/detect`, with 8-bit pictures."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from prunedeploy.attacks.answer_margins import ImageObjects, from_detections, served
from prunedeploy.attacks.square import Square
from prunedeploy_engines.detection.detections import Detections
from prunedeploy_engines.detection.letterbox import to_uint8_input
from prunedeploy_engines.runtimes.onnxruntime.runner import OnnxRuntimeRunner
from served_command import Command, serving
from tiny_detector import CLASS_NAMES, cell_boxes, cell_scores

for needed in ("fastapi", "uvicorn", "grpc", "prometheus_client", "python_multipart", "onnxruntime"):
    pytest.importorskip(needed, reason="serving needs the extras 'serve' and 'cpu'")


def ask(server: Command, image: np.ndarray) -> Detections:
    """One picture ``(H, W, 3)`` uint8 of the network's own size, so that boxes are in input pixels."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    status, answer = server.ask(
        "POST", "/v1/detect?score_threshold=0.5", file.getvalue(), {"Content-Type": "image/png"}
    )
    assert status == 200, answer
    rows = answer["images"][0]["detections"]
    return Detections(
        np.array([row["box"] for row in rows], np.float32).reshape(-1, 4),
        np.array([row["score"] for row in rows], np.float32),
        np.array([row["class_id"] for row in rows], np.int64),
        CLASS_NAMES,
    )


def test_square_lowers_what_a_server_answers_as_it_does_what_a_runner_gives(bundle: Path) -> None:
    images = (np.random.default_rng(0).integers(0, 256, (2, 3, 32, 48)) / np.float32(255)).astype(np.float32)
    best = cell_scores(images)[..., 0].argmax(1)
    frame = np.array([0.0, 0.0, 48.0, 32.0])
    objects = [ImageObjects(cell_boxes(32, 48)[[one]].astype(np.float64), np.array([0]), frame) for one in best]
    attack = Square(0.1, 40, lattice=True)
    with serving(bundle) as server:
        asked = from_detections(lambda moved: [ask(server, one) for one in to_uint8_input(moved)], objects, 0.5)
        first = Square(0.1, 1, lattice=True)(images, asked)
        found = attack(images, asked)
        after, lost = asked(found.images, np.arange(2))
    assert (after < first.losses).all()
    assert after.tolist() == found.losses.tolist()
    assert lost.tolist() == found.lost.tolist()
    # A runner of the same file, suppressed and cut off as the server does it, answers alike, so the search goes alike.
    with OnnxRuntimeRunner(bundle / "model.onnx", threads=1) as runner:
        here = attack(images, from_detections(served(runner, 0.5, 0.45), objects, 0.5))
    assert np.array_equal(here.images, found.images)
    assert here.queries.tolist() == found.queries.tolist()
