"""``build --target-map``, ``--target-latency`` and ``--target-size`` as they are typed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import pytest

from prunedeploy.cli.build import ALLOCATIONS, METHODS, SCORES
from prunedeploy.config import AllocationName, Method, ScoreName, load_config

SMOKE = (
    "--config", "smoke", "--set", "data.train_images=null", "--set", "data.eval_images=null", "--set",
    "latency.runtimes=tensorrt", "--set", "channels.minimum=1", "--set", "channels.multiple=1",
    "--set", "export.map_tolerance=1.0",
)  # fmt: skip


@pytest.fixture
def arguments(coco: Path, darknet: Path, tmp_path: Path) -> tuple[object, ...]:
    """A build that takes seconds, without its ratio."""
    return (
        "build", *SMOKE, "--cfg", darknet, "--weights", darknet.with_suffix(".weights"),
        "--data", coco, "--store", tmp_path / "store",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--ratio", "0.5", "--target-map", "0.3"), "--ratio and --target-map exclude each other; give one of them"),
        (("--ratio", "0", "--target-map", "0.3"), "--ratio and --target-map exclude each other"),
        (("--set", "ratio=0.5", "--target-size", "1MB"), "--ratio and --target-size exclude each other"),
        (("--target-size", "1MB", "--target-latency", "1ms"), "--target-latency and --target-size exclude each other"),
        (("--target-map", "30"), "--target-map: '30' is not between 0 and 1; write e.g. 0.30"),
        (("--target-map", "30%"), "--target-map: '30%' is not an mAP"),
        (("--target-latency", "20min"), "--target-latency: '20min' is not a latency; write e.g. 20ms"),
        (("--target-latency", "0"), "--target-latency: '0' is not above 0"),
        (("--target-size", "5"), "--target-size: '5' has no unit; write 5MB"),
        (("--target-size", "5mb"), "--target-size: '5mb' is not a size"),
        (("--target-size", "1MB", "--method", "nm"), "--target-size: has nothing to search: the pattern of nm"),
        (("--target-latency", "5ms"), "none of tensorrt runs ONNX files on this CPU"),
        (("--target-size", "1MB", "--data", "absent"), "absent"),
    ],
)
def test_wrong_target_is_one_line_and_leaves_nothing(
    run: Any, arguments: tuple[object, ...], tmp_path: Path, more: tuple[str, ...], said: str
) -> None:
    done = run(*arguments, "--out", tmp_path / "out", *more)
    assert (done.exit_code, done.stdout) == (2, "")
    line = done.stderr.splitlines()[-1]
    assert line.startswith("prunedeploy: error: ")
    assert said in line
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists() or list((tmp_path / "out").iterdir()) == []


def test_a_wrong_target_is_told_before_torch_is_loaded(run_process: Any) -> None:
    done = run_process("build", "--target-size", "5", blocked=("torch",))
    assert done.returncode == 2
    assert "has no unit" in done.stderr


def test_target_out_of_reach_says_what_can_be_had(run: Any, arguments: tuple[object, ...], tmp_path: Path) -> None:
    done = run(*arguments, "--out", tmp_path / "out", "--target-size", "10B")
    assert (done.exit_code, done.stdout) == (2, "")
    line = done.stderr.splitlines()[-1]
    assert line.startswith("prunedeploy: error: --target-size: size 0.010 kB cannot be reached: the best is ")
    assert " at ratio 0." in line
    assert list((tmp_path / "out").iterdir()) == []


def test_search_prints_what_it_tried_and_writes_the_folder_of_what_it_chose(
    run: Any, run_process: Any, arguments: tuple[object, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = run_process(*arguments, "--target-size", "9KB")
    assert shown.returncode == 0, shown.stderr
    monkeypatch.chdir(tmp_path)  # as the process before
    document = json.loads(run(*arguments, "--target-size", "9KB", "--json").stdout)
    assert document["computed"] == []
    search = document["search"]
    assert search["target"] == {"option": "--target-size", "measure": "onnx_bytes", "value": 9000}
    chosen = search["chosen"]
    assert 0 < chosen < 0.99
    out = tmp_path / "runs" / f"smoke-structured-scaled-{chosen:g}-s0"
    assert Path(document["out"]) == out
    assert search == json.loads((out / "results.json").read_text())["search"]

    # Every trial was said when it was made, and stands in the table, by ratio.
    lines = [line for line in shown.stderr.splitlines() if line.startswith("search: trial ")]
    assert [float(line.split("ratio ")[1].split()[0].rstrip(":")) for line in lines] == [
        trial["ratio"] for trial in search["tried"]
    ]
    table = shown.stdout[shown.stdout.index("--target-size: the lowest ratio with a size of at most 9.000 kB") :]
    rows = [line.split() for line in table.splitlines() if line.split() and line.split()[-1] in {"yes", "no", "chosen"}]
    assert [float(row[0]) for row in rows] == sorted(trial["ratio"] for trial in search["tried"])
    assert [float(row[0]) for row in rows if row[-1] == "chosen"] == [chosen]
    assert {row[3] for row in rows if float(row[0]) >= chosen} == {"yes"}
    assert {row[3] for row in rows if float(row[0]) < chosen} == {"no"}


def test_names_are_those_of_the_configuration(run: Any) -> None:
    assert set(get_args(ScoreName)) == set(SCORES)
    assert set(get_args(AllocationName)) == set(ALLOCATIONS)
    assert {load_config("demo", [f"method={name}"]).method for name in METHODS} == set(get_args(Method))
    text = " ".join(run("build", "--help").stdout.split())
    for name in (*METHODS, *SCORES, *ALLOCATIONS):
        assert name in text


@pytest.mark.parametrize(
    ("option", "value", "first"),
    [("--method", "blocks", "structured"), ("--scores", "best", "scaled"), ("--allocation", "even", "uniform")],
)
def test_name_that_does_not_exist_is_told_what_does(run: Any, option: str, value: str, first: str) -> None:
    done = run("build", option, value)
    assert done.exit_code == 2
    assert value in done.stderr
    assert first in done.stderr
