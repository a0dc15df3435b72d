"""The evaluator on a COCO folder: geometry, attacks, several runners, and what is left out."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from prunedeploy.attacks import Pgd, ThreatModel
from prunedeploy.data.coco import load_coco
from prunedeploy.data.loader import EvaluationLoader
from prunedeploy.evaluation import (
    DetectionTable,
    TorchRunner,
    coco_map,
    evaluate,
    measure,
    paired_interval,
    read_detections,
    write_detections,
)
from prunedeploy.evaluation.detecting import Thresholds, detect_batch
from prunedeploy.models import load_darknet, parse_cfg
from prunedeploy_engines.detection.letterbox import letterbox_boxes
from prunedeploy_engines.detection.nms import detections_from
from prunedeploy_engines.errors import DataError
from prunedeploy_engines.runtimes.runner import Runner

INPUT = (64, 96)
SIZES = [
    (120, 50),
    (33, 200),
    (64, 96),
    (300, 301),
    (41, 97),
]  # (height, width): tall, wide, exact, large, odd
ONE = pytest.approx(1.0, abs=1e-12)

CFG = """[net]
width=96
height=64
channels=3

[convolutional]
batch_normalize=1
filters=8
size=3
stride=8
pad=1
activation=leaky

[convolutional]
filters=14
size=1
stride=1
activation=linear

