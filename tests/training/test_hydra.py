"""Score optimisation: what is selected is what will be cut, and only scores learn."""

from __future__ import annotations

import copy
import itertools
import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from prunedeploy.attacks import Pgd, ThreatModel
from prunedeploy.config import TrainingConfig
from prunedeploy.data.loader import Batch
from prunedeploy.models import Darknet, FoldedDarknet, yolo_loss
from prunedeploy.pruning.coupling import coupling_groups
from prunedeploy.pruning.cut import Selection
from prunedeploy.pruning.granularity import Allocation, Filters, FiltersThenWeights, Kernels, Pattern, Weights
from prunedeploy.pruning.masks import apply_structured, apply_unstructured
from prunedeploy.pruning.ratio import Widths
from prunedeploy.pruning.semi_structured import NmPattern
from prunedeploy.scores import magnitude_scores, random_scores, scaled_scores
from prunedeploy.training.hydra import ScoredDarknet, score_objective, starting_scores
from prunedeploy.training.loop import train
from pruning.darknets import conv, network, random_network
from training.small import batch_of, batches, loop_settings

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
PRUNABLE = (0, 1, 2, 5)
METHODS = ("structured", "unstructured", "kernel", "nm", "hybrid")


def filters(model: Darknet, counts: dict[int, int]) -> Allocation:
    return Allocation(Widths(tuple(unit_counts(model, counts)), 0.5, 0.5, 1))


