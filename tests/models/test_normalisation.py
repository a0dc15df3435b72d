"""Normalisation put back: the same function, and statistics that are those of the images."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from models.arithmetic import numpy_convolution
from prunedeploy.models import Darknet
from prunedeploy.models.normalisation import lacking_normalisation, with_normalisation
from pruning.darknets import HEAD, conv, network, random_network


def folded_network(*extra: str) -> Darknet:
    """Three convolutions with biases alone, of which one has groups and reads a sum, and a head."""
    without = [
        conv(8, size=3, activation="swish", norm=False),
        conv(8, size=3, activation="leaky", norm=False),
        "shortcut from=-2 activation=linear",
        conv(8, size=3, activation="swish", norm=False, groups=4),
        *extra,
    ]
    return random_network(network(*without, *HEAD))


def photos(count: int = 6) -> Tensor:
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_the_function_stays_what_it_was() -> None:
    model, images = folded_network(), photos()
    restored = with_normalisation(model, images.split(2))
    with torch.no_grad():
        for before, after in zip(model(images), restored(images), strict=True):
            torch.testing.assert_close(after, before, rtol=0, atol=1e-5 * float(before.abs().max()))
    assert lacking_normalisation(restored.cfg) == []
    assert [layer.index for layer in lacking_normalisation(model.cfg)] == [0, 1, 3]
    assert not model.cfg.convolutions[0].batch_normalize, "the given network was changed"


def test_statistics_are_those_of_all_images() -> None:
    """Of the first convolution, by a loop over output values in float64."""
    model, images = folded_network(), photos()
    restored = with_normalisation(model, images.split(4)).conv(0)
    options = {"stride": 1, "pad": 1, "groups": 1, "dilation": 1}
    values = numpy_convolution(images.numpy(), model.conv(0).weight.detach().double().numpy(), options)
    torch.testing.assert_close(restored.mean.double(), torch.from_numpy(values.mean((0, 2, 3))), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        restored.variance.double(), torch.from_numpy(values.var((0, 2, 3))), rtol=1e-5, atol=1e-6
    )


def test_training_begins_where_evaluation_is() -> None:
    """On the very images that statistics were measured on, normalisation by the batch gives the same heads."""
    model, images = folded_network(), photos()
    restored = with_normalisation(model, [images])
    with torch.no_grad():
        before = model(images)[0]
        after = restored.train()(images)[0]
    torch.testing.assert_close(after, before, rtol=0, atol=1e-3 * float(before.abs().max()))


def test_a_constant_channel_stays_a_number() -> None:
    model = folded_network()
    with torch.no_grad():
        model.conv(1).weight[3] = 0
    restored, images = with_normalisation(model, [photos()]), photos()
    with torch.no_grad():
        torch.testing.assert_close(restored(images)[0], model(images)[0], rtol=1e-5, atol=1e-5)
        assert bool(restored.train()(images)[0].isfinite().all())


def test_a_normalised_network_is_handed_back_as_it_is() -> None:
    model = random_network(network(conv(8, size=3), *HEAD))
    restored = with_normalisation(model, [photos()])
    assert restored.cfg.text == model.cfg.text
    for name, value in model.state_dict().items():
        assert torch.equal(restored.state_dict()[name], value), name


def test_no_images_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one image"):
        with_normalisation(folded_network(), [])
