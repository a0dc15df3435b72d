"""What is written is read by OpenCV; whatever happens, there is a file that plays, or none."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from prunedeploy_engines.errors import ConfigError, StoreError
from prunedeploy_engines.video.writer import VideoWriter
from videos import moving_cell, read_video


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "mov"])
def test_frames_and_times_come_back(tmp_path: Path, suffix: str) -> None:
    frames, times = moving_cell(6), [0, 0.1, 0.2, 0.5, 0.6, 0.7]
    writer = VideoWriter(tmp_path / "new" / f"a.{suffix}", Fraction(10))
    for pixels, time_s in zip(frames, times, strict=True):
        writer.write(pixels, time_s)
    assert not (tmp_path / "new" / f"a.{suffix}").exists(), "it gets its name when it is whole"
    writer.close()
    found = read_video(tmp_path / "new" / f"a.{suffix}")
    assert [time_s for time_s, _ in found] == pytest.approx(times, abs=0.002)
    for pixels, (_, other) in zip(frames, found, strict=True):
        assert np.abs(pixels.astype(int) - other).mean() < 3
    assert len(list((tmp_path / "new").iterdir())) == 1


@pytest.mark.parametrize("size", [(33, 48), (32, 49), (33, 49)])
def test_odd_sizes_get_one_more(tmp_path: Path, size: tuple[int, int]) -> None:
    height, width = size
    writer = VideoWriter(tmp_path / "a.mp4", None)
    writer.write(np.full((height, width, 3), 200, np.uint8), 0.0)
    writer.close()
    ((_, pixels),) = read_video(tmp_path / "a.mp4")
    assert pixels.shape == (height + height % 2, width + width % 2, 3)
    assert np.abs(pixels.astype(int) - 200).max() <= 4


def test_times_that_stand_still_go_on(tmp_path: Path) -> None:
    writer = VideoWriter(tmp_path / "a.mkv", Fraction(10))
    for _ in range(3):
        writer.write(moving_cell(1)[0], 0.0)
    writer.close()
    assert len(read_video(tmp_path / "a.mkv")) == 3


def test_without_a_frame_there_is_no_file(tmp_path: Path) -> None:
    VideoWriter(tmp_path / "a.mp4", Fraction(10)).close()
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_kind_is_refused_before_anything_is_done(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"a\.xyz: is not a format of video that can be written; let it end with \.mp4"
    ):
        VideoWriter(tmp_path / "a.xyz", None)


def test_a_disk_that_refuses_leaves_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"not a folder")
    writer = VideoWriter(tmp_path / "file" / "a.mp4", Fraction(10))
    with pytest.raises(StoreError, match=r"a\.mp4: cannot be written"):
        writer.write(moving_cell(1)[0], 0.0)
    writer.close()
    assert (tmp_path / "file").read_bytes() == b"not a folder"
