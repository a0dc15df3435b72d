"""Damage of processing: contrast, distortion, resolution, compression."""

from __future__ import annotations

from io import BytesIO

import numpy as np
from PIL import Image
from scipy import ndimage

from prunedeploy.data.corruptions.pixels import Pixels, pixels, unit

CONTRAST = (0.4, 0.3, 0.2, 0.1, 0.05)
ELASTIC_STRENGTH = (250 * 0.05, 250 * 0.065, 250 * 0.085, 250 * 0.1, 250 * 0.12)
ELASTIC_REACH, ELASTIC_SMOOTHNESS = 0.005, 0.01
"""Of displacements: the largest draw as a part of the height, and the standard deviation of their blur of each side."""
PIXELATE = (0.6, 0.5, 0.4, 0.3, 0.25)
JPEG_QUALITY = (25, 18, 15, 10, 7)


def contrast(image: Pixels, severity: int, rng: np.random.Generator) -> Pixels:
    """Bring each channel's values closer to its mean, to a part `CONTRAST` of the distance."""
    values = unit(image)
    mean = values.mean(axis=(0, 1))
    return pixels((values - mean) * CONTRAST[severity - 1] + mean)


def elastic_transform(image: Pixels, severity: int, rng: np.random.Generator) -> Pixels:
    """Move each pixel by a smooth random displacement; bilinear, mirrored at the border.

    Reference: Simard et al., Best Practices for Convolutional Neural Networks, 2003.
    """
    height, width = image.shape[:2]
    farthest = ELASTIC_REACH * height
    smoothness = (ELASTIC_SMOOTHNESS * height, ELASTIC_SMOOTHNESS * width)
    across, down = (
        ndimage.gaussian_filter(rng.uniform(-farthest, farthest, (height, width)), smoothness, truncate=3)
        * ELASTIC_STRENGTH[severity - 1]
        for _ in range(2)
    )
    places = (np.arange(height)[:, None] + down, np.arange(width) + across)
    values = unit(image)
    moved = [ndimage.map_coordinates(values[..., c], places, order=1, mode="reflect") for c in range(values.shape[2])]
    return pixels(np.stack(moved, axis=2))


def pixelate(image: Pixels, severity: int, rng: np.random.Generator) -> Pixels:
    """Shrink to a part `PIXELATE` of each side, as a mean over boxes, and enlarge again without smoothing."""
    height, width = image.shape[:2]
    share = PIXELATE[severity - 1]
    small = (max(1, int(width * share)), max(1, int(height * share)))
    picture = _as_picture(image).resize(small, Image.Resampling.BOX)
    return np.asarray(picture.resize((width, height), Image.Resampling.NEAREST)).reshape(image.shape)


def jpeg_compression(image: Pixels, severity: int, rng: np.random.Generator) -> Pixels:
    """Save as JPEG of a quality `JPEG_QUALITY`, colour at half the resolution, and read again."""
    with BytesIO() as file:
        _as_picture(image).convert("RGB").save(file, "JPEG", quality=JPEG_QUALITY[severity - 1])
        picture = Image.open(file).convert("RGB" if image.shape[2] == 3 else "L")
    return np.asarray(picture).reshape(image.shape)


def _as_picture(image: Pixels) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(image if image.shape[2] == 3 else image[..., 0]))
