"""Standard streams that are closed or cannot write every character, and what is said after Ctrl-C; the real program."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PATHS = os.pathsep.join(str(REPOSITORY / folder) for folder in (".", "export", "engines"))
ODD = "rot_é猫.png"


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": PATHS, "OMP_NUM_THREADS": "1", **more}


def detect(*arguments: object, shell_end: str = "", **more: str) -> subprocess.CompletedProcess[bytes]:
    """``prunedeploy detect``, its streams as the shell is told; in bytes."""
    command = [sys.executable, "-m", "prunedeploy.cli", "detect", *map(str, arguments)]
    return subprocess.run(
        ["sh", "-c", f'exec "$@" {shell_end}', "sh", *command],
        env=environment(**more), capture_output=True, check=False, timeout=120,
    )  # fmt: skip


@pytest.fixture
def odd_name(red_cell: Path) -> Path:
    return red_cell.rename(red_cell.with_name(ODD))


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "latin-1", "utf-8"])
def test_json_is_json_in_every_encoding(bundle: Path, odd_name: Path, encoding: str) -> None:
    done = detect(bundle, odd_name, "--json", PYTHONIOENCODING=encoding)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)  # from bytes: JSON's own encodings
    assert Path(row["image"]).name == ODD
    assert [found["class_name"] for found in row["detections"]] == ["red"]


def test_utf_8_stays_readable(bundle: Path, odd_name: Path) -> None:
    assert ODD.encode() in detect(bundle, odd_name, "--json", PYTHONIOENCODING="utf-8").stdout


def test_tables_are_printed_in_every_encoding(bundle: Path, odd_name: Path) -> None:
    done = detect(bundle, odd_name, PYTHONIOENCODING="cp1252")
    assert done.returncode == 0, done.stderr
    assert "rot_é\\u732b.png (48 x 32): 1 detection" in done.stdout.decode("cp1252")


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are bytes on Linux only")
def test_a_file_name_that_is_no_text(bundle: Path, red_cell: Path) -> None:
    odd = red_cell.rename(red_cell.with_name(os.fsdecode(b"bad\xff.png")))
    done = detect(bundle, odd, "--json", PYTHONIOENCODING="utf-8")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)[0]["image"] == str(odd)
    done = detect(bundle, odd, PYTHONIOENCODING="utf-8")
    assert done.returncode == 0, done.stderr
    assert b"bad\\udcff.png (48 x 32): 1 detection" in done.stdout


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize("form", [(), ("--json",)])
def test_closed_streams_do_not_matter(
    bundle: Path, red_cell: Path, tmp_path: Path, closed: str, form: tuple[str, ...]
) -> None:
    done = detect(bundle, red_cell, "--out", tmp_path / "drawn", *form, shell_end=closed)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "drawn" / "red.png").read_bytes().startswith(b"\x89PNG"), "nothing was printed into the file"
    assert b"Error" not in done.stderr
    assert bool(done.stdout) == (">&-" not in closed or closed == "2>&-")


def test_an_error_with_closed_stderr_keeps_its_exit_code(bundle: Path, tmp_path: Path) -> None:
    assert detect(bundle, tmp_path / "nothing.png", shell_end="2>&-").returncode == 2


@pytest.fixture
def interrupted(tmp_path: Path) -> Callable[..., str]:
    """``interrupted(there, "build", ...)``: the last line after Ctrl-C, sent once ``there()`` is true."""

    def call(there: Callable[[], object], *arguments: object, before: str = "") -> str:
        program = f"{before}\nfrom prunedeploy.cli import main; main()"
        process = subprocess.Popen(
            [sys.executable, "-c", program, *map(str, arguments)],
            env=environment(), cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        deadline = time.monotonic() + 250
        while not there():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=100)
        assert process.returncode == 130, errors
        assert "Traceback" not in errors
        return errors.splitlines()[-1]

    return call


WAIT = "import {module} as m, time, pathlib\nm.{name} = lambda *a, **k: (pathlib.Path('now').touch(), time.sleep(90))\n"


@pytest.mark.parametrize(
    ("arguments", "module", "name"),
    [
        (("detect", "bundle", "red.png"), "prunedeploy_engines.detection.images", "read_image"),
        (("bench", "bundle"), "prunedeploy_engines.bench.run", "run_plan"),
        (("build",), "prunedeploy.pipeline.build", "open_context"),
        (("weights", "yolov3-tiny", "here"), "prunedeploy.public_weights", "fetch_file"),
    ],
)
def test_where_nothing_was_kept_nothing_is_promised(
    interrupted: Callable[..., str],
    bundle: Path,
    red_cell: Path,
    tmp_path: Path,
    arguments: Any,
    module: str,
    name: str,
) -> None:
    before = WAIT.format(module=module, name=name)
    assert interrupted((tmp_path / "now").exists, *arguments, before=before) == "interrupted"


def test_what_others_have_stored_is_not_what_this_command_has_kept(
    interrupted: Callable[..., str], tmp_path: Path
) -> None:
    old = tmp_path / "runs" / ".store" / "results" / "original-0123"
    old.mkdir(parents=True)
    os.utime(old, (1e9, 1e9))
    (tmp_path / "runs" / ".store" / "store.json").write_text('{"kind": "prunedeploy store", "schema_version": 1}')
    before = WAIT.format(module="prunedeploy.pipeline.build", name="open_context")
    assert interrupted((tmp_path / "now").exists, "build", before=before) == "interrupted"


def test_a_build_that_has_stored_a_stage_resumes(
    interrupted: Callable[..., str], coco: Path, darknet: Path, tmp_path: Path
) -> None:
    results = tmp_path / "runs" / ".store" / "results"
    steps = [f"--set={block}.steps={count}" for block, count in (("pretrain", 100_000), ("finetune", 1))]
    line = interrupted(
        lambda: list(results.glob("original-*")), "build", "--cfg", darknet, "--weights",
        darknet.with_suffix(".weights"), "--data", coco, *steps, "--ratio", "0", "--set=pretrain.batch_size=2",
    )  # fmt: skip
    assert line == "interrupted; the same command resumes"
