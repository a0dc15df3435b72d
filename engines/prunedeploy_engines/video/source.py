"""Frames of a video file or a camera, as upright RGB images."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from prunedeploy_engines.detection.images import MAX_PIXELS
from prunedeploy_engines.errors import ConfigError, DataError

if TYPE_CHECKING:
    from typing_extensions import Self

SUFFIXES = (
    ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".m2ts", ".mts", ".wmv", ".flv", ".3gp",
    ".ogv", ".mjpeg", ".mjpg", ".h264", ".264", ".h265", ".265",
)  # fmt: skip
"""What names of videos end with."""

_BREAKS_OFF = 0.9
"""A file whose pictures end before this fraction of the length that it gives itself is not whole."""


@dataclass(frozen=True)
class Frame:
    """One picture.

    Attributes:
        index: Its number in the video, from 0, frames that were left out included.
        time_s: When it is shown, in seconds from the first one.
        pixels: ``(H, W, 3)`` uint8 RGB.
    """

    index: int
    time_s: float
    pixels: npt.NDArray[np.uint8]


def is_video(name: str | Path) -> bool:
    """Whether a name is that of a video file or of a camera."""
    return camera_of(name) is not None or Path(name).suffix.lower() in SUFFIXES


def camera_of(name: str | Path) -> int | None:
    """The number of a camera called ``camera:0`` or ``/dev/video0``; None for what is no camera."""
    match = re.fullmatch(r"(?:camera:|/dev/video)(\d+)", str(name))
    return None if match is None else int(match[1])


class VideoSource:
    """Reads a video file or a camera. A context manager; iterate over it once.

    Cameras are read through Video4Linux on Linux and AVFoundation on macOS. That part follows FFmpeg's documentation
    and was not tried with a camera.

    Args:
        name: A file, or what `camera_of` knows.
        every: Give every Nth frame, from the first one.

    Attributes:
        live: A camera, which waits for nobody and has no end.
        total: How many frames it will give, about; None if that is not known.
        rate: Frames per second that it has; None if it does not say.

    Raises:
        DataError: Not there, not a video, or one without pictures.
        ConfigError: There is no way to a camera on this system.
        ModuleNotFoundError: PyAV is not installed.
    """

    def __init__(self, name: str | Path, every: int = 1) -> None:
        import av

        self._name = name
        self._every = every
        number = camera_of(name)
        self.live = number is not None
        file, arguments = (str(name), {}) if number is None else _camera(number)
        try:
            self._container: Any = av.open(file, **arguments)
        except FileNotFoundError:
            raise DataError("there is no such camera" if self.live else "there is no such video", name) from None
        except PermissionError:
            raise DataError("may not be read", name, "check its permissions") from None
        except (av.FFmpegError, OSError) as error:
            what = "the camera does not open" if self.live else "this is not a video that can be read"
            fix = None if self.live else "give a whole video file"
            raise DataError(f"{what} ({error.strerror})", name, fix) from None
        try:
            self._prepare()
        except BaseException:
            self.close()
            raise

    def _prepare(self) -> None:
        videos = self._container.streams.video
        if not videos:
            raise DataError("has no frames", self._name, "give a video file with pictures")
        self._stream = videos[0]
        self._stream.thread_type = "AUTO"
        pixels = (self._stream.width or 0) * (self._stream.height or 0)
        if pixels > MAX_PIXELS:
            what = f"its frames have {pixels / 1e6:.0f} megapixels, more than the limit of {MAX_PIXELS / 1e6:g}"
            raise DataError(what, self._name, "scale it down")
        rate = self._stream.average_rate
        self.rate: Fraction | None = rate if rate and rate > 0 else None
        self._length_s = self._length()
        count = self._stream.frames or (round(self._length_s * self.rate) if self._length_s and self.rate else 0)
        self.total = None if self.live or not count else -(-count // self._every)

    def _length(self) -> float | None:
        """Seconds of pictures that the file says it has; None if it says nothing of them alone."""
        stream, container = self._stream, self._container
        if stream.duration is not None:
            return float(stream.duration * stream.time_base)
        if container.duration is not None and len(container.streams) == 1:
            return float(container.duration / 1e6)
        return None

    def __iter__(self) -> Iterator[Frame]:
        """Decode.

        Damaged parts are left out, and told in the end.

        Raises:
            DataError: There is no frame, the size changes, parts were damaged, or the file breaks off. All frames
                that could be read have been given before.
        """
        count = damaged = 0
        first, last, size = None, 0.0, None
        for picture in self._pictures():
            if picture is None:
                damaged += 1
                continue
            shown = picture.time if picture.time is not None else count / float(self.rate or 25)
            first = shown if first is None else first
            last = shown - first
            if size not in (None, (picture.width, picture.height)):
                what = f"frame {count} is {picture.width} x {picture.height}, those before are {size[0]} x {size[1]}"
                raise DataError(what, self._name, "split the video where its size changes")
            size = (picture.width, picture.height)
            if count % self._every == 0:
                yield Frame(count, last, _upright(picture))
            count += 1
        if not count:
            raise DataError("has no frames" if not damaged else "has no frame that can be read", self._name)
        if damaged:
            what = f"is damaged in {damaged} place{'s' * (damaged > 1)}"
            raise DataError(f"{what}; {count} frames could be read", self._name)
        end = last + 1 / float(self.rate or 25)
        if self._length_s is not None and end < _BREAKS_OFF * self._length_s - 0.5:
            raise DataError(f"breaks off after {end:.1f} of {self._length_s:.1f} s ({count} frames)", self._name)

    def _pictures(self) -> Iterator[Any]:
        """PyAV's frames; None for a part that cannot be decoded."""
        import av

        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets)
                pictures = packet.decode()
            except StopIteration:
                return
            except (av.error.EOFError, av.error.ExitError):
                return
            except av.FFmpegError as error:
                if self.live:
                    raise DataError(f"the camera gives no more frames ({error.strerror})", self._name) from None
                yield None
                continue
            yield from pictures

    def close(self) -> None:
        """Close the file or camera."""
        self._container.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _camera(number: int) -> tuple[str, dict[str, Any]]:
    """What FFmpeg's devices want: https://ffmpeg.org/ffmpeg-devices.html, v4l2 and avfoundation."""
    if sys.platform.startswith("linux"):
        return f"/dev/video{number}", {"format": "v4l2"}
    if sys.platform == "darwin":
        return f"{number}:none", {"format": "avfoundation", "options": {"framerate": "30"}}
    raise ConfigError(
        "cameras are read on Linux and macOS only", f"camera:{number}", "record a video, and give its file"
    )


def _upright(picture: Any) -> npt.NDArray[np.uint8]:
    """RGB pixels of PyAV's frame, turned as its display matrix says: phones film sideways and note it."""
    pixels: npt.NDArray[np.uint8] = picture.to_ndarray(format="rgb24")
    quarters = round(getattr(picture, "rotation", 0) / 90) % 4  # counterclockwise
    return np.ascontiguousarray(np.rot90(pixels, quarters)) if quarters else pixels
