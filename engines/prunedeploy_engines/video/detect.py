"""Detection in a video: while a frame is in the network, the next are decoded and the last ones drawn and encoded."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from prunedeploy_engines.detection.drawing import draw_detections
from prunedeploy_engines.video.overlap import ReadAhead, WriteBehind
from prunedeploy_engines.video.source import Frame, VideoSource
from prunedeploy_engines.video.writer import VideoWriter

if TYPE_CHECKING:
    from prunedeploy_engines.detection.detections import Detections

_DEPTH = 4
"""Frames that wait on either side of the network."""


@dataclass
class VideoRun:
    """What was done so far.

    Attributes:
        frames: Frames in which objects were looked for.
        skipped: Frames of a camera that came while the network was busy.
        seconds: From before the first frame was read until the last one was written.
    """

    frames: int = 0
    skipped: int = 0
    seconds: float = 0.0


def detect_video(
    source: VideoSource,
    detect: Callable[[Frame], Detections],
    tell: Callable[[Frame, Detections], None],
    run: VideoRun,
    out: Path | None = None,
) -> None:
    """Find objects in every frame that a source gives.

    Args:
        source: All frames of a file, or always the newest one of a camera, until Ctrl-C, which is its end.
        detect: Finds the objects of a frame.
        tell: Is told of each frame and what was found in it, in order.
        run: Is kept up to date, also if it does not end well.
        out: Video to write, with boxes; None writes none. If the run ends early it has the frames until then; if there
            was none, there is no file.

    Raises:
        DataError: See `VideoSource`; every frame before has been done.
        StoreError: The video cannot be written.
    """
    begun = time.monotonic()
    try:
        with ExitStack() as stack:
            draw = None
            if out is not None:
                writer = stack.enter_context(closing(VideoWriter(out, source.rate)))
                draw = stack.enter_context(WriteBehind(partial(_draw, writer), _DEPTH))
            frames = stack.enter_context(ReadAhead(source, 1 if source.live else _DEPTH, latest=source.live))
            try:
                for frame in frames:
                    found = detect(frame)
                    tell(frame, found)
                    if draw is not None:
                        draw(frame, found)
                    run.frames += 1
                    run.skipped, run.seconds = frames.skipped, time.monotonic() - begun
            except KeyboardInterrupt:
                if not source.live:
                    raise
    finally:
        run.seconds = time.monotonic() - begun


def _draw(writer: VideoWriter, frame: Frame, found: Detections) -> None:
    writer.write(draw_detections(frame.pixels, found), frame.time_s)
