"""Eight bits and the genuine yolov3-tiny on COCO photos: single scores move far, and mAP hardly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from prunedeploy.data.coco import load_test_split
from prunedeploy.data.loader import EvaluationLoader
from prunedeploy.evaluation import TorchRunner, evaluate
from prunedeploy.models import FoldedDarknet, load_darknet
from prunedeploy_engines.errors import GateError
from prunedeploy_engines.runtimes.onnxruntime.runner import OnnxRuntimeRunner
from prunedeploy_export import (
    Quantiser,
    check_detection_parity,
    check_map_parity,
    check_tensor_parity,
    onnx_from_torch,
)

LIMITS = {"score_threshold": 0.001, "iou_threshold": 0.45, "min_iou": 0.5, "score_tolerance": 0.1}


@pytest.mark.shared
@pytest.mark.slow
def test_genuine_weights_pass_the_gates_of_int8_and_none_that_single_values_decide(
    shared: Path, tmp_path: Path
) -> None:
    folder = shared / "real" / "yolov3-tiny"
    network = load_darknet(folder / "yolov3-tiny.cfg", folder / "yolov3-tiny.weights").eval()
    photos = load_test_split(shared / "real" / "coco-val128")
    batches = list(EvaluationLoader(photos, network.cfg.input_size, 8))
    fp32, int8 = tmp_path / "fp32.onnx", tmp_path / "int8.onnx"
    onnx_from_torch(FoldedDarknet(network), fp32)
    calibration = np.concatenate([batch.images.numpy() for batch in batches[-2:]])
    Quantiser(fp32, calibration, seed=0, sensitivity_images=1, threads=1).write(int8, "uint8")

    images = batches[0].images.numpy()
    with TorchRunner(network) as parent, OnnxRuntimeRunner(int8, threads=1, allow_spinning=False) as engine:
        reference, found = parent.infer(images), engine.infer(images)
    with pytest.raises(GateError, match="tensor parity: scores"):  # one score falls from .76 to .23
        check_tensor_parity(reference, found, 0.25)
    with pytest.raises(GateError, match="has no match"):
        check_detection_parity(reference, found, **LIMITS)
    assert check_tensor_parity(reference, found, 0.25, share=0.9).within > 0.999
    assert check_detection_parity(reference, found, **LIMITS, share=0.9).matched_share > 0.95

    with OnnxRuntimeRunner(fp32, threads=1) as one, OnnxRuntimeRunner(int8, threads=1) as other:
        measured = evaluate({"fp32": one, "int8": other}, batches, photos, resamples=0)
    maps = [measured[name].metrics()["map_clean"] for name in ("fp32", "int8")]
    assert maps[0] == pytest.approx(0.177, abs=0.002)
    check_map_parity(*maps, 0.006, may_gain=True)
