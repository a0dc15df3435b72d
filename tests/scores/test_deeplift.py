"""DeepLIFT contributions against plain loops, and the sums that they must have."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from effort import examples, slow_after
from prunedeploy.models import Darknet, load_darknet
from prunedeploy.models.darknet import run_layers
from prunedeploy.models.sections import Convolutional
from prunedeploy.scores import DetectionTarget, choose_target, deeplift, gradient_x_input_scores
from prunedeploy.scores.activation_slopes import secant
from prunedeploy.scores.reference import zeros_reference
from prunedeploy_engines.errors import PruningError
from pruning.darknets import ACTIVATIONS, HEAD, RandomCfg, conv, network, random_cfgs, random_network
from scores.dense_deeplift import dense_contributions
from scores.examples import (
    NO_TARGETS,
    Batch,
    contributions,
    mixed_network,
    multipliers_at_convolutions,
    random_batches,
)

RULES = ("rescale", "reveal-cancel")


def images_and_target(model: Darknet, count: int = 2, size: int = 8, seed: int = 0) -> tuple[Tensor, DetectionTarget]:
    """Random images, and the three surest predictions of every head."""
    images = random_batches([count], size, seed)[0].images
    with torch.no_grad():
        return images, choose_target(model, model(images), 3)


def random_reference(images: Tensor, seed: int = 9) -> Tensor:
    return torch.rand(images[:1].shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@torch.no_grad()
def delta_target(model: Darknet, images: Tensor, reference: Tensor, target: DetectionTarget) -> Tensor:
    """``(B,)``, by the network's own forward pass."""
    return target(model(images)) - target(model(reference.expand_as(images)))


@torch.no_grad()
def inputs_and_outputs(model: Darknet, images: Tensor) -> dict[int, tuple[Tensor, Tensor]]:
    """What every folded convolution reads and gives before its activation."""
    found = {}

    def convolve(layer: Convolutional, x: Tensor) -> Tensor:
        weight, bias = model.conv(layer.index).folded()
        y = torch.nn.functional.conv2d(x, weight, bias, layer.stride, layer.padding, layer.dilation, layer.groups)
        found[layer.index] = x, y
        return model.conv(layer.index)(x)

    run_layers(model.cfg.layers, images, convolve)
    return found


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_contributions_equal_those_of_dense_matrices(activation: str, rule: str) -> None:
    model = mixed_network(activation)
    images, target = images_and_target(model, 2)
    reference = random_reference(images)
    found = contributions(model, images, reference, target, rule)
    for number, image in enumerate(images):
        weights = [weight[number].numpy() for weight in target.weights]
        expected, _ = dense_contributions(model, image.numpy(), reference[0].numpy(), weights, rule)
        for index, value in expected.items():
            assert np.abs(value).max() > 0
            assert np.abs(found[index][number].numpy() - value).max() < 1e-10 * np.abs(value).max()


@pytest.mark.parametrize("rule", RULES)
@given(graph=random_cfgs(products=False), seed=st.integers(0, 100))
@settings(max_examples=examples(10), suppress_health_check=[HealthCheck.filter_too_much])
def test_contributions_in_random_networks_equal_those_of_dense_matrices(graph: RandomCfg, seed: int, rule: str) -> None:
    assume(all(layer.macs < 50_000 and math.prod(layer.out_shape) < 1024 for layer in graph.cfg.convolutions))
    model = random_network(graph.cfg, seed).double()
    images, target = images_and_target(model, 1, graph.size, seed)
    reference = random_reference(images)
    found = contributions(model, images, reference, target, rule)
    weights = [weight[0].numpy() for weight in target.weights]
    expected, _ = dense_contributions(model, images[0].numpy(), reference[0].numpy(), weights, rule)
    for index, value in expected.items():
        if index in found:
            assert np.abs(found[index][0].numpy() - value).max() <= 1e-8 * np.abs(value).max()
        else:
            assert np.abs(value).max() == 0