[yolo]
mask=0,1
anchors=20,16, 40,30
classes=2
num=2
"""


@pytest.fixture
def folder(tmp_path):
    """Five images of noise with one or two boxes each; cats are category 3, dogs 90."""
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    images, annotations = [], []
    for number, (height, width) in enumerate(SIZES, start=11):
        name = f"{number}.png"
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(tmp_path / "images" / name)
        images.append({"id": number, "file_name": name, "height": height, "width": width})
        boxes = [[0.1 * width, 0.2 * height, 0.3 * width, 0.5 * height]]
        if number % 2:
            boxes.append([0.6 * width, 0.1 * height, 0.4 * width, 0.9 * height])
        for box in boxes:
            category = 90 if len(annotations) % 2 else 3
            annotations.append({"id": len(annotations) + 1, "image_id": number, "category_id": category, "bbox": box})
    categories = [{"id": 3, "name": "cat"}, {"id": 90, "name": "dog"}]
    document = {"images": images, "annotations": annotations, "categories": categories}
    (tmp_path / "instances.json").write_text(json.dumps(document))
    return tmp_path


@pytest.fixture
def dataset(folder):
    return load_coco(folder / "instances.json", folder / "images")


@pytest.fixture
def loader(dataset):
    return EvaluationLoader(dataset, INPUT, batch_size=2)


@pytest.fixture
def model():
    model = load_darknet(parse_cfg(CFG), seed=3)
    with torch.no_grad():  # heads that answer to their input, some of them confidently
        for parameter in model.parameters():
            parameter.mul_(10 if parameter.ndim == 4 else 0.3)
    return model


class TruthRunner(Runner):
    """Knows the clean images by their pixels and gives their objects in input pixels; for others, nothing."""

    runtime = "onnxruntime"
    input_size = INPUT

    def __init__(self, loader, scores=(1.0, 1.0), classes=2) -> None:
        self.scores = scores
        self.classes = classes
        self.known = {}
        self.seen = []
        records = {record.image_id: record for record in loader.dataset.images}
        for batch in loader:
            for image, image_id, geometry in zip(batch.images.numpy(), batch.image_ids, batch.geometries, strict=True):
                record = records[image_id]
                boxes = letterbox_boxes(record.boxes_xyxy.astype(np.float64), geometry)
                self.known[image.tobytes()] = boxes, record.class_ids

    def describe(self):
        return {"runtime": "truth"}

    def _infer(self, images):
        boxes = np.zeros((len(images), 3, 4), np.float32)
        scores = np.zeros((len(images), 3, self.classes), np.float32)
        for index, image in enumerate(images):
            self.seen.append(image.copy())
            if image.tobytes() in self.known:
                own, classes = self.known[image.tobytes()]
                boxes[index, : len(own)] = own
                scores[index, np.arange(len(own)), classes] = np.array(self.scores)[classes]
        return boxes, scores


def blacken(model, images, targets):
    return torch.zeros_like(images)


def pgd(model, images, targets):
    return Pgd.against(model, ThreatModel(steps=2))(images, targets)


def of_image(table, image_id):
    """The rows of one image."""
    wanted = table.image_ids == image_id
    return DetectionTable(
        table.image_ids[wanted], table.class_ids[wanted], table.boxes_xywh[wanted], table.scores[wanted]
    )


def detect_all(runner, loader, dataset, **thresholds):
    batches = (detect_batch(runner, batch.images, batch, dataset, Thresholds(**thresholds)) for batch in loader)
    return DetectionTable.concatenate(batches)


def test_boxes_come_back_to_the_pixels_of_the_original_images(dataset, loader):
    detections = detect_all(TruthRunner(loader), loader, dataset)
    assert len(detections) == sum(len(image.class_ids) for image in dataset.images)
    for image in dataset.images:
        own = of_image(detections, image.image_id)
        order = np.argsort(own.boxes_xywh[:, 0])
        # The input is float32: 1e-5 of its extent, times the largest scale (301 pixels on 64).
        np.testing.assert_allclose(own.boxes_xywh[order], image.boxes_xywh, atol=1e-3)
        assert np.array_equal(own.class_ids[order], image.class_ids)
    assert coco_map(dataset, detections).map_50_95 == ONE


def test_metrics_have_the_names_of_the_results_file(dataset, loader, model):
    runner = TruthRunner(loader, scores=(0.9, 0.4))  # cats confidently, dogs below the paper's threshold
    result = evaluate(runner, loader, dataset, attack=blacken, attacked_model=model, resamples=20)
    assert list(result) == ["onnxruntime"]
    evaluation = result["onnxruntime"]
    assert evaluation.n_images == 5
    assert evaluation.runner == {"runtime": "truth"}
    assert evaluation.metrics() == {
        "map_clean": ONE,
        "map_pgd": 0.0,
        "map50_clean": ONE,
        "map50_pgd": 0.0,
        "map_clean_conf50": pytest.approx(0.5, abs=1e-12),  # the mean of cat 1 and dog 0
        "map_pgd_conf50": 0.0,
    }
    intervals = evaluation.intervals()
    assert intervals.keys() == evaluation.metrics().keys()
    for name, value in evaluation.metrics().items():
        assert intervals[name].value == pytest.approx(value, abs=1e-12)
        assert intervals[name].low <= intervals[name].high


def test_without_attack_and_bootstrap_their_figures_are_none(dataset, loader):
    evaluation = evaluate(TruthRunner(loader), loader, dataset, resamples=0)["onnxruntime"]
    assert evaluation.attacked == {}
    assert not evaluation.transfer
    metrics = evaluation.metrics()
    assert [name for name, value in metrics.items() if value is None] == [
        "map_pgd",
        "map50_pgd",
        "map_pgd_conf50",
    ]
    assert set(evaluation.intervals().values()) == {None}


def test_one_pass_serves_both_score_thresholds(dataset, loader, model):
    runner = TorchRunner(model)
    evaluation = evaluate(runner, loader, dataset, resamples=0)["torch"]
    separate = detect_all(runner, loader, dataset, score=0.5)
    assert 0 < len(separate) < len(evaluation.clean.detections)
    above = evaluation.clean.detections.above(0.5)
    for name in ("image_ids", "class_ids", "boxes_xywh", "scores"):
        assert np.array_equal(getattr(above, name), getattr(separate, name))
    assert evaluation.clean.conf50.result == coco_map(dataset, separate)


def test_at_most_the_best_detections_of_an_image_are_kept(dataset, loader, model):
    runner = TorchRunner(model)
    everything = detect_all(runner, loader, dataset, score=0.0, max_detections=10_000)
    best = detect_all(runner, loader, dataset, score=0.0, max_detections=7)
    for image in dataset.images:
        assert len(of_image(everything, image.image_id)) > 7
        assert np.array_equal(of_image(best, image.image_id).scores, of_image(everything, image.image_id).scores[:7])


@pytest.mark.parametrize("first", [3, 30, 150])
def test_suppressing_no_more_than_is_kept_changes_nothing(dataset, loader, model, monkeypatch, first):
    runner = TorchRunner(model)
    monkeypatch.setattr("prunedeploy.evaluation.detecting._FIRST_CANDIDATES", first)
    for kept, enough in ((10, True), (1000, False)):  # the second never has as many as it may keep
        ours = detect_all(runner, loader, dataset, score=0.0, max_detections=kept)
        for batch in loader:
            boxes, scores = runner.infer(batch.images.numpy())
            for index, image_id in enumerate(batch.image_ids):
                expected = detections_from(
                    boxes[index], scores[index], score_threshold=0.0, iou_threshold=0.45, max_detections=kept
                )
                assert (len(expected[1]) == kept) == enough
                assert np.array_equal(of_image(ours, image_id).scores, expected[1])
                assert np.array_equal(of_image(ours, image_id).class_ids, expected[2])


def test_runners_share_the_attacked_images_and_only_the_models_own_is_no_transfer(dataset, loader, model):
    calls = []

    def attack(attacked, images, targets):
        calls.append((attacked, len(images), targets.shape[1]))
        return pgd(attacked, images, targets)

    other = load_darknet(parse_cfg(CFG), seed=4)
    deployed = TruthRunner(loader)
    result = evaluate(
        {"own": TorchRunner(model), "other": TorchRunner(other), "deployed": deployed},
        loader,
        dataset,
        attack=attack,
        attacked_model=model,
        resamples=0,
    )
    assert calls == [(model, 2, 6), (model, 2, 6), (model, 1, 6)]
    assert {name: evaluation.transfer for name, evaluation in result.items()} == {
        "own": False,
        "other": True,
        "deployed": True,
    }
    # What the deployed runner saw: every batch clean, then as PGD on the model changes it.
    expected = []
    for batch in loader:
        expected += [batch.images.numpy(), pgd(model, batch.images, batch.targets).numpy()]
    assert np.array_equal(np.stack(deployed.seen), np.concatenate(expected))
    assert result["deployed"].metrics()["map_clean"] == ONE
    assert result["deployed"].metrics()["map_pgd"] == 0.0


def test_images_left_out_by_the_loader_do_not_count_as_missed(folder, dataset, model):
    (folder / "images" / "12.png").write_bytes(b"not an image")
    with pytest.raises(DataError, match=r"12\.png"):
        evaluate(TorchRunner(model), EvaluationLoader(dataset, INPUT, batch_size=2), dataset, resamples=0)
    loader = EvaluationLoader(dataset, INPUT, batch_size=2, allow_bad_images=True)
    evaluation = evaluate(TruthRunner(loader), loader, dataset, resamples=0)["onnxruntime"]
    assert evaluation.n_images == 4
    assert evaluation.metrics()["map_clean"] == ONE
    assert coco_map(dataset, evaluation.clean.detections).map_50_95 < 0.99  # if it had counted


def test_progress_counts_images(dataset, loader):
    calls = []
    evaluate(TruthRunner(loader), loader, dataset, resamples=0, progress=calls.append)
    assert calls == [2, 2, 1]


def test_csv_gives_the_same_measurement_as_the_evaluation(tmp_path, dataset, loader, model):
    evaluation = evaluate(TorchRunner(model), loader, dataset, resamples=30)["torch"]
    write_detections(tmp_path / "d.csv", evaluation.clean.detections, dataset)
    again = measure(dataset, read_detections(tmp_path / "d.csv", dataset), resamples=30)
    assert again.usual.result == evaluation.clean.usual.result
    assert again.usual.intervals == evaluation.clean.usual.intervals
    assert again.conf50.result == evaluation.clean.conf50.result
    pair = paired_interval(again.usual.matches, evaluation.clean.usual.matches, resamples=10)
    assert pair.difference.value == 0.0


def test_network_with_other_classes_than_the_data_set_is_refused(dataset, loader):
    with pytest.raises(DataError, match="the network has 5 classes, the data set 2"):
        evaluate(TruthRunner(loader, classes=5), loader, dataset)


@pytest.mark.parametrize(
    ("attack", "message"),
    [
        (lambda model, images, targets: images + 1, r"pixels in \[0, 1\], got"),
        (lambda model, images, targets: images - 1, r"pixels in \[0, 1\], got"),
        (lambda model, images, targets: images * float("nan"), "got nan"),
        (lambda model, images, targets: images[:, :, 1:], r"got \(2, 3, 63, 96\)"),
        (lambda model, images, targets: images.double(), "float64"),
    ],
)
def test_attack_that_does_not_give_images_is_refused(dataset, loader, model, attack, message):
    with pytest.raises(ValueError, match=message):
        evaluate(TruthRunner(loader), loader, dataset, attack=attack, attacked_model=model)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"attack": blacken}, "attacked_model"),
        ({"score_threshold": 0.6}, "got 0.6"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(dataset, loader, wrong, message):
    with pytest.raises(ValueError, match=message):
        evaluate(TruthRunner(loader), loader, dataset, **wrong)
