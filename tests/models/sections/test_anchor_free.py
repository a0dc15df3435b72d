"""Heads without anchors: plain loops, ONNX in all precisions, other classes, and what is refused."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from export.networks import folded, random_images, torch_outputs
from export.precisions import run, true_ranges
from prunedeploy.config.blocks import ExportConfig
from prunedeploy.models import Darknet, decode, load_darknet, parse_cfg
from prunedeploy.models.anchor_free_loss import anchor_free_terms
from prunedeploy.models.cfg_rewriting import anchor_slots, with_classes
from prunedeploy.models.darknet_cfg import DarknetCfg
from prunedeploy.models.loss import image_terms, target_terms, yolo_loss
from prunedeploy.models.yolox_loss import yolox_terms
from prunedeploy.scores.target import choose_target
from prunedeploy.training.adversarial import distillation_loss
from prunedeploy_engines.builder.from_onnx import engine_from_onnx
from prunedeploy_engines.detection.nms import detections_from
from prunedeploy_engines.errors import DarknetFormatError
from prunedeploy_engines.runtimes.onnx_file import NmsInGraph
from prunedeploy_engines.runtimes.tensorrt.library import installed_version
from prunedeploy_export import check_detection_parity, check_tensor_parity, onnx_from_torch, with_nms, with_uint8_input
from prunedeploy_export.graph.edit import head_convolutions, read_model
from prunedeploy_export.precision.half import to_half_precision
from prunedeploy_export.precision.quantisation import plan_quantisation, quantise
from pruning.darknets import randomise

CLASSES, ROWS, COLUMNS = 3, 4, 6
KINDS = {"dfl": (64,), "yolox": (4, 1)}
"""Filters of the convolutions before that of the classes."""


def anchor_free_cfg(kind: str, classes: int = CLASSES) -> DarknetCfg:
    """A network of 48 x 32 pixels with two heads, of cells of 8 and of 16 pixels."""
    conv = "[convolutional]\nbatch_normalize=1\nsize=3\npad=1\nactivation=swish\nfilters=16\nstride=2\n"
    text, count = f"[net]\nwidth=48\nheight=32\nchannels=3\n{conv * 4}", 4
    for source in (2, 3):
        parts = []
        for filters in (*KINDS[kind], classes):
            text += f"[route]\nlayers={source}\n[convolutional]\nsize=1\nfilters={filters}\nactivation=linear\n"
            count += 2
            parts.append(str(count - 1))
        text += f"[route]\nlayers={','.join(parts)}\n[{kind}]\nclasses={classes}\n"
        count += 2
    return parse_cfg(text, "free.cfg")


def lively(kind: str) -> Darknet:
    """Random weights, with scores of all sizes."""
    model = randomise(load_darknet(anchor_free_cfg(kind)), seed=1)
    with torch.no_grad():
        for index in model.cfg.head_outputs:
            model.conv(index).weight.mul_(2.0)
    return model


def _logistic(t: float) -> float:
    return 1 / (1 + math.exp(-t))


@pytest.mark.parametrize("kind", KINDS)
def test_boxes_and_scores_equal_a_plain_loop(kind: str) -> None:
    """Generalized Focal Loss, equations 5 and 6, from the middle of a cell; YOLOX, section 2.1, from its corner."""
    model = load_darknet(anchor_free_cfg(kind))
    generator = torch.Generator().manual_seed(0)
    heads = [2 * torch.randn(1, *head.out_shape, generator=generator) for head in model.cfg.heads]
    boxes, scores = (values[0].tolist() for values in decode(heads, model))
    number = 0
    for raw, stride in zip(heads, (8, 16), strict=True):
        for row, column in np.ndindex(*raw.shape[2:]):
            values = raw[0, :, row, column].tolist()
            if kind == "dfl":
                sides = []
                for side in range(4):
                    shares = [math.exp(logit) for logit in values[16 * side : 16 * side + 16]]
                    sides.append(sum(at * share for at, share in enumerate(shares)) / sum(shares))
                x, y = column + 0.5, row + 0.5
                corners = [x - sides[0], y - sides[1], x + sides[2], y + sides[3]]
                expected = [_logistic(logit) for logit in values[64:]]
            else:
                x, y, w, h = column + values[0], row + values[1], math.exp(values[2]), math.exp(values[3])
                corners = [x - w / 2, y - h / 2, x + w / 2, y + h / 2]
                expected = [_logistic(values[4]) * _logistic(logit) for logit in values[5:]]
            assert boxes[number] == pytest.approx([stride * side for side in corners], rel=1e-5, abs=1e-4)
            assert scores[number] == pytest.approx(expected, rel=1e-5)
            number += 1
    assert number == len(boxes) == 24 + 6


@pytest.mark.parametrize("kind", KINDS)
def test_logarithms_are_those_of_the_scores_and_have_gradients(kind: str) -> None:
    head = anchor_free_cfg(kind).heads[0]
    raw = torch.randn(2, *head.out_shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    raw.requires_grad_(True)
    logs = head.log_scores(raw)
    torch.testing.assert_close(logs.exp(), head.scores(raw))
    torch.testing.assert_close(head.class_probabilities(raw), head.class_logits(raw).sigmoid())
    (gradient,) = torch.autograd.grad(logs.sum(), raw)
    assert (head.split(gradient)[..., head.box_values :] != 0).all()
    (gradient,) = torch.autograd.grad(head.boxes_xyxy(raw, (32, 48)).square().sum(), raw)
    assert (head.split(gradient)[..., : head.box_values] != 0).all()
    assert head.objectness_logits(raw).shape == (2, ROWS * COLUMNS)


@pytest.mark.parametrize("kind", KINDS)
def test_onnx_computes_what_torch_computes_in_all_precisions(kind: str, tmp_path: Path) -> None:
    model = lively(kind)
    path = onnx_from_torch(folded(model), tmp_path / "model.onnx").path
    images = random_images(model.cfg, 3)
    reference, names = torch_outputs(model, images), ["boxes", "scores"]
    file = read_model(path)
    boxes, scores = run(file, images, names)
    check_tensor_parity(reference, (boxes, scores), tolerance=1e-5)
    assert check_detection_parity(reference, (boxes, scores)).detections > 0

    gates = ExportConfig().fp16
    half = run(to_half_precision(file), images, names)
    check_tensor_parity(reference, (half[0], half[1]), gates.parity_tolerance)
    # As a build does, the heads' own convolutions stay in fp32, and all of the decoding does.
    skipped = [node.name for node in head_convolutions(file.graph)]
    plan = plan_quantisation(file, "uint8", skipped)
    assert not {"Softmax", "ReduceSum"} & {node.op_type for node in file.graph.node if node.name in plan.operators}
    quantised = quantise(file, plan, true_ranges(file, plan.tensors, images))
    eight = run(quantised, images, names)
    assert 0 < float(np.abs(eight[1] - reference[1]).max()) < 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_uint8_images_and_suppression_work_on_it(kind: str, tmp_path: Path) -> None:
    path = onnx_from_torch(folded(lively(kind)), tmp_path / "model.onnx").path
    nms = NmsInGraph(score_threshold=0.15, iou_threshold=0.45, max_detections=20)
    pixels = np.random.default_rng(0).integers(0, 256, (1, 32, 48, 3), np.uint8)
    images = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)).astype(np.float32) / np.float32(255)
    boxes, scores = run(read_model(path), images, ["boxes", "scores"])
    detections, counts = run(
        with_nms(with_uint8_input(read_model(path)), nms), pixels, ["detections", "num_detections"]
    )
    wanted, wanted_scores, _ = detections_from(
        boxes[0], scores[0], score_threshold=0.15, iou_threshold=0.45, max_detections=20
    )
    assert counts[0] == len(wanted) > 0
    np.testing.assert_allclose(detections[0, : len(wanted), :4], wanted, rtol=1e-5)
    np.testing.assert_allclose(detections[0, : len(wanted), 4], wanted_scores, rtol=1e-5)


@pytest.mark.skipif(installed_version("tensorrt_rtx") is None, reason="needs tensorrt-rtx (prunedeploy[rtx])")
@pytest.mark.parametrize("kind", KINDS)
def test_tensorrt_rtx_builds_an_engine_of_it(kind: str, tmp_path: Path) -> None:
    model = lively(kind)
    path = onnx_from_torch(folded(model), tmp_path / "model.onnx").path
    engine = engine_from_onnx(path, tmp_path / "engines", target="sm86", precision="fp32")
    assert engine.layers["fp32"] >= len(model.cfg.convolutions)


@pytest.mark.parametrize("kind", KINDS)
def test_other_classes_change_the_last_convolution_alone(kind: str) -> None:
    cfg = anchor_free_cfg(kind)
    assert with_classes(cfg, 7).text == anchor_free_cfg(kind, 7).text
    assert with_classes(with_classes(cfg, 7), CLASSES).text == cfg.text


@pytest.mark.parametrize("kind", KINDS)
def test_a_fresh_network_predicts_next_to_nothing(kind: str) -> None:
    model = load_darknet(anchor_free_cfg(kind), seed=0)
    with torch.no_grad():
        heads = model(torch.rand(1, 3, 32, 48))
        assert float(decode(heads, model)[1].max()) < 0.05
        for head, raw in zip(model.cfg.heads, heads, strict=True):
            assert float(head.objectness_logits(raw).max()) < -3


@pytest.mark.parametrize("kind", KINDS)
def test_scores_by_contribution_and_distillation_need_no_loss(kind: str) -> None:
    model = lively(kind)
    with torch.no_grad():
        heads = model(torch.rand(2, 3, 32, 48))
    target = choose_target(model, heads, 5)
    ones = sum(float(weight.sum()) for weight in target.weights)
    assert ones == 2 * 2 * 5 * (2 if kind == "yolox" else 1)
    moved = [head + 0.1 for head in heads]
    assert float(distillation_loss(moved, heads, model, 1.0)) > float(distillation_loss(heads, heads, model, 1.0))


@pytest.mark.parametrize("kind", KINDS)
def test_all_heads_have_their_loss_together(kind: str) -> None:
    model = lively(kind)
    targets = torch.tensor([[0, 1, 0.4, 0.5, 0.3, 0.4], [0, 2, 0.7, 0.6, 0.5, 0.6], [2, 0, 0.2, 0.3, 0.2, 0.3]])
    heads = model(torch.rand(3, 3, 32, 48, generator=torch.Generator().manual_seed(0)))
    found = image_terms(heads, targets, model.cfg)
    if kind == "dfl":
        terms = anchor_free_terms(heads, [8, 16], targets)
        expected = terms.box + terms.dfl, terms.background, terms.classes
    else:
        expected = yolox_terms(heads, [8, 16], targets)
    torch.testing.assert_close((found.box, found.objectness, found.classes), expected)
    torch.testing.assert_close(yolo_loss(heads, targets, model.cfg).total, sum(expected).mean())
    box, classes = target_terms(heads, targets, model.cfg)
    torch.testing.assert_close(torch.stack((box[0] + box[1], box[2])), found.box[[0, 2]])
    torch.testing.assert_close(torch.stack((classes[0] + classes[1], classes[2])), found.classes[[0, 2]])


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_steps_lower_the_loss(kind: str) -> None:
    model = lively(kind)
    images, targets = torch.rand(2, 3, 32, 48), torch.tensor([[0, 1, 0.4, 0.5, 0.6, 0.7], [1, 2, 0.5, 0.6, 0.5, 0.8]])
    optimiser, losses = torch.optim.SGD(model.parameters(), lr=1e-3), []
    for _ in range(8):
        loss = yolo_loss(model(images), targets, model.cfg).total
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("kind", KINDS)
def test_what_does_not_fit_is_refused_in_one_line(kind: str) -> None:
    cfg = anchor_free_cfg(kind)
    with pytest.raises(DarknetFormatError, match=rf"\[{kind}\] has no anchors; leave --anchors out"):
        anchor_slots(cfg)
    with pytest.raises(DarknetFormatError, match=r"reads .* channels, but .* numbers of the box and 4 classes are"):
        parse_cfg(cfg.text.replace("classes=3", "classes=4"))
