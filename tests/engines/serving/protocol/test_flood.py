"""A server whose suppression is flooded answers everybody, with the best candidates and no more of them."""

from __future__ import annotations

import io
import threading

import numpy as np
import pytest
from PIL import Image

from served_protocol import HEIGHT, WIDTH, Running, picture, running, tiny_bundle
from tiny_detector import CELL, cell_boxes

BOUND = 20
CELLS = (HEIGHT // CELL) * (WIDTH // CELL)


def white() -> bytes:
    """Every cell is of every class with a score of 1: all candidates, all equal."""
    file = io.BytesIO()
    Image.new("RGB", (WIDTH, HEIGHT), (255, 255, 255)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    bundle = tiny_bundle(tmp_path_factory.mktemp("flooded"), nms={"max_candidates": BOUND})
    with running({"tiny": bundle}, max_queue=256) as started:
        yield started


def detected(server: Running, body: bytes, threshold: float) -> list[dict]:
    answer = server.ask("POST", f"/v1/detect?score_threshold={threshold}", body, {"Content-Type": "image/png"})
    assert answer.status == 200, answer.body
    (image,) = answer.json["images"]
    return image["detections"]


@pytest.mark.parametrize("threshold", [0.5, 0.001])
def test_flood_is_answered_with_the_best_candidates(server, threshold):
    # 24 cells of three classes, 72 candidates of one score: the first 20 in the order of box and class enter, and none
    # overlaps another.
    assert 3 * CELLS > BOUND
    found = detected(server, white(), threshold)
    boxes = cell_boxes(HEIGHT, WIDTH)
    expected = [(boxes[number // 3].tolist(), number % 3) for number in range(BOUND)]
    assert [(row["box"], row["class_id"]) for row in found] == expected


def test_nobody_is_refused_or_lost_beside_a_flood(server):
    quiet = picture(1, (HEIGHT, WIDTH))
    alone = detected(server, quiet, 0.9)
    assert 0 < len(alone) < BOUND
    answers: dict[int, list[dict]] = {}

    def client(number: int) -> None:
        for turn in range(6):
            flooding = (number + turn) % 2 == 0
            answers[6 * number + turn] = detected(server, white() if flooding else quiet, 0.9)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(answers) == 48
    for key, found in answers.items():
        flooding = (key // 6 + key % 6) % 2 == 0
        assert len(found) == BOUND if flooding else found == alone


def test_tensors_that_flood_are_answered_too(server):
    pixels = np.ones((2, 3, HEIGHT, WIDTH), np.float32)
    tensor = {"name": "images", "datatype": "FP32", "shape": list(pixels.shape), "data": pixels.ravel().tolist()}
    answer = server.ask("POST", "/v2/models/tiny/infer", {"inputs": [tensor]}, {"Content-Type": "application/json"})
    assert answer.status == 200
    scores = next(one for one in answer.json["outputs"] if one["name"] == "scores")
    assert scores["shape"] == [2, CELLS, 3]
    assert set(scores["data"]) == {1.0}
