from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from detector_variants import save_conv_detector
from prunedeploy_engines.runtimes.layer_times import LayerTime, convolution_shares, ranked_layers
from prunedeploy_engines.runtimes.opening import open_runner


def test_times_of_a_layer_are_added_and_divided_by_the_runs() -> None:
    # Two runs: a takes 1 and 3 ms, b 2 and 2 with another precision in the second run.
    times = [("a", "Conv", "fp32", 1.0), ("b", "Add", None, 2.0), ("a", "Conv", "fp32", 3.0), ("b", "Add", "fp32", 2.0)]
    assert ranked_layers(times, runs=2) == [
        LayerTime("a", "Conv", "fp32", 2.0, 0.5, 2),
        LayerTime("b", "Add", None, 1.0, 0.25, 2),
        LayerTime("b", "Add", "fp32", 1.0, 0.25, 2),
    ]


def test_shares_are_of_all_layers_however_many_are_returned() -> None:
    times = [("a", "Conv", None, 1.0), ("b", "Conv", None, 3.0)]
    assert ranked_layers(times, runs=1, top=1) == [LayerTime("b", "Conv", None, 3.0, 0.75, 1)]
    assert ranked_layers([], runs=1) == []
    with pytest.raises(ValueError, match="runs must be at least 1"):
        ranked_layers(times, runs=0)


def test_every_convolution_counts_the_same() -> None:
    assert convolution_shares(["int8", "int8", "fp32", None]) == {"int8": 0.5, "fp32": 0.25, "unknown": 0.25}
    assert convolution_shares([]) is None


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_profile_names_the_layers_with_their_precision(runtime: str, tmp_path: Path) -> None:
    if importlib.util.find_spec(runtime) is None:
        pytest.skip(f"{runtime} is not installed")
    images = np.random.default_rng(0).random((2, 3, 32, 48), dtype=np.float32)
    with open_runner(save_conv_detector(tmp_path / "model.onnx", "int8"), runtime, threads=1) as runner:
        rows = runner.profile(images, top=None, runs=3)
        best = runner.profile(images, top=2, runs=3)
        runner.infer(images)  # the runner was not touched
    assert sum(row.share for row in rows) == pytest.approx(1.0)
    assert [row.mean_ms for row in rows] == sorted((row.mean_ms for row in rows), reverse=True)
    assert all(row.runs == 3 and row.mean_ms >= 0 for row in rows)
    convolutions = [row.precision for row in rows if "Conv" in row.kind]
    assert sorted(convolutions, key=str) == ["fp32", "int8"]
    assert len(best) == 2
