"""JPEG files that end too early: whether enough of one is there to be used.

Cameras, converters and broken downloads leave files without the two bytes of the end marker, or without a few more.
Pillow refuses all of them alike. Here the marker is put back; libjpeg then fills what is missing with grey.
"""

from __future__ import annotations

import io
import random
from functools import lru_cache
from typing import TYPE_CHECKING, Any, cast

import numpy as np

if TYPE_CHECKING:
    from PIL import ImageFile

MOST_MISSING = 0.01
"""A picture that lacks more than this fraction of its pixels is refused."""

_END = b"\xff\xd9"


def complete_jpeg(opened: ImageFile.ImageFile) -> ImageFile.ImageFile | None:
    """Put the end back to a JPEG file that ends too early.

    Args:
        opened: As Pillow has opened it, whether or not it tried to decode it.

    Returns:
        The same image with its end, not decoded yet; None if it is not a JPEG, or if more than `MOST_MISSING` of its
        pixels are missing. Damage other than a lost end shows when it is decoded.
    """
    file = cast(Any, opened.fp)
    if opened.format not in ("JPEG", "MPO") or file is None:
        return None
    file.seek(0)
    data = bytes(file.read())
    if _missing(data, opened.width * opened.height) > MOST_MISSING:
        return None
    return _open(data + _END)


def _missing(data: bytes, pixels: int) -> float:
    """Fraction of the pixels that the file does not determine, 0 to 1.

    Decoded once with nothing behind the end and once with noise there, an image differs where its own data are over.
    """
    with _open(data + _END) as ended, _open(data + _noise(data, pixels) + _END) as noisy:
        if not ended.info.get("progressive"):
            # Its blocks come one after the other, so an eighth of the size (one pixel per block) shows how many.
            for image in (ended, noisy):
                image.draft(None, (image.width // 8, image.height // 8))
        different = np.asarray(ended) != np.asarray(noisy)
    return float(different.reshape(*different.shape[:2], -1).any(axis=2).mean())


def _open(data: bytes) -> ImageFile.ImageFile:
    from PIL import Image

    return Image.open(io.BytesIO(data), formats=("JPEG",))


def _noise(data: bytes, pixels: int) -> bytes:
    """Bytes that decode to far more pixels than may be missing: a block takes half a byte of them per pixel.

    A file with restart markers (ITU-T T.81, B.2.1) begins anew at each, and gets them in its noise too.
    """
    length = max(4096, pixels // 16)
    segment = data.find(b"\xff\xdd\x00\x04")
    blocks = 0 if segment < 0 else int.from_bytes(data[segment + 4 : segment + 6], "big")
    if not blocks:
        return _bytes_without_markers()[:length]
    piece = _bytes_without_markers()[: 256 * blocks]  # 16 x 16 pixels each, at most
    return b"".join(piece + bytes((0xFF, 0xD0 + number % 8)) for number in range(8 + length // len(piece)))


@lru_cache(maxsize=1)
def _bytes_without_markers() -> bytes:
    """4 MB of noise without 255, which would begin a marker; always the same."""
    return bytes(random.Random(0).choices(range(255), k=1 << 16)) * 64
