"""Scores to importance, and the gradient that masks hand on; numbers worked by hand."""

from __future__ import annotations

import pytest
import torch

from prunedeploy.pruning.coupling import coupling_groups
from prunedeploy.pruning.importance import straight_through_channel_masks, straight_through_weight_mask, unit_importance
from pruning.darknets import HEAD, conv, network

# Layer 0 has 3 weights per filter (3 image channels), layer 1 has 2; the shortcut ties filter i of both.
TIED = network(conv(2), conv(2), "shortcut from=-2", *HEAD)


def tied_scores() -> dict[int, torch.Tensor]:
    return {
        0: torch.tensor([[1.0, -2.0, 0.5], [4.0, 1.0, -1.0]]).view(2, 3, 1, 1).requires_grad_(),
        1: torch.tensor([[-0.5, 1.0], [3.0, -1.0]]).view(2, 2, 1, 1).requires_grad_(),
    }


def test_importance_is_the_mean_over_all_weights_of_the_unit() -> None:
    groups = coupling_groups(TIED)
    importance = unit_importance(tied_scores(), groups)
    tied = next(i for i, group in enumerate(groups) if group.prunable)
    # unit 0: (1 + 2 + .5 + .5 + 1) / 5 = 1; unit 1: (4 + 1 + 1 + 3 + 1) / 5 = 2
    assert importance[tied].tolist() == [1.0, 2.0]
    assert [group.channels for group in groups] == [len(values) for values in importance]


def test_channel_mask_is_top_k_and_its_gradient_reaches_living_and_dead_scores() -> None:
    groups = coupling_groups(TIED)
    scores = tied_scores()
    masks = straight_through_channel_masks(scores, [1 if g.prunable else g.channels for g in groups], groups)
    assert sorted(masks) == [0, 1]
    assert masks[0].tolist() == [0.0, 1.0]
    assert masks[1].tolist() == [0.0, 1.0]
    # d loss / d mask: layer 0 (10, 20), layer 1 (5, -30), so unit 0 gets 15 and unit 1 gets -10;
    # each weight of a unit gets a fifth of it, with the sign of its score.
    (masks[0] @ torch.tensor([10.0, 20.0]) + masks[1] @ torch.tensor([5.0, -30.0])).backward()
    assert scores[0].grad.flatten(1).tolist() == [[3.0, -3.0, 3.0], [-2.0, -2.0, 2.0]]
    assert scores[1].grad.flatten(1).tolist() == [[-3.0, 3.0], [-2.0, 2.0]]


def test_weight_mask_is_top_k_by_magnitude_and_its_gradient_reaches_all() -> None:
    scores = torch.tensor([[0.1, -4.0], [2.0, -0.2]], requires_grad=True)
    mask = straight_through_weight_mask(scores, 2)
    assert mask.tolist() == [[0.0, 1.0], [1.0, 0.0]]
    (mask * torch.tensor([[1.0, 2.0], [3.0, 4.0]])).sum().backward()
    assert scores.grad.tolist() == [[1.0, -2.0], [3.0, -4.0]]


def test_a_gradient_step_raises_the_importance_of_what_lowers_the_loss() -> None:
    # Loss = the first mask entry; descending must lower |score|, for either sign.
    scores = torch.tensor([0.5, -0.5], requires_grad=True)
    straight_through_weight_mask(scores, 1).sum().backward()
    stepped = scores.detach() - 0.1 * scores.grad
    assert bool((stepped.abs() < 0.5).all())


@pytest.mark.parametrize("keep", [0, 1, 3, 5])
def test_equal_scores_keep_exactly_the_count_and_the_first(keep: int) -> None:
    mask = straight_through_weight_mask(torch.full((5,), -0.5), keep)
    assert mask.tolist() == [1.0] * keep + [0.0] * (5 - keep)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("keep", [1, 2, 6, 9])
def test_ties_at_the_threshold_never_displace_a_higher_score(keep: int, dtype: torch.dtype) -> None:
    scores = torch.tensor([1.0, 2.0, 1.0, 3.0, 1.0, 0.0, 2.0, 0.0, 1.0], dtype=dtype)
    mask = straight_through_weight_mask(scores, keep)
    order = torch.argsort(scores, descending=True, stable=True)[:keep]
    assert sorted(mask.nonzero().flatten().tolist()) == sorted(order.tolist())


def test_frozen_convolutions_get_no_mask() -> None:
    cfg = network(conv(4), conv(4, activation="logistic"), *HEAD)
    groups = coupling_groups(cfg)
    scores = {layer.index: torch.rand(layer.weight_shape) for layer in cfg.convolutions}
    assert list(straight_through_channel_masks(scores, [g.channels for g in groups], groups)) == [0]


def test_partly_frozen_convolution_keeps_its_frozen_filters() -> None:
    # Filters 0-3 of layer 5 are tied to layer 0, which a logistic shortcut freezes; 4-9 to layer 3.
    cfg = network(
        conv(4), conv(4), "shortcut from=-2 activation=logistic", conv(6), "route layers=2,3", conv(10),
        "shortcut from=-2", *HEAD,
    )  # fmt: skip
    groups = coupling_groups(cfg)
    scores = {layer.index: torch.rand(layer.weight_shape) for layer in cfg.convolutions}
    counts = [2 if group.prunable else group.channels for group in groups]
    masks = straight_through_channel_masks(scores, counts, groups)
    assert sorted(masks) == [3, 5]
    assert masks[5][:4].tolist() == [1.0] * 4
    assert masks[5][4:].sum() == 2
    assert torch.equal(masks[5][4:], masks[3])


def test_wrong_input_is_refused() -> None:
    groups = coupling_groups(TIED)
    scores = tied_scores()
    with pytest.raises(ValueError, match="no scores for layer 1"):
        unit_importance({0: scores[0]}, groups)
    with pytest.raises(ValueError, match="2 counts for"):
        straight_through_channel_masks(scores, [1, 2], groups)
    with pytest.raises(ValueError, match="not finite"):
        unit_importance({0: scores[0] * float("nan"), 1: scores[1]}, groups)
    with pytest.raises(ValueError, match="cannot keep 7 of 4"):
        straight_through_weight_mask(torch.rand(4), 7)
    with pytest.raises(ValueError, match="NaN"):
        straight_through_weight_mask(torch.full((4,), float("nan")), 2)
