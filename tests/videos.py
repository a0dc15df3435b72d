"""Small real videos of a red cell that moves, for a detector whose answers are known."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

av = pytest.importorskip("av", reason="videos need PyAV, the extra 'video'")

HEIGHT, WIDTH, CELL = 32, 48, 8
"""Those of `tiny_detector`: an image of this size is its input as it is."""

LOSSLESS = {"codec": "ffv1", "pix_fmt": "bgr0"}


def moving_cell(count: int) -> list[np.ndarray]:
    """Black images with one red cell, in row 2, one column further on in every frame."""
    frames = []
    for number in range(count):
        pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
        left = CELL * (number % (WIDTH // CELL))
        pixels[2 * CELL : 3 * CELL, left : left + CELL, 0] = 255
        frames.append(pixels)
    return frames


def write_video(
    path: Path,
    frames: list[np.ndarray],
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    rate: int | Fraction = 10,
    times_s: list[float] | None = None,
    **options: str,
) -> Path:
    """A video of RGB images; at ``rate`` unless every frame has its time."""
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = pix_fmt
        if times_s is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            if times_s is not None:
                frame.pts, frame.time_base = round(1000 * times_s[number]), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def read_video(path: Path) -> list[tuple[float, np.ndarray]]:
    """Times in seconds and RGB images, by OpenCV: a decoder that has nothing to do with PyAV's bindings."""
    cv2 = pytest.importorskip("cv2", reason="OpenCV is the reference")
    capture: Any = cv2.VideoCapture(str(path))
    found = []
    while True:
        there, pixels = capture.read()
        if not there:
            return found
        found.append((capture.get(cv2.CAP_PROP_POS_MSEC) / 1000, pixels[..., ::-1]))
