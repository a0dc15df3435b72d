"""What an image is compared with: the reference input of DeepLIFT."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from prunedeploy.data.batches import Batch
from prunedeploy_engines.detection.images import read_image
from prunedeploy_engines.detection.letterbox import to_input
from prunedeploy_engines.errors import DataError, PruningError

ReferenceFunction = Callable[[Tensor], Tensor]
"""Images ``(B, 3, H, W)`` in [0, 1] to their references: ``(B, 3, H, W)``, or ``(1, 3, H, W)``, one for all."""


def zeros_reference(images: Tensor) -> Tensor:
    """A black image.

    Args:
        images: ``(B, 3, H, W)``.

    Returns:
        ``(1, 3, H, W)``.
    """
    return torch.zeros_like(images[:1])


def blurred_reference(images: Tensor, sigma: float) -> Tensor:
    """Each image without its detail: convolved with a Gaussian, borders repeated.

    Args:
        images: ``(B, 3, H, W)`` in [0, 1].
        sigma: Standard deviation in pixels; the kernel ends at 3 sigma.

    Returns:
        ``(B, 3, H, W)`` in [0, 1].
    """
    radius = max(1, round(3 * sigma))
    offsets = torch.arange(-radius, radius + 1, dtype=images.dtype, device=images.device)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    kernel = kernel / kernel.sum()
    channels = images.shape[1]
    padded = F.pad(images, (radius, radius, radius, radius), mode="replicate")
    rows = F.conv2d(padded, kernel.view(1, 1, 1, -1).expand(channels, 1, 1, -1), groups=channels)
    return F.conv2d(rows, kernel.view(1, 1, -1, 1).expand(channels, 1, -1, 1), groups=channels)


def mean_image(batches: Iterable[Batch]) -> Tensor:
    """The mean of all images.

    Args:
        batches: Images ``(B, 3, H, W)`` in [0, 1].

    Returns:
        ``(1, 3, H, W)`` float32.

    Raises:
        PruningError: There are no images.
    """
    total, count = torch.zeros(()), 0
    for batch in batches:
        total = total + batch.images.sum(0, keepdim=True, dtype=torch.float64)
        count += len(batch.images)
    if count == 0:
        raise PruningError("there are no images to take the mean of", "scores", "give at least one image")
    return (total / count).float()


def image_reference(path: Path, input_size: tuple[int, int], channels: int = 3) -> Tensor:
    """An image file as the reference of all images.

    Args:
        path: RGB image of exactly the network's input size: it is not resized, as a reference is compared pixel by
            pixel.
        input_size: ``(height, width)`` of the network.
        channels: Of its images: 3, or 1 of a grey network.

    Returns:
        ``(1, channels, H, W)`` float32 in [0, 1].

    Raises:
        DataError: The file is missing or no image, or it has another size.
    """
    pixels = read_image(path, greyscale=channels == 1)
    if pixels.shape[:2] != input_size:
        height, width = pixels.shape[:2]
        raise DataError(
            f"the reference image is {width} x {height}, the network's input {input_size[1]} x {input_size[0]}",
            path,
            "resize it, or use scores.reference=zeros, mean or blur",
        )
    return torch.from_numpy(to_input(pixels, channels)[None])
