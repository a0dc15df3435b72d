"""Models that are loaded, replaced and unloaded while requests run, on ONNX Runtime and real bundles."""

from __future__ import annotations

import asyncio
import io
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from arithmetic_runner import inferred
from prunedeploy_engines.bundle import Bundle, BundleFile, load_bundle, write_bundle
from prunedeploy_engines.errors import BundleError
from prunedeploy_engines.serving.core.decoding import decode_image, open_image
from prunedeploy_engines.serving.core.errors import (
    InvalidRequestError,
    ModelUnavailableError,
    TooLargeError,
    UnknownModelError,
    UnsupportedMediaError,
)
from prunedeploy_engines.serving.core.repository import ModelRepository
from prunedeploy_engines.serving.core.service import Service
from prunedeploy_engines.serving.core.settings import ServingSettings
from prunedeploy_engines.serving.core.tensors import InferRequest, InputTensor
from prunedeploy_engines.serving.telemetry.metrics import Metrics
from prunedeploy_engines.serving.telemetry.request_notes import RequestNotes
from tiny_detector import CLASS_NAMES, save_tiny_detector

for needed in ("onnxruntime", "prometheus_client"):
    pytest.importorskip(needed)
SIZES = [(64, 96), (40, 40), (31, 97), (200, 50)]


def made_bundle(folder: Path, class_names: tuple[str, ...] = CLASS_NAMES, **changed: Any) -> Bundle:
    model = BundleFile(save_tiny_detector(folder.with_suffix(".onnx")), "onnx", "fp32")
    size = {"height": 32, "width": 48, **changed}
    return write_bundle(folder, {"model.onnx": model}, class_names=class_names, input=size, overwrite=folder.exists())


def picture(number: int) -> np.ndarray:
    height, width = SIZES[number % len(SIZES)]
    blocks = np.random.default_rng(number).integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    return np.ascontiguousarray(blocks.repeat(8, axis=0).repeat(8, axis=1)[:height, :width])


async def detected(model: Any, images: list[np.ndarray], score_threshold: float | None = None) -> tuple[list[Any], Any]:
    """Detections, and the times they took."""
    files = [encoded(image, "PNG") for image in images]
    notes = RequestNotes("id")
    fields = [str(number) for number in range(len(files))]
    found, pixels = await model.detect(files, fields, score_threshold, None, time.monotonic() + 30, notes)
    assert all(map(np.array_equal, pixels, images))
    return found, notes.times


def same(found: Any, expected: Any) -> bool:
    return (
        np.array_equal(found.class_ids, expected.class_ids)
        and np.allclose(found.boxes_xyxy, expected.boxes_xyxy, rtol=0, atol=1e-4)
        and np.allclose(found.scores, expected.scores, rtol=0, atol=1e-6)
    )


def run(repository_of: Any, what: Any) -> Any:
    async def whole() -> Any:
        repository: ModelRepository = repository_of()
        try:
            return await what(repository)
        finally:
            await repository.close()

    return asyncio.run(whole())


def test_detections_are_those_of_the_bundle_whatever_is_batched_with_them(tmp_path):
    bundle = made_bundle(tmp_path / "bundle")
    pictures = [picture(number) for number in range(24)]

    async def ask(repository: ModelRepository) -> list[Any]:
        await repository.load("tiny")
        model = repository.get("tiny")
        return await asyncio.gather(*(detected(model, pictures[start : start + 3], 0.55) for start in range(0, 24, 3)))

    answers = run(lambda: ModelRepository({"tiny": tmp_path / "bundle"}, ServingSettings(), Metrics()), ask)
    found = [one for detections, _ in answers for one in detections]
    expected = [bundle.detect(image, score_threshold=0.55) for image in pictures]
    assert sum(map(len, expected)) > 20
    assert all(same(*pair) for pair in zip(found, expected, strict=True))
    assert all(times.compute_s > 0 and times.preprocess_s > 0 for _, times in answers)


def test_a_model_is_replaced_under_load_without_a_lost_request(tmp_path):
    first = made_bundle(tmp_path / "bundle")
    other = ("circle", "square", "triangle")
    image = picture(0)
    expected = first.detect(image, score_threshold=0.55)
    assert len(expected) > 3

    async def ask(repository: ModelRepository) -> tuple[list[Any], Any]:
        await repository.load("tiny")
        kept = repository.get("tiny")  # a request that has the old one in its hands
        stop = asyncio.Event()

        async def client() -> list[Any]:
            answers = []
            while not stop.is_set():
                found, _ = await detected(kept, [image], 0.55)
                answers.append(found[0])
            return answers

        clients = [asyncio.create_task(client()) for _ in range(6)]
        await asyncio.sleep(0.05)
        made_bundle(tmp_path / "bundle", class_names=other)
        await repository.load("tiny")
        await asyncio.sleep(0.05)
        stop.set()
        return [one for answers in await asyncio.gather(*clients) for one in answers], repository.get("tiny")

    answers, now = run(lambda: ModelRepository({"tiny": tmp_path / "bundle"}, ServingSettings(), Metrics()), ask)
    assert now.bundle.class_names == other
    assert all(same(found, expected) for found in answers)
    assert {found.class_names for found in answers} == {CLASS_NAMES, other}


