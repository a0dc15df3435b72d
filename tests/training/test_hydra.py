"""Score optimisation: what is selected is what will be cut, and only scores learn."""

from __future__ import annotations

import copy
import itertools
import math

import pytest
import torch
from torch import Tensor

from prunedeploy.attacks import Pgd, ThreatModel
from prunedeploy.models import Darknet, FoldedDarknet, yolo_loss
from prunedeploy.pruning.coupling import coupling_groups
from prunedeploy.pruning.masks import apply_structured, apply_unstructured
from prunedeploy.pruning.semi_structured import NmPattern, solve_nm
from prunedeploy.scores import scaled_scores
from prunedeploy.training.hydra import ScoredDarknet, score_objective
from prunedeploy.training.optimisation import LoopSettings
from pruning.darknets import conv, network, random_network
from training.small import batch_of

SECTIONS = (
    conv(8, size=3),
    conv(12, size=3, activation="mish") + " stride=2",
    conv(12, size=3, norm=False),
    "shortcut from=-2 activation=linear",
    "route layers=-1,1",
    conv(10, size=3),
    conv(14, norm=False, activation="linear"),
    "yolo mask=0,1 anchors=5,6,9,8 classes=2",
)
HEAD_OUTPUT = 6
PATTERNED = (1, 2, 5)
CPU = torch.device("cpu")


@pytest.fixture
def model() -> Darknet:
    return random_network(network(*SECTIONS), seed=2)


@pytest.fixture
def images() -> Tensor:
    return torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def living_filters(model: Darknet, scores: dict[int, Tensor], counts: dict[int, int]) -> dict[int, Tensor]:
    """By mean |score|, layers 1 and 2 together because layer 3 adds them; in plain loops."""
    keep = {}
    for layers in ((0,), (1, 2), (5,)):
        filters = scores[layers[0]].shape[0]
        importance = []
        for number in range(filters):
            values = [v for layer in layers for v in scores[layer][number].abs().flatten().tolist()]
            importance.append(sum(values) / len(values))
        living = sorted(range(filters), key=lambda n: -importance[n])[: counts[layers[0]]]
        for layer in layers:
            keep[layer] = torch.zeros(filters, dtype=torch.bool)
            keep[layer][living] = True
    return keep


def unit_counts(model: Darknet, counts: dict[int, int]) -> list[int]:
    """The same counts in the order of the coupling groups."""
    found = []
    for group in coupling_groups(model.cfg):
        found.append(counts[group.layers[0]] if group.prunable else group.channels)
    return found


COUNTS = {0: 5, 1: 7, 5: 4}


def test_the_structured_selection_equals_the_network_that_will_be_cut(model: Darknet, images: Tensor) -> None:
    scores = scaled_scores(model)
    scored = ScoredDarknet(model, scores, unit_counts=unit_counts(model, COUNTS))
    cut = apply_structured(model, living_filters(model, scores, COUNTS))
    with torch.no_grad():
        for ours, expected in zip(scored(images), cut(images), strict=True):
            torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
            assert float((ours - model(images)[0]).abs().max()) > 0.01, "the cut must matter here"


