"""Section local_avgpool against Darknet's own loop."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models.arithmetic import numpy_local_avgpool
from prunedeploy.models.sections import LocalAvgpool
from prunedeploy_engines.errors import DarknetFormatError
from pruning.darknets import HEAD, conv, network


@pytest.mark.parametrize("size", [(8, 8), (7, 9), (5, 6)])
@pytest.mark.parametrize(
    ("pool", "stride", "padding"),
    [
        (2, 2, None),
        (2, 1, None),
        (3, 2, None),
        (3, 1, None),
        (5, 1, None),
        (4, 3, None),
        (2, 2, 0),
        (3, 2, 1),
        (2, 3, 2),
    ],
)
def test_it_is_darknets(size: tuple[int, int], pool: int, stride: int, padding: int | None) -> None:
    text = f"local_avgpool size={pool} stride={stride}" + ("" if padding is None else f" padding={padding}")
    layer = network(text, *HEAD, size=32).layers[0]
    assert isinstance(layer, LocalAvgpool)
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    padding = pool - 1 if padding is None else padding
    expected = [numpy_local_avgpool(image.numpy(), pool, stride, padding) for image in images]
    np.testing.assert_allclose(layer.run([images], {}).numpy(), expected, rtol=0, atol=1e-14)


def test_shape_and_stride_are_those_of_the_cfg() -> None:
    cfg = network(conv(8), "local_avgpool size=3 stride=2", *HEAD, size=15)
    # (15 + 2 - 3) // 2 + 1
    assert cfg.layers[1].out_shape == (8, 8, 8)
    assert cfg.layers[1].pixels_per_cell([cfg.layers[0].pixels_per_cell([1])]) == 2


def test_steps_down_and_across_may_differ() -> None:
    cfg = network("local_avgpool size=3 stride_x=2 stride_y=4", *HEAD, size=16)
    x = torch.randn(1, 3, 16, 16, dtype=torch.float64)
    every = numpy_local_avgpool(x[0].numpy(), 3, 1, 2)
    np.testing.assert_allclose(cfg.layers[0].run([x], {})[0].numpy(), every[:, ::4, ::2], rtol=0, atol=1e-14)
    assert cfg.layers[0].out_shape == (3, 4, 8)


def test_windows_on_the_padding_alone_are_refused() -> None:
    """Darknet divides by their number of cells, which is 0."""
    with pytest.raises(DarknetFormatError, match=r"cfg:\d+: padding=4 is so wide that windows of 2 lie on it alone"):
        network("local_avgpool size=2 stride=2 padding=4", *HEAD)
