"""Detections drawn into an image, for people to look at."""

from __future__ import annotations

from functools import lru_cache
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from prunedeploy_engines.detection.detections import Detections

if TYPE_CHECKING:
    from PIL import ImageDraw, ImageFont

Image8 = npt.NDArray[np.uint8]
Colour = tuple[int, int, int]
Rectangle = tuple[int, int, int, int]
"""Left, top, right, bottom in pixels; the last two are the first column and row outside."""

MAX_PIXELS = 100_000_000
_DARK: Colour = (16, 16, 16)
_LIGHT: Colour = (255, 255, 255)
_SMALLEST_FONT = 9


def draw_detections(image: Image8, detections: Detections, *, scale: int = 1) -> Image8:
    """Draw boxes with labels such as "dog 0.87"; a class always has the same colour.

    Lines and letters grow with the image. A label stands above its box; where that would leave the
    image or cover the label of a better detection, it stands inside the box or below it.

    Args:
        image: ``(H, W, 3)`` uint8 RGB; not modified.
        detections: In pixels of ``image``. Parts outside the image are cut off, boxes that are not finite or
            lie wholly outside are left out.
        scale: Enlarge the image by this factor first, so that small images are readable.

    Returns:
        ``(scale * H, scale * W, 3)`` uint8 RGB, a new array.

    Raises:
        ValueError: Not such an image, or too large when enlarged.
    """
    from PIL import Image, ImageDraw

    canvas = _enlarged(image, scale)
    height, width = canvas.shape[:2]
    if not len(detections) or not canvas.size:
        return canvas
    picture = Image.fromarray(canvas)
    draw = ImageDraw.Draw(picture)
    draw.fontmode = "L"
    # Slower than in proportion: nobody looks at a large image from afar. 640 pixels give 19, 1080 give 28.
    size = 0.15 * min(height, width) ** 0.75
    line = max(1, round(0.18 * size))
    shown = []
    for box, score, class_id in zip(detections.boxes_xyxy, detections.scores, detections.class_ids, strict=True):
        pixels = _pixels(box * scale, height, width)
        if pixels is not None:
            label = f"{_one_line(detections.class_names[class_id])} {score:.2f}"
            shown.append((pixels, label, class_colour(int(class_id))))
    for pixels, _, colour in reversed(shown):  # the best on top
        _draw_box(draw, pixels, colour, line)
    taken: list[Rectangle] = []
    font = _font(max(_SMALLEST_FONT, round(size)))
    for pixels, label, colour in shown:
        taken.append(_draw_label(draw, pixels, label, colour, font, line, taken))
    return np.array(picture)


def _enlarged(image: Image8, factor: int) -> Image8:
    """The image enlarged smoothly by a whole factor, as a new array."""
    from PIL import Image

    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
        raise ValueError(f"image must be (H, W, 3) uint8 RGB, got {image.shape} {image.dtype}")
    if factor < 1 or factor != int(factor):
        raise ValueError(f"scale must be a whole number of at least 1, got {factor}")
    height, width = image.shape[:2]
    if height * width * factor**2 > MAX_PIXELS and factor > 1:
        raise ValueError(f"{width} x {height} times {factor} is more than {MAX_PIXELS / 1e6:g} megapixels")
    if factor == 1 or not image.size:
        return np.array(image.repeat(factor, axis=0).repeat(factor, axis=1))
    size = (width * factor, height * factor)
    return np.array(Image.fromarray(np.ascontiguousarray(image)).resize(size, Image.Resampling.LANCZOS))


def class_colour(class_id: int) -> Colour:
    """Colour of a class, RGB in [0, 255]: depends on nothing but the id, repeats after 96.

    Each colour is the one farthest from all before it in CIELAB, so that the first few differ most.
    """
    colours = _colours()
    return colours[class_id % len(colours)]


def text_colour(background: Colour) -> Colour:
    """Dark or light, whichever contrasts more with the background (WCAG 2.1, contrast ratio)."""
    background_luminance, dark, light = (float(_luminance(np.array(colour))) for colour in (background, _DARK, _LIGHT))
    on_dark = (background_luminance + 0.05) / (dark + 0.05)
    on_light = (light + 0.05) / (background_luminance + 0.05)
    return _DARK if on_dark >= on_light else _LIGHT


@lru_cache(maxsize=1)
def _colours() -> tuple[Colour, ...]:
    """Farthest-first choice of 96 from a grid of RGB colours that are neither grey nor nearly black."""
    levels = np.arange(0, 256, 51)
    candidates = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(-1, 3)
    lab = _lab(candidates)
    vivid = (lab[:, 0] > 35) & (np.hypot(lab[:, 1], lab[:, 2]) > 30)
    candidates, lab = candidates[vivid], lab[vivid]
    chosen = [int(np.abs(candidates - (255, 51, 51)).sum(axis=1).argmin())]
    distance = np.full(len(lab), np.inf)
    while len(chosen) < 96:
        distance = np.minimum(distance, np.linalg.norm(lab - lab[chosen[-1]], axis=1))
        chosen.append(int(distance.argmax()))
    return tuple((int(r), int(g), int(b)) for r, g, b in candidates[chosen])