def test_the_unstructured_selection_equals_the_network_with_zeros(model: Darknet, images: Tensor) -> None:
    scores = scaled_scores(model)
    keep, counts = {}, {}
    for index in (0, 1, 2, 5):
        order = scores[index].abs().flatten().argsort(descending=True)
        counts[index] = round(0.3 * len(order))
        mask = torch.zeros(len(order), dtype=torch.bool)
        mask[order[: counts[index]]] = True
        keep[index] = mask.view_as(scores[index])
    scored = ScoredDarknet(model, scores, weight_counts=counts)
    zeroed = apply_unstructured(model, keep)
    with torch.no_grad():
        expected = zeroed(images)[0]
        torch.testing.assert_close(scored(images)[0], expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
        assert float((expected - model(images)[0]).abs().max()) > 0.01


def test_the_nm_selection_equals_the_network_with_zeros_in_the_pattern(model: Darknet, images: Tensor) -> None:
    scores = scaled_scores(model)
    keep = {}
    for index in PATTERNED:
        keep[index] = torch.zeros(scores[index].shape, dtype=torch.bool)
        filters, channels, height, width = scores[index].shape
        for k, start, r, s in itertools.product(range(filters), range(0, channels, 4), range(height), range(width)):
            block = scores[index][k, start : start + 4, r, s].abs()
            keep[index][k, start + block.argsort(descending=True)[:2], r, s] = True
    scored = ScoredDarknet(model, scores, pattern=NmPattern(2, 4))
    zeroed = apply_unstructured(model, keep)
    with torch.no_grad():
        expected = zeroed(images)[0]
        torch.testing.assert_close(scored(images)[0], expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
        assert float((expected - model(images)[0]).abs().max()) > 0.01
    cut = solve_nm(scored.score_tensors(), model.cfg, NmPattern(2, 4))
    assert all(torch.equal(cut[index], keep[index]) for index in keep), "what is selected is what will be cut"
    assert set(cut) == set(keep)


@pytest.mark.parametrize("method", ["structured", "unstructured", "nm"])
def test_only_scores_learn_and_all_of_a_layer_do(model: Darknet, images: Tensor, method: str) -> None:
    model.train()  # as a training stage may have left it
    before = {key: value.clone() for key, value in model.state_dict().items()}
    scored = scored_of(model, method)
    terms = score_objective(scored, model, LoopSettings(1, 0.1), ThreatModel(steps=2), 0, CPU)(batch_of(0), 0)
    terms["loss"].backward()
    assert {name.split(".")[0] for name, _ in scored.named_parameters()} == {"scores"}
    for index in PATTERNED if method == "nm" else (0, 1, 2, 5):
        gradient = scored.scores[str(index)].grad
        assert gradient is not None
        # Straight through: dead weights get gradients as well as living ones.
        assert float((gradient != 0).float().mean()) > 0.95, index
    assert scored.scores[str(HEAD_OUTPUT)].grad is None
    if method == "nm":
        assert scored.scores["0"].grad is None, "three input channels are no block of four"
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert all(parameter.grad is None for parameter in model.parameters())


def scored_of(model: Darknet, method: str) -> ScoredDarknet:
    scores = scaled_scores(model)
    if method == "structured":
        return ScoredDarknet(model, scores, unit_counts=unit_counts(model, COUNTS))
    if method == "nm":
        return ScoredDarknet(model, scores, pattern=NmPattern(2, 4))
    counts = {index: scores[index].numel() // 3 for index in (0, 1, 2, 5)}
    return ScoredDarknet(model, scores, weight_counts=counts)


def one_layer() -> tuple[Darknet, Tensor]:
    """Two 1x1 filters over one channel; the head adds up its two inputs into every one of 6 channels."""
    text = network(
        conv(2, norm=False, activation="linear"), conv(6, norm=False, activation="linear"),
        "yolo mask=0 anchors=4,5 classes=1", size=8, channels=1,
    )  # fmt: skip
    model = random_network(text)
    with torch.no_grad():
        model.conv(0).weight.copy_(torch.tensor([3.0, -2.0]).view(2, 1, 1, 1))
        model.conv(0).bias.copy_(torch.tensor([10.0, 20.0]))
        model.conv(1).weight.fill_(1.0)
        model.conv(1).bias.zero_()
    return model, torch.full((1, 1, 1, 1), 0.5)


def test_the_structured_gradient_worked_by_hand() -> None:
    model, image = one_layer()
    # Scores 0.9 and -0.4: |0.9| is the one that lives. y = m1 (3 x + 10) + m2 (-2 x + 20) with x = 0.5:
    # m = (1, 0) gives 11.5. dy/dm = (11.5, 19), handed to |score|: times the sign of the score.
    scores = {0: torch.tensor([0.9, -0.4]).view(2, 1, 1, 1), 1: torch.ones(6, 2, 1, 1)}
    counts = [1 if group.prunable else group.channels for group in coupling_groups(model.cfg)]
    scored = ScoredDarknet(model, scores, unit_counts=counts)
    y = scored(image)[0][0, 0, 0, 0]
    assert y.item() == pytest.approx(11.5)
    y.backward()
    assert scored.scores["0"].grad.flatten().tolist() == pytest.approx([11.5, -19.0])


def test_the_unstructured_gradient_worked_by_hand() -> None:
    model, image = one_layer()
    # Weights are masked, biases are not: y = m1 3 x + 10 + m2 (-2) x + 20 = 1.5 + 30 with m = (1, 0).
    # dy/dm = (3 x, -2 x) = (1.5, -1); the dead weight's score is negative, so its gradient turns to 1.
    scores = {0: torch.tensor([0.9, -0.4]).view(2, 1, 1, 1), 1: torch.ones(6, 2, 1, 1)}
    scored = ScoredDarknet(model, scores, weight_counts={0: 1})
    y = scored(image)[0][0, 0, 0, 0]
    assert y.item() == pytest.approx(31.5)
    y.backward()
    assert scored.scores["0"].grad.flatten().tolist() == pytest.approx([1.5, 1.0])


def test_the_objective_attacks_the_selected_subnetwork(model: Darknet) -> None:
    scored, batch, attack = scored_of(model, "structured"), batch_of(3), ThreatModel(random_start=True)
    cut = apply_structured(model, living_filters(model, scaled_scores(model), COUNTS))
    attacked = Pgd.against(cut, attack, seed=6)(batch.images, batch.targets, batch.image_ids, 2)
    with torch.no_grad():
        expected = float(yolo_loss(cut(attacked), batch.targets, cut.cfg).total)
    loss = score_objective(scored, model, LoopSettings(1, 0.1), attack, 6, CPU)(batch, 2)["loss"]
    assert loss.item() == pytest.approx(expected, rel=1e-4)


def test_bf16_is_close_to_fp32_and_gradients_still_reach_the_scores(model: Darknet) -> None:
    losses = {}
    for precision in ("fp32", "bf16"):
        scored, attack = scored_of(model, "structured"), ThreatModel(steps=2)
        settings = LoopSettings(1, 0.1, precision=precision)
        loss = score_objective(scored, model, settings, attack, 0, CPU)(batch_of(0), 0)["loss"]
        loss.backward()
        assert float(scored.scores["1"].grad.abs().sum()) > 0
        losses[precision] = loss.item()
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.03)
    assert losses["bf16"] != losses["fp32"], "bf16 must be used when it is asked for"


@pytest.mark.parametrize("method", ["structured", "unstructured", "nm"])
def test_optimising_scores_lowers_the_robust_loss_of_a_fixed_batch(model: Darknet, method: str) -> None:
    scored, batch = scored_of(model, method), batch_of(1)
    objective = score_objective(scored, model, LoopSettings(1, 0.1), ThreatModel(steps=2), 0, CPU)
    optimizer = torch.optim.Adam(scored.parameters(), lr=0.02)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = objective(batch, 0)["loss"]
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert math.isfinite(losses[-1])
    assert min(losses[-5:]) < 0.97 * losses[0]


def test_a_selection_follows_the_scores_as_they_change(model: Darknet, images: Tensor) -> None:
    scored = scored_of(model, "structured")
    first = scored(images)[0].detach()
    with torch.no_grad():
        scored.scores["0"].copy_(scored.scores["0"].flip(0))
    assert not torch.equal(scored(images)[0], first)
    taken = scored.score_tensors()
    assert not any(value.requires_grad for value in taken.values())
    before = copy.deepcopy(taken)
    with torch.no_grad():
        scored.scores["0"].zero_()
    assert torch.equal(taken[0], before[0]), "what was taken does not follow later steps"


def test_keeping_everything_is_the_network_itself(model: Darknet, images: Tensor) -> None:
    groups = coupling_groups(model.cfg)
    scored = ScoredDarknet(model, scaled_scores(model), unit_counts=[group.channels for group in groups])
    with torch.no_grad():
        torch.testing.assert_close(scored(images), FoldedDarknet(model)(images))


def test_exactly_one_kind_of_selection_is_wanted(model: Darknet) -> None:
    pattern = NmPattern(2, 4)
    for counts in ({}, {"unit_counts": [1], "weight_counts": {0: 1}}, {"weight_counts": {0: 1}, "pattern": pattern}):
        with pytest.raises(ValueError, match="unit_counts"):
            ScoredDarknet(model, scaled_scores(model), **counts)
