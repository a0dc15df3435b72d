"""Sections sam and scale_channels: products of layers, what lives and dies with them, and DeepLIFT's rule for them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from prunedeploy.models import DarknetCfg
from prunedeploy.pruning.constants import fold_constants
from prunedeploy.pruning.coupling import coupling_groups
from prunedeploy.pruning.dead_channels import remove_dead_channels
from prunedeploy.scores.deeplift_backward import backward
from prunedeploy.scores.deeplift_rules import rule_of
from prunedeploy.scores.deeplift_rules.interface import Trace
from prunedeploy.scores.deeplift_trace import IMAGE, RULES, trace
from prunedeploy.scores.target import choose_target
from prunedeploy_engines.errors import DarknetFormatError
from pruning.darknets import HEAD, conv, network, random_network


def gated(behind: str = "linear", gate: str = "logistic") -> DarknetCfg:
    """Attention by position."""
    return network(conv(6, 3), conv(6, 1, activation=gate), f"sam from=-2 activation={behind}", conv(8, 3), *HEAD)


def excited(behind: str = "linear") -> DarknetCfg:
    """Squeeze and excitation: layer 4 scales the channels of layer 0."""
    squeeze = ("avgpool", conv(4, activation="swish"), conv(6, activation="logistic"))
    return network(conv(6, 3), *squeeze, f"scale_channels from=0 activation={behind}", conv(8, 3), *HEAD)


def spread(behind: str = "linear") -> DarknetCfg:
    """One map scales all channels."""
    scale = f"scale_channels from=0 scale_wh=1 activation={behind}"
    return network(conv(6, 3), conv(1, activation="logistic"), scale, conv(8, 3), *HEAD)


NETWORKS = [gated, excited, spread]


@pytest.mark.parametrize("shape", [(6, 9, 7), (6, 1, 1), (1, 9, 7)])
def test_it_is_the_product_one_value_at_a_time(shape: tuple[int, int, int]) -> None:
    layer = {(6, 9, 7): gated, (6, 1, 1): excited, (1, 9, 7): spread}[shape]("leaky")
    product = next(layer for layer in layer.layers if layer.kind in ("sam", "scale_channels"))
    generator = np.random.default_rng(0)
    previous, other = generator.standard_normal((2, *shape)), generator.standard_normal((2, 6, 9, 7))
    expected = np.empty_like(other)
    for n, c, y, x in np.ndindex(*other.shape):
        value = previous[n, min(c, shape[0] - 1), min(y, shape[1] - 1), min(x, shape[2] - 1)] * other[n, c, y, x]
        expected[n, c, y, x] = value if value > 0 else 0.1 * value
    found = product.run([torch.from_numpy(previous), torch.from_numpy(other)], {})
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)
    assert product.out_shape[0] == 6


def test_both_sides_lose_the_same_filters_and_a_gate_that_is_alive_at_zero_may() -> None:
    for cfg, layers in ((gated(), (0, 1)), (excited(), (0, 3))):
        (group,) = [group for group in coupling_groups(cfg) if 0 in group.layers]
        assert (group.layers, group.channels, group.reason) == (layers, 6, None)


def test_one_channel_for_all_freezes_them_and_says_why() -> None:
    (group,) = [group for group in coupling_groups(spread()) if 0 in group.layers]
    assert (group.layers, group.channels) == ((0, 1), 1)
    assert group.reason == "is scaled at layer 2 by one channel for all"


@pytest.mark.parametrize("dead", [0, 1])
def test_a_channel_is_dead_as_soon_as_one_side_is(dead: int) -> None:
    model = random_network(gated(gate="relu")).double()
    with torch.no_grad():
        model.conv(dead).weight[2] = 0.0
        model.conv(dead).mean[2] = 0.0
        model.conv(dead).bias[2] = 0.0
        # What the gate reads of the dead channel aside, the other side would be alive.
        model.conv(1).weight[:, 2] = 0.0
    assert fold_constants(model).values[2][2] == 0
    small, record = remove_dead_channels(model)
    assert [layer.out_channels for layer in small.cfg.convolutions][:2] == [5, 5]
    assert record.deviation < 1e-12


def test_the_product_of_two_constants_is_one() -> None:
    model = random_network(gated(behind="leaky")).double()
    with torch.no_grad():
        for layer in (0, 1):
            model.conv(layer).weight[[1, 4]] = 0.0
    values = fold_constants(model).values
    assert values[2].isnan().tolist() == [channel not in (1, 4) for channel in range(6)]
    product = values[0] * values[1]
    torch.testing.assert_close(values[2], torch.where(product > 0, product, 0.1 * product), equal_nan=True)


def test_deeplift_shares_a_product_equally() -> None:
    """x from 2 to 5 and y from 3 to 7: 35 - 6 = 29 = 3 * (3 + 7) / 2 + 4 * (2 + 5) / 2 = 15 + 14."""
    layer = gated().layers[2]
    found = Trace({}, {}, {}, images=1)

    def cell(image: float, reference: float) -> Tensor:
        return torch.tensor([image, reference]).view(2, 1, 1, 1)

    output = rule_of(layer).forward(found, layer, [cell(5, 2), cell(7, 3)], "rescale")
    assert output.flatten().tolist() == [35, 6]
    multipliers = dict(rule_of(layer).backward(found, layer, torch.ones(1, 1, 1, 1), lambda _: None))
    assert {index: value.item() for index, value in multipliers.items()} == {1: 5.0, 0: 3.5}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("behind", ["linear", "mish"])
@pytest.mark.parametrize("network_of", NETWORKS)
def test_deeplift_explains_the_whole_difference(network_of, behind: str, rule: str) -> None:
    model = random_network(network_of(behind)).double()
    images, reference = torch.rand(2, 3, 16, 16).double(), torch.rand(1, 3, 16, 16).double()
    found = trace(model, images, reference, rule)
    target = choose_target(model, found.heads, 3)
    multipliers = backward(model.cfg, found, target, lambda _: None)
    explained = (multipliers * found.deltas[IMAGE]).flatten(1).sum(1)
    torch.testing.assert_close(explained, target(found.heads) - target(found.reference_heads))


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("sam from=0", r"multiplies shapes \(6, 16, 16\) and \(4, 16, 16\)"),
        ("sam from=0,1", "from= names more than one layer"),
        (
            "scale_channels from=0",
            r"scales a map of \(4, 16, 16\) with one of \(6, 16, 16\), where it needs \(4, 1, 1\)",
        ),
        ("scale_channels from=0 scale_wh=1", r".*with one of \(6, 16, 16\), where it needs \(1, 16, 16\)"),
    ],
)
def test_what_does_not_fit_is_refused_by_line(section: str, message: str) -> None:
    with pytest.raises(DarknetFormatError, match=rf"cfg:\d+: {message}"):
        network(conv(4), conv(6), section, *HEAD)