def _linear(rgb: npt.NDArray[np.generic]) -> npt.NDArray[np.float64]:
    """Turn sRGB in [0, 255] to linear light in [0, 1] (IEC 61966-2-1)."""
    value = rgb.astype(np.float64) / 255
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def _luminance(rgb: npt.NDArray[np.generic]) -> npt.NDArray[np.float64]:
    return _linear(rgb) @ np.array([0.2126, 0.7152, 0.0722])


def _lab(rgb: npt.NDArray[np.generic]) -> npt.NDArray[np.float64]:
    """Turn sRGB ``(N, 3)`` to CIELAB ``(N, 3)``, white point D65 (CIE 15)."""
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    ratio = _linear(rgb) @ to_xyz.T / np.array([0.95047, 1.0, 1.08883])
    f = np.where(ratio > (6 / 29) ** 3, np.cbrt(ratio), ratio / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], axis=1)


@lru_cache(maxsize=8)
def _font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    from PIL import ImageFont

    return ImageFont.load_default(size=size)


def _one_line(name: str) -> str:
    return " ".join(name.split()) or "?"


def _pixels(box_xyxy: npt.NDArray[np.float32], height: int, width: int) -> Rectangle | None:
    """Whole pixels of a box that lie in the image, at least one by one; None if there are none."""
    if not np.isfinite(box_xyxy).all():
        return None
    left, top, right, bottom = (float(value) for value in box_xyxy)
    if right < 0 or bottom < 0 or left >= width or top >= height or right < left or bottom < top:
        return None
    x1, y1 = min(max(round(left), 0), width - 1), min(max(round(top), 0), height - 1)
    x2, y2 = min(round(right), width), min(round(bottom), height)
    return x1, y1, max(x2, x1 + 1), max(y2, y1 + 1)


def _draw_box(draw: ImageDraw.ImageDraw, box: Rectangle, colour: Colour, line: int) -> None:
    """A frame in the class's colour with a contrasting hairline inside it: visible on any background."""
    x1, y1, x2, y2 = box[0], box[1], box[2] - 1, box[3] - 1
    hairline = text_colour(colour)
    if x2 - x1 > 4 * line and y2 - y1 > 4 * line:
        draw.rectangle((x1 + line, y1 + line, x2 - line, y2 - line), outline=hairline, width=1)
    draw.rectangle((x1, y1, x2, y2), outline=colour, width=line)


def _draw_label(
    draw: ImageDraw.ImageDraw,
    box: Rectangle,
    label: str,
    colour: Colour,
    font: ImageFont.ImageFont | ImageFont.FreeTypeFont,
    line: int,
    taken: list[Rectangle],
) -> Rectangle:
    """Draw a label on a plate of the class's colour, in the image, off the others where there is room.

    Returns:
        What it covers.
    """
    image_width, image_height = draw.im.size
    padding = max(1, line)
    label = _shortened(draw, label, font, image_width - 2 * padding)
    # One height for all labels, from the tallest letters to the deepest.
    _, ascent, _, descent = draw.textbbox((0, 0), "Ågjy|", font=font)
    width = round(draw.textlength(label, font=font)) + 2 * padding
    height = round(descent - ascent) + 2 * padding
    tops = [box[1] - height, box[1], box[3], box[3] - height]
    places = []
    for top, left in product(tops, [box[0], box[2] - width]):
        inside_left = min(max(left, 0), max(image_width - width, 0))
        inside_top = min(max(top, 0), max(image_height - height, 0))
        places.append((inside_left, inside_top, inside_left + width, inside_top + height))
    place = min(places, key=lambda place: sum(_overlap(place, other) for other in taken))
    draw.rectangle((place[0], place[1], place[2] - 1, place[3] - 1), fill=colour)
    draw.text((place[0] + padding, place[1] + padding - ascent), label, font=font, fill=text_colour(colour))
    return place


def _shortened(
    draw: ImageDraw.ImageDraw,
    label: str,
    font: ImageFont.ImageFont | ImageFont.FreeTypeFont,
    width: int,
) -> str:
    """Cut the class name, not the score, until the label fits."""
    name, _, score = label.rpartition(" ")
    while name and draw.textlength(label, font=font) > width:
        name = name[:-1]
        label = f"{name.rstrip()}\N{HORIZONTAL ELLIPSIS} {score}" if name else score
    return label


def _overlap(a: Rectangle, b: Rectangle) -> int:
    """Pixels in both."""
    return max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
