"""What an attribution explains."""

from __future__ import annotations

import pytest
import torch

from prunedeploy.models import load_darknet
from prunedeploy.models.decode import decode
from prunedeploy.scores import DetectionTarget, choose_target
from pruning.darknets import conv, network
from scores.examples import mixed_network, random_batches

# Two anchors, two classes, a map of 1 x 2: channels a * 7 + (x, y, w, h, objectness, class 0, class 1).
TWO_ANCHORS = network(
    conv(14, norm=False, activation="linear"), "yolo mask=0,1 anchors=1,1,2,2 classes=2", size=2, channels=1
)


def head_of(predictions: dict[tuple[int, int, int], tuple[float, float, float]]) -> torch.Tensor:
    """A head of ``(1, 14, 1, 2)`` with given (objectness, class 0, class 1) by (anchor, row, column), else -9."""
    head = torch.full((1, 14, 1, 2), -9.0)
    for (anchor, row, column), logits in predictions.items():
        head[0, anchor * 7 + 4 : anchor * 7 + 7, row, column] = torch.tensor(logits)
    return head


def test_objectness_and_likeliest_class_of_the_surest_prediction() -> None:
    # Anchor 1, column 0: sigmoid(1) * sigmoid(2) = .64 beats anchor 0, column 1: sigmoid(3) * sigmoid(0) = .48.
    head = head_of({(1, 0, 0): (1.0, -3.0, 2.0), (0, 0, 1): (3.0, 0.0, -1.0)})
    target = choose_target(load_darknet(TWO_ANCHORS), [head], 1)
    (weight,) = target.weights
    assert weight.shape == head.shape
    assert weight.nonzero().tolist() == [[0, 7 + 4, 0, 0], [0, 7 + 6, 0, 0]]
    assert target([head]).tolist() == [1.0 + 2.0]
    # With two, objectness 3 and class 0 of the other are added.
    assert choose_target(load_darknet(TWO_ANCHORS), [head], 2)([head]).tolist() == [1.0 + 2.0 + 3.0 + 0.0]


def test_more_predictions_than_there_are_means_all() -> None:
    head = head_of({})
    target = choose_target(load_darknet(TWO_ANCHORS), [head], 99)
    assert float(target.weights[0].sum()) == 2 * 4  # two logits of each of 2 anchors x 2 cells


def test_every_head_has_its_own_predictions_in_every_image() -> None:
    model = mixed_network()
    images = random_batches([3])[0].images
    with torch.no_grad():
        heads = model(images)
    target = choose_target(model, heads, 4)
    for weight, head in zip(target.weights, heads, strict=True):
        assert weight.shape == head.shape
        assert weight.flatten(1).sum(1).tolist() == [8.0] * 3
        assert set(weight.unique().tolist()) == {0.0, 1.0}


def test_the_chosen_are_the_highest_scores_after_decoding() -> None:
    model = mixed_network()
    images = random_batches([2])[0].images
    with torch.no_grad():
        heads = model(images)
        _, scores = decode(heads, model)  # (B, M, C), heads one after the other
    target = choose_target(model, heads, 1)
    start = 0
    for weight, head in zip(target.weights, heads, strict=True):
        # One anchor, so positions of the map are positions of the decoded list.
        cells = head.shape[2] * head.shape[3]
        best = scores[:, start : start + cells].amax(2).argmax(1)
        start += cells
        assert weight[:, 4].flatten(1).argmax(1).tolist() == best.tolist()


def test_a_reference_s_heads_stand_for_all_images() -> None:
    target = DetectionTarget((torch.ones(3, 1, 1, 2),))
    assert target([torch.tensor([[[[1.0, 2.0]]]])]).tolist() == [3.0, 3.0, 3.0]


def test_choosing_keeps_no_gradient_but_the_target_has_one() -> None:
    head = head_of({(0, 0, 0): (1.0, 1.0, 0.0)}).requires_grad_()
    target = choose_target(load_darknet(TWO_ANCHORS), [head], 1)
    assert not target.weights[0].requires_grad
    (gradient,) = torch.autograd.grad(target([head]).sum(), head)
    assert torch.equal(gradient, target.weights[0])


def test_no_predictions_is_refused() -> None:
    with pytest.raises(ValueError, match="predictions must be at least 1, got 0"):
        choose_target(load_darknet(TWO_ANCHORS), [head_of({})], 0)
