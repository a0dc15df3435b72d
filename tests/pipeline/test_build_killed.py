"""``kill -9`` at any moment of a build, then the same command: the result is that of an undisturbed build."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from effort import slow_after
from prunedeploy.models import load_darknet
from prunedeploy.pipeline.store.key import check_result
from prunedeploy_engines import load_bundle
from prunedeploy_engines.errors import StoreError

SEED = 20
MOMENTS = slow_after(1, *np.random.default_rng(SEED).uniform(0, 1, 20).round(3).tolist())
STEPS = ("finetune.steps=8", "pretrain.steps=3")
"""Enough steps for a moment within a training to be likely."""


@pytest.fixture(scope="module")
def undisturbed(processes: Any, tiny_case: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """Output folder of a build that nobody killed, and its seconds."""
    folder = tmp_path_factory.mktemp("undisturbed")
    started = time.monotonic()
    assert processes.run(folder / "store", folder / "out", tiny_case.arguments(*STEPS))["computed"]
    return folder / "out", time.monotonic() - started


def kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pytest.fail("the build process is gone")


def assert_nothing_half_written(store: Path, out: Path) -> None:
    """Whatever has the name of something whole is whole."""
    for folder in (store / "results").glob("*"):
        check_result(folder, re.fullmatch(r"[a-z-]+-([0-9a-f]{64})", folder.name)[1])  # type: ignore[index]
    for checkpoint in (store / "checkpoints").glob("*/checkpoint.safetensors"):
        header = int.from_bytes(checkpoint.read_bytes()[:8], "little")
        layout = json.loads(checkpoint.read_bytes()[8 : 8 + header])
        end = max(entry["data_offsets"][1] for name, entry in layout.items() if name != "__metadata__")
        assert checkpoint.stat().st_size == 8 + header + end
    if (out / "build.json").exists():
        json.loads((out / "build.json").read_text())
    if (out / "model.weights").exists():
        load_darknet(out / "model.cfg", out / "model.weights")
    if (out / "bundle").exists():
        load_bundle(out / "bundle")
    if (out / "results.json").exists():
        json.loads((out / "results.json").read_text())
        assert (out / "report.html").exists()
        assert (out / "bundle").exists()


def assert_same_build(out: Path, expected: Path) -> None:
    for name in ("model.cfg", "model.weights", "log.jsonl"):
        assert (out / name).read_bytes() == (expected / name).read_bytes(), name
    for path in (expected / "detections").iterdir():
        assert (out / "detections" / path.name).read_bytes() == path.read_bytes(), path.name
    bundle, other = load_bundle(out / "bundle"), load_bundle(expected / "bundle")
    assert bundle.manifest.files == other.manifest.files
    assert {path.name for path in out.iterdir()} == {path.name for path in expected.iterdir()}
    mine, theirs = (json.loads((folder / "results.json").read_text()) for folder in (out, expected))
    assert mine["models"] == theirs["models"]


def assert_nothing_left(store: Path) -> None:
    assert list((store / "work").iterdir()) == []
    assert list((store / "checkpoints").iterdir()) == []


@pytest.mark.parametrize("moment", MOMENTS)
def test_build_killed_at_a_random_moment_ends_as_if_nothing_had_happened(
    moment: float, processes: Any, tiny_case: Any, undisturbed: tuple[Path, float], tmp_path: Path
) -> None:
    expected, seconds = undisturbed
    store, out = tmp_path / "store", tmp_path / "out"
    pid, _ = processes.start(store, out, tiny_case.arguments(*STEPS), wait=True)
    time.sleep(moment * seconds)
    kill(pid)
    # On a busy machine this build may have been faster than the first one; then there was nothing to kill.
    assert processes.exit_code() in {-signal.SIGKILL, 0}
    assert_nothing_half_written(store, out)
    processes.run(store, out, tiny_case.arguments(*STEPS))
    assert_same_build(out, expected)
    assert_nothing_left(store)


@pytest.mark.slow
def test_build_killed_again_and_again_gets_there(
    processes: Any, tiny_case: Any, undisturbed: tuple[Path, float], tmp_path: Path
) -> None:
    """Killed in every training after its first checkpoint, and after the first result of some other stages."""
    expected, _ = undisturbed
    store, out = tmp_path / "store", tmp_path / "out"
    within_training = 0
    seen: set[str] = set()
    for _ in range(40):
        pid, _ = processes.start(store, out, tiny_case.arguments(*STEPS), wait=True)
        name = wait_for_something_new(store, pid, seen)
        if name is None:
            assert processes.exit_code() == 0
            break
        seen.add(name)
        within_training += name.startswith("checkpoint")
        kill(pid)
        processes.exit_code()
        assert_nothing_half_written(store, out)
    else:
        pytest.fail("the build never ended")
    assert within_training == 3, "pre-training, score optimisation and fine-tuning were to be killed"
    assert_same_build(out, expected)
    assert_nothing_left(store)


def wait_for_something_new(store: Path, pid: int, seen: set[str]) -> str | None:
    """Return the name of a checkpoint or of a result that was not there before; None if the process ends first."""
    while True:
        found = [f"checkpoint of {p.parent.name}" for p in store.glob("checkpoints/*/checkpoint.safetensors")]
        stages = {path.name.rpartition("-")[0] for path in store.glob("results/*")}
        found += [f"result of {stage}" for stage in stages & {"prune", "export", "evaluate"}]
        if new := [name for name in sorted(found) if name not in seen]:
            return new[0]
        if has_ended(pid):
            return None
        time.sleep(0.001)


def has_ended(pid: int) -> bool:
    """Whether a process is gone or a zombie that its parent has not waited for yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_build_killed_while_it_wrote_its_bundle_resumes(tiny_case: Any, finished: Any, tmp_path: Path) -> None:
    """What is left of a bundle in the making, of an old one being replaced and of a file is removed."""
    store, out = finished[0], tmp_path / "out"
    tiny_case.build(store, out)
    (out / "results.json").unlink()
    unfinished = out / f".bundle.{'a' * 32}.tmp"
    shutil.copytree(out / "bundle", out / f".bundle.{'c' * 32}.old.tmp")
    (out / "bundle").rename(unfinished)
    (out / f".report.html.{'b' * 32}.tmp").write_text("<!DOC")
    tiny_case.build(store, out)
    assert_same_build(out, finished[1])


