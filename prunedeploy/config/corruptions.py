"""The names of the image corruptions, known without NumPy: what a configuration or the command line may ask for."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

CORRUPTIONS = (
    "gaussian_noise", "shot_noise", "impulse_noise",
    "defocus_blur", "glass_blur", "motion_blur", "zoom_blur",
    "snow", "frost", "fog", "brightness",
    "contrast", "elastic_transform", "pixelate", "jpeg_compression",
)  # fmt: skip
"""In the order of Hendrycks and Dietterich (2019): noise, blur, weather, digital."""

SEVERITIES = (1, 2, 3, 4, 5)


def corruption_names(wanted: Sequence[str]) -> tuple[str, ...]:
    """The corruptions that are asked for, each once; ``all`` and ``none`` stand alone.

    Raises:
        ValueError: One is unknown (the nearest is named), or ``all`` or ``none`` has company.
    """
    names = tuple(dict.fromkeys(wanted))
    if names in {(), ("none",)}:
        return ()
    if names == ("all",):
        return CORRUPTIONS
    for name in names:
        if name in {"all", "none"}:
            raise ValueError(f"{name!r} excludes other corruptions")
        if name not in CORRUPTIONS:
            nearest = difflib.get_close_matches(name, CORRUPTIONS, 1, 0.0)[0]
            raise ValueError(f"there is no corruption {name!r}; the nearest is {nearest}")
    return names


def severities_of(text: str) -> tuple[int, ...]:
    """``1-5``, ``3`` or ``1,3,5`` as ascending severities, each once.

    Raises:
        ValueError: A part is no severity, or a range runs backwards.
    """
    found: set[int] = set()
    for part in text.split(","):
        first, dash, last = (piece.strip() for piece in part.partition("-"))
        ends = (first, last if dash else first)
        if not all(end.isdecimal() and int(end) in SEVERITIES for end in ends):
            raise ValueError(f"{part.strip()!r} is no severity; give 1 to 5, e.g. 1-5 or 1,3,5")
        if int(ends[0]) > int(ends[1]):
            raise ValueError(f"{part.strip()!r} runs backwards; give the lower severity first")
        found.update(range(int(ends[0]), int(ends[1]) + 1))
    return tuple(sorted(found))
