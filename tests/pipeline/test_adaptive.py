"""An attack on an engine by its twin: what the engine sees, and what is said of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from export.networks import folded
from export.precisions import run, true_ranges
from prunedeploy.attacks import Pgd, ThreatModel
from prunedeploy.config import EvaluationConfig, RobustnessConfig
from prunedeploy.data.coco import load_test_split
from prunedeploy.data.demo import CLASS_NAMES
from prunedeploy.data.loader import EvaluationLoader
from prunedeploy.data.records import CocoDataset
from prunedeploy.evaluation import DetectionTable, coco_map
from prunedeploy.models import Darknet, load_darknet
from prunedeploy.pipeline.adaptive import AdaptiveAttack, adaptive_figures, ball_in_8_bits
from prunedeploy.pipeline.attacking import Attacked
from prunedeploy.pipeline.progress import Progress
from prunedeploy.resources import asset_path, darknet_cfg_path
from prunedeploy_engines.detection.nms import detections_from
from prunedeploy_engines.runtimes.onnxruntime.runner import OnnxRuntimeRunner
from prunedeploy_engines.runtimes.runner import Float32Array
from prunedeploy_export import onnx_from_torch, with_uint8_input
from prunedeploy_export.graph.edit import read_model, set_metadata, write_model
from prunedeploy_export.precision.quantisation import plan_quantisation, quantise

IMAGES = 4


@pytest.fixture(scope="module")
def robust() -> Darknet:
    """The demo's network as it comes."""
    return load_darknet(darknet_cfg_path("yolov3-slim"), asset_path("demo-robust.weights"))


@pytest.fixture(scope="module")
def dataset(tiny_data: Path) -> CocoDataset:
    whole = load_test_split(tiny_data, list(CLASS_NAMES))
    return CocoDataset(whole.images[:IMAGES], whole.class_names, whole.category_ids, whole.json_path)


@pytest.fixture(scope="module")
def files(robust: Darknet, dataset: CocoDataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``int8.onnx``, and ``device.onnx``, which takes uint8 images."""
    folder = tmp_path_factory.mktemp("files")
    source = onnx.load(onnx_from_torch(folded(robust), folder / "fp32.onnx").path)
    images = next(iter(EvaluationLoader(dataset, robust.cfg.input_size, 2))).images.numpy()
    plan = plan_quantisation(source, "uint8", ["layer33", "layer45", "layer57"])
    int8 = quantise(source, plan, true_ranges(source, plan.tensors, images))
    set_metadata(int8, precision="int8")
    write_model(int8, folder / "int8.onnx")
    write_model(with_uint8_input(read_model(folder / "int8.onnx")), folder / "device.onnx")
    return folder


class Watched(OnnxRuntimeRunner):
    """The engine; keeps what it is given."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, threads=1)
        self.seen: list[np.ndarray] = []

    def _infer(self, images: Float32Array) -> tuple[Float32Array, Float32Array]:
        self.seen.append(np.array(images))
        return super()._infer(images)


def attacked_of(robust: Darknet, dataset: CocoDataset, *attacks: str) -> Attacked:
    return Attacked(
        robust,
        dataset,
        lambda some: EvaluationLoader(some, robust.cfg.input_size, IMAGES),
        ThreatModel(steps=3),
        RobustnessConfig(attacks=attacks, budget="quick", error_kinds=False),
        EvaluationConfig(bootstrap=20),
        0,
        Progress(quiet=True),
    )


def test_engine_is_measured_on_images_made_with_its_twin(files: Path, robust: Darknet, dataset: CocoDataset) -> None:
    path = files / "int8.onnx"
    with Watched(path) as engine:
        adaptive = AdaptiveAttack.on(path, engine, attacked_of(robust, dataset, "pgd"), threads=1)
        engine.seen.clear()
        found, said = adaptive.measure("engine")
    figures, intervals = adaptive_figures(found)
    assert set(figures) == set(intervals) == {"map_pgd_adaptive", "map50_pgd_adaptive", "map_pgd_conf50_adaptive"}
    clean, attacked = engine.seen
    batch = next(iter(EvaluationLoader(dataset, robust.cfg.input_size, IMAGES)))
    assert np.array_equal(clean, batch.images.numpy())
    expected = Pgd.against(adaptive.gated.twin, ThreatModel(steps=3))(batch.images, batch.targets)
    assert np.array_equal(attacked, expected.numpy())
    assert not np.array_equal(attacked, Pgd.against(robust, ThreatModel(steps=3))(batch.images, batch.targets).numpy())

    # mAP of what ONNX Runtime finds in these very images; scenes fill their input, so boxes stay where they are.
    boxes, scores = run(onnx.load(path), attacked, ["boxes", "scores"])
    tables = []
    for number, image_id in enumerate(batch.image_ids):
        xyxy, found_scores, classes = detections_from(
            boxes[number], scores[number], score_threshold=0.001, iou_threshold=0.45, max_detections=100
        )
        inside = xyxy.astype(np.float64).clip(0, robust.cfg.input_size[0])
        tables.append(DetectionTable.of_image(image_id, inside, found_scores, classes))
    whole = coco_map(dataset, DetectionTable.concatenate(tables))
    assert figures["map_pgd_adaptive"] == pytest.approx(whole.map_50_95, abs=1e-9)
    assert 0.05 < whole.map_50_95 < found.metrics()["map_clean"] - 0.05
    assert said["twin"]["tensors"]["a_step_apart"] <= 1e-3 * said["twin"]["tensors"]["values"]


def test_engine_of_8_bit_images_sees_images_in_the_ball(files: Path, robust: Darknet, dataset: CocoDataset) -> None:
    """0.05 is 12.75 levels; what is measured is at most 12 away, and what the twin attacked is what is measured."""
    path = files / "device.onnx"
    with Watched(path) as engine:
        adaptive = AdaptiveAttack.on(path, engine, attacked_of(robust, dataset, "noise", "apgd:box"), threads=1)
        engine.seen.clear()
        found, _ = adaptive.measure("engine")
    clean, noise, attacked = (images.astype(int) for images in engine.seen)
    assert clean.shape == (IMAGES, 160, 160, 3)
    for images in (noise, attacked):
        assert np.abs(images - clean).max() == 12
    assert set(adaptive_figures(found)[0]) >= {"map_noise_adaptive", "map_apgd_box_adaptive"}
    pixels = torch.from_numpy(attacked.transpose(0, 3, 1, 2).astype(np.float32)) / 255
    twin = adaptive.gated.twin
    with torch.no_grad():
        heads = run(onnx.load(files / "int8.onnx"), pixels.numpy(), twin.file.heads)
        for own, engine_head in zip(twin(pixels), heads, strict=True):
            assert float(np.abs(own.numpy() - engine_head).max()) < 1e-4 * np.abs(engine_head).max()


@pytest.mark.parametrize(
    ("eps", "norm", "expected"),
    [
        (0.05, "linf", 12 / 255),
        (8 / 255, "linf", 8 / 255),
        (1 / 255, "linf", 1 / 255),
        (0.003, "linf", 0.003),
        (1.0, "linf", 1.0),
        (0.7, "l2", 0.7),
    ],
)
def test_ball_of_whole_levels(eps: float, norm: str, expected: float) -> None:
    assert ball_in_8_bits(ThreatModel(eps=eps), norm).eps == pytest.approx(expected, abs=1e-12)  # type: ignore[arg-type]
