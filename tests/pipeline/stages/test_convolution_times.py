"""Timing single convolutions: what is in the time and what is not."""

from __future__ import annotations

from prunedeploy.pipeline.stages import convolution_times as convolution_times_stage
from prunedeploy.pipeline.stages.convolution_times import WARM_CALLS, convolution_ms
from prunedeploy.pruning.convolution_times import ConvolutionShape

SHAPE = ConvolutionShape(3, 1, 1, 1, "mish", 8, 8)


def test_the_time_is_the_median_run_without_warm_up_and_changes_of_layout(monkeypatch) -> None:
    def kernel(name: str, start: float, microseconds: float) -> dict:
        return {"cat": "Node", "name": "x_kernel_time", "ts": start, "dur": microseconds, "args": {"op_name": name}}

    def events(spec, images, runs: int) -> list[dict]:
        assert images.shape == (1, 16, 8, 8)
        found = [{"cat": "Session", "name": "session_initialization", "ts": 0, "dur": 9}]
        for run in range(runs):
            start = 1000.0 * run + 10
            # 500 us in the warm calls, then 30, 31, 32 ... us for Conv and 4 for what the activation adds
            convolution = 500 if run < WARM_CALLS else 28 + run
            found += [
                {"cat": "Session", "name": "model_run", "ts": start, "dur": 999},
                kernel("ReorderInput", start + 1, 70),
                kernel("Conv", start + 2, convolution),
                {**kernel("Conv", start + 2, 1), "name": "x_fence_before"},
                kernel("Tanh", start + 3, 4),
                kernel("ReorderOutput", start + 4, 70),
            ]
        return found[::-1]

    monkeypatch.setattr(convolution_times_stage, "profiled_events", events)
    # 15 timed calls: 30 to 44 us, the middle one is 37; 37 + 4 us
    assert abs(convolution_ms(SHAPE, 8, 16, 1) - 0.041) < 1e-9


def test_a_real_convolution_is_timed() -> None:
    assert convolution_ms(SHAPE, 64, 64, 1) > 0