def test_a_bundle_with_a_changed_byte_is_refused_and_the_loaded_one_stays(tmp_path):
    made_bundle(tmp_path / "bundle")

    async def ask(repository: ModelRepository) -> tuple[Any, Any]:
        await repository.load("tiny")
        model = tmp_path / "bundle" / "model.onnx"
        content = bytearray(model.read_bytes())
        content[len(content) // 2] ^= 1
        model.write_bytes(bytes(content))
        with pytest.raises(BundleError, match=r"model\.onnx"):
            await repository.load("tiny")
        found, _ = await detected(repository.get("tiny"), [picture(0)])
        return found, repository.index()

    found, index = run(lambda: ModelRepository({"tiny": tmp_path / "bundle"}, ServingSettings(), Metrics()), ask)
    assert len(found) == 1
    assert [(one.name, one.state) for one in index] == [("tiny", "READY")]


def test_states_follow_load_and_unload(tmp_path):
    made_bundle(tmp_path / "a")
    made_bundle(tmp_path / "b")

    async def ask(repository: ModelRepository) -> None:
        assert not repository.ready()
        with pytest.raises(ModelUnavailableError, match="a is not loaded"):
            repository.get("a")
        await repository.load("a")
        assert not repository.ready()
        await repository.load("b")
        assert repository.ready()
        await repository.unload("a")
        await repository.unload("a")
        assert [one.state for one in repository.index()] == ["UNAVAILABLE", "READY"]
        shutil.rmtree(tmp_path / "a")
        with pytest.raises(BundleError):
            await repository.load("a")
        assert repository.index()[0].state == "UNAVAILABLE"
        assert str(tmp_path) not in repository.index()[0].reason
        for name, version in (("c", None), ("../a", None), ("b", "2")):
            with pytest.raises(UnknownModelError):
                repository.get(name, version)
        repository.stop_being_ready()
        assert not repository.ready()

    run(lambda: ModelRepository({"a": tmp_path / "a", "b": tmp_path / "b"}, ServingSettings(), Metrics()), ask)


def test_unloading_answers_what_was_accepted(tmp_path):
    made_bundle(tmp_path / "bundle")
    images = np.random.default_rng(0).random((40, 3, 32, 48), dtype=np.float32)

    async def ask(repository: ModelRepository) -> Any:
        await repository.load("tiny")
        model = repository.get("tiny")
        accepted = asyncio.create_task(inferred(model, images, time.monotonic() + 30))
        await asyncio.sleep(0)
        await repository.unload("tiny")
        outputs, _ = await accepted
        with pytest.raises(ModelUnavailableError):
            await model.infer(images, time.monotonic() + 30)
        return outputs

    outputs = run(lambda: ModelRepository({"tiny": tmp_path / "bundle"}, ServingSettings(max_batch=2), Metrics()), ask)
    with load_bundle(tmp_path / "bundle").runner() as runner:
        boxes, scores = runner.infer(images)
    assert np.array_equal(outputs[0], boxes)
    assert np.allclose(outputs[1], scores, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("images", "datatype"),
    [
        (np.zeros((1, 3, 32, 47), np.float32), "FP32"),
        (np.zeros((3, 32, 48), np.float32), "FP32"),
        (np.zeros((0, 3, 32, 48), np.float32), "FP32"),
        (np.zeros((1, 3, 32, 48), np.int64), "INT64"),
    ],
)
def test_tensors_of_another_shape_or_type_are_refused(tmp_path, images, datatype):
    made_bundle(tmp_path / "bundle")
    asked = InferRequest("tiny", None, "", [InputTensor("images", datatype, images.shape, images)])

    async def ask(repository: ModelRepository) -> None:
        await repository.load("tiny")
        service, notes = Service(repository), RequestNotes("id")
        with pytest.raises(InvalidRequestError, match="image"), service.visit("tiny", None, notes) as visit:
            await service.infer(asked, notes, visit)

    run(lambda: ModelRepository({"tiny": tmp_path / "bundle"}, ServingSettings(), Metrics()), ask)


def encoded(image: np.ndarray, kind: str) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, kind)
    return stream.getvalue()


def test_images_are_decoded_as_files_are(tmp_path):
    image = picture(0)
    assert np.array_equal(decode_image(open_image(encoded(image, "PNG"), 10_000)), image)
    lossless = io.BytesIO()
    Image.fromarray(image).save(lossless, "WebP", lossless=True)
    assert np.array_equal(decode_image(open_image(lossless.getvalue(), 10_000)), image)
    jpeg = encoded(image, "JPEG")
    pixels = np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB"))
    assert np.array_equal(decode_image(open_image(jpeg, 10_000)), pixels)


def test_images_that_cannot_be_taken_are_refused_by_name():
    png = encoded(picture(0), "PNG")
    with pytest.raises(TooLargeError, match="6144 pixels"):
        decode_image(open_image(png, 6143))
    with pytest.raises(UnsupportedMediaError):
        decode_image(open_image(encoded(picture(0), "GIF"), 10_000))
    for broken in (b"", png[:200], png[:33], b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0"):
        with pytest.raises(InvalidRequestError):
            decode_image(open_image(broken, 10_000))
