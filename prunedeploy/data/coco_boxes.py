"""One annotation of a COCO document: is its box sound, and what of it lies inside its image?"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

from prunedeploy.data.records import ImageRecord

ROUNDING_PX = 1.0
"""A box that leaves its image by at most this much was rounded, as some of official COCO: it is clipped unnoticed."""

EDGE_PX, EDGE_SHARE = 8.0, 0.02
"""A box that leaves its image by at most this many pixels, or this share of the image's side, is clipped and counted.

More than that is not a hasty edge but another image's box, or corners taken for a size.
"""

# The official instances_train2017.json has exactly two boxes of height zero: (image id, x, y). They are
# dropped unnoticed. See github.com/cocodataset/cocoapi issue 355.
_OFFICIAL_ZERO_AREA = {(200365, 296.65, 388.33), (550395, 9.98, 188.56)}


class FaultyError(Exception):
    """One record is wrong; what comes after it can still be read."""

    def __init__(self, kind: str, what: str, fix: str) -> None:
        super().__init__(what)
        self.kind, self.what, self.fix = kind, what, fix


@dataclass(frozen=True)
class Box:
    """One sound box.

    Attributes:
        xywh: Left, top, width and height in pixels, inside the image.
        crowd: It surrounds too many objects to tell apart.
        area: COCO's ``area`` in square pixels.
        cut_px: By how many pixels it left its image, if that is worth telling; else 0.
    """

    xywh: tuple[float, ...]
    crowd: bool
    area: float
    cut_px: float = 0.0


def sound_box(entry: Mapping[str, Any], frame: ImageRecord) -> Box | None:
    """Check the box of an annotation; None for one that is to be dropped unnoticed.

    Raises:
        FaultyError: Says what is wrong with it.
    """
    bbox, crowd = entry.get("bbox"), entry.get("iscrowd")
    if crowd not in (0, 1, None):  # some tools write null
        raise FaultyError("iscrowd neither 0 nor 1", f"has iscrowd {str(crowd)[:80]}", "give 0 or 1")
    if not isinstance(bbox, list) or len(bbox) != 4 or not all(map(_is_number, bbox)):
        what = f"has bbox {str(bbox)[:80]}"
        raise FaultyError("bbox that is not four numbers", what, "give four numbers: x, y, width, height")
    x, y, width, height = map(float, bbox)
    if not all(map(math.isfinite, (x, y, width, height))):
        raise FaultyError("box with NaN or infinity", f"has NaN or infinity in its bbox {bbox}", "correct or remove it")
    if width < 0 or height < 0:
        what = f"has a negative size in its bbox {bbox}"
        raise FaultyError("box of negative size", what, "bbox is x, y, width, height, not corners")
    if width == 0 or height == 0:
        if (frame.image_id, x, y) in _OFFICIAL_ZERO_AREA:
            return None
        raise FaultyError("box of zero area", f"has a bbox of zero area {bbox}", "correct or remove it")
    inside: tuple[float, ...] = (x, y, width, height)
    over = 0.0
    if x < 0 or y < 0 or x + width > frame.width or y + height > frame.height:
        inside, over = _clipped((x, y, width, height), frame)
    area = entry.get("area")
    if not (_is_number(area) and math.isfinite(area) and area > 0):
        area = inside[2] * inside[3]
    return Box(inside, bool(crowd), float(area), over if over > ROUNDING_PX else 0.0)


def _clipped(xywh: tuple[float, float, float, float], frame: ImageRecord) -> tuple[tuple[float, ...], float]:
    """A box cut to its image, and by how many pixels it left it.

    Raises:
        FaultyError: It left it by more than what is clipped, or nothing of it is inside.
    """
    x, y, width, height = xywh
    over_x, over_y = max(-x, x + width - frame.width), max(-y, y + height - frame.height)
    left, top = min(max(x, 0.0), frame.width), min(max(y, 0.0), frame.height)
    right, bottom = min(x + width, float(frame.width)), min(y + height, float(frame.height))
    far = over_x > max(EDGE_PX, EDGE_SHARE * frame.width) or over_y > max(EDGE_PX, EDGE_SHARE * frame.height)
    if far or right <= left or bottom <= top:
        what = f"has bbox {list(xywh)} outside its image of {frame.width} x {frame.height} (width x height)"
        raise FaultyError("box outside its image", what, "bbox is x, y, width, height in pixels")
    return (left, top, right - left, bottom - top), max(over_x, over_y)


def _is_number(value: object) -> TypeGuard[float]:
    if isinstance(value, float):
        return True
    # JSON integers have no limit, floats have.
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**53
