"""What a measuring process feeds to a model, and which of its parts a kind of figure contains."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from prunedeploy_engines.bench.calls import batches, open_model, prepare
from prunedeploy_engines.bench.images import MOST, load_images, random_images
from prunedeploy_engines.bench.rounds import complete_spec
from prunedeploy_engines.bench.run import profile_models
from prunedeploy_engines.bench.worker_process import Worker
from prunedeploy_engines.bundle import BundleFile, load_bundle, write_bundle
from prunedeploy_engines.errors import ConfigError, DataError
from prunedeploy_engines.runtimes.opening import unavailable_reason
from prunedeploy_engines.runtimes.runner import Runner
from tiny_detector import CLASS_NAMES, save_tiny_detector


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    model = save_tiny_detector(tmp_path / "model.onnx")
    write_bundle(
        tmp_path / "bundle",
        {"model.onnx": BundleFile(model, "onnx", "fp32")},
        class_names=CLASS_NAMES,
        input={"height": 32, "width": 48, "letterbox_colour": (0, 255, 0), "greyscale": True},
        thresholds={"score": 0.4, "iou": 0.45},
    )
    return tmp_path / "bundle"


class Recorder(Runner):
    """Takes 32 x 48 images and keeps what it was given."""

    def __init__(self, uint8_input: bool = False) -> None:
        self.seen: list[np.ndarray] = []
        self._uint8 = uint8_input

    runtime = "recorder"
    input_size = (32, 48)

    @property
    def uint8_input(self) -> bool:
        return self._uint8

    def describe(self) -> dict[str, Any]:
        return {"runtime": "recorder"}

    def _infer(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        self.seen.append(images)
        return np.zeros((len(images), 1, 4), np.float32), np.zeros((len(images), 1, 3), np.float32)


def opened(spec: dict[str, Any]) -> Any:
    return open_model(complete_spec("a", spec))


def test_random_images_are_random_and_never_zeros() -> None:
    images = np.stack(random_images((32, 48), seed=0))
    assert images.shape[1:] == (32, 48, 3)
    assert images.std() > 50, "zeros and denormals change what a kernel costs"
    assert np.array_equal(images, np.stack(random_images((32, 48), seed=0)))
    assert not np.array_equal(images, np.stack(random_images((32, 48), seed=1)))


@pytest.mark.parametrize("batch", [1, 2, 3, 5])
def test_batches_use_every_image_in_turn(batch: int) -> None:
    images = np.arange(3, dtype=np.float32).reshape(3, 1, 1, 1)
    made = batches(images, batch)
    assert all(len(group) == batch for group in made)
    assert {float(image) for group in made for image in group.ravel()} == {0.0, 1.0, 2.0}


def test_a_batch_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        batches(np.zeros((1, 1, 1, 1), np.float32), 0)


def test_a_folder_gives_its_images_spread_over_the_whole_and_ignores_the_rest(tmp_path: Path) -> None:
    for number in range(3 * MOST):
        Image.fromarray(np.full((4, 6, 3), number, np.uint8)).save(tmp_path / f"{number:03}.png")
    (tmp_path / "notes.txt").write_text("no image")
    images = load_images(tmp_path)
    assert [int(image[0, 0, 0]) for image in images] == list(range(0, 3 * MOST, 3))


def test_a_file_of_images_gives_them_all(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    np.save(tmp_path / "images.npy", pixels)
    assert np.array_equal(np.stack(load_images(tmp_path / "images.npy")), pixels)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: None, "there is no such file or folder"),
        (lambda path: path.mkdir(), "this folder has no images"),
        (lambda path: path.write_text("text"), "this is not an image"),
    ],
)
def test_no_images_are_one_line(tmp_path: Path, make: Callable[[Path], Any], said: str) -> None:
    make(tmp_path / "images")
    with pytest.raises(DataError, match=said) as caught:
        load_images(tmp_path / "images")
    assert "\n" not in str(caught.value)


def test_images_are_prepared_as_the_bundle_says(bundle: Path) -> None:
    red = np.zeros((32, 32, 3), np.uint8)
    red[..., 0] = 255
    plain = prepare([red], Recorder(), None)
    assert plain.shape == (1, 3, 32, 48)
    assert plain[0, :, 16, 24] == pytest.approx([1.0, 0.0, 0.0])
    assert plain[0, :, 0, 0] == pytest.approx([128 / 255] * 3)
    of_bundle = prepare([red], Recorder(), load_bundle(bundle))
    assert of_bundle[0, :, 16, 24] == pytest.approx([76 / 255] * 3)  # Rec. 601 luma of red
    assert of_bundle[0, :, 0, 0] == pytest.approx([0.0, 1.0, 0.0])


def test_a_model_of_uint8_images_gets_uint8_images() -> None:
    """Turning float into bytes at every call would be ours, not the model's time."""
    prepared = prepare(random_images((32, 48), 0), Recorder(uint8_input=True), None)
    assert (prepared.dtype, prepared.shape[1:]) == (np.dtype(np.uint8), (32, 48, 3))