def test_contribution_of_a_single_weight_is_a_sum_over_positions() -> None:
    strided = "convolutional filters=4 size=3 stride=2 pad=1 dilation=1 groups=2 activation=leaky batch_normalize=1"
    dilated = "convolutional filters=4 size=3 padding=1 dilation=2 activation=mish batch_normalize=1"
    model = random_network(network(conv(4, 3), strided, dilated, *HEAD, size=9)).double()
    images, target = images_and_target(model, 2, 9)
    reference = random_reference(images)
    multipliers = multipliers_at_convolutions(model, images, reference, target)
    before, before0 = inputs_and_outputs(model, images), inputs_and_outputs(model, reference)
    found = contributions(model, images, reference, target)
    for layer in model.cfg.convolutions:
        delta = (before[layer.index][0] - before0[layer.index][0]).numpy()
        m = multipliers[layer.index].numpy()
        weight = model.conv(layer.index).weight.detach().numpy()  # before normalisation, as the multipliers
        per_filter = weight.shape[1]
        for o, i, k, l in ((0, 0, 0, 0), (3, per_filter - 1, weight.shape[2] - 1, 0)):  # noqa: E741
            channel = o // (len(weight) // layer.groups) * per_filter + i
            for number in range(2):
                total = 0.0
                for y, x in np.ndindex(*m.shape[2:]):
                    row = y * layer.stride + k * layer.dilation - layer.padding
                    column = x * layer.stride + l * layer.dilation - layer.padding
                    if 0 <= row < delta.shape[2] and 0 <= column < delta.shape[3]:
                        total += m[number, o, y, x] * weight[o, i, k, l] * delta[number, channel, row, column]
                assert float(found[layer.index][number, o, i, k, l]) == pytest.approx(total, rel=1e-11, abs=1e-14)


def test_scores_are_the_mean_over_images_of_absolute_contributions() -> None:
    model = mixed_network()
    batches = random_batches([2, 1])
    sums: dict[int, Tensor] = {}
    for batch in batches:
        for image in batch.images:
            with torch.no_grad():
                target = choose_target(model, model(image[None]), 3)
            for index, value in contributions(model, image[None], zeros_reference(image[None]), target).items():
                sums[index] = sums.get(index, 0) + value[0].abs()
    scores = deeplift(model, batches, predictions=3).scores
    assert list(scores) == [layer.index for layer in model.cfg.convolutions]
    for index, value in scores.items():
        assert float((value - sums[index] / 3).abs().max()) < 1e-12 * float(value.max())


