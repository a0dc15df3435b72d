"""Read an image in the frame that its annotations refer to.

The JSON's width and height decide which frame that is. Labelling tools show a photo upright, as its EXIF tag
says, so normally they equal the upright size, and the upright image is what the device sees too. Some data
sets were annotated on the stored pixels instead: then the JSON's size equals the stored one, and the EXIF
rotation is undone, so that boxes, detections and pycocotools all speak of the same pixels. Where the two
sizes are the same (a half turn, a mirror image, a square) the upright image is taken. Any other size is an
error.
"""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from prunedeploy.data.records import ImageRecord
from prunedeploy_engines.detection.images import MAX_PIXELS, read_image
from prunedeploy_engines.errors import DataError

_ORIENTATION_TAG = 0x0112
# By the tag's value, what makes stored pixels of upright ones: of its turns or mirror images the opposite.
_UNDO_QUARTER_TURN = {
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def read_record(record: ImageRecord, greyscale: bool = False) -> NDArray[np.uint8]:
    """Read a record's image.

    Args:
        record: Which image; its height and width are those of the result.
        greyscale: Rec. 601 luma in all three channels.

    Returns:
        ``(height, width, 3)`` uint8 RGB.

    Raises:
        DataError: Missing, not an image, too large, or of another size than the JSON says.
    """
    pixels: NDArray[np.uint8] = read_image(record.path, greyscale=greyscale)
    expected = (record.height, record.width)
    if pixels.shape[:2] == expected:
        return pixels
    if pixels.shape[1::-1] == expected:
        with Image.open(record.path) as image:
            orientation = image.getexif().get(_ORIENTATION_TAG, 1)
        if orientation in _UNDO_QUARTER_TURN:
            return np.array(Image.fromarray(pixels).transpose(_UNDO_QUARTER_TURN[orientation]))
    raise _size_error(record, pixels.shape[1], pixels.shape[0])


def check_header(record: ImageRecord) -> None:
    """Check that the file is an image of the size that the JSON says, without decoding it.

    Raises:
        DataError: As `read_record`, except that damage behind the header goes unnoticed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(record.path) as image:
                width, height = image.size
                expected = (record.width, record.height)
                # Asked for only where it matters: a PNG may hold it behind its pixels.
                turned = (height, width) == expected and image.getexif().get(_ORIENTATION_TAG) in _UNDO_QUARTER_TURN
    except Exception:  # noqa: BLE001  read_image words every way in which this fails, and it fails there too
        read_record(record)
        return
    if width * height > MAX_PIXELS:
        read_record(record)  # refuses it from its header, in its own words
    if (width, height) != expected and not turned:
        raise _size_error(record, width, height)


def _size_error(record: ImageRecord, width: int, height: int) -> DataError:
    return DataError(
        f"the image is {width} x {height} (width x height), "
        f"the JSON says {record.width} x {record.height} for image {record.image_id}",
        record.path,
        "correct the JSON or put the right image there",
    )
