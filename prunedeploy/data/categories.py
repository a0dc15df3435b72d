"""Which category of a JSON is which class of a network."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

# COCO renamed these when it grew from PASCAL VOC's classes; Darknet's coco.names kept the VOC names. Other
# differences (``potted plant`` and ``pottedplant``) are spaces only.
_DARKNET_NAME = {"motorcycle": "motorbike", "airplane": "aeroplane", "couch": "sofa", "tv": "tvmonitor"}


def match_categories(categories: Iterable[str], class_names: Sequence[str]) -> dict[str, int | None]:
    """Return the class index of each category name, None where the network has no such class.

    Exact names first; then case, spaces, ``-`` and ``_`` do not count, and COCO's four renamed classes are
    known.
    """
    exact = {name: index for index, name in enumerate(class_names)}
    plain = {_plain(name): index for name, index in exact.items()}
    return {name: exact.get(name, plain.get(_plain(name))) for name in categories}


def is_root(entry: Mapping[str, Any], entries: Iterable[Mapping[str, Any]]) -> bool:
    """Whether a category only stands above others, as Roboflow's with id 0: it is the supercategory of another.

    COCO's ``person`` is none: it is its own supercategory.
    """
    name, above = entry.get("name"), entry.get("supercategory")
    if above not in (None, "", "none"):
        return False
    return any(other is not entry and other.get("supercategory") == name for other in entries)


def _plain(name: str) -> str:
    squeezed = re.sub(r"[\s_-]+", "", name).lower()
    return _DARKNET_NAME.get(squeezed, squeezed)
