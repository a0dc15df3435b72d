"""Reading any image file into one form: uint8 RGB, upright."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from prunedeploy_engines.detection.short_jpeg import complete_jpeg
from prunedeploy_engines.errors import DataError

if TYPE_CHECKING:
    from PIL import Image, ImageFile

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
"""What names of images in a folder end with."""

MAX_PIXELS = 50_000_000
_SHORT = "the JPEG file has lost its end, less than 1 % of the picture; it is used as it is"


def read_image(path: str | Path, max_pixels: int = MAX_PIXELS, *, greyscale: bool = False) -> npt.NDArray[np.uint8]:
    """Read an image file as RGB.

    EXIF rotation is applied; greyscale, palette, CMYK and 16-bit images are converted; transparent pixels
    are laid over white. A JPEG file that has lost its end is read with a warning, see `short_jpeg`.

    Args:
        path: JPEG, PNG or whatever else Pillow reads; of an animation the first frame.
        max_pixels: A larger image is refused from its header alone, before anything is decoded.
        greyscale: Return Rec. 601 luma in all three channels.

    Returns:
        ``(H, W, 3)`` uint8 RGB in [0, 255], contiguous and writable.

    Raises:
        DataError: Not there, not an image, truncated, or too large.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            # Pillow warns above 89 and refuses above 179 megapixels; `max_pixels` is the limit here.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as opened:
                width, height = opened.size
                if width * height > max_pixels:
                    raise _too_large(path, width * height, max_pixels)
                pixels, note = upright_rgb(opened)
    except DataError:
        raise
    except Image.DecompressionBombError:
        raise _too_large(path, None, max_pixels) from None
    except FileNotFoundError:
        raise DataError("there is no such image", where=path) from None
    except IsADirectoryError:
        raise DataError("this is a folder, not an image", where=path) from None
    except PermissionError:
        raise DataError("the image may not be read", where=path, fix="check its permissions") from None
    except UnidentifiedImageError:
        raise DataError("this is not an image", where=path, fix="give a JPEG or PNG file") from None
    except Exception as error:
        # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error and more for damaged files.
        raise DataError(f"the image is damaged ({error})", where=path, fix="replace or remove it") from error
    if note:
        warnings.warn(f"{path}: {note}", stacklevel=2)
    return to_greyscale(pixels) if greyscale else pixels


def upright_rgb(opened: ImageFile.ImageFile) -> tuple[npt.NDArray[np.uint8], str]:
    """Decode an image that Pillow has opened, of any of its modes.

    Whatever Pillow raises for a damaged file comes through.

    Returns:
        The pixels as `read_image` gives them; and what there is to say about the file, empty if nothing.
    """
    try:
        opened.load()
    except OSError:
        complete = complete_jpeg(opened)
        if complete is None:
            raise
        with complete:
            return _upright_rgb(complete), _SHORT
    return _upright_rgb(opened), ""


def _upright_rgb(opened: Image.Image) -> npt.NDArray[np.uint8]:
    from PIL import Image, ImageOps

    image = ImageOps.exif_transpose(opened)
    if image.mode.startswith("I") or image.mode == "F":
        return np.repeat(_eight_bits(np.asarray(image))[..., None], 3, axis=-1)
    if "A" in image.mode or "a" in image.mode or "transparency" in image.info:
        layer = image.convert("RGBA")
        background = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        image = Image.alpha_composite(background, layer)
    return np.array(image.convert("RGB"))


def image_files(path: Path) -> list[Path]:
    """The image files of a folder, sorted by name; of a file, itself.

    Raises:
        DataError: There is none.
    """
    if not path.exists():
        raise DataError("there is no such file or folder of images", path)
    if path.is_file():
        return [path]
    files = sorted(file for file in path.iterdir() if _is_image(file))
    if not files:
        raise DataError("this folder has no images", path, f"put some into it: {', '.join(SUFFIXES)}")
    return files


def _is_image(file: Path) -> bool:
    # "._photo.jpg" is what macOS leaves on other systems' disks.
    return file.suffix.lower() in SUFFIXES and not file.name.startswith(".") and file.is_file()


def to_greyscale(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Replace colour by luma, 0.299 R + 0.587 G + 0.114 B, rounded (ITU-R Rec. BT.601).

    Args:
        image: ``(..., 3)`` uint8 RGB.

    Returns:
        New array of the same shape, the same value in the three channels.
    """
    if image.dtype != np.uint8 or image.ndim < 1 or image.shape[-1] != 3:
        raise ValueError(f"image must be (..., 3) uint8 RGB, got {image.shape} {image.dtype}")
    # In thousandths and integers: exact, and the same on every machine.
    weights = np.array([299, 587, 114], dtype=np.uint32)
    luma = ((image.astype(np.uint32) @ weights + 500) // 1000).astype(np.uint8)
    return np.repeat(luma[..., None], 3, axis=-1)


def _too_large(path: str | Path, pixels: int | None, max_pixels: int) -> DataError:
    size = "far more" if pixels is None else f"{pixels / 1e6:.0f} megapixels, more"
    return DataError(
        f"the image has {size} than the limit of {max_pixels / 1e6:g} megapixels",
        where=path,
        fix="scale it down",
    )


def _eight_bits(values: npt.NDArray[np.generic]) -> npt.NDArray[np.uint8]:
    """Bring 16-bit, 32-bit or float greyscale to 8 bits; Pillow's own conversion clips at 255."""
    wide = values.astype(np.float64)
    largest = float(wide.max()) if wide.size else 0.0
    if values.dtype.kind == "f" and largest <= 1.0:
        scale = 1.0
    elif largest <= 255.0:
        # Pillow opens 16-bit PNG as "I;16" or "I", so the type does not always say that these are 16 bits, and dark.
        scale = 65535.0 if values.dtype == np.uint16 else 255.0
    else:
        # Sensors of 10, 12 and 14 bits write their values into 16 as they are.
        scale = next((2.0**bits - 1 for bits in (10, 12, 14) if largest < 2**bits), 65535.0)
    return np.clip(np.rint(wide * (255.0 / scale)), 0, 255).astype(np.uint8)
