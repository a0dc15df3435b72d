"""A build of every kind of head: trained, pruned, exported in three precisions, measured, and read back by OpenCV."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from head_networks import ANCHORS, SECTIONS, head_cfg
from models.sections.test_anchor_free import KINDS, anchor_free_cfg
from pipeline.conftest import TinyCase
from prunedeploy.models import decode, load_darknet
from prunedeploy.models.cfg_rewriting import with_classes, with_input_size
from prunedeploy_engines import load_bundle


@pytest.mark.parametrize("kind", [kind for kind in SECTIONS if kind != "yolo"])
def test_a_build_of_every_kind_of_head(kind: str, tiny_data: Path, tmp_path: Path) -> None:
    cfg = with_input_size(with_classes(head_cfg(kind), 10), (64, 64)).with_filters({0: 16, 1: 32})
    load_darknet(cfg, seed=3).save(tmp_path / "given.cfg", tmp_path / "given.weights")
    case = TinyCase(tmp_path / "given.cfg", tmp_path / "given.weights", tiny_data)
    outcome = case.build(
        tmp_path / "store",
        tmp_path / "out",
        "ratio=0.5",
        "method=structured",
        "scores.name=deeplift",
        "export.precisions=fp32,fp16,int8",
        "export.int8.match_share=0.5",
        "model.anchors=auto",
        "pretrain.from=given",
    )
    assert outcome.results["ratio_achieved"] == pytest.approx(0.5, abs=0.05)
    bundle = load_bundle(tmp_path / "out" / "bundle")
    assert {file.precision for file in bundle.manifest.files.values()} == {"fp32", "fp16", "int8"}

    # What was written is the same kind of section, and computes in every program what the bundle computes.
    pruned = load_darknet(tmp_path / "out" / "model.cfg", tmp_path / "out" / "model.weights")
    assert pruned.cfg.heads[0].decoding == cfg.heads[0].decoding
    assert [conv.out_channels for conv in pruned.cfg.convolutions][:2] < [16, 32]
    image = np.random.default_rng(0).random((1, 3, 64, 64), np.float32)
    with torch.no_grad():
        boxes, scores = (values.numpy() for values in decode(pruned(torch.from_numpy(image)), pruned))
    for runtime in ("onnxruntime", "openvino"):
        with bundle.runner(runtime) as runner:
            found = runner.infer(image)
        np.testing.assert_allclose(found[0], boxes, rtol=1e-4, atol=1e-3)
        np.testing.assert_allclose(found[1], scores, rtol=1e-3, atol=1e-6)
    if kind != "gaussian_yolo":
        text = pruned.cfg.text.replace("classes=10", "classes=10\nthresh=1e-9\nnms_threshold=0")
        weights = (tmp_path / "out" / "model.weights").read_bytes()
        network = cv2.dnn.readNetFromDarknet(np.frombuffer(text.encode(), np.uint8), np.frombuffer(weights, np.uint8))
        network.setInput(image)
        rows = network.forward().reshape(64, ANCHORS, -1).transpose(1, 0, 2).reshape(64 * ANCHORS, -1)
        centre, half = rows[:, :2] * 64, rows[:, 2:4] * 32
        np.testing.assert_allclose(boxes[0], np.hstack((centre - half, centre + half)), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_a_build_of_a_head_without_anchors(kind: str, tiny_data: Path, tmp_path: Path) -> None:
    cfg = with_input_size(with_classes(anchor_free_cfg(kind), 10), (64, 64))
    load_darknet(cfg, seed=3).save(tmp_path / "given.cfg", tmp_path / "given.weights")
    outcome = TinyCase(tmp_path / "given.cfg", tmp_path / "given.weights", tiny_data).build(
        tmp_path / "store",
        tmp_path / "out",
        "ratio=0.5",
        "method=structured",
        "scores.name=deeplift",
        "export.precisions=fp32,fp16,int8",
        "export.int8.match_share=0.5",
        "pretrain.from=given",
    )
    assert outcome.results["ratio_achieved"] == pytest.approx(0.5, abs=0.05)
    assert f"network: the cfg is not for Darknet, which has no [{kind}]" in outcome.results["network"]["said"]
    assert outcome.results["models"][1]["map_pgd"] is not None
    bundle = load_bundle(tmp_path / "out" / "bundle")
    assert {file.precision for file in bundle.manifest.files.values()} == {"fp32", "fp16", "int8"}
    pruned = load_darknet(tmp_path / "out" / "model.cfg", tmp_path / "out" / "model.weights")
    image = np.random.default_rng(0).random((1, 3, 64, 64), np.float32)
    with torch.no_grad():
        boxes, scores = (values.numpy() for values in decode(pruned(torch.from_numpy(image)), pruned))
    for runtime in ("onnxruntime", "openvino"):
        with bundle.runner(runtime) as runner:
            found = runner.infer(image)
        np.testing.assert_allclose(found[0], boxes, rtol=1e-4, atol=1e-3)
        np.testing.assert_allclose(found[1], scores, rtol=1e-3, atol=1e-6)
