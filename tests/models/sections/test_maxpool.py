"""Section maxpool against Darknet's own loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models.sections.test_convolutional import blurred
from prunedeploy.models import load_darknet
from prunedeploy_engines.errors import DarknetFormatError
from pruning.darknets import HEAD, conv, network


def numpy_maxpool(x: np.ndarray, size: int, stride: int | tuple[int, int], padding: int) -> np.ndarray:
    """Darknet's forward_maxpool_layer as its C source does it, one window at a time."""
    batch, channels, height, width = x.shape
    down, across = (stride, stride) if isinstance(stride, int) else stride
    out_h, out_w = (height + padding - size) // down + 1, (width + padding - size) // across + 1
    out = np.full((batch, channels, out_h, out_w), -np.inf, x.dtype)
    for i in range(out_h):
        for j in range(out_w):
            for n in range(size):
                for m in range(size):
                    row, column = i * down + n - padding // 2, j * across + m - padding // 2
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
    images = some_images(*size)
    expected = numpy_maxpool(images.numpy(), pool, stride, pool - 1 if padding is None else padding)
    np.testing.assert_array_equal(behind(text, images), expected)


@pytest.mark.parametrize("strides", [(2, 1), (1, 2), (3, 2)])
@pytest.mark.parametrize("antialiasing", [0, 1, 2])
def test_strides_down_and_across_and_the_blur_that_takes_them_over(strides: tuple[int, int], antialiasing: int) -> None:
    images = some_images(9, 12)
    found = behind(f"maxpool size=3 stride_y={strides[0]} stride_x={strides[1]} antialiasing={antialiasing}", images)
    # ``size`` is ``stride`` by default, and with it the padding.
    expected = numpy_maxpool(images.numpy(), 3, strides if antialiasing == 0 else 1, 2)
    if antialiasing:
        expected = np.stack([blurred(image.astype(np.float64), antialiasing, strides) for image in expected])
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("channels", "kept"), [(8, 4), (7, 3), (6, 1), (5, 5), (5, 4)])
def test_the_maximum_over_channels_is_darknets(channels: int, kept: int) -> None:
    images = some_images(4, 5, channels)
    found = behind(f"maxpool maxpool_depth=1 out_channels={kept} size=7 stride=3", images)
    expected = np.full((2, kept, 4, 5), -np.inf)
    for g in range(kept):
        for k in range(g, channels, kept):
            expected[:, g] = np.maximum(expected[:, g], images.numpy()[:, k])
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("maxpool_depth=1 out_channels=4", "out_channels=4, but it reads 3 channels"),
        ("maxpool_depth=1 antialiasing=1", "exclude each other"),
        ("maxpool_zero_nonmax=1", "on a GPU only"),
    ],
)
def test_what_is_refused_says_why(options: str, says: str) -> None:
    with pytest.raises(DarknetFormatError, match=says):
        network(f"maxpool size=2 {options}", conv(6), HEAD[1])


def some_images(height: int, width: int, channels: int = 3) -> torch.Tensor:
    """Mostly negative ones."""
    return torch.randn(2, channels, height, width, generator=torch.Generator().manual_seed(1)) - 3


def behind(section: str, images: torch.Tensor) -> np.ndarray:
    """What a section makes of images."""
    channels = images.shape[1]
    cfg = network(
        "upsample stride=1", section, conv(6, norm=False, activation="linear"), HEAD[1], size=32, channels=channels
    )
    model = load_darknet(cfg)
    seen: list[torch.Tensor] = []
    model.conv(2).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        model(images)
    return seen[0].numpy()
