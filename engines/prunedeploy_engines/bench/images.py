"""The images that a measurement feeds: real ones where they are given, else random pixels, never zeros."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from prunedeploy_engines.detection.images import image_files, read_image
from prunedeploy_engines.errors import DataError

MOST = 32
"""Images of one measurement; more would only take memory, in every process."""
RANDOM = 8

ImageList = list[npt.NDArray[np.uint8]]


def random_images(size: tuple[int, int], seed: int) -> ImageList:
    """``RANDOM`` images ``(H, W, 3)`` uint8 of (height, width) ``size``, every pixel random."""
    pixels = np.random.default_rng(seed).integers(0, 256, (RANDOM, *size, 3), dtype=np.uint8)
    return list(pixels)


def load_images(path: Path, most: int = MOST) -> ImageList:
    """Read up to ``most`` images, spread evenly over what there is.

    Args:
        path: A folder of image files, an image file, or a .npy file with ``(K, H, W, 3)`` uint8 RGB images.
        most: At least 1.

    Returns:
        ``(H, W, 3)`` uint8 RGB each; sizes may differ.

    Raises:
        DataError: Nothing there, no images, or one that cannot be read.
    """
    if path.suffix == ".npy":
        images = _array(path)
        return [np.array(images[index]) for index in _spread(len(images), most)]
    files = image_files(path)
    return [read_image(files[index]) for index in _spread(len(files), most)]


def images_record(path: Path | None, images: ImageList, seed: int) -> dict[str, Any]:
    """What was fed, for a report."""
    if path is None:
        return {"source": "random pixels", "seed": seed, "count": len(images)}
    return {"source": "images", "path": str(path), "count": len(images)}


def _array(path: Path) -> npt.NDArray[np.uint8]:
    try:
        images: npt.NDArray[np.uint8] = np.load(path, allow_pickle=False, mmap_mode="r")
    except FileNotFoundError:
        raise DataError("there is no such file or folder of images", path) from None
    except (OSError, ValueError) as error:
        raise DataError(f"is not a .npy file of images ({error})", path) from error
    if images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8 or not len(images):
        raise DataError(f"must hold (K, H, W, 3) uint8 images, not {images.shape} {images.dtype}", path)
    return images


def _spread(count: int, most: int) -> list[int]:
    """``min(count, most)`` indices from 0 to ``count`` - 1, evenly spaced."""
    kept = min(count, most)
    return [index * count // kept for index in range(kept)]
