"""Square on runners: each is asked itself, and what is said of it is what was done."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from prunedeploy.attacks.answer_margins import from_detections, from_scores, objects_of, served
from prunedeploy.attacks.square import Square
from prunedeploy.data.batches import Batch
from prunedeploy.evaluation import Evaluation, attack_checks, evaluate, measure
from prunedeploy.evaluation.black_box import BlackBox
from prunedeploy.pipeline.evaluation import result_row
from prunedeploy_engines.detection.letterbox import letterbox_geometry
from prunedeploy_engines.errors import ConfigError
from prunedeploy_engines.runtimes.runner import Runner
from tiny_detector import cell_boxes, cell_scores

INPUT = (32, 48)


class Cells(Runner):
    """The detector that is known by heart, in NumPy; notes what it is asked.

    With ``gain`` 2 it answers to half the range of colours, so that the two are unlike.
    """

    runtime = "cells"
    input_size = INPUT

    def __init__(self, gain: float = 1.0, uint8: bool = False) -> None:
        self.gain, self.uint8_input = gain, uint8
        self.asked: list[np.ndarray] = []

    def describe(self):
        return {"runtime": self.runtime}

    def _infer(self, images):
        self.asked.append(images)
        if self.uint8_input:
            images = images.transpose(0, 3, 1, 2) / np.float32(255)
        scores = np.clip(cell_scores(images) * self.gain, 0, 1)
        return np.tile(cell_boxes(*INPUT), (len(images), 1, 1)), np.ascontiguousarray(scores)


@pytest.fixture
def batch() -> Batch:
    """Three images of noise on the lattice; each has the brightest cell of red as its object, the last has none."""
    images = np.random.default_rng(0).integers(0, 256, (3, 3, *INPUT)) / 255
    targets = []
    for number in range(2):
        x0, y0, x1, y1 = cell_boxes(*INPUT)[cell_scores(images)[number, :, 0].argmax()]
        targets.append([number, 0, (x0 + x1) / 96, (y0 + y1) / 64, 8 / 48, 8 / 32])
    return Batch(torch.from_numpy(images.astype(np.float32)), torch.tensor(targets), [1, 2, 3])


def loss_of(runner, batch, images, feedback="scores"):
    objects = objects_of(batch.targets, 3, INPUT)
    loss = (
        from_scores(runner, objects)
        if feedback == "scores"
        else from_detections(served(runner, 0.5, 0.45), objects, 0.5)
    )
    return loss(images.numpy(), np.arange(3))[0]


@pytest.mark.parametrize("feedback", ["scores", "detections"])
def test_it_lowers_the_margin_of_the_runner_that_is_asked_within_its_budget(batch, feedback):
    runner, counted = Cells(), []
    box = BlackBox(Square(0.05, 60), feedback, progress=counted.append)
    images, queries = box(runner, batch, {})
    assert queries.tolist() == [60, 60, 1]
    assert sum(map(len, runner.asked)) == queries.sum()
    assert sum(counted) == 3 * 60  # a bar that is full at the end
    before, after = (loss_of(runner, batch, one, feedback) for one in (batch.images, images))
    assert (after[:2] < before[:2]).all()
    other, _ = box(Cells(gain=2), batch, {})
    assert not torch.equal(images, other)


def test_an_object_that_no_detection_shows_any_more_ends_the_search(batch):
    runner = Cells()
    # Of noise, no cell has a mean of .9: nothing is ever served.
    assert BlackBox(Square(0.05, 60), "detections", score_threshold=0.9)(runner, batch, {})[1].tolist() == [1, 1, 1]


def test_from_white_box_images_it_goes_on_from_the_best_and_noise_is_none(batch):
    runner = Cells()
    down = (batch.images - 0.05).clamp(0, 1)
    made = {"noise": batch.images, "pgd": down, "apgd:box": batch.images}
    images, queries = BlackBox(Square(0.05, 2), start="white-box")(runner, batch, made)
    each = [loss_of(runner, batch, one) for one in (down, batch.images)]
    expected = torch.where(torch.from_numpy(each[1] < each[0]).view(-1, 1, 1, 1), batch.images, down)
    assert (torch.equal(images, expected), queries.tolist()) == (True, [2, 2, 2])
    starts = np.minimum(*each)
    longer, _ = BlackBox(Square(0.05, 100), start="white-box")(runner, batch, made)
    assert (loss_of(runner, batch, longer) <= starts).all()
    assert (loss_of(runner, batch, longer)[:2] < starts[:2]).all()
    with pytest.raises(ConfigError, match="there is no white-box attack to start from"):
        BlackBox(Square(0.05, 9), start="white-box")(runner, batch, {"noise": down})
    with pytest.raises(ConfigError, match="--queries: 1 queries do not reach the 2 white-box images"):
        BlackBox(Square(0.05, 1), start="white-box")(runner, batch, made)


def test_a_runner_of_uint8_images_is_attacked_on_their_lattice(batch):
    runner = Cells(uint8=True)
    images, _ = BlackBox(Square(0.05, 30))(runner, batch, {})
    levels = (images - batch.images) * 255
    assert float((levels - levels.round()).abs().max()) < 1e-4
    assert float(levels.abs().max()) == pytest.approx(12, abs=1e-4)  # of 12.75
    # What is measured is what was asked: the runner rounds nothing away.
    kept = {one.tobytes() for asked in runner.asked for one in asked}
    assert all(one.tobytes() in kept for one in runner._checked(images.numpy()))
    with pytest.raises(ConfigError, match=r"--eps: eps = 0\.003 leaves no other image of 8 bits"):
        BlackBox(Square(0.003, 30))(runner, batch, {})


def test_evaluate_makes_it_on_each_runner_and_calls_nothing_transfer(batch, dataset_of):
    boxes = [cell_boxes(*INPUT)[cell_scores(batch.images.numpy())[number, :, 0].argmax()] for number in range(2)]
    objects = [[(0, (x0, y0, x1 - x0, y1 - y0), False)] for x0, y0, x1, y1 in np.array(boxes).tolist()]
    dataset = dataset_of([*objects, []], classes=3)
    batch.geometries.extend([letterbox_geometry(INPUT, INPUT)] * 3)
    runners = {"one": Cells(), "two": Cells(gain=2)}
    box = BlackBox(Square(0.05, 40))
    found = evaluate(runners, [batch], dataset, own_attacks={"square": box}, resamples=10)
    for name, runner in runners.items():
        row = result_row(name, found[name])
        assert row["queries"] == {"square": {"mean": pytest.approx((40 + 40 + 1) / 3), "max": 40}}
        assert row["intervals"]["map_square"] is not None
        assert not any("transfer" in key for key in row if key.startswith("map"))
        # Clean once, 81 questions, attacked once.
        assert sum(map(len, runner.asked)) == 3 + 81 + 3
        own, _ = box(Cells(runner.gain), batch, {})
        assert np.array_equal(runner.asked[-1], own.numpy())


def test_a_black_box_that_beats_the_white_box_is_found_out(dataset_of, table_of):
    square, objects = (10.0, 10.0, 50.0, 50.0), [[(0, (10.0, 10.0, 50.0, 50.0), False)]] * 2
    dataset = dataset_of(objects)
    both = table_of([(1, 0, square, 0.9), (2, 0, square, 0.9)])
    one = table_of([(1, 0, square, 0.9)])

    def found(transfer, **attacked):
        measured = {name: measure(dataset, table, resamples=0) for name, table in attacked.items()}
        return Evaluation({"runtime": "cells"}, 2, measure(dataset, both, resamples=0), measured, transfer)

    for transfer, whose in ((False, "with its own gradients"), (True, "of the parent, by transfer,")):
        check = attack_checks.black_box_check(
            found(transfer, pgd=both, fgsm=both, square=one), ["fgsm", "pgd"], "square"
        )
        assert (check.name, check.passed) == ("black-box", False)
        assert check.says == f"on cells square leaves 0.5050 mAP, fgsm {whose} 1.0000"
    assert attack_checks.black_box_check(found(False, pgd=one, square=both), ["pgd"], "square").passed
    assert attack_checks.black_box_check(found(False, pgd=one, square=one), ["pgd"], "square").passed
    assert attack_checks.black_box_check(found(False, square=one), [], "square") is None
