"""Sections reorg and reorg3d against Darknet's own loop, and which channels may leave them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models.arithmetic import numpy_reorg
from prunedeploy.models.cfg_rewriting import largest_stride
from prunedeploy.models.sections import Rearranging
from prunedeploy.pruning.constants import fold_constants
from prunedeploy.pruning.coupling import coupling_groups
from prunedeploy_engines.errors import DarknetFormatError
from pruning.darknets import HEAD, conv, network, random_network

WAYS = [("reorg", 0), ("reorg", 1), ("reorg3d", 0), ("reorg3d", 1)]


def rearranging(kind: str, reverse: int, channels: int, size: int, stride: int = 2) -> Rearranging:
    layer = network(conv(channels), f"{kind} stride={stride} reverse={reverse}", *HEAD, size=size).layers[1]
    assert isinstance(layer, Rearranging)
    return layer


@pytest.mark.parametrize(("kind", "reverse"), WAYS)
# Four divides 8 but not 6 and 10: there rows of several input channels come together. 26 is YOLOv2's.
@pytest.mark.parametrize(("channels", "size", "stride"), [(16, 8, 2), (32, 6, 2), (48, 10, 2), (16, 26, 2), (81, 9, 3)])
def test_it_is_darknets(kind: str, reverse: int, channels: int, size: int, stride: int) -> None:
    layer = rearranging(kind, reverse, channels, size, stride)
    for height, width in ((size, size), (size + 2 * stride, size)):  # networks run on other sizes than the cfg's
        x = torch.randn(2, channels, height, width).contiguous(memory_format=torch.channels_last)
        expected = np.stack([numpy_reorg(image.numpy(), kind, stride, bool(reverse)) for image in x])
        np.testing.assert_array_equal(layer.run([x], {}).numpy(), expected)
        assert layer.out_shape[0] == expected.shape[1]


@pytest.mark.parametrize(("kind", "reverse"), WAYS)
@pytest.mark.parametrize("size", [8, 6])
def test_what_is_left_of_the_channels_is_what_darknet_computes_with_fewer(kind: str, reverse: int, size: int) -> None:
    """Any one of the smallest sets that go together leaves; Darknet's loop on the rest gives the rest of its output."""
    layer, generator = rearranging(kind, reverse, 32, size), np.random.default_rng(0)
    cfg = network(conv(32), f"{kind} stride=2 reverse={reverse}", *HEAD, size=size)
    x = generator.random((32, size, size))
    full = numpy_reorg(x, kind, 2, bool(reverse))
    (group,) = [group for group in coupling_groups(cfg) if group.layers == (0,)]
    terms = np.stack(layer.sources().terms)
    for gone in group.members[0].filters.numpy():
        keep = np.setdiff1d(np.arange(32), gone)
        lives = ~np.isin(terms, gone).any(0)
        assert (np.isin(terms, gone).all(0) == ~lives).all(), "an output channel lives or dies as a whole"
        np.testing.assert_array_equal(numpy_reorg(x[keep], kind, 2, bool(reverse)), full[lives])


@pytest.mark.parametrize(
    ("kind", "reverse", "together"),
    [
        ("reorg", 0, [[0, 1, 2, 3], [4, 5, 6, 7]]),  # neighbours
        ("reorg", 1, [[0, 8, 16, 24], [1, 9, 17, 25]]),
        ("reorg3d", 0, [[0], [1]]),
        ("reorg3d", 1, [[0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27]]),
    ],
)
def test_channels_that_go_together(kind: str, reverse: int, together: list[list[int]]) -> None:
    cfg = network(conv(32), f"{kind} stride=2 reverse={reverse}", *HEAD)
    (group,) = [group for group in coupling_groups(cfg) if group.layers == (0,)]
    assert group.members[0].filters.tolist()[: len(together)] == together
    assert group.members[0].filters.numel() == 32


def test_reorg_reversed_is_no_inverse_of_it_but_of_reorg3d() -> None:
    """Darknet's own confusion, which files that were trained with it rely on."""
    x = torch.rand(1, 16, 8, 8)
    deep = {kind: rearranging(kind, 0, 16, 8).run([x], {}) for kind in ("reorg", "reorg3d")}
    back = {kind: rearranging(kind, 1, 64, 4) for kind in ("reorg", "reorg3d")}
    assert torch.equal(back["reorg"].run([deep["reorg3d"]], {}), x)
    assert torch.equal(back["reorg3d"].run([deep["reorg"]], {}), x)
    assert not torch.equal(back["reorg"].run([deep["reorg"]], {}), x)


def test_strides_multiply_and_divide() -> None:
    assert largest_stride(network(conv(16), "reorg stride=2", "reorg3d stride=2", *HEAD)) == 4
    assert largest_stride(network(conv(16), "reorg stride=2", "reorg reverse=1 stride=2", "upsample", *HEAD)) == 2


def test_an_output_channel_is_constant_where_all_that_it_is_made_of_is_the_same() -> None:
    model = random_network(network(conv(8, norm=False, activation="linear"), "reorg stride=2", *HEAD))
    with torch.no_grad():
        model.conv(0).weight[[0, 1, 2, 3, 4]] = 0.0
        model.conv(0).bias[:5] = 0.5
    # Output channels come by fours, of neighbours 0 to 3 and 4 to 7 by turns; of these 5, 6 and 7 are not constant.
    expected = torch.tensor(([0.5] * 4 + [torch.nan] * 4) * 4, dtype=torch.float64)
    torch.testing.assert_close(fold_constants(model).values[1], expected, equal_nan=True)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("reorg stride=3", r"stride=3 does not divide a map of 16x16"),
        ("reorg stride=2", r"reads 6 channels, which 4 does not divide"),
        ("reorg3d stride=2 reverse=1", r"reads 6 channels, which 16 does not divide"),
        ("reorg stride=2 flatten=1", r"flatten= of \[reorg\] is not supported: it turns channels into cells"),
        ("reorg stride=2 extra=5", r"extra= of \[reorg\] is not supported: it adds values"),
    ],
)
def test_what_cannot_be_rearranged_is_refused_by_line(section: str, message: str) -> None:
    with pytest.raises(DarknetFormatError, match=rf"cfg:\d+: {message}"):
        network(conv(6), section, *HEAD)
