"""A convolution with Darknet's normalisation against a plain loop, in evaluation and in training."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models.arithmetic import FORMULAS, numpy_convolution
from pruning.darknets import HEAD, conv, network, random_network


@pytest.mark.parametrize("activation", ["leaky", "mish"])
@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize(
    ("options", "filters"),
    [
        ({"size": 3, "stride": 1, "pad": 1, "groups": 1, "dilation": 1}, 5),
        ({"size": 3, "stride": 2, "pad": 1, "groups": 3, "dilation": 1}, 6),
        ({"size": 3, "stride": 1, "pad": 2, "groups": 1, "dilation": 2}, 4),
        ({"size": 1, "stride": 1, "pad": 0, "groups": 1, "dilation": 1}, 4),
    ],
)
def test_a_convolution_with_darknets_normalisation_equals_a_loop(
    options: dict[str, int], filters: int, norm: bool, activation: str
) -> None:
    text = (
        f"convolutional filters={filters} size={options['size']} stride={options['stride']} pad=1 "
        f"groups={options['groups']} dilation={options['dilation']} activation={activation} "
        f"batch_normalize={int(norm)}"
    )
    model = random_network(network(text, *HEAD, size=8))
    module = model.conv(0)
    if norm:
        with torch.no_grad():  # where sqrt(var) + 1e-6 and sqrt(var + 1e-6) differ the most
            module.variance[0] = 1e-9
    x = np.random.default_rng(0).random((2, 3, 7, 8), dtype=np.float32)
    expected = numpy_convolution(x, module.weight.detach().double().numpy(), options)
    column = (1, -1, 1, 1)
    if norm:
        mean = module.mean.double().numpy().reshape(column)
        variance = module.variance.double().numpy().reshape(column)
        scale = module.scale.detach().double().numpy().reshape(column)
        expected = (expected - mean) / (np.sqrt(variance) + 1e-6) * scale
    expected = FORMULAS[activation](expected + module.bias.detach().double().numpy().reshape(column))
    with torch.no_grad():
        ours = module(torch.from_numpy(x)).numpy()
    for channel in range(filters):
        atol = 1e-5 * np.abs(expected[:, channel]).max()
        np.testing.assert_allclose(ours[:, channel], expected[:, channel], rtol=1e-5, atol=atol)


def test_a_channel_mask_acts_before_the_activation_in_both_modes() -> None:
    # logistic(0) = 0.5: a masked filter's output is exactly that only if the mask comes before it.
    model = random_network(network(conv(4, size=3, activation="logistic"), *HEAD))
    images, mask = torch.rand(2, 3, 8, 8), torch.tensor([1.0, 0, 1, 0])
    for mode in (model.eval(), model.train()):
        plain, masked = mode.conv(0)(images), mode.conv(0)(images, channel_mask=mask)
        assert bool((masked[:, 1::2] == 0.5).all())
        torch.testing.assert_close(masked[:, ::2], plain[:, ::2])


def test_training_mode_normalises_by_the_batch_and_moves_darknets_statistics() -> None:
    model = random_network(network(conv(4, size=3, activation="linear"), *HEAD)).train()
    module = model.conv(0)
    before = module.mean.numpy().astype(np.float64), module.variance.numpy().astype(np.float64)
    x = np.random.default_rng(0).random((3, 3, 8, 8), dtype=np.float32)
    raw = numpy_convolution(
        x, module.weight.detach().double().numpy(), {"stride": 1, "pad": 1, "groups": 1, "dilation": 1}
    )
    ours = module(torch.from_numpy(x)).detach().numpy()
    mean, n = raw.mean((0, 2, 3)), raw[:, 0].size
    variance = ((raw - mean[None, :, None, None]) ** 2).sum((0, 2, 3)) / n
    scale, bias = module.scale.detach().double().numpy(), module.bias.detach().double().numpy()
    expected = (raw - mean[None, :, None, None]) / np.sqrt(variance + 1e-5)[None, :, None, None]
    expected = expected * scale[None, :, None, None] + bias[None, :, None, None]
    np.testing.assert_allclose(ours, expected, atol=1e-4)
    # Darknet's running variance is the unbiased one (variance_cpu divides by n - 1); our momentum is 0.03.
    np.testing.assert_allclose(module.mean.numpy(), 0.97 * before[0] + 0.03 * mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(module.variance.numpy(), 0.97 * before[1] + 0.03 * variance * n / (n - 1), rtol=1e-5)