def selection_of(model: Darknet, method: str) -> Selection:
    scores = scaled_scores(model)
    if method == "structured":
        return Filters(0.5).selection(model.cfg, filters(model, COUNTS))
    if method == "nm":
        return Pattern(0.5, pattern=NmPattern(2, 4)).selection(model.cfg, Allocation())
    if method == "kernel":
        counts = {index: scores[index][:, :, 0, 0].numel() // 3 for index in PRUNABLE}
        return Kernels(0.5).selection(model.cfg, Allocation(pieces=counts))
    if method == "hybrid":
        # a third of the connected weights: layers 1, 2 and 5 read 5, 7 and 14 living channels
        counts = {0: 5 * 3 * 9 // 3, 1: 7 * 5 * 9 // 3, 2: 7 * 7 * 9 // 3, 5: 4 * 14 * 9 // 3}
        return FiltersThenWeights(0.5).selection(model.cfg, Allocation(filters(model, COUNTS).widths, counts))
    counts = {index: scores[index].numel() // 3 for index in PRUNABLE}
    return Weights(0.5).selection(model.cfg, Allocation(pieces=counts))


def selected(scored: ScoredDarknet, images: Tensor) -> list[Tensor]:
    """Heads of the selected subnetwork in evaluation mode, which is what the inner attack sees."""
    return scored.folded(scored.masks())(images)


def test_the_structured_selection_equals_the_network_that_will_be_cut(model: Darknet, images: Tensor) -> None:
    scores = scaled_scores(model)
    scored = ScoredDarknet(model, scores, selection_of(model, "structured"))
    cut = apply_structured(model, living_filters(model, scores, COUNTS))
    with torch.no_grad():
        for ours, expected in zip(selected(scored, images), cut(images), strict=True):
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
    scored = ScoredDarknet(model, scores, Weights(0.7).selection(model.cfg, Allocation(pieces=counts)))
    zeroed = apply_unstructured(model, keep)
    with torch.no_grad():
        expected = zeroed(images)[0]
        torch.testing.assert_close(
            selected(scored, images)[0], expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max())
        )
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
    scored = ScoredDarknet(model, scores, selection_of(model, "nm"))
    zeroed = apply_unstructured(model, keep)
    with torch.no_grad():
        expected = zeroed(images)[0]
        torch.testing.assert_close(
            selected(scored, images)[0], expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max())
        )
        assert float((expected - model(images)[0]).abs().max()) > 0.01
    cut = selection_of(model, "nm")(scored.score_tensors()).as_bool().weights
    assert all(torch.equal(cut[index], keep[index]) for index in keep), "what is selected is what will be cut"
    assert set(cut) == set(keep)


@pytest.mark.parametrize("freeze_bn", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_only_scores_and_normalisation_learn(model: Darknet, method: str, freeze_bn: bool) -> None:
    model.train()  # as a training stage may have left it
    before = {key: value.clone() for key, value in model.state_dict().items()}
    scored = scored_of(model, method, freeze_bn)
    objective = score_objective(scored, loop_settings(1, 0.1), ThreatModel(steps=2), 0, CPU)
    objective(batch_of(0), 0)["loss"].backward()
    trained = {name for name, _ in scored.named_parameters() if not name.startswith("scores.")}
    normalised = ("0", "1", "5")  # layers 2 and 6 have no normalisation
    alive = () if freeze_bn else normalised
    assert trained == {f"normalisation.{index}.{name}" for index in alive for name in ("scale", "bias")}
    for name, parameter in scored.normalisation.named_parameters():
        assert float(parameter.grad.abs().sum()) > 0, name
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
    for key, value in scored.network.state_dict().items():
        followed = not freeze_bn and key.rpartition(".")[2] in ("mean", "variance")
        assert torch.equal(value, before[key]) != followed, key
    assert all(scored.network.conv(index).weight.grad is None for index in (0, 1, 2, 5, 6))


def chain_by_hand(model: Darknet, weights: dict[int, Tensor], masks: dict[int, Tensor], x: Tensor, training: bool):
    """The four layers of `CHAIN`, module by module: masked weight, normalisation, filter mask, activation."""
    for index in (0, 1, 2):
        conv = model.conv(index)
        y = F.conv2d(x, weights[index], None, stride=1 + index % 2, padding=1)
        if training:
            mean, variance, n = y.mean((0, 2, 3)), y.var((0, 2, 3), unbiased=False), y.numel() / y.shape[1]
            normal = (y - mean.view(-1, 1, 1)) / (variance.view(-1, 1, 1) + 1e-5).sqrt()
            with torch.no_grad():
                conv.mean.mul_(0.9).add_(mean, alpha=0.1)
                conv.variance.mul_(0.9).add_(variance, alpha=0.1 * n / (n - 1))
        else:
            normal = (y - conv.mean.view(-1, 1, 1)) / (conv.variance.sqrt().view(-1, 1, 1) + 1e-6)
        y = normal * conv.scale.view(-1, 1, 1) + conv.bias.view(-1, 1, 1)
        y = y * masks[index].view(-1, 1, 1) if index in masks else y
        x = F.mish(y) if index == 1 else F.leaky_relu(y, 0.1)
    return [F.conv2d(x, model.conv(3).weight, model.conv(3).bias)]


CHAIN = (
    conv(8, size=3),
    conv(12, size=3, activation="mish") + " stride=2",
    conv(10, size=3),
    conv(14, norm=False, activation="linear"),
    "yolo mask=0,1 anchors=5,6,9,8 classes=2",
)
CHAIN_COUNTS = {0: 5, 1: 7, 2: 4}


@pytest.mark.parametrize("method", ["structured", "unstructured"])
def test_ten_steps_equal_a_plain_loop(method: str, tmp_path: Path) -> None:
    """HYDRA's step 3 as a loop of its own: no folding, no coupling, no straight-through function of ours."""
    model, steps, eps = random_network(network(*CHAIN), seed=1), 10, 0.05
    scores = scaled_scores(model)
    counts = {i: CHAIN_COUNTS[i] if method == "structured" else scores[i].numel() // 3 for i in CHAIN_COUNTS}
    attack = ThreatModel(eps=eps, step_size=0.03, steps=2)
    settings = loop_settings(steps, 0.1, weight_decay=0.0, clip_norm=10.0)

    plain = copy.deepcopy(model)
    trained = {i: value.clone().requires_grad_() for i, value in scores.items() if i in counts}
    normalisation = [value for i in counts for value in (plain.conv(i).scale, plain.conv(i).bias)]
    optimizer = torch.optim.SGD([{"params": list(trained.values())}, {"params": normalisation}], lr=0.1, momentum=0.9)
    for step in range(steps):
        for group, peak in zip(optimizer.param_groups, (0.1, 0.02), strict=True):
            group["lr"] = peak * 0.5 * (1 + math.cos(math.pi * step / steps))
        weights, masks = {i: plain.conv(i).weight.detach() for i in counts}, {}
        for i, value in trained.items():
            worth = value.abs().mean((1, 2, 3)) if method == "structured" else value.abs()
            order = worth.detach().flatten().argsort(descending=True)
            hard = torch.zeros(worth.numel()).index_fill(0, order[: counts[i]], 1.0).view_as(worth)
            soft = worth - worth.detach() + hard
            masks |= {i: soft} if method == "structured" else {}
            weights[i] = weights[i] if method == "structured" else weights[i] * soft
        batch = batch_of(step)
        x = batch.images
        for _ in range(attack.steps):
            x = x.detach().requires_grad_()
            heads = chain_by_hand(plain, weights, masks, x, training=False)
            (gradient,) = torch.autograd.grad(yolo_loss(heads, batch.targets, plain.cfg).total, x, retain_graph=True)
            x = x.detach() + attack.step_size * gradient.sign()
            x = torch.minimum(torch.maximum(x, batch.images - eps), batch.images + eps).clamp(0, 1)
        loss = yolo_loss(chain_by_hand(plain, weights, masks, x, training=True), batch.targets, plain.cfg).total
        optimizer.zero_grad()
        loss.backward()
        for group in optimizer.param_groups:
            torch.nn.utils.clip_grad_norm_(group["params"], 10.0)
        optimizer.step()

    if method == "structured":
        groups = coupling_groups(model.cfg)
        widths = tuple(counts[group.layers[0]] if group.prunable else group.channels for group in groups)
        select = Filters(0.5).selection(model.cfg, Allocation(Widths(widths, 0.5, 0.5, 1)))
    else:
        select = Weights(0.5).selection(model.cfg, Allocation(pieces=counts))
    scored = ScoredDarknet(model, scores, select)
    train(
        scored, scored.parameter_sets(0.02), batches, score_objective(scored, settings, attack, 0, CPU), settings,
        stage="s", work=tmp_path, log=tmp_path / "log.jsonl",
    )  # fmt: skip
    for i, value in trained.items():
        torch.testing.assert_close(scored.scores[str(i)].detach(), value.detach(), rtol=1e-6, atol=1e-6)
        # A filter's gradient is shared out over its weights, so their scores move less.
        moved = float((value.detach() - scores[i]).abs().max())
        assert moved > (5e-4 if method == "structured" else 1e-2), "scores must move for this to say anything"
        for name in ("scale", "bias", "mean", "variance"):
            ours, expected = getattr(scored.network.conv(i), name), getattr(plain.conv(i), name)
            torch.testing.assert_close(ours.detach(), expected.detach(), rtol=1e-6, atol=1e-6)
            assert float((expected.detach() - getattr(model.conv(i), name).detach()).abs().max()) > 1e-3


def scored_of(model: Darknet, method: str, freeze_bn: bool = False) -> ScoredDarknet:
    return ScoredDarknet(model, scaled_scores(model), selection_of(model, method), freeze_bn)


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
    counts = tuple(1 if group.prunable else group.channels for group in coupling_groups(model.cfg))
    scored = ScoredDarknet(model, scores, Filters(0.5).selection(model.cfg, Allocation(Widths(counts, 0.5, 0.5, 1))))
    y = scored(image)[0][0, 0, 0, 0]
    assert y.item() == pytest.approx(11.5)
    y.backward()
    assert scored.scores["0"].grad.flatten().tolist() == pytest.approx([11.5, -19.0])


def test_the_unstructured_gradient_worked_by_hand() -> None:
    model, image = one_layer()
    # Weights are masked, biases are not: y = m1 3 x + 10 + m2 (-2) x + 20 = 1.5 + 30 with m = (1, 0).
    # dy/dm = (3 x, -2 x) = (1.5, -1); the dead weight's score is negative, so its gradient turns to 1.
    scores = {0: torch.tensor([0.9, -0.4]).view(2, 1, 1, 1), 1: torch.ones(6, 2, 1, 1)}
    scored = ScoredDarknet(model, scores, Weights(0.5).selection(model.cfg, Allocation(pieces={0: 1})))
    y = scored(image)[0][0, 0, 0, 0]
    assert y.item() == pytest.approx(31.5)
    y.backward()
    assert scored.scores["0"].grad.flatten().tolist() == pytest.approx([1.5, 1.0])


def test_the_objective_attacks_the_selected_subnetwork(model: Darknet) -> None:
    scored, batch, attack = scored_of(model, "structured"), batch_of(3), ThreatModel(random_start=True)
    cut = apply_structured(model, living_filters(model, scaled_scores(model), COUNTS))
    attacked = Pgd.against(cut, attack, seed=6)(batch.images, batch.targets, batch.image_ids, 2)
    with torch.no_grad():
        expected = float(yolo_loss(cut.train()(attacked), batch.targets, cut.cfg).total)
    loss = score_objective(scored, loop_settings(1, 0.1), attack, 6, CPU)(batch, 2)["loss"]
    assert loss.item() == pytest.approx(expected, rel=1e-4)


def test_bf16_is_close_to_fp32_and_gradients_still_reach_the_scores(model: Darknet) -> None:
    losses = {}
    for precision in ("fp32", "bf16"):
        scored, attack = scored_of(model, "structured"), ThreatModel(steps=2)
        settings = loop_settings(1, 0.1, precision=precision)
        loss = score_objective(scored, settings, attack, 0, CPU)(batch_of(0), 0)["loss"]
        loss.backward()
        assert float(scored.scores["1"].grad.abs().sum()) > 0
        losses[precision] = loss.item()
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.03)
    assert losses["bf16"] != losses["fp32"], "bf16 must be used when it is asked for"


@pytest.mark.parametrize("method", METHODS)
def test_optimising_scores_lowers_the_robust_loss_of_a_fixed_batch(model: Darknet, method: str) -> None:
    scored, batch = scored_of(model, method), batch_of(1)
    objective = score_objective(scored, loop_settings(1, 0.1), ThreatModel(steps=2), 0, CPU)
    optimizer = torch.optim.Adam(scored.parameters(), lr=0.02)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = objective(batch, 0)["loss"]
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert math.isfinite(losses[-1])
    assert min(losses[-5:]) < 0.97 * losses[0]


def test_a_selection_follows_the_scores_as_they_change(model: Darknet, images: Tensor) -> None:
    scored = scored_of(model, "structured")
    first = selected(scored, images)[0]
    with torch.no_grad():
        scored.scores["0"].copy_(scored.scores["0"].flip(0))
    assert not torch.equal(selected(scored, images)[0], first)
    taken = scored.score_tensors()
    assert not any(value.requires_grad for value in taken.values())
    before = copy.deepcopy(taken)
    with torch.no_grad():
        scored.scores["0"].zero_()
    assert torch.equal(taken[0], before[0]), "what was taken does not follow later steps"


def test_keeping_everything_is_the_network_itself(model: Darknet, images: Tensor) -> None:
    groups = coupling_groups(model.cfg)
    whole = Allocation(Widths(tuple(group.channels for group in groups), 0.0, 0.0, 1))
    scored = ScoredDarknet(model, scaled_scores(model), Filters(0.0).selection(model.cfg, whole))
    with torch.no_grad():
        torch.testing.assert_close(selected(scored, images), FoldedDarknet(model)(images))


def test_the_kernel_selection_equals_the_network_without_them(model: Darknet, images: Tensor) -> None:
    scores = scaled_scores(model)
    keep = {}
    for index in PRUNABLE:
        filters, channels = scores[index].shape[:2]
        importance = {
            (o, i): sum(scores[index][o, i].abs().flatten().tolist()) for o in range(filters) for i in range(channels)
        }
        living = sorted(importance, key=lambda kernel: -importance[kernel])[: filters * channels // 3]
        keep[index] = torch.zeros(scores[index].shape, dtype=torch.bool)
        for o, i in living:
            keep[index][o, i] = True
    scored, zeroed = scored_of(model, "kernel"), apply_unstructured(model, keep)
    with torch.no_grad():
        expected = zeroed(images)[0]
        torch.testing.assert_close(
            selected(scored, images)[0], expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max())
        )
        assert float((expected - model(images)[0]).abs().max()) > 0.01


def test_the_kernel_gradient_worked_by_hand() -> None:
    # Two 3x3 filters over one channel, image 1 everywhere, at the centre of 3 x 3 pixels: a living kernel gives
    # sum(w) = 9 * 2 = 18, which the head hands on. dy/dm of a kernel is 18; its importance is the mean of nine
    # |scores|, so each score gets 18 / 9 = 2, with its sign.
    text = network(
        conv(2, size=3, norm=False, activation="linear"), conv(6, norm=False, activation="linear"),
        "yolo mask=0 anchors=4,5 classes=1", size=3, channels=1,
    )  # fmt: skip
    model = random_network(text)
    with torch.no_grad():
        model.conv(0).weight.fill_(2.0)
        model.conv(0).bias.zero_()
        model.conv(1).weight.fill_(1.0)
        model.conv(1).bias.zero_()
    living, dead = torch.full((1, 1, 3, 3), 0.5), torch.full((1, 1, 3, 3), 0.1)
    dead[0, 0, 1, 1] = -0.1
    scores = {0: torch.cat([living, dead]), 1: torch.ones(6, 2, 1, 1)}
    scored = ScoredDarknet(model, scores, Kernels(0.5).selection(model.cfg, Allocation(pieces={0: 1})))
    y = scored(torch.ones(1, 1, 3, 3))[0][0, 0, 1, 1]
    assert y.item() == pytest.approx(18.0)
    y.backward()
    assert scored.scores["0"].grad[0].flatten().tolist() == pytest.approx([2.0] * 9)
    assert scored.scores["0"].grad[1].flatten().tolist() == pytest.approx([2.0] * 4 + [-2.0] + [2.0] * 4)


def test_the_hybrid_selection_equals_the_network_cut_by_both(model: Darknet, images: Tensor) -> None:
    scores = scaled_scores(model)
    living = living_filters(model, scores, COUNTS)
    # By layer, which filters write its input: layer 5 reads a route of layer 3, which is layer 1's width, and layer 1.
    inputs = {0: torch.ones(3, dtype=torch.bool), 1: living[0], 2: living[1], 5: torch.cat([living[1], living[1]])}
    keep = {}
    for index in PRUNABLE:
        connected = [
            (float(scores[index][place].abs()), place)
            for place in itertools.product(*map(range, scores[index].shape))
            if living[index][place[0]] and inputs[index][place[1]]
        ]
        keep[index] = torch.zeros(scores[index].shape, dtype=torch.bool)
        for _, place in sorted(connected, reverse=True)[: len(connected) // 3]:
            keep[index][place] = True
    expected_network = apply_structured(apply_unstructured(model, keep), living)
    with torch.no_grad():
        expected = expected_network(images)[0]
        found = selected(scored_of(model, "hybrid"), images)[0]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
        assert float((expected - model(images)[0]).abs().max()) > 0.01


def test_any_scores_start_in_their_own_order_with_the_sizes_of_hydras(model: Darknet) -> None:
    scaled = scaled_scores(model)
    for scores in (scaled, magnitude_scores(model)):
        for index, value in starting_scores(scores, model).items():
            assert torch.equal(value, scaled[index]), "the order of the weights themselves is HYDRA's own"
    # Heavy-tailed, as contributions are: on a scale of their largest nearly all would be next to nothing.
    others = {index: value**9 for index, value in random_scores(model, seed=0).items()}
    for index, value in starting_scores(others, model).items():
        assert torch.equal(value.abs().flatten().sort().values, scaled[index].abs().flatten().sort().values)
        ordered = value.abs().flatten()[others[index].abs().flatten().argsort(stable=True)]
        assert bool((ordered.diff() >= 0).all())
        assert torch.equal(value < 0, others[index] < 0)


def test_a_score_of_zero_can_grow() -> None:
    model, image = one_layer()
    scores = {0: torch.tensor([0.9, 0.0]).view(2, 1, 1, 1), 1: torch.zeros(6, 2, 1, 1)}
    selection = Weights(0.5).selection(model.cfg, Allocation(pieces={0: 1}))
    dead = ScoredDarknet(model, scores, selection)
    dead(image)[0][0, 0, 0, 0].backward()
    assert dead.scores["0"].grad[1].item() == 0.0, "through |s| no gradient passes at 0"
    started = ScoredDarknet(model, starting_scores(scores, model), selection)
    started(image)[0][0, 0, 0, 0].backward()
    assert started.scores["0"].grad[1].item() == pytest.approx(-1.0)  # -2 x, as in the example above
    assert bool((started.scores["1"] > 0).all()), "a layer of zeros has no order, but starts"
    with torch.no_grad():
        model.conv(0).weight[1] = 0.0
    assert 0.0 < starting_scores(scores, model)[0][1].item() < 1e-30, "a weight of zero has no size, but starts"


@pytest.mark.parametrize("method", METHODS)
def test_masks_are_exactly_zero_or_one_and_as_many_as_allowed(model: Darknet, method: str) -> None:
    masks = selection_of(model, method)(scaled_scores(model))
    for mask in (*masks.filters.values(), *masks.weights.values()):
        assert set(mask.unique().tolist()) <= {0.0, 1.0}
    if method in ("structured", "hybrid"):
        assert {index: int(masks.filters[index].sum()) for index in COUNTS} == COUNTS
        assert int(masks.filters[2].sum()) == COUNTS[1]
    if method in ("unstructured", "kernel"):
        for index in PRUNABLE:
            assert float(masks.weights[index].mean()) == pytest.approx(1 / 3, abs=0.02)


def test_a_dead_filter_learns_from_the_weights_it_would_have() -> None:
    # Two 1x1 filters over two channels, both 0.5. A: scores .9, .5, mean .7, lives; B: .95, .1, mean .525, is dead. One
    # of A's two weights lives, the one with .9; of B's those at least as high would, the one with .95.
    text = network(
        conv(2, norm=False, activation="linear"), conv(6, norm=False, activation="linear"),
        "yolo mask=0 anchors=4,5 classes=1", size=8, channels=2,
    )  # fmt: skip
    model, image = random_network(text), torch.full((1, 2, 1, 1), 0.5)
    with torch.no_grad():
        model.conv(0).weight.copy_(torch.tensor([[3.0, 5.0], [-2.0, 7.0]]).view(2, 2, 1, 1))
        model.conv(0).bias.copy_(torch.tensor([10.0, 20.0]))
        model.conv(1).weight.fill_(1.0)
        model.conv(1).bias.zero_()
    scores = {0: torch.tensor([[0.9, 0.5], [0.95, 0.1]]).view(2, 2, 1, 1), 1: torch.ones(6, 2, 1, 1)}
    counts = tuple(1 if group.prunable else group.channels for group in coupling_groups(model.cfg))
    allocation = Allocation(Widths(counts, 0.5, 0.5, 1), {0: 1})
    scored = ScoredDarknet(model, scores, FiltersThenWeights(0.5).selection(model.cfg, allocation))
    y = scored(image)[0][0, 0, 0, 0]
    assert y.item() == pytest.approx(3 * 0.5 + 10)
    y.backward()
    # dy/d(mask of A) = 11.5, of B = -2 * .5 + 20 = 19, each halved over two scores. Through the masks of weights come
    # 3 * .5 and 5 * .5 for A, and nothing for B, whose filter is off.
    expected = [11.5 / 2 + 1.5, 11.5 / 2 + 2.5, 19 / 2, 19 / 2]
    assert scored.scores["0"].grad.flatten().tolist() == pytest.approx(expected)


def test_flips_are_counted_and_logged_for_every_step(model: Darknet, tmp_path: Path) -> None:
    scored, selection, seen = scored_of(model, "hybrid"), selection_of(model, "hybrid"), []
    objective = score_objective(scored, loop_settings(4, 2.0), ThreatModel(steps=1), 0, CPU)

    def watched(batch: Batch, step: int) -> dict[str, Tensor]:
        masks = selection(scored.score_tensors()).as_bool()
        seen.append([mask.tolist() for part in masks for mask in part.values()])
        return objective(batch, step)

    train(
        scored, scored.parameter_sets(1e-3), batches, watched, loop_settings(4, 2.0, schedule="constant"),
        stage="s", work=tmp_path, log=tmp_path / "log.jsonl",
    )  # fmt: skip
    logged = [json.loads(line)["flips"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]

    def apart(a: list, b: list) -> int:
        pairs = zip(a, b, strict=True)
        return sum(apart(x, y) if isinstance(x, list) else int(x != y) for x, y in pairs)

    assert logged == [0.0, *(float(apart(a, b)) for a, b in itertools.pairwise(seen))]
    assert all(flips > 0 for flips in logged[1:]), "the learning rate is high enough to see some"


@pytest.mark.parametrize(
    "settings", [loop_settings(7, 0.5, checkpoint_every=3, ema=0.5), loop_settings(7, 0.5, checkpoint_every=3)]
)
def test_a_killed_optimisation_goes_on_bit_for_bit(model: Darknet, settings: TrainingConfig, tmp_path: Path) -> None:
    def run(work: Path, stop_after: int = 0) -> ScoredDarknet:
        work.mkdir(exist_ok=True)
        scored, taken = scored_of(model, "hybrid"), 0

        def advance(count: int, loss: float) -> None:
            nonlocal taken
            taken += count
            if taken == stop_after:
                raise InterruptedError

        objective = score_objective(scored, settings, ThreatModel(steps=1, random_start=True), 0, CPU)
        log = work / "log.jsonl"
        train(
            scored, scored.parameter_sets(0.01), batches, objective, settings,
            stage="s", work=work, log=log, advance=advance,
        )  # fmt: skip
        return scored

    whole = run(tmp_path / "whole")
    with pytest.raises(InterruptedError):
        run(tmp_path / "killed", stop_after=5)
    resumed = run(tmp_path / "killed")
    for key, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key]), key
    for key, value in whole.network.state_dict().items():
        assert torch.equal(value, resumed.network.state_dict()[key]), key
    assert (tmp_path / "whole" / "log.jsonl").read_text() == (tmp_path / "killed" / "log.jsonl").read_text()


def test_a_checkpoint_carries_no_frozen_weights(model: Darknet) -> None:
    scored = scored_of(model, "unstructured")
    floats = {key for key, value in scored.state_dict().items() if value.is_floating_point()}
    alive = {f"normalisation.{i}.{name}" for i in "015" for name in ("scale", "bias", "mean", "variance")}
    assert floats == {f"scores.{i}" for i in "01256"} | alive
