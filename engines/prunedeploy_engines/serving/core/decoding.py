"""From encoded images to pixels, with everything that can be refused refused before decoding."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from prunedeploy_engines.detection.images import upright_rgb
from prunedeploy_engines.serving.core.errors import InvalidRequestError, TooLargeError, UnsupportedMediaError

if TYPE_CHECKING:
    from PIL import ImageFile

FORMATS = "JPEG, PNG or WebP"


def open_image(data: bytes | memoryview, max_pixels: int, where: str | None = None) -> ImageFile.ImageFile:
    """Parse the header of an image that came with a request; nothing is decoded.

    Args:
        data: JPEG, PNG or WebP; other formats that Pillow could read are refused, since each is one more decoder
            that a stranger can feed.
        max_pixels: More are refused.
        where: Where it stands in the request, for the message.

    Returns:
        What `decode_image` goes on with; it has the size.

    Raises:
        UnsupportedMediaError: Another format.
        TooLargeError: Too many pixels.
        InvalidRequestError: The header is damaged.
    """
    from PIL import Image

    if not data:
        raise InvalidRequestError("the image is empty", where, f"send {FORMATS}")
    head = bytes(data[:16])
    is_webp = head[:4] == b"RIFF" and head[8:12] == b"WEBP"
    if not is_webp and not head.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")):
        raise UnsupportedMediaError("the image has a format that is not accepted", where, f"send {FORMATS}")
    try:
        with warnings.catch_warnings():
            # Pillow warns above 89 megapixels; `max_pixels` is the limit here.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            opened = Image.open(io.BytesIO(data), formats=("JPEG", "PNG", "WEBP"))
    except Image.DecompressionBombError:
        raise TooLargeError(f"the image has far more than {max_pixels} pixels", where, "scale it down") from None
    except Exception:  # noqa: BLE001 - Pillow raises OSError, SyntaxError, struct.error and more for damaged headers
        raise InvalidRequestError("the image is damaged", where, f"send {FORMATS}") from None
    pixels = opened.width * opened.height
    if pixels > max_pixels:
        raise TooLargeError(f"the image has {pixels} pixels, more than {max_pixels}", where, "scale it down")
    return opened


def decode_image(
    opened: ImageFile.ImageFile, where: str | None = None, remark: Callable[[str], None] | None = None
) -> npt.NDArray[np.uint8]:
    """Decode an image that came with a request.

    Args:
        opened: From `open_image`; of no use afterwards.
        where: Where it stands in the request, for the message.
        remark: Is told if the file has lost its end, but so little of it that it was read all the same.

    Returns:
        ``(H, W, 3)`` uint8 RGB, as `read_image` gives it.

    Raises:
        InvalidRequestError: It is damaged.
    """
    try:
        with opened:
            pixels, note = upright_rgb(opened)
    except Exception:  # noqa: BLE001 - Pillow's decoders raise as much as its parsers
        raise InvalidRequestError("the image is damaged", where, f"send {FORMATS}") from None
    if note and remark is not None:
        remark(note if where is None else f"{where}: {note}")
    return pixels
