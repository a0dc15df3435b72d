"""`prunedeploy detect` on a video or a camera: a line of JSON per frame, or a table at the end."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import click

from prunedeploy.cli.detect_images import Detect, progress, speed
from prunedeploy.cli.output import print_json, print_table
from prunedeploy_engines.errors import ConfigError

if TYPE_CHECKING:
    from prunedeploy_engines.detection.detections import Detections
    from prunedeploy_engines.video.source import Frame, VideoSource


def detect_and_print(
    source: VideoSource, name: Path, detect: Detect, out: Path | None, stdout: TextIO, *, as_json: bool
) -> None:
    """Find objects in every frame, and say what was found.

    Args:
        source: The video or camera.
        name: What it was called.
        detect: Finds the objects of an image.
        out: Video to write, or a folder for it; None writes none.
        stdout: Where lines of JSON go.
        as_json: Print those instead of a table.

    Raises:
        PrunedeployError: See `detect_video`; what was done until then has been said.
    """
    from prunedeploy_engines.video.detect import VideoRun, detect_video

    file = None if out is None else _video_file(out, name)
    run, detections, frames = VideoRun(), Counter[str](), Counter[str]()

    def tell(frame: Frame, found: Detections) -> None:
        names = Counter(found.class_names[class_id] for class_id in found.class_ids)
        detections.update(names)
        frames.update(names.keys())
        if as_json:
            height, width = frame.pixels.shape[:2]
            row = {"frame": frame.index, "time_s": frame.time_s, "width": width, "height": height}
            print_json({**row, "detections": found.to_rows()}, indent=None, file=stdout)
        advance()

    try:
        with progress(source.total, "frames", hidden=as_json and stdout.isatty()) as advance:
            detect_video(source, lambda frame: detect(frame.pixels), tell, run, file)
    finally:
        if run.frames:
            skipped = f", {run.skipped} skipped" if source.live else ""
            written = f" -> {file}" if file is not None else ""
            line = f"{name}: {speed(run.frames, 'frame', run.seconds)}{skipped}{written}"
            click.echo(line, file=sys.stderr if as_json else stdout)
    if not as_json and detections:
        cells = [[f"  {name}", str(count), str(frames[name])] for name, count in detections.most_common()]
        print_table(["  class", "detections", "in frames"], cells, file=stdout)


def _video_file(out: Path, name: Path) -> Path:
    """The file that ``--out`` means.

    Raises:
        ConfigError: It is the video that is read.
    """
    from prunedeploy_engines.video.source import camera_of, is_video

    number = camera_of(name)
    file = (
        out
        if is_video(out) and not out.is_dir()
        else out / f"{name.stem if number is None else f'camera-{number}'}.mp4"
    )
    if file.exists() and name.exists() and file.samefile(name):
        raise ConfigError("is the video that is read", file, "choose another --out")
    return file
