"""``prunedeploy sweep`` and ``report`` of its folder: what they print, exit codes, kills and interrupts."""

from __future__ import annotations

import json
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prunedeploy.study.rows.file import read_rows
from prunedeploy.study.rows.rows import Row, to_line
from tiny_study import TinyStudy, child_workers, make_tiny_study, start_sweep

SECONDS = 300.0


@pytest.fixture(scope="module")
def tiny_study(tmp_path_factory: pytest.TempPathFactory) -> TinyStudy:
    return make_tiny_study(tmp_path_factory.mktemp("tiny"))


def wait_for(condition: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + SECONDS
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.01)
    return found


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def rows_of(folder: Path) -> list[Row]:
    return list(read_rows(folder / "out" / "rows.jsonl").rows)


@pytest.mark.slow
def test_driver_killed_then_interrupted_then_left_alone_gets_every_row_once(
    tiny_study: TinyStudy, tmp_path: Path
) -> None:
    tiny_study.write(tmp_path / "study.yaml")
    rows = tmp_path / "out" / "rows.jsonl"

    only = ("--only", "seed=0")

    killed = start_sweep(tmp_path, "--workers", "2", *only)
    workers = wait_for(lambda: len(found := child_workers(killed.pid)) == 2 and found, "two workers")
    wait_for(lambda: list((tmp_path / "store" / "results").glob("pretrain-*")), "a pre-training")
    killed.kill()
    killed.communicate()
    wait_for(lambda: all(map(is_gone, workers)), "the end of workers whose driver is dead")

    interrupted = start_sweep(tmp_path, "--workers", "1", *only)
    before = rows.read_bytes().count(b"\n") if rows.exists() else 0
    wait_for(lambda: rows.exists() and rows.read_bytes().count(b"\n") > before, "a row")
    (worker,) = child_workers(interrupted.pid)
    interrupted.send_signal(signal.SIGINT)
    _, errors = interrupted.communicate(timeout=SECONDS)
    assert interrupted.returncode == 130
    assert errors.splitlines()[-1] == "interrupted; the same command resumes"
    assert "Traceback" not in errors
    assert is_gone(worker)
    assert list((tmp_path / "store" / "work").iterdir()) == [], "an interrupt leaves nothing half-made"

    last = start_sweep(tmp_path, "--workers", "1", "--json", *only)
    output, errors = last.communicate(timeout=SECONDS)
    assert last.returncode == 0, errors
    document = json.loads(output)
    assert (document["models"], document["trained"], document["failed"]) == (4, 4, [])
    assert set(Counter(row.cell for row in rows_of(tmp_path)).values()) == {1}


def test_full_disk_is_one_line_and_stops_the_sweep(tiny_study: TinyStudy, tmp_path: Path, run_process: Any) -> None:
    """A limit on the size of files, which workers inherit, is refused by the kernel as a full disk is."""
    path = tiny_study.write(tmp_path / "study.yaml")
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))"
    places = ["--config", path, "--store", tmp_path / "store", "--out", tmp_path / "out"]
    done = run_process("sweep", *places, "--workers", "1", "--only", "configuration=original", before=limit)
    assert done.returncode == 2
    last = done.stderr.splitlines()[-1]
    assert last.startswith("prunedeploy: error: ")
    assert "(File too large); free space" in last
    assert (tmp_path / "out" / "rows.jsonl").read_bytes() == b"", "no cell has failed: the disk has"


def test_dry_run_counts_and_computes_nothing(tiny_study: TinyStudy, tmp_path: Path, run: Any) -> None:
    path = tiny_study.write(tmp_path / "study.yaml")
    places = ["--config", path, "--store", tmp_path / "store", "--out", tmp_path / "out"]
    done = run("sweep", *places, "--dry-run", "--workers", "2", "--json")
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert (document["models"], document["trained"], document["failed"]) == (6, 0, 0)
    by_name = {stage["name"]: stage["total"] for stage in document["stages"]["by_name"]}
    assert (by_name["pretrain"], by_name["finetune"], by_name["evaluate"]) == (4, 4, 6)
    assert document["stages"]["total"] == document["stages"]["to_do"] == sum(by_name.values())
    assert set(document["not_measured"]) == set(by_name)
    assert list((tmp_path / "store" / "results").iterdir()) == []
    assert not (tmp_path / "out").exists()
    shown = run("sweep", *places, "--dry-run")
    assert "time left: unknown" in shown.stdout
    less = json.loads(run("sweep", *places, "--dry-run", "--json", "--only", "seed=1").stdout)
    assert less["models"] == 2
    both = ("--only", "seed=0", "--only", "seed=1")
    assert json.loads(run("sweep", *places, "--dry-run", "--json", *both).stdout)["models"] == 6


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--only", "seed=7"], "there is no seed 7; there are: 0, 1"),
        (["--only", "ratio=0.25"], "there is no ratio 0.25; there are: 0, 0.5"),
        (["--only", "run=1"], "not of the form"),
        (["--only", "configuration=original", "--only", "ratio=0.5"], "no model is all of that"),
        (["--workers", "0"], "0 is not in the range"),
        (["--executor", "slurm"], "'slurm' is not"),
        (["--ray-address", "auto"], "--ray-address and --gpus-per-task are for --executor ray"),
        (["--gpus-per-task", "1"], "--ray-address and --gpus-per-task are for --executor ray"),
    ],
)
def test_wrong_option_is_one_line(
    tiny_study: TinyStudy, tmp_path: Path, run: Any, arguments: list[str], line: str
) -> None:
    done = run("sweep", "--config", tiny_study.write(tmp_path / "study.yaml"), *arguments)
    assert done.exit_code == 2
    assert line in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sweep's folder: two configurations at two ratios with three runs."""
    rows = [
        Row(
            configuration=name, ratio=ratio, run=number, configuration_hash="c" * 64, params=1000,
            map_pgd=0.2 - 0.1 * ratio + 0.01 * number,
        )
        for name in ("structured-scaled", "unstructured-scaled")
        for ratio in (0.0, 0.5)
        for number in range(3)
    ]  # fmt: skip
    (tmp_path / "rows.jsonl").write_bytes(b"".join(map(to_line, rows)))
    (tmp_path / "sweep.json").write_text('{"name": "my-study"}')
    return tmp_path


def test_report_of_a_sweeps_folder_needs_its_rows_alone(folder: Path, run: Any) -> None:
    done = run("report", folder, "--json")
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert document["rows"] == 12
    assert "prunedeploy: my-study" in (folder / "report.html").read_text()
    for path in [*document["tables"], *document["figures"]]:
        assert Path(path).stat().st_size > 0
    assert len(document["tables"]) > 0
    assert len(document["figures"]) > 0


def test_report_says_that_a_last_line_breaks_off(folder: Path, run: Any) -> None:
    with (folder / "rows.jsonl").open("ab") as file:
        file.write(b'{"schema_version":1,"configu')
    done = run("report", folder)
    assert done.exit_code == 0
    assert "breaks off" in done.stderr
    assert "breaks off" in (folder / "report.html").read_text()


def test_comparison_with_the_paper_is_for_sweeps(tmp_path: Path, run: Any) -> None:
    done = run("report", tmp_path, "--compare-paper")
    assert done.exit_code == 2
    assert "--compare-paper: is for the folder of a sweep" in done.stderr
