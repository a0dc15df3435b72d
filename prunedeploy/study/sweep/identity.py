"""What must be the same in every process that works on one sweep, or their results are not each other's."""

from __future__ import annotations

import hashlib
import importlib.util
import platform
from collections.abc import Mapping
from pathlib import Path

from prunedeploy.pipeline.store.key import torch_version

PACKAGES = ("prunedeploy", "prunedeploy_export", "prunedeploy_engines")
_WITHOUT = ("prunedeploy/cli/", "prunedeploy/study/", "prunedeploy_engines/serving/")
_BUT_WITH = "prunedeploy/study/sweep/"


def identity() -> dict[str, str]:
    """Versions of this process, and a digest of the source: a version says little of a checkout.

    Python's patch level does not count.
    """
    return {
        "prunedeploy": source_digest(),
        "torch": torch_version(),
        "python": ".".join(platform.python_version_tuple()[:2]),
    }


def source_digest() -> str:
    """SHA-256 over names and content of the Python files of the three packages, its first 12 digits.

    What cannot change a cell's results is left out: a report may be worked on while its study still runs.
    """
    digest = hashlib.sha256()
    for package in PACKAGES:
        folder = package_folder(package)
        for path in sorted(folder.rglob("*.py")):
            name = f"{package}/{path.relative_to(folder).as_posix()}"
            if name.startswith(_BUT_WITH) or not name.startswith(_WITHOUT):
                digest.update(f"{name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()[:12]


def package_folder(package: str) -> Path:
    """Where a package is; it is not imported."""
    specification = importlib.util.find_spec(package)
    assert specification is not None, "the packages come together"
    assert specification.origin is not None, "none of them is a namespace package"
    return Path(specification.origin).parent


def difference(expected: Mapping[str, str], here: Mapping[str, str]) -> str | None:
    """What is not as expected, for people; None if all is."""
    differs = [f"{name} {here.get(name)}, not {value}" for name, value in expected.items() if here.get(name) != value]
    return ", ".join(differs) or None
