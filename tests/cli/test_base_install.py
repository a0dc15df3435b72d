"""What a device says that has the base install and nothing else: no runtime, no torch, no onnx."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
BASE = ("numpy", "pillow", "click", "pydantic", "pyyaml", "rich")
Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def base_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Run the program by an interpreter that sees our packages and the base install's, and no other."""
    site = tmp_path_factory.mktemp("site")
    for name in with_requirements(BASE):
        for path in top_level(importlib.metadata.distribution(name)):
            (site / path.name).symlink_to(path)
    for package in ("prunedeploy", "export/prunedeploy_export", "engines/prunedeploy_engines"):
        (site / Path(package).name).symlink_to(REPOSITORY / package)
    program = "import sys; sys.path.insert(0, sys.argv.pop(1)); from prunedeploy.cli import main; main()"

    def call(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-I", "-S", "-c", program, str(site), *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=site.parent)

    return call


def with_requirements(names: tuple[str, ...]) -> set[str]:
    """The distributions and all that they require, without extras and without what this Python does not need."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        try:
            required = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:  # for another Python or system
            continue
        found.add(name)
        waiting += [re.split(r"[^\w.-]", line)[0].lower() for line in required if "extra ==" not in line]
    return found


def top_level(distribution: importlib.metadata.Distribution) -> Iterator[Path]:
    """Files and folders of a distribution in site-packages."""
    seen = set()
    for file in distribution.files or []:
        first = file.parts[0]
        if first not in seen and first not in ("..", "__pycache__"):
            seen.add(first)
            yield Path(os.fspath(distribution.locate_file(first)))


def test_doctor_says_which_extras_bring_what(base_run: Run) -> None:
    done = base_run("doctor", "--json")
    assert done.returncode == 0, done.stderr
    findings = {row["name"]: row for row in json.loads(done.stdout)}
    expected = {"onnxruntime": "cpu", "openvino": "openvino", "torch": "train", "onnx": "train", "captum": "train"}
    for name, extra in expected.items():
        assert findings[name]["status"] == "missing", name
        assert f"prunedeploy[{extra}]" in findings[name]["advice"]
    assert findings["cuda-python"]["status"] == "missing"
    assert findings["python"]["status"] == "ok"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "pip install 'prunedeploy[cpu]'"),
        (("--runtime", "openvino"), "pip install 'prunedeploy[openvino]'"),
    ],
)
def test_detect_without_its_runtime_is_one_line_with_the_extra(
    base_run: Run, bundle: Path, red_cell: Path, arguments: tuple[str, ...], said: str
) -> None:
    done = base_run("detect", bundle, red_cell, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert said in done.stderr


@pytest.mark.parametrize("command", ["bench", "engine"])
def test_other_commands_of_the_device_fail_in_one_line(base_run: Run, bundle: Path, command: str) -> None:
    done = base_run(command, bundle)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("prunedeploy: error: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("command", ["build", "evaluate"])
def test_commands_of_the_workstation_name_the_extra_they_need(
    base_run: Run, bundle: Path, tmp_path: Path, command: str
) -> None:
    build = ("--config", "smoke", "--out", tmp_path / "out", "--store", tmp_path / "store")
    done = base_run(command, *(build if command == "build" else (bundle,)))
    assert done.returncode == 2
    assert "pip install 'prunedeploy[" in done.stderr
    assert "Traceback" not in done.stderr
