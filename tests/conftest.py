"""Fixtures and settings that every test shares."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest
from hypothesis import settings

# Read when torch and its BLAS are first imported, so it must stand before any test module is.
os.environ.setdefault("OMP_NUM_THREADS", "2")

# OpenVINO's tests have a process of their own, see the Makefile. In one process with hundreds of tests of the other
# runtimes Python's memory was found damaged later on, and the run ended with a segmentation fault; not without
# OpenVINO. Elsewhere it counts as not installed, and the tests say so.
if os.environ.get("PRUNEDEPLOY_TEST_OPENVINO") != "1":
    sys.modules["openvino"] = None  # type: ignore[assignment]

# A shell in the background has its children ignore Ctrl-C, and theirs; some tests send it to programs that they start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# How long an example takes depends on the machine, and no test here judges that. In CI the same
# examples run every time, so that a red run is red again.
settings.register_profile("local", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def repository() -> Path:
    """Top folder of the checkout the tests run in."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of genuine material (Darknet weights, photos), which stands beside the checkout or nowhere."""
    folder = REPOSITORY.parent / "shared"
    if not (folder / "real").is_dir():
        pytest.skip("needs the genuine weights and photos in ../shared, which are not part of the project")
    return folder
