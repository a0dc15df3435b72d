"""Detection heads: what OpenCV makes of them, what their options mean, and what is refused."""

from __future__ import annotations

import math
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from head_networks import ANCHORS, CLASSES, COLUMNS, ROWS, SECTIONS, head_cfg
from prunedeploy.models import decode, load_darknet, parse_cfg, read_cfg
from prunedeploy.models.cfg_rewriting import with_anchors, with_classes, with_input_size
from prunedeploy.models.darknet import fresh_darknet
from prunedeploy.models.darknet_weights import weights_bytes
from prunedeploy.models.sections import GaussianYolo, Region, Yolo
from prunedeploy_engines.errors import DarknetFormatError
from pruning.darknets import randomise


@pytest.mark.parametrize("kind", ["yolo", "new_coords", "region"])
def test_opencv_decodes_the_same_boxes_and_scores(kind: str) -> None:
    cfg = head_cfg(kind, width=40, height=40)  # OpenCV confuses width and height of a region's map
    model = randomise(load_darknet(cfg), seed=1)
    image = torch.rand(1, 3, 40, 40, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        boxes, scores = (values[0].double().numpy() for values in decode(model(image), model))

    # OpenCV drops scores below a threshold of its own, which Darknet's cfgs do not have in every section.
    text = cfg.text.replace("classes=3", "classes=3\nthresh=1e-9\nnms_threshold=0")
    network = cv2.dnn.readNetFromDarknet(
        np.frombuffer(text.encode(), np.uint8), np.frombuffer(weights_bytes(cfg, model.weight_file()), np.uint8)
    )
    network.setInput(image.numpy())
    rows = network.forward()  # (cells * anchors, 5 + C): relative centre and size, objectness, scores
    rows = rows.reshape(25, ANCHORS, -1).transpose(1, 0, 2).reshape(25 * ANCHORS, -1)
    centre, half = rows[:, :2] * 40, rows[:, 2:4] * 20
    np.testing.assert_allclose(boxes, np.hstack((centre - half, centre + half)), rtol=1e-4, atol=1e-4)
    kept = rows[:, 5:] > 0  # it always suppresses boxes of a region
    assert kept.mean() > 0.5
    assert kept.all() or kind == "region"
    np.testing.assert_allclose(scores[kept], rows[:, 5:][kept], rtol=1e-4)
    assert scores.std() > 0.01


def test_region_equals_a_plain_loop() -> None:
    """YOLO9000, section 2: the anchors 1.5 x 2.25 and 0.9 x 0.6 are cells, which here are 8 x 8 pixels."""
    model = load_darknet(head_cfg("region"))
    raw = torch.randn(1, 16, ROWS, COLUMNS, generator=torch.Generator().manual_seed(0))
    boxes, scores = (values[0].tolist() for values in decode([raw], model))
    for number, (anchor, row, column) in enumerate(np.ndindex(ANCHORS, ROWS, COLUMNS)):
        tx, ty, tw, th, objectness, *logits = raw[0, anchor * 8 : anchor * 8 + 8, row, column].tolist()
        width, height = [(1.5, 2.25), (0.9, 0.6)][anchor]
        x, y = 8 * (column + _logistic(tx)), 8 * (row + _logistic(ty))
        w, h = 8 * width * math.exp(tw), 8 * height * math.exp(th)
        assert boxes[number] == pytest.approx([x - w / 2, y - h / 2, x + w / 2, y + h / 2], rel=1e-4, abs=1e-4)
        total = sum(math.exp(logit) for logit in logits)
        expected = [_logistic(objectness) * math.exp(logit) / total for logit in logits]
        assert scores[number] == pytest.approx(expected, rel=1e-5)


def test_gaussian_yolo_equals_a_plain_loop() -> None:
    """gaussian_yolo_layer.c: x, its deviation, y, its, w, its, h, its, objectness, classes; anchors 12 x 18, 7 x 5."""
    model = load_darknet(head_cfg("gaussian_yolo"))
    raw = torch.randn(1, 24, ROWS, COLUMNS, generator=torch.Generator().manual_seed(0))
    boxes, scores = (values[0].tolist() for values in decode([raw], model))
    for number, (anchor, row, column) in enumerate(np.ndindex(ANCHORS, ROWS, COLUMNS)):
        values = raw[0, anchor * 12 : anchor * 12 + 12, row, column].tolist()
        width, height = [(12, 18), (7, 5)][anchor]
        x, y = (8 * (cell + _logistic(t) * 1.1 - 0.05) for cell, t in ((column, values[0]), (row, values[2])))
        w, h = width * math.exp(values[4]), height * math.exp(values[6])
        assert boxes[number] == pytest.approx([x - w / 2, y - h / 2, x + w / 2, y + h / 2], rel=1e-4, abs=1e-4)
        uncertainty = sum(_logistic(values[i]) for i in (1, 3, 5, 7)) / 4
        expected = [_logistic(values[8]) * _logistic(logit) * (1 - uncertainty) for logit in values[9:]]
        assert scores[number] == pytest.approx(expected, rel=1e-5)


def _logistic(t: float) -> float:
    return 1 / (1 + math.exp(-t))


@pytest.mark.parametrize("kind", SECTIONS)
def test_logarithms_and_logits_are_those_of_the_scores_and_have_gradients(kind: str) -> None:
    head = head_cfg(kind).heads[0]
    raw = torch.randn(2, *head.out_shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    if kind == "new_coords":
        raw = torch.sigmoid(raw)
    raw.requires_grad_(True)
    logs = head.log_scores(raw)
    torch.testing.assert_close(logs.exp(), head.scores(raw))
    probabilities = head.class_probabilities(raw)
    logits = head.class_logits(raw)
    expected = logits.softmax(-1) if head.exclusive_classes else logits.sigmoid()
    torch.testing.assert_close(probabilities, expected)
    (gradient,) = torch.autograd.grad(logs.sum(), raw)
    assert (head.split(gradient)[..., head.box_values :] != 0).all()


def test_logarithms_have_gradients_where_scores_underflow() -> None:
    for kind in SECTIONS:
        head = head_cfg(kind).heads[0]
        raw = torch.full((1, *head.out_shape), 2e-30 if kind == "new_coords" else -80.0, requires_grad=True)
        assert float(head.scores(raw).detach().max()) < 1e-30
        (gradient,) = torch.autograd.grad(head.log_scores(raw).sum(), raw)
        assert torch.isfinite(gradient).all()
        assert (head.split(gradient)[..., head.box_values] > 0).all()


@pytest.mark.parametrize("kind", SECTIONS)
def test_a_fresh_network_predicts_next_to_nothing(kind: str) -> None:
    model = fresh_darknet(head_cfg(kind), seed=0)
    with torch.no_grad():
        heads = model(torch.rand(1, 3, 32, 48))
    objectness = torch.sigmoid(model.cfg.heads[0].objectness_logits(heads[0]))
    assert float(objectness.max()) < 0.1
    assert float(decode(heads, model)[1].max()) < 0.05


# --- rewriting ---


@pytest.mark.parametrize("kind", SECTIONS)
def test_other_classes_change_the_head_and_its_convolution(kind: str) -> None:
    cfg = with_classes(head_cfg(kind), 7)
    values = SECTIONS[kind][0] + 4  # 7 classes for 3
    assert (cfg.classes, cfg.heads[0].out_shape[0]) == (7, ANCHORS * values)
    assert with_classes(cfg, CLASSES).text == head_cfg(kind).text


def test_counters_of_other_classes_are_forgotten() -> None:
    cfg = with_classes(head_cfg("yolo", counters_per_class="10,5,1"), 2)
    head = cfg.heads[0]
    assert isinstance(head, Yolo)
    assert head.class_multipliers == (1.0, 1.0)
    assert "counters_per_class=1,1\n" in cfg.text


def test_anchors_of_a_region_are_cells_in_the_cfg_and_pixels_here() -> None:
    cfg = head_cfg("region")
    assert cfg.heads[0].anchors_wh == ((12.0, 18.0), (7.2, pytest.approx(4.8)))
    other = with_anchors(cfg, [(4, 6), (20, 30)])
    assert other.text == cfg.text.replace("1.5,2.25, 0.9,0.6", "0.5,0.75, 2.5,3.75")
    assert other.heads[0].anchors_wh == ((4.0, 6.0), (20.0, 30.0))
    larger = with_input_size(other, (64, 96))
    assert larger.heads[0].anchors_wh == other.heads[0].anchors_wh
    assert larger.heads[0].out_shape == (16, 8, 12)


@pytest.mark.parametrize("kind", ["yolo", "new_coords", "gaussian_yolo"])
def test_anchors_of_the_others_are_pixels(kind: str) -> None:
    other = with_anchors(head_cfg(kind), [(4, 6), (20, 30)])
    assert other.heads[0].head_anchors_wh == ((20.0, 30.0), (4.0, 6.0))


# --- what the options say ---


def test_options_have_darknets_defaults() -> None:
    text = head_cfg("region").text.replace("coords=4\nsoftmax=1\n", "")
    region = parse_cfg(text).heads[0]
    assert isinstance(region, Region)
    assert (region.softmax, region.bias_match, region.rescore, region.focal_loss) == (False,) * 4
    assert (region.thresh, region.coord_scale, region.object_scale, region.noobject_scale, region.class_scale) == (
        0.5, 1, 1, 1, 1
    )  # fmt: skip
    gaussian = head_cfg("gaussian_yolo").heads[0]
    assert isinstance(gaussian, GaussianYolo)
    assert (gaussian.uc_normalizer, gaussian.iou_loss, gaussian.iou_thresh, gaussian.ignore_thresh) == (
        1,
        "mse",
        1,
        0.5,
    )


def test_counters_become_multipliers_of_at_most_max_delta() -> None:
    head = head_cfg("yolo", counters_per_class="100,0,20", max_delta=12).heads[0]
    assert isinstance(head, Yolo)
    assert head.class_multipliers == (1.0, 12.0, 5.0)


def test_keys_that_only_darknet_reads_are_ignored_by_name() -> None:
    ignored = {"jitter": ".3", "random": 1, "nms_kind": "diounms", "beta_nms": 0.6, "max_delta": 5, "resize": 1.5}
    tracker = {"embedding_layer": -4, "track_history_size": 20, "show_details": 1, "truth_thresh": 1}
    cfg = head_cfg("yolo", **ignored, **tracker)
    assert [one.option for one in cfg.ignored_options if one.section == "yolo"] == [*ignored, *tracker]
    region = head_cfg("region", absolute=1, random=1, jitter=".2", log=1)
    assert [one.option for one in region.ignored_options if one.section == "region"] == [
        "absolute",
        "random",
        "jitter",
        "log",
    ]


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("region", {"tree": "9k.tree"}, "tree= of [region] is not supported: the classes of YOLO9000 are a tree"),
        ("region", {"map": "coco.map"}, "map= of [region] is not supported: its classes are numbered anew"),
        ("region", {"background": 1}, "background= of [region] is not supported: objectness would be"),
        ("region", {"classfix": -1}, "classfix= of [region] is not supported"),
        ("region", {"rescor": 1}, "unknown option 'rescor' in [region]; did you mean 'rescore'?"),
        ("region", {"new_coords": 1}, "unknown option 'new_coords' in [region]"),
        ("yolo", {"map": "coco.map"}, "map= of [yolo] is not supported"),
        ("yolo", {"iou_loss": "eiou"}, "unknown iou_loss 'eiou'; supported are mse, iou, giou, diou, ciou"),
        ("yolo", {"iou_thresh_kind": "mse"}, "unknown iou_thresh_kind 'mse'; supported are iou, giou, diou, ciou"),
        ("yolo", {"counters_per_class": "1,2"}, "counters_per_class= has 2 numbers for 3 classes"),
        ("yolo", {"label_smooth_eps": 1.5}, "label_smooth_eps=1.5 is not in [0, 1]"),
        ("yolo", {"new_coords": -1}, "new_coords=-1 is below 0"),
        ("yolo", {"new_coords": 1}, "new_coords=1 takes probabilities, but layer 3 has activation=linear; remove"),
        ("yolo", {"new_cords": 1}, "unknown option 'new_cords' in [yolo]; did you mean 'new_coords'?"),
        ("gaussian_yolo", {"yolo_point": "left_top"}, "yolo_point=left_top is not supported: x and y must be those of"),
        ("gaussian_yolo", {"objectness_smooth": 1}, "objectness_smooth=1 of [Gaussian_yolo] is not supported"),
        ("gaussian_yolo", {"new_coords": 1}, "unknown option 'new_coords' in [gaussian_yolo]"),
    ],
)
def test_what_is_refused_says_where_and_why(kind: str, options: dict[str, object], message: str) -> None:
    line = len(head_cfg(kind).text.split("\n"))
    with pytest.raises(DarknetFormatError, match=re.escape(message)) as caught:
        head_cfg(kind, **options)
    assert f"head.cfg:{line}: " in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "old", "new", "message"),
    [
        ("region", "coords=4", "coords=8", "coords= must be 4"),
        ("region", "num=2", "num=5", "num=5, but there are 2 anchors"),
        ("region", "classes=3", "classes=4", "reads 16 channels, but 2 anchors and 4 classes need 18"),
        ("gaussian_yolo", "filters=24", "filters=16", "reads 16 channels, but 2 anchors and 3 classes need 24"),
        ("yolo", "scale_x_y=1.2", "scale_x_y=0", "scale_x_y=0 is not above 0"),
        ("gaussian_yolo", "mask=2,0", "mask=3,0", "mask= names an anchor outside 0 to 2"),
    ],
)
def test_a_section_that_does_not_fit_is_refused(kind: str, old: str, new: str, message: str) -> None:
    with pytest.raises(DarknetFormatError, match=re.escape(message)):
        parse_cfg(head_cfg(kind).text.replace(old, new))


@pytest.mark.shared
def test_genuine_heads_are_read(shared: Path) -> None:
    folder = shared / "real" / "darknet-cfg"
    gaussian = read_cfg(folder / "Gaussian_yolov3_BDD.cfg")
    assert [(head.decoding, head.out_shape[0]) for head in gaussian.heads] == [("gaussian_yolo", 3 * (9 + 10))] * 3
    tiny = read_cfg(folder / "yolov2-tiny.cfg").heads[0]
    assert isinstance(tiny, Region)
    assert tiny.cell_wh == (32.0, 32.0)
    assert tiny.anchors_wh[0] == pytest.approx((0.57273 * 32, 0.677385 * 32))
    for name in ("yolov4-csp", "yolov4-p6", "yolov7-tiny", "yolov7x"):
        assert {head.decoding for head in read_cfg(folder / f"{name}.cfg").heads} == {"yolo new_coords"}