@pytest.mark.parametrize("kind", ["host", "compute"])
def test_calls_run_the_next_batch_each_time(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    runner = Recorder()
    monkeypatch.setattr("prunedeploy_engines.bench.calls.open_spec_runner", lambda spec: runner)
    call = opened({"path": "a.onnx", "kind": kind}).call_of(3)
    for _ in range(4):
        call()
    assert [len(images) for images in runner.seen] == [3] * 4
    assert not np.array_equal(runner.seen[0], runner.seen[1])


def test_end_to_end_detects_in_every_image_as_the_bundle_does(bundle: Path, tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 40, 50, 3), dtype=np.uint8)
    np.save(tmp_path / "images.npy", images)
    model = opened({"path": bundle, "kind": "end_to_end", "images": tmp_path / "images.npy"})
    with load_bundle(bundle) as reference:
        expected = [reference.detect(image) for image in images]
    assert all(len(detections.scores) for detections in expected)
    one = model.call_of(1)
    found = [[one() for _ in range(3)], model.call_of(3)()]
    for detections in found:
        for got, wanted in zip(detections, expected, strict=True):
            np.testing.assert_allclose(got.boxes_xyxy, wanted.boxes_xyxy, atol=1e-4)
            np.testing.assert_allclose(got.scores, wanted.scores, atol=1e-5)
    assert model.images == {"source": "images", "path": str(tmp_path / "images.npy"), "count": 3}


def test_end_to_end_needs_a_bundle(tmp_path: Path) -> None:
    path = save_tiny_detector(tmp_path / "model.onnx")
    with pytest.raises(ConfigError, match="end to end needs a bundle"):
        opened({"path": path, "kind": "end_to_end"})


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_the_layers_of_a_model_are_profiled(tmp_path: Path, runtime: str) -> None:
    if unavailable_reason(runtime) is not None:
        pytest.skip(str(unavailable_reason(runtime)))
    path = save_tiny_detector(tmp_path / "model.onnx")
    layers = profile_models({"a": {"path": path, "runtime": runtime, "threads": 1, "batch": 2}})["a"]
    assert isinstance(layers, list)
    assert 0 < len(layers) <= 10
    assert set(layers[0]) >= {"name", "kind", "precision", "mean_ms", "share"}
    assert layers[0]["mean_ms"] == max(layer["mean_ms"] for layer in layers)
    assert sum(layer["share"] for layer in layers) <= 1 + 1e-9


def test_a_model_that_cannot_be_profiled_does_not_keep_the_others_from_it(tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"garbage")
    good = save_tiny_detector(tmp_path / "model.onnx")
    profiles = profile_models({"bad": {"path": tmp_path / "bad.onnx"}, "good": {"path": good, "threads": 1}})
    assert isinstance(profiles["bad"], str)
    assert "bad.onnx" in profiles["bad"]
    assert isinstance(profiles["good"], list)


@pytest.mark.parametrize(("asked", "hint"), [("f32", "f32"), (None, None)])
def test_openvino_computes_in_what_was_asked_for_or_chooses(
    tmp_path: Path, asked: str | None, hint: str | None
) -> None:
    if unavailable_reason("openvino") is not None:
        pytest.skip("needs openvino (prunedeploy[openvino])")
    model = save_tiny_detector(tmp_path / "model.onnx")
    spec = complete_spec("a", {"path": model, "runtime": "openvino", "inference_precision": asked})
    with Worker("a") as worker:
        described = worker.ask("open", spec=spec)["describe"]
    assert described["inference_precision"] == hint