# A chain: every convolution is a cut of the graph, so its contributions sum to the target's whole difference.
CHAINS = {
    activation: (conv(6, 3, activation=activation), conv(6, 3, activation=activation) + " stride=2", *HEAD)
    for activation in ACTIVATIONS
} | {
    f"{activation} maxpool {size}/{stride}": (
        conv(6, 3, activation=activation),
        f"maxpool size={size} stride={stride}",
        conv(6, 3, activation=activation),
        *HEAD,
    )
    for activation in ("leaky", "mish")
    for size, stride in ((2, 2), (2, 1), (3, 2), (5, 1), (9, 1), (13, 1))
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("chain", CHAINS)
def test_contributions_of_every_convolution_of_a_chain_sum_to_the_target_s_difference(chain: str, rule: str) -> None:
    model = random_network(network(*CHAINS[chain])).double()
    images, target = images_and_target(model, 3, 16)
    reference = random_reference(images)
    difference = delta_target(model, images, reference, target)
    found = contributions(model, images, reference, target, rule)
    assert len(found) == 3
    for value in found.values():
        assert float((value.flatten(1).sum(1) - difference).abs().max()) < 1e-8 * float(difference.abs().min())


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_contributions_sum_to_multiplier_times_output_difference(activation: str) -> None:
    model = mixed_network(activation)
    images, target = images_and_target(model)
    reference = random_reference(images)
    after, after0 = inputs_and_outputs(model, images), inputs_and_outputs(model, reference)
    multipliers = multipliers_at_convolutions(model, images, reference, target)
    found = contributions(model, images, reference, target)
    for layer in model.cfg.convolutions:
        module = model.conv(layer.index)
        factor = torch.ones(()) if module.scale is None else module.scale.detach() / (module.variance.sqrt() + 1e-6)
        bare = (after[layer.index][1] - after0[layer.index][1]) / factor.view(-1, 1, 1)
        expected = (multipliers[layer.index] * bare).flatten(1).sum(1)
        assert float((found[layer.index].flatten(1).sum(1) - expected).abs().max()) < 1e-8


SPP = (
    conv(8, 3, activation="mish"),
    "maxpool size=5 stride=1",
    "route layers=-2",
    "maxpool size=9 stride=1",
    "route layers=-4",
    "maxpool size=13 stride=1",
    "route layers=-1,-3,-5,-6",
    conv(8, 1, activation="swish"),
    *HEAD,
)


@pytest.mark.parametrize("rule", RULES)
def test_a_pyramid_of_pools_loses_nothing(rule: str) -> None:
    model = random_network(network(*SPP)).double()
    images, target = images_and_target(model, 2, 16)
    reference = random_reference(images)
    difference = delta_target(model, images, reference, target)
    for value in contributions(model, images, reference, target, rule).values():
        assert float((value.flatten(1).sum(1) - difference).abs().max()) < 1e-8 * float(difference.abs().min())


@pytest.mark.parametrize("rule", RULES)
@given(graph=random_cfgs(), seed=st.integers(0, 100))
@settings(max_examples=examples(25))
def test_summation_to_delta_of_random_networks(graph: RandomCfg, seed: int, rule: str) -> None:
    model = random_network(graph.cfg, seed).double()
    batches = random_batches([2, 1], graph.size, seed)
    try:
        result = deeplift(model, batches, rule=rule, predictions=3)
    except PruningError:
        # A relu layer that is off everywhere: the target does not move.
        images, target = images_and_target(model, 3, graph.size, seed)
        assert float(delta_target(model, images, torch.zeros_like(images), target).abs().max()) == 0
        return
    assert result.images == 3
    assert result.summation.target < 1e-8
    assert result.summation.worst_layer < 1e-8
    assert all(bool(torch.isfinite(value).all()) for value in result.scores.values())
    # The image is a cut, and so are the convolutions that read it where nothing else does.
    readers = [layer.index for layer in graph.cfg.layers if -1 in layer.inputs]
    if all(isinstance(graph.cfg.layers[index], Convolutional) for index in readers):
        images, target = images_and_target(model, 2, graph.size, seed)
        reference = random_reference(images)
        difference = delta_target(model, images, reference, target)
        found = contributions(model, images, reference, target, rule)
        total = sum(found[index].flatten(1).sum(1) for index in readers if index in found)
        scale = max(float(difference.abs().max()), float(sum(v.abs().sum() for v in found.values())))
        assert float((total - difference).abs().max()) < 1e-9 * scale


def test_summation_to_delta_shows_a_wrong_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    batches = random_batches([2])
    assert deeplift(mixed_network("mish"), batches).summation.target < 1e-13
    # What Captum does with mish: the derivative at the image in the place of the slope to the reference.
    monkeypatch.setattr("prunedeploy.scores.deeplift_rules.slopes.secant", lambda y, y0, name: secant(y, y, name))
    wrong = deeplift(mixed_network("mish"), batches).summation
    assert wrong.target > 1e-2
    assert wrong.worst_layer > 1e-2


def test_summation_to_delta_shows_the_precision() -> None:
    model = mixed_network("mish")
    exact = deeplift(model, random_batches([2])).summation
    rounded = deeplift(model.float(), random_batches([2])).summation
    assert exact.worst_layer < 1e-13 < 1e-9 < rounded.worst_layer < 1e-4
    assert exact.target < 1e-13 < 1e-9 < rounded.target < 1e-4


@pytest.mark.shared
@pytest.mark.parametrize("rule", slow_after(1, *RULES))
def test_genuine_yolov3_tiny_sums_to_delta(shared: Path, rule: str) -> None:
    folder = shared / "real" / "yolov3-tiny"
    model = load_darknet(folder / "yolov3-tiny.cfg", folder / "yolov3-tiny.weights").double()
    with Image.open(shared / "real" / "photos" / "dog-416.png") as photo:
        pixels = np.array(photo.convert("RGB").resize((224, 224)))
    images = torch.from_numpy(pixels).permute(2, 0, 1)[None].double() / 255
    with torch.no_grad():
        target = choose_target(model, model(images), 10)
    reference = torch.zeros_like(images)
    difference = float(delta_target(model, images, reference, target))
    found = {index: float(v.sum()) for index, v in contributions(model, images, reference, target, rule).items()}
    # Down to the fork at layer 8 every convolution is a cut; beyond it both branches together, and the two heads.
    before_fork = [index for index in found if index <= 8]
    assert before_fork == [8, 6, 4, 2, 0]
    cuts = [{index} for index in before_fork] + [{15, 22}]
    for cut in cuts:
        assert sum(found[index] for index in cut) == pytest.approx(difference, rel=1e-8)
    summation = deeplift(model, [Batch(images, NO_TARGETS, [0])], rule=rule).summation
    assert summation.worst_layer < 1e-8
    assert summation.target < 1e-8


def test_in_a_linear_network_with_a_reference_of_zeros_it_is_gradient_x_input() -> None:
    # Without biases a black image gives 0 everywhere, so delta-inputs are inputs and multipliers gradients.
    sections = (conv(4, 3, activation="linear"), conv(4, 3, activation="linear"), "shortcut from=-2", *HEAD)
    model = random_network(network(*sections)).double()
    with torch.no_grad():
        for layer in model.cfg.convolutions:
            model.conv(layer.index).bias.zero_()
            if layer.batch_normalize:
                model.conv(layer.index).mean.zero_()
    batches = random_batches([2], 16)
    for rule in RULES:
        scores = deeplift(model, batches, rule=rule, predictions=3).scores
        for index, value in gradient_x_input_scores(model, batches, predictions=3).items():
            assert float((scores[index] - value).abs().max()) < 1e-12 * float(value.max())


@pytest.mark.parametrize("rule", RULES)
def test_the_model_is_left_as_it_was(rule: str) -> None:
    model = mixed_network().train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    trained = deeplift(model, random_batches([2]), rule=rule).scores
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    evaluated = deeplift(model.eval(), random_batches([2]), rule=rule).scores
    assert all(torch.equal(value, trained[index]) for index, value in evaluated.items())


@pytest.mark.parametrize("rule", RULES)
def test_float32_scores_of_every_convolution_without_gradient(rule: str) -> None:
    model = mixed_network().float()
    scores = deeplift(model, random_batches([2]), rule=rule).scores
    assert list(scores) == [layer.index for layer in model.cfg.convolutions]
    for index, value in scores.items():
        assert value.shape == model.conv(index).weight.shape
        assert value.dtype == torch.float32
        assert not value.requires_grad


def test_no_images_is_one_clear_line() -> None:
    with pytest.raises(PruningError, match=r"^scores: there are no images .*; give at least one image$"):
        deeplift(mixed_network(), [])


@pytest.mark.parametrize("shape", [(1, 3, 8, 7), (1, 1, 8, 8), (3, 3, 8, 8)])
def test_a_reference_of_another_size_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(PruningError, match=r"^scores\.reference: the reference is .*, the images are \(2, 3, 8, 8\);"):
        deeplift(mixed_network(), random_batches([2]), reference=lambda images: torch.zeros(shape))


def test_a_target_that_is_constant_is_refused() -> None:
    with pytest.raises(PruningError, match=r"^scores\.reference: the target is the same on every image"):
        deeplift(mixed_network(), random_batches([2]), reference=lambda images: images)


def test_a_dead_network_is_refused() -> None:
    model = mixed_network()
    with torch.no_grad():
        model.conv(0).weight.zero_()
    with pytest.raises(PruningError, match="so nothing can be explained"):
        deeplift(model, random_batches([2]))


def test_an_unknown_rule_and_no_predictions_are_named() -> None:
    with pytest.raises(ValueError, match="unknown rule 'lrp'; there are rescale, reveal-cancel"):
        deeplift(mixed_network(), random_batches([1]), rule="lrp")
    with pytest.raises(ValueError, match="predictions must be at least 1, got 0"):
        deeplift(mixed_network(), random_batches([1]), predictions=0)
