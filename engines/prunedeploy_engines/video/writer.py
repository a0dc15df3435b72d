"""Writing a video of images, so that a file of its name is always one that plays."""

from __future__ import annotations

import contextlib
import uuid
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from prunedeploy_engines.errors import ConfigError, StoreError

SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv")
_TICKS = 90_000
"""Per second: the clock of MPEG."""


class VideoWriter:
    """Writes H.264; the file gets its name when it is closed, whole, even if that is early.

    Args:
        path: What to write; a file that is there is replaced in the end.
        rate: Frames per second, about: what counts is each frame's time.

    Raises:
        ConfigError: Its name ends with none of `SUFFIXES`.
        ModuleNotFoundError: PyAV is not installed.
    """

    def __init__(self, path: Path, rate: Fraction | None) -> None:
        if path.suffix.lower() not in SUFFIXES:
            raise ConfigError(
                "is not a format of video that can be written", path, f"let it end with {', '.join(SUFFIXES)}"
            )
        self._path = path
        self._rate = rate or Fraction(25)
        # Its name ends as the other's does, which is how FFmpeg knows the format.
        self._temporary = path.with_name(f".{path.stem}.{uuid.uuid4().hex}.tmp{path.suffix}")
        self._container: Any = None
        self._stream: Any = None
        self._shown = -1

    def write(self, pixels: npt.NDArray[np.uint8], time_s: float) -> None:
        """Append an image.

        Args:
            pixels: ``(H, W, 3)`` uint8 RGB, of one size for all; an odd side gets one more column or row.
            time_s: When to show it, later than the one before.

        Raises:
            StoreError: The disk refuses; what was written before is kept by `close`.
        """
        import av

        height, width = pixels.shape[:2]
        if height % 2 or width % 2:  # H.264 halves the resolution of colours
            pixels = np.pad(pixels, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        with self._refusals():
            if self._container is None:
                self._open(pixels.shape[0], pixels.shape[1])
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            self._shown = max(self._shown + 1, round(time_s * _TICKS))
            frame.pts, frame.time_base = self._shown, Fraction(1, _TICKS)
            self._container.mux(self._stream.encode(frame))

    def _open(self, height: int, width: int) -> None:
        import av

        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._container = av.open(str(self._temporary), "w")
        # Builds of FFmpeg without the GPL's parts have no x264.
        codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
        self._stream = self._container.add_stream(codec, rate=self._rate)
        self._stream.width, self._stream.height, self._stream.pix_fmt = width, height, "yuv420p"
        self._stream.codec_context.time_base = Fraction(1, _TICKS)
        if codec == "libx264":
            self._stream.options = {"preset": "veryfast", "crf": "20"}
        else:
            self._stream.bit_rate = 4 * height * width

    def close(self) -> None:
        """Finish the file and give it its name; without a frame there is none.

        Raises:
            StoreError: The disk refuses; no file is left.
        """
        if self._container is None:
            return
        container, self._container = self._container, None
        try:
            with self._refusals():
                try:
                    container.mux(self._stream.encode(None))
                finally:
                    container.close()
                self._temporary.replace(self._path)
        except BaseException:
            with contextlib.suppress(OSError):
                self._temporary.unlink()
            raise

    @contextlib.contextmanager
    def _refusals(self) -> Any:
        import av

        try:
            yield
        except (av.FFmpegError, OSError) as error:
            fix = "free space or choose another file"
            raise StoreError(f"cannot be written ({error.strerror})", self._path, fix) from None
