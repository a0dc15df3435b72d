"""From encoded images to pixels, with everything that can be refused refused before decoding."""

from __future__ import annotations

import io
import warnings

import numpy as np
import numpy.typing as npt

from prunedeploy_engines.detection.images import read_image
from prunedeploy_engines.errors import DataError
from prunedeploy_engines.serving.core.errors import InvalidRequestError, TooLargeError, UnsupportedMediaError

FORMATS = "JPEG, PNG or WebP"


def pixel_count(data: bytes | memoryview, max_pixels: int) -> int:
    """Read the size of an image from its header; nothing is decoded.

    Args:
        data: JPEG, PNG or WebP; other formats that Pillow could read are refused, since each is one more decoder
            that a stranger can feed.
        max_pixels: More are refused.

    Raises:
        UnsupportedMediaError: Another format.
        TooLargeError: Too many pixels.
        InvalidRequestError: The header is damaged.
    """
    from PIL import Image

    if not data:
        raise InvalidRequestError("the image is empty", fix=f"send {FORMATS}")
    head = bytes(data[:16])
    is_webp = head[:4] == b"RIFF" and head[8:12] == b"WEBP"
    if not is_webp and not head.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")):
        raise UnsupportedMediaError("the image is of no format that is taken", fix=f"send {FORMATS}")
    try:
        with warnings.catch_warnings():
            # Pillow warns above 89 megapixels; `max_pixels` is the limit here.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=("JPEG", "PNG", "WEBP")) as opened:
                pixels = opened.size[0] * opened.size[1]
    except Image.DecompressionBombError:
        raise TooLargeError(f"the image has far more than {max_pixels} pixels", fix="scale it down") from None
    except Exception:  # noqa: BLE001 - Pillow raises OSError, SyntaxError, struct.error and more for damaged headers
        raise InvalidRequestError("the image is damaged", fix=f"send {FORMATS}") from None
    if pixels > max_pixels:
        raise TooLargeError(f"the image has {pixels} pixels, more than {max_pixels}", fix="scale it down")
    return pixels


def decode_image(data: bytes | memoryview, max_pixels: int) -> npt.NDArray[np.uint8]:
    """Decode an image that came with a request.

    Args:
        data: See `pixel_count`.
        max_pixels: More are refused by the header alone.

    Returns:
        ``(H, W, 3)`` uint8 RGB, as `read_image` gives it.

    Raises:
        ServingError: See `pixel_count`.
        InvalidRequestError: It is damaged.
    """
    pixel_count(data, max_pixels)
    try:
        return read_image(io.BytesIO(data), max_pixels)  # type: ignore[arg-type]  # Pillow reads streams as well
    except (DataError, MemoryError):
        raise InvalidRequestError("the image is damaged", fix=f"send {FORMATS}") from None
