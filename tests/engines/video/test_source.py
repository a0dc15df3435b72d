"""Frames against those that were written, and against OpenCV's decoder."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from prunedeploy_engines.errors import ConfigError, DataError
from prunedeploy_engines.video import source as module
from prunedeploy_engines.video.source import VideoSource, camera_of, is_video
from videos import LOSSLESS, av, moving_cell, read_video, write_video


def noise(count: int, height: int = 64, width: int = 96) -> list[np.ndarray]:
    return list(np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8))


def test_lossless_frames_come_back_bit_for_bit(tmp_path: Path) -> None:
    written = noise(7)
    with VideoSource(write_video(tmp_path / "a.mkv", written, **LOSSLESS)) as source:
        frames = list(source)
    assert [frame.index for frame in frames] == list(range(7))
    assert [frame.time_s for frame in frames] == pytest.approx([0.1 * number for number in range(7)])
    assert np.array_equal([frame.pixels for frame in frames], written)
    assert frames[0].pixels.flags["C_CONTIGUOUS"]


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi", "mov", "ts"])
def test_h264_is_decoded_as_opencv_does(tmp_path: Path, suffix: str) -> None:
    path = write_video(tmp_path / f"a.{suffix}", moving_cell(9))
    with VideoSource(path) as source:
        assert not source.live
        assert source.rate == 10
        frames = list(source)
    others = read_video(path)
    assert len(frames) == len(others) == 9
    for frame, (_, other) in zip(frames, others, strict=True):
        assert np.abs(frame.pixels.astype(int) - other).max() <= 2


def test_every_so_many(tmp_path: Path) -> None:
    written = noise(8)
    path = write_video(tmp_path / "a.mkv", written, **LOSSLESS)
    with VideoSource(path, every=3) as source:
        assert source.total == 3  # 0, 3 and 6 of 8
        frames = list(source)
    assert [frame.index for frame in frames] == [0, 3, 6]
    assert np.array_equal([frame.pixels for frame in frames], written[::3])
    assert [frame.time_s for frame in frames] == pytest.approx([0, 0.3, 0.6])


def test_times_of_a_variable_rate_are_the_files(tmp_path: Path) -> None:
    times = [0.5, 0.6, 1.1, 3.0]
    with VideoSource(write_video(tmp_path / "a.mkv", noise(4), times_s=times, **LOSSLESS)) as source:
        assert [frame.time_s for frame in source] == pytest.approx([0, 0.1, 0.6, 2.5])


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_a_video_that_was_filmed_sideways_is_upright(tmp_path: Path, quarters: int) -> None:
    """The display matrix of the track header (ISO 14496-12, 8.3.2), as phones write it; OpenCV heeds it too."""
    path = write_video(tmp_path / "a.mp4", moving_cell(3))
    content = path.read_bytes()
    one = (1 << 16).to_bytes(4, "big")
    minus, zero, last = (-(1 << 16)).to_bytes(4, "big", signed=True), bytes(4), (1 << 30).to_bytes(4, "big")
    rows = {
        0: (one, zero, zero, one),
        1: (zero, one, minus, zero),
        2: (minus, zero, zero, minus),
        3: (zero, minus, one, zero),
    }

    def matrix(quarter: int) -> bytes:
        a, b, c, d = rows[quarter]
        return b"".join((a, b, zero, c, d, zero, zero, zero, last))

    track = content.index(b"tkhd")
    place = content.index(matrix(0), track)
    path.write_bytes(content[:place] + matrix(quarters) + content[place + 36 :])
    with VideoSource(path) as source:
        frames = [frame.pixels for frame in source]
    others = [other for _, other in read_video(path)]
    assert frames[0].shape == ((32, 48, 3) if quarters == 2 else (48, 32, 3))
    assert np.abs(np.array(frames, int) - np.array(others, int)).max() <= 4


def refused(path: Path) -> tuple[str, int]:
    """The line, and how many frames came before it."""
    count = 0
    with pytest.raises(DataError) as caught, VideoSource(path) as source:  # noqa: PT012 - either may raise
        for _ in source:
            count += 1
    assert "\n" not in str(caught.value)
    return str(caught.value), count


def without_frames(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        container.start_encoding()
    return path


def sound(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        stream.layout = "mono"
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("make", [without_frames, sound])
def test_a_video_without_frames(tmp_path: Path, make) -> None:
    line, count = refused(make(tmp_path / "a.mp4"))
    assert (count, line) == (0, f"{tmp_path / 'a.mp4'}: has no frames; give a video file with pictures")


@pytest.mark.parametrize("content", [b"", b"no video at all" * 99, b"\x00" * 5000])
def test_what_is_no_video(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.mp4").write_bytes(content)
    assert "a.mp4: this is not a video that can be read" in refused(tmp_path / "a.mp4")[0]


def test_an_mp4_without_its_index(tmp_path: Path) -> None:
    """What a camera leaves whose battery came out: the index comes last."""
    path = write_video(tmp_path / "a.mp4", noise(20))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert "a.mp4: this is not a video that can be read" in refused(path)[0]


@pytest.mark.parametrize(("name", "options"), [("a.mp4", {"movflags": "faststart"}), ("a.mkv", {})])
def test_a_file_that_breaks_off_gives_what_it_has(tmp_path: Path, name: str, options: dict[str, str]) -> None:
    path = write_video(tmp_path / name, noise(40), **options)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    line, count = refused(path)
    assert 10 < count < 30
    assert f"({count} frames)" in line
    assert "breaks off after" in line
    assert "of 4.0 s" in line


def test_damage_in_the_middle_costs_no_more_than_that(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", noise(40), movflags="faststart")
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 4000] = bytes(4000)
    path.write_bytes(content)
    line, count = refused(path)
    assert 30 <= count < 40
    assert "is damaged in" in line
    assert f"{count} frames could be read" in line


def test_a_size_that_changes(tmp_path: Path) -> None:
    file = io.BytesIO()
    for size in ((96, 64), (96, 64), (48, 32)):
        Image.new("RGB", size, (255, 0, 0)).save(file, "JPEG")
    (tmp_path / "a.mjpeg").write_bytes(file.getvalue())
    line, count = refused(tmp_path / "a.mjpeg")
    assert count == 2
    assert "frame 2 is 48 x 32, those before are 96 x 64" in line


def test_missing_file(tmp_path: Path) -> None:
    assert refused(tmp_path / "b.mp4")[0] == f"{tmp_path / 'b.mp4'}: there is no such video"


def test_names_of_cameras_and_videos() -> None:
    assert [camera_of(name) for name in ("camera:0", "/dev/video12", "camera:", "camera:x", "a.mp4")] == [
        0, 12, None, None, None,
    ]  # fmt: skip
    assert all(map(is_video, ("camera:1", "/dev/video0", "a.mp4", "b/C.MOV", "x.webm")))
    assert not any(map(is_video, ("a.jpg", "animation.gif", "folder", "mp4")))


def test_a_camera_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    if sys.platform.startswith("linux"):
        with pytest.raises(DataError, match="camera:97: there is no such camera"):
            VideoSource("camera:97")
    monkeypatch.setattr(module.sys, "platform", "win32")
    with pytest.raises(ConfigError, match="camera:0: cameras are read on Linux and macOS only"):
        VideoSource("camera:0")
