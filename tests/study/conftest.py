"""A tiny study, and one run of it that nothing disturbed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from prunedeploy.study.sweep.driver import SweepOutcome
from prunedeploy.study.sweep.grid import Sweep
from tiny_study import TinyStudy, make_tiny_study, run_tiny


@dataclass(frozen=True)
class Finished:
    """A sweep with its store, output folder and outcome; not to be changed."""

    sweep: Sweep
    store: Path
    out: Path
    outcome: SweepOutcome


@pytest.fixture(scope="session")
def tiny_study(tmp_path_factory: pytest.TempPathFactory) -> TinyStudy:
    return make_tiny_study(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_study: TinyStudy) -> Finished:
    """4 models and the network as given in both colour modes, trained by two workers, nothing timed."""
    folder = tmp_path_factory.mktemp("finished")
    sweep = tiny_study.load(folder / "study.yaml")
    return Finished(sweep, folder / "store", folder / "out", run_tiny(sweep, folder / "store", folder / "out"))
