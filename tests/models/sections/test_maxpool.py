"""Section maxpool against Darknet's own loop."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from prunedeploy.models import load_darknet
from pruning.darknets import HEAD, conv, network


def numpy_maxpool(x: np.ndarray, size: int, stride: int, padding: int) -> np.ndarray:
    """Darknet's forward_maxpool_layer as its C source does it, one window at a time."""
    batch, channels, height, width = x.shape
    out_h, out_w = (height + padding - size) // stride + 1, (width + padding - size) // stride + 1
    out = np.full((batch, channels, out_h, out_w), -np.inf, x.dtype)
    for i in range(out_h):
        for j in range(out_w):
            for n in range(size):
                for m in range(size):
                    row, column = i * stride + n - padding // 2, j * stride + m - padding // 2
                    if 0 <= row < height and 0 <= column < width:
                        out[:, :, i, j] = np.maximum(out[:, :, i, j], x[:, :, row, column])
    return out


@pytest.mark.parametrize("size", [(8, 8), (7, 9), (13, 13), (5, 6)])
@pytest.mark.parametrize(
    ("pool", "stride", "padding"),
    [(2, 2, None), (2, 1, None), (3, 2, None), (3, 1, None), (5, 1, None), (9, 1, None), (13, 1, None), (4, 3, None),
     (2, 2, 0), (3, 2, 1), (3, 3, 0)],
)  # fmt: skip
def test_maxpool_is_darknets(size: tuple[int, int], pool: int, stride: int, padding: int | None) -> None:
    text = f"maxpool size={pool} stride={stride}" + ("" if padding is None else f" padding={padding}")
    cfg = network("upsample stride=1", text, conv(6, norm=False, activation="linear"), HEAD[1], size=32)
    model = load_darknet(cfg)
    seen: list[torch.Tensor] = []
    model.conv(2).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1)) - 3  # mostly negative
    with torch.no_grad():
        model(images)
    expected = numpy_maxpool(images.numpy(), pool, stride, pool - 1 if padding is None else padding)
    np.testing.assert_array_equal(seen[0].numpy(), expected)