def test_half_a_checkpoint_is_not_resumed_from(
    processes: Any, tiny_case: Any, undisturbed: tuple[Path, float], tmp_path: Path
) -> None:
    """A disk that loses the end of a file in a power cut: the training starts anew instead of from garbage."""
    expected, _ = undisturbed
    store, out = tmp_path / "store", tmp_path / "out"
    pid, _ = processes.start(store, out, tiny_case.arguments(*STEPS), wait=True)
    while not (found := list(store.glob("checkpoints/pretrain-*/checkpoint.safetensors"))):
        assert not has_ended(pid)
        time.sleep(0.001)
    kill(pid)
    processes.exit_code()
    for path in found:
        if path.exists():
            path.write_bytes(path.read_bytes()[:-1000])
    processes.run(store, out, tiny_case.arguments(*STEPS))
    assert_same_build(out, expected)


def test_damaged_result_in_the_store_is_computed_again(
    tiny_case: Any, finished: Any, copied: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = copied(finished[0])
    for weights in store.glob("results/finetune-*/model.weights"):
        weights.write_bytes(weights.read_bytes()[:-40])
    for folder in store.glob("results/finetune-*"):
        with pytest.raises(StoreError, match=r"model\.weights"):
            check_result(folder, folder.name.rpartition("-")[2])
    outcome = tiny_case.build(store, tmp_path / "out")
    assert outcome.computed[0] == "finetune"
    assert "damaged" in capsys.readouterr().err
    assert (tmp_path / "out" / "model.weights").read_bytes() == (finished[1] / "model.weights").read_bytes()
