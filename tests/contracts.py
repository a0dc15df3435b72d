"""The tests that every `Runner` passes, whatever runs behind it.

A test module inherits `RunnerContract` and gives a function-scoped fixture ``runner``, an open runner.
Batches of up to five images must be possible.
"""

from __future__ import annotations

import json

import numpy as np
import pytest

from prunedeploy_engines.runtimes.runner import Runner


class RunnerContract:
    """Inherit, and define the fixture ``runner``."""

    @pytest.fixture
    def runner(self) -> Runner:
        raise NotImplementedError("the test class gives the runner")

    @pytest.fixture
    def images(self, runner: Runner) -> np.ndarray:
        height, width = runner.input_size
        return np.random.default_rng(0).random((5, 3, height, width), dtype=np.float32)

    def test_gives_float32_boxes_and_probabilities(self, runner: Runner, images: np.ndarray) -> None:
        boxes, scores = runner.infer(images)
        assert boxes.dtype == scores.dtype == np.float32
        assert boxes.shape == (5, scores.shape[1], 4)
        assert scores.ndim == 3
        assert scores.shape[1] > 0
        assert scores.shape[2] > 0
        assert np.isfinite(boxes).all()
        assert scores.min() >= 0.0
        assert scores.max() <= 1.0

    def test_different_images_give_different_outputs(self, runner: Runner, images: np.ndarray) -> None:
        _, scores = runner.infer(images)
        assert not np.array_equal(scores[0], scores[1])

    def test_batch_equals_its_images_one_by_one(self, runner: Runner, images: np.ndarray) -> None:
        boxes, scores = runner.infer(images)
        for i in range(len(images)):
            box, score = runner.infer(images[i : i + 1])
            np.testing.assert_allclose(box[0], boxes[i], rtol=1e-4, atol=1e-3)
            np.testing.assert_allclose(score[0], scores[i], rtol=1e-4, atol=1e-5)

    def test_batch_size_may_change_between_calls(self, runner: Runner, images: np.ndarray) -> None:
        for batch in (2, 5, 1, 3):
            boxes, scores = runner.infer(images[:batch])
            assert len(boxes) == len(scores) == batch

    def test_outputs_belong_to_the_caller(self, runner: Runner, images: np.ndarray) -> None:
        boxes, scores = runner.infer(images[:1])
        before = boxes.copy(), scores.copy()
        runner.infer(images[1:2])
        assert np.array_equal(boxes, before[0])
        assert np.array_equal(scores, before[1])

    def test_input_is_not_modified(self, runner: Runner, images: np.ndarray) -> None:
        before = images.copy()
        runner.infer(images)
        assert np.array_equal(images, before)

    def test_memory_layout_does_not_matter(self, runner: Runner, images: np.ndarray) -> None:
        channels_last = np.ascontiguousarray(images.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
        assert not channels_last.flags["C_CONTIGUOUS"]
        for ours, reference in zip(runner.infer(channels_last), runner.infer(images), strict=True):
            assert np.array_equal(ours, reference)

    def test_wrong_input_is_refused_with_what_came(self, runner: Runner, images: np.ndarray) -> None:
        wrong = {
            "float64": images.astype(np.float64),
            "uint8": (images * 255).astype(np.uint8),
            str(images.shape[1:]): images[0],
            str((0, *images.shape[1:])): images[:0],
            str((5, 1, *images.shape[2:])): images[:, :1],
            str((5, 3, images.shape[2], images.shape[3] - 1)): images[:, :, :, 1:],
            "list": images.tolist(),
        }
        for came, value in wrong.items():
            with pytest.raises(ValueError, match="images must be") as caught:
                runner.infer(value)
            assert came in str(caught.value)

    def test_describes_itself_in_json(self, runner: Runner) -> None:
        described = json.loads(json.dumps(runner.describe()))
        assert {"runtime", "version", "precision", "device", "computes_in"} <= set(described)
        assert described["runtime"] == runner.runtime
        assert runner.runtime in ("onnxruntime", "openvino", "tensorrt", "torch")

    def test_shares_of_computed_precisions_sum_to_one(self, runner: Runner) -> None:
        shares = runner.describe()["computes_in"]
        assert shares is None or sum(shares.values()) == pytest.approx(1.0)

    def test_compute_call_runs_again_and_again_beside_infer(self, runner: Runner, images: np.ndarray) -> None:
        before = runner.infer(images[2:4])
        first, second = runner.compute_call(images[:2]), runner.compute_call(images[4:])
        for call in (first, second, first):
            call()
        for ours, reference in zip(runner.infer(images[2:4]), before, strict=True):
            assert np.array_equal(ours, reference)

    def test_compute_call_refuses_what_infer_refuses(self, runner: Runner, images: np.ndarray) -> None:
        with pytest.raises(ValueError, match="images must be"):
            runner.compute_call(images[0])

    def test_context_manager_closes_once_and_for_all(self, runner: Runner, images: np.ndarray) -> None:
        with runner as entered:
            assert entered is runner
            runner.infer(images[:1])
        runner.close()
        with pytest.raises(ValueError, match="closed"):
            runner.infer(images[:1])
