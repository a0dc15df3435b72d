"""The contract on `OpenVinoRunner`, which loads OpenVINO where it is: `test_runner` runs this file in a process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from contracts import RunnerContract
from detector_variants import save_nms_detector, save_uint8_detector
from prunedeploy_engines.runtimes.openvino.runner import OpenVinoRunner
from tiny_detector import save_tiny_detector


class TestOpenVinoRunner(RunnerContract):
    @pytest.fixture(params=[save_tiny_detector, save_uint8_detector, save_nms_detector])
    def runner(self, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[OpenVinoRunner]:
        with OpenVinoRunner(request.param(tmp_path / "model.onnx"), threads=1) as runner:
            yield runner

    def test_compute_call_compiles_batches_that_infer_has_not_seen(self, runner: OpenVinoRunner) -> None:
        images = np.zeros((4, 3, *runner.input_size), np.float32)
        runner.compute_call(images)()

    def test_closed_runner_still_describes_itself(self, runner: OpenVinoRunner) -> None:
        runner.close()
        assert runner.describe()["runtime"] == "openvino"
