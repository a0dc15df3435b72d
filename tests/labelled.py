"""Pictures and text files for data sets that tests make."""

from __future__ import annotations

from pathlib import Path

from PIL import Image


def picture(path: Path, width: int = 100, height: int = 50, orientation: int = 1) -> Path:
    """Save an image of these stored pixels; ``orientation`` is its EXIF tag."""
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (width, height), (90, 120, 30)).save(path, exif=exif)
    return path


def text(path: Path, content: str) -> Path:
    """Write a text file and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")
    return path
