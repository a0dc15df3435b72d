"""`detect` on videos, cameras and folders: boxes are those of single pictures, and something whole is left behind."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from videos import CELL, HEIGHT, LOSSLESS, WIDTH, av, moving_cell, read_video, write_video

REPOSITORY = Path(__file__).resolve().parents[2]
PATHS = os.pathsep.join(str(REPOSITORY / folder) for folder in (".", "export", "engines"))
CLASSES = ("red", "green", "blue")


@pytest.fixture
def video(tmp_path: Path) -> Path:
    """Twelve frames of a red cell that moves, without loss."""
    return write_video(tmp_path / "cell.mkv", moving_cell(12), **LOSSLESS)


def lines_of(done: Any) -> list[dict[str, Any]]:
    return [json.loads(line) for line in done.stdout.splitlines()]


def last_line(done: Any) -> str:
    return str(done.stderr.splitlines()[-1])


def test_every_frame_is_a_line_with_the_boxes_of_its_picture(
    run: Any, bundle: Path, video: Path, tmp_path: Path
) -> None:
    done = run("detect", bundle, video, "--json")
    assert done.exit_code == 0, done.stderr
    lines = lines_of(done)
    assert [line["frame"] for line in lines] == list(range(12))
    assert [line["time_s"] for line in lines] == pytest.approx([number / 10 for number in range(12)])
    for number, line in enumerate(lines):
        assert (line["width"], line["height"]) == (WIDTH, HEIGHT)
        (found,) = line["detections"]
        place = {key: found[key] for key in ("x_min", "y_min", "width", "height")}
        assert place == {"x_min": CELL * (number % 6), "y_min": 16, "width": CELL, "height": CELL}
    pictures = []
    for number, pixels in enumerate(moving_cell(12)):
        Image.fromarray(pixels).save(tmp_path / f"{number:02}.png")
        pictures.append(tmp_path / f"{number:02}.png")
    single = json.loads(run("detect", bundle, *pictures, "--json").stdout)
    assert [line["detections"] for line in lines] == [row["detections"] for row in single]


def test_for_people_there_is_a_table_and_the_speed(run: Any, bundle: Path, video: Path) -> None:
    done = run("detect", bundle, video)
    assert done.exit_code == 0, done.stderr
    first, *rest = done.stdout.splitlines()
    assert first.startswith(f"{video}: 12 frames in ")
    assert first.endswith(" per second end to end")
    assert rest[-1].split() == ["red", "12", "12"]


def test_json_lines_are_alone_on_stdout(run_process: Any, bundle: Path, video: Path) -> None:
    done = run_process("detect", bundle, video, "--json", blocked=("torch", "onnx", "captum", "pycocotools", "scipy"))
    assert done.returncode == 0, done.stderr
    assert len(lines_of(done)) == 12
    assert done.stderr.startswith(f"{video}: 12 frames in ")


def test_every_third_frame(run: Any, bundle: Path, video: Path, tmp_path: Path) -> None:
    done = run("detect", bundle, video, "--json", "--every", "3", "--out", tmp_path / "out.mp4")
    assert [line["frame"] for line in lines_of(done)] == [0, 3, 6, 9]
    times = [time_s for time_s, _ in read_video(tmp_path / "out.mp4")]
    assert times == pytest.approx([0, 0.3, 0.6, 0.9], abs=0.002)


@pytest.mark.parametrize(("out", "name"), [("drawn.mp4", "drawn.mp4"), ("drawn", "drawn/cell.mp4"), ("a.mkv", "a.mkv")])
def test_boxes_are_drawn_into_a_video(run: Any, bundle: Path, tmp_path: Path, out: str, name: str) -> None:
    """Ten times as large, so that compression leaves the frames of boxes."""
    large = [pixels.repeat(10, axis=0).repeat(10, axis=1) for pixels in moving_cell(6)]
    source = write_video(tmp_path / "cell.mkv", large, **LOSSLESS)
    done = run("detect", bundle, source, "--out", tmp_path / out)
    assert done.exit_code == 0, done.stderr
    assert done.stdout.splitlines()[0].endswith(f" -> {tmp_path / name}")
    frames = read_video(tmp_path / name)
    assert [time_s for time_s, _ in frames] == pytest.approx([number / 10 for number in range(6)], abs=0.002)
    from prunedeploy_engines import load_bundle
    from prunedeploy_engines.detection.drawing import draw_detections

    with load_bundle(bundle) as opened:
        for pixels, (_, written) in zip(large, frames, strict=True):
            drawn = draw_detections(pixels, opened.detect(pixels))
            assert np.abs(drawn.astype(int) - written).mean() < 0.5 * np.abs(pixels.astype(int) - written).mean()


def test_a_folder_is_its_images(run: Any, bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, pixels in enumerate(moving_cell(3)):
        Image.fromarray(pixels).save(folder / f"{number}.PNG")
    (folder / "notes.txt").write_text("no image")
    (folder / "._0.PNG").write_bytes(b"a file manager's")
    done = run("detect", bundle, folder, "--json", "--out", tmp_path / "drawn")
    assert done.exit_code == 0, done.stderr
    rows = json.loads(done.stdout)
    assert [Path(row["image"]).name for row in rows] == ["0.PNG", "1.PNG", "2.PNG"]
    assert [row["detections"][0]["x_min"] for row in rows] == [0, 8, 16]
    assert sorted(path.name for path in (tmp_path / "drawn").iterdir()) == ["0.png", "1.png", "2.png"]
    assert last_line(done).startswith("3 images in ")


def test_an_empty_folder_is_one_line(run: Any, bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    done = run("detect", bundle, tmp_path / "empty")
    assert done.exit_code == 2
    assert "empty: this folder has no images" in last_line(done)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("cell.mkv", "red.png"), "cell.mkv is a video: give one video or camera at a time"),
        (("camera:0", "camera:1"), "camera:0 is a video: give one video or camera at a time"),
        (("red.png", "--every", "2"), "--every is for videos and cameras"),
        (("red.png", "--out", "a.mp4"), "--out a.mp4 is the name of a video; images are written into a folder"),
        (("cell.mkv", "--out", "cell.mkv"), "cell.mkv: is the video that is read; choose another --out"),
        (("cell.mkv", "--out", "a.avi"), "a.avi: is not a format of video that can be written; let it end with .mp4"),
        (("gone.mp4",), "gone.mp4: there is no such video"),
        (("camera:97",), "camera:97: "),
    ],
)
def test_what_cannot_be_asked_is_one_line(
    run_process: Any, bundle: Path, video: Path, red_cell: Path, tmp_path: Path, arguments: Any, words: str
) -> None:
    before = video.read_bytes()
    done = run_process("detect", bundle, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("prunedeploy: error: ")
    assert words in line
    assert video.read_bytes() == before
    assert not (tmp_path / "a.avi").exists()


def test_without_pyav_the_line_names_the_extra(run_process: Any, bundle: Path, video: Path, red_cell: Path) -> None:
    done = run_process("detect", bundle, video, blocked=("av",))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "prunedeploy: error: this needs av, which is not installed; pip install 'prunedeploy[video]'\n"
    )
    assert run_process("detect", bundle, red_cell, blocked=("av",)).returncode == 0


def changed_size(path: Path) -> tuple[str, int]:
    file = io.BytesIO()
    for size in ((96, 64), (96, 64), (48, 32)):
        Image.new("RGB", size).save(file, "JPEG")
    path.write_bytes(file.getvalue())
    return "frame 2 is 48 x 32, those before are 96 x 64; split the video where its size changes", 2


def broken_off(path: Path) -> tuple[str, int]:
    noise = np.random.default_rng(0).integers(0, 256, (40, 64, 96, 3), dtype=np.uint8)
    write_video(path.with_suffix(".mkv"), list(noise)).rename(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with av.open(str(path)) as container:
        count = sum(1 for _ in container.decode(video=0))
    return "breaks off after", count


@pytest.mark.parametrize("spoil", [changed_size, broken_off])
def test_what_came_before_the_trouble_is_kept(run: Any, bundle: Path, tmp_path: Path, spoil: Any) -> None:
    words, count = spoil(tmp_path / "a.mjpeg" if spoil is changed_size else tmp_path / "a.mp4")
    (source,) = (path for path in tmp_path.iterdir() if path.stem == "a")
    done = run("detect", bundle, source, "--json", "--out", tmp_path / "out.mp4")
    assert done.exit_code == 2
    assert words in last_line(done)
    assert len(lines_of(done)) == count
    assert len(read_video(tmp_path / "out.mp4")) == count


def start(*arguments: object, cwd: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "prunedeploy.cli", "detect", *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": PATHS, "OMP_NUM_THREADS": "1"},
        cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_ctrl_c_leaves_a_file_that_plays(bundle: Path, tmp_path: Path) -> None:
    source = write_video(tmp_path / "long.mkv", moving_cell(1_000), **LOSSLESS)
    process = start(bundle, source, "--json", "--out", "out.mp4", cwd=tmp_path)
    assert process.stdout is not None
    for _ in range(25):
        assert process.stdout.readline().startswith('{"frame"')
    assert not (tmp_path / "out.mp4").exists()
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=100)
    assert process.returncode == 130, errors
    assert errors.splitlines()[-1] == "interrupted"
    assert "Traceback" not in errors
    told = 25 + len(output.splitlines())
    assert told - 1 <= len(read_video(tmp_path / "out.mp4")) <= told < 1_000
    assert sorted(path.name for path in tmp_path.glob("*out*")) == ["out.mp4"]
    assert not list(tmp_path.glob(".*.tmp.*"))


def test_ctrl_c_before_the_first_frame_leaves_nothing(bundle: Path, video: Path, tmp_path: Path) -> None:
    program = (
        "import prunedeploy_engines.video.source as s, time, pathlib\n"
        "s.VideoSource.__iter__ = lambda self: (pathlib.Path('now').touch(), time.sleep(3), iter(()))[2]\n"
        "from prunedeploy.cli import main; main()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, "detect", str(bundle), str(video), "--out", "out.mp4"],
        env={**os.environ, "PYTHONPATH": PATHS}, cwd=tmp_path,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while not (tmp_path / "now").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (130, "interrupted\n")
    assert not list(tmp_path.glob("*out*"))


def test_a_reader_that_goes_away_ends_it_and_leaves_a_file_that_plays(bundle: Path, tmp_path: Path) -> None:
    """As ``| head`` does."""
    source = write_video(tmp_path / "long.mkv", moving_cell(1_000), **LOSSLESS)
    process = start(bundle, source, "--json", "--out", "out.mp4", cwd=tmp_path)
    assert process.stdout is not None
    assert process.stdout.readline()
    process.stdout.close()
    assert process.stderr is not None
    errors = process.stderr.read()
    assert process.wait(100) == 141, errors
    assert "Traceback" not in errors
    assert 1 <= len(read_video(tmp_path / "out.mp4")) < 1_000
