"""Every kind of head as ONNX nodes: what PyTorch decodes, in all precisions and with what a file may take and give."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import ModelProto

from export.networks import folded, random_images, random_network, torch_outputs
from export.precisions import run
from head_networks import ANCHORS, SECTIONS, head_cfg
from prunedeploy.config.blocks import ExportConfig, GatesConfig
from prunedeploy.models import Darknet, parse_cfg
from prunedeploy_engines.builder.from_onnx import engine_from_onnx
from prunedeploy_engines.detection.nms import detections_from
from prunedeploy_engines.errors import GateError
from prunedeploy_engines.runtimes.onnx_file import NmsInGraph
from prunedeploy_engines.runtimes.tensorrt.library import installed_version
from prunedeploy_export import (
    Quantiser,
    check_detection_parity,
    check_tensor_parity,
    fp16_from_fp32,
    onnx_from_torch,
    with_nms,
    with_uint8_input,
)
from prunedeploy_export.graph.edit import read_model

KINDS = sorted(SECTIONS)


def written(kind: str, folder: Path) -> tuple[Darknet, Path]:
    model = random_network(head_cfg(kind), seed=3)
    head = model.cfg.heads[0]
    with torch.no_grad():  # scores of all sizes
        weight = model.conv(head.inputs[0]).weight.view(ANCHORS, -1, 16)
        weight[:, head.box_values :] *= 10.0
    return model, onnx_from_torch(folded(model), folder / "model.onnx").path


def outputs(model: ModelProto, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    boxes, scores = run(model, images, ["boxes", "scores"])
    return boxes, scores


@pytest.mark.parametrize("kind", KINDS)
def test_boxes_and_scores_are_those_of_torch_at_any_batch(kind: str, tmp_path: Path) -> None:
    model, path = written(kind, tmp_path)
    for batch in (1, 3):
        images = random_images(model.cfg, batch, seed=batch)
        reference, found = torch_outputs(model, images), outputs(read_model(path), images)
        check_tensor_parity(reference, found, tolerance=1e-5)
        assert check_detection_parity(reference, found).detections > 0


def test_heads_of_all_kinds_stand_in_one_network(tmp_path: Path) -> None:
    text = head_cfg("region").text
    for number, kind in enumerate(("yolo", "new_coords", "yolo", "gaussian_yolo", "region", "region")):
        values, activation, section = SECTIONS[kind]
        text += f"[route]\nlayers=2\n[convolutional]\nfilters={2 * values}\nactivation={activation}\n{section}"
        text += "softmax=0\n" if number == 5 else ""
    text = text.replace("softmax=1\nsoftmax=0", "softmax=0").replace("40,9", "30,9")
    model = random_network(parse_cfg(text), seed=2)
    assert [head.decoding for head in model.cfg.heads] == [
        "region", "yolo", "yolo new_coords", "yolo", "gaussian_yolo", "region", "region"
    ]  # fmt: skip
    path = onnx_from_torch(folded(model), tmp_path / "model.onnx").path
    images = random_images(model.cfg, 2)
    check_tensor_parity(torch_outputs(model, images), outputs(read_model(path), images), tolerance=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_uint8_images_and_suppression_work_on_it(kind: str, tmp_path: Path) -> None:
    _, path = written(kind, tmp_path)
    nms = NmsInGraph(score_threshold=0.15, iou_threshold=0.45, max_detections=20)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 48, 3), np.uint8)
    images = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)).astype(np.float32) / np.float32(255)
    boxes, scores = outputs(read_model(path), images)
    for found, expected in zip(outputs(with_uint8_input(read_model(path)), pixels), (boxes, scores), strict=True):
        np.testing.assert_array_equal(found, expected)

    detections, counts = run(
        with_nms(with_uint8_input(read_model(path)), nms), pixels, ["detections", "num_detections"]
    )
    for image in range(2):
        wanted, wanted_scores, class_ids = detections_from(
            boxes[image], scores[image], score_threshold=0.15, iou_threshold=0.45, max_detections=20
        )
        assert counts[image] == len(wanted) > 0
        rows = detections[image, : len(wanted)]
        np.testing.assert_allclose(rows[:, :4], wanted, rtol=1e-6)
        np.testing.assert_allclose(rows[:, 4], wanted_scores, rtol=1e-6)
        np.testing.assert_array_equal(rows[:, 5], class_ids)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("precision", ["fp16", "uint8", "int8"])
def test_other_precisions_pass_the_gates_of_a_build(kind: str, precision: str, tmp_path: Path) -> None:
    model, path = written(kind, tmp_path)
    images = random_images(model.cfg, 8, seed=1)
    gates: GatesConfig = ExportConfig().fp16
    share = 1.0
    if precision == "fp16":
        file = fp16_from_fp32(path, tmp_path / "other.onnx")
    else:
        int8 = ExportConfig().int8
        gates, share = int8, int8.match_share
        quantiser = Quantiser(path, random_images(model.cfg, 8, seed=2), seed=0, threads=1)
        file, _ = quantiser.write(
            tmp_path / "other.onnx",
            precision,
            loss=lambda _: 0.0,
            budget=1.0,
            accepted=lambda candidate: passes(torch_outputs(model, images), outputs(candidate, images), gates, share),
        )
    found = outputs(read_model(file.path), images)
    assert passes(torch_outputs(model, images), found, gates, share)
    # It is another file than its parent.
    assert np.abs(found[1] - outputs(read_model(path), images)[1]).max() > 1e-6


def passes(
    reference: tuple[np.ndarray, np.ndarray], found: tuple[np.ndarray, np.ndarray], gates: GatesConfig, share: float
) -> bool:
    try:
        check_tensor_parity(reference, found, gates.parity_tolerance, share=share)
        match = check_detection_parity(
            reference,
            found,
            score_threshold=0.05,
            min_iou=gates.match_iou,
            score_tolerance=gates.match_score,
            share=share,
        )
    except GateError:
        return False
    return match.detections > 0


@pytest.mark.skipif(installed_version("tensorrt_rtx") is None, reason="needs tensorrt-rtx")
@pytest.mark.parametrize("kind", KINDS)
def test_tensorrt_rtx_builds_an_engine_of_it(kind: str, tmp_path: Path) -> None:
    model, path = written(kind, tmp_path)
    engine = engine_from_onnx(path, tmp_path / "engines", target="sm86", precision="fp32")
    assert engine.layers == {"fp32": len(model.cfg.convolutions)}
