"""Sections upsample, route and shortcut against array operations."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from prunedeploy_engines.errors import DarknetFormatError
from pruning.darknets import HEAD, conv, network, random_network


def test_upsample_route_groups_and_shortcut_equal_array_operations() -> None:
    sections = (
        conv(6, norm=False),  # 0
        "upsample stride=3",  # 1
        "route layers=0 groups=3 group_id=1",  # 2: channels 2, 3 of layer 0
        "route layers=2,0,0 groups=2 group_id=1",  # 3: the upper half of each: 1 + 3 + 3
        "route layers=0",  # 4
        "shortcut from=0 activation=relu",  # 5: relu(2 x)
    )
    sink = (conv(6, norm=False, activation="linear"), HEAD[1])
    taps = []
    for source in (0, 1, 2, 3, 5):
        taps += [f"route layers={source}", *sink]
    model = random_network(network(*sections, *taps, size=8))
    seen = {}
    for layer in model.cfg.convolutions[1:]:
        model.conv(layer.index).register_forward_pre_hook(
            lambda _, inputs, index=layer.index: seen.update({index: inputs[0].detach().numpy().copy()})
        )
    with torch.no_grad():
        model(torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)))
    base, up, second, halves, doubled = (seen[index] for index in sorted(seen))
    np.testing.assert_array_equal(up, base.repeat(3, axis=2).repeat(3, axis=3))
    np.testing.assert_array_equal(second, base[:, 2:4])
    np.testing.assert_array_equal(halves, np.concatenate([base[:, 3:4], base[:, 3:], base[:, 3:]], axis=1))
    np.testing.assert_array_equal(doubled, np.maximum(2 * base, 0))


@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_a_negative_stride_of_upsample_sums_blocks_as_darknet_does(scale: float) -> None:
    cfg = network(conv(4, norm=False), f"upsample stride=-3 scale={scale}", *HEAD, size=12)
    layer = cfg.layers[1]
    assert layer.out_shape == (4, 4, 4)
    x = torch.randn(2, 4, 12, 12, dtype=torch.float64)
    expected = np.zeros((2, 4, 4, 4))
    for row, column in np.ndindex(12, 12):  # upsample_cpu with forward = 0
        expected[:, :, row // 3, column // 3] += scale * x[:, :, row, column].numpy()
    np.testing.assert_allclose(layer.run([x], {}).numpy(), expected, rtol=1e-12, atol=1e-12)
    with pytest.raises(DarknetFormatError, match="stride=-5 does not divide the map of 12x12"):
        network(conv(4), "upsample stride=-5", *HEAD, size=12)


def test_upsample_scales() -> None:
    layer = network(conv(4), "upsample stride=2 scale=1.5", *HEAD).layers[1]
    x = torch.randn(1, 4, 3, 3)
    np.testing.assert_array_equal(layer.run([x], {}), 1.5 * x.numpy().repeat(2, axis=2).repeat(2, axis=3))
