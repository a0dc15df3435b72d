"""`OpenVinoRunner` in processes that hold nothing else: what it prints and sends, and who imports OpenVINO."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from prunedeploy_engines.errors import RuntimeUnavailableError
from prunedeploy_engines.runtimes.openvino.runner import OpenVinoRunner
from tiny_detector import save_tiny_detector

HERE = Path(__file__).parent

needs_openvino = pytest.mark.skipif(
    importlib.util.find_spec("openvino") is None, reason="OpenVINO is not installed: pip install openvino"
)


@needs_openvino
def test_keeps_the_contract_of_runners(repository: Path) -> None:
    options = ("-q", "--noconftest", "-p", "no:cacheprovider", "-p", "pytest_timeout")
    command = [sys.executable, "-m", "pytest", *options, str(HERE / "in_process.py")]
    plain = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # other plugins take a second to load
    done = subprocess.run(command, capture_output=True, text=True, cwd=repository, env=plain, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    counts = {what: int(count) for count, what in re.findall(r"(\d+) (\w+)", done.stdout.splitlines()[-1])}
    assert counts["passed"] >= 3 * 14  # the contract, on each of three models
    assert "skipped" not in counts


def test_missing_openvino_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)  # makes the import fail
    with pytest.raises(RuntimeUnavailableError, match=r"pip install 'prunedeploy\[openvino\]'"):
        OpenVinoRunner(save_tiny_detector(tmp_path / "model.onnx"))


@needs_openvino
def test_nothing_is_printed_sent_or_left_in_the_home_folder(tmp_path: Path) -> None:
    """OpenVINO's own ``import openvino`` writes an id into ``~/intel`` and reports the import."""
    model = save_tiny_detector(tmp_path / "model.onnx")
    garbage = tmp_path / "garbage.onnx"
    garbage.write_bytes(b"garbage" * 10)
    program = f"""
import sys
reached = []
sys.addaudithook(lambda event, arguments: reached.append(event) if event.startswith("socket.") else None)
import numpy as np
from prunedeploy_engines.errors import EngineError
from prunedeploy_engines.runtimes.openvino.runner import OpenVinoRunner
with OpenVinoRunner({str(model)!r}, threads=1) as runner:
    runner.infer(np.zeros((1, 3, 32, 48), dtype=np.float32))
try:
    OpenVinoRunner({str(garbage)!r})
except EngineError:
    pass
assert "openvino" in sys.modules and "openvino_telemetry" not in sys.modules
assert not reached, reached
"""
    home = tmp_path / "home"
    home.mkdir()
    in_ci = {"CI", "TF_BUILD", "JENKINS_URL"}  # there OpenVINO's telemetry is off by itself
    environment = {key: value for key, value in os.environ.items() if key not in in_ci} | {"HOME": str(home)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(home.iterdir()) == []


def test_nothing_but_its_own_module_imports_openvino(repository: Path) -> None:
    """Any other import would let its telemetry loose."""
    importing = [
        path.relative_to(repository)
        for folder in ("prunedeploy", "export", "engines", "benchmarks", "tests")
        for path in (repository / folder).rglob("*.py")
        if re.search(r"^\s*(import|from) openvino\b", path.read_text(encoding="utf-8"), re.MULTILINE)
    ]
    assert importing == [Path("engines/prunedeploy_engines/runtimes/openvino/library.py")]


def test_only_those_load_openvino_beside_themselves_who_hold_no_pytorch(repository: Path) -> None:
    """The runner in this process is for a measuring process, the server and `detect`."""
    asking = [
        path.relative_to(repository).as_posix()
        for folder in ("prunedeploy", "export", "engines", "benchmarks")
        for path in sorted((repository / folder).rglob("*.py"))
        if re.search(r"in_process=True", path.read_text(encoding="utf-8"))
    ]
    assert asking == [
        "prunedeploy/cli/detect.py",
        "engines/prunedeploy_engines/bench/calls.py",
        "engines/prunedeploy_engines/serving/core/served_model.py",
    ]
