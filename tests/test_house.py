"""Rules that no single module can keep: who imports whom, what is never used, what is stated once."""

from __future__ import annotations

import ast
import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from prunedeploy_engines.version import __version__

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGES = {
    "prunedeploy": REPOSITORY / "prunedeploy",
    "prunedeploy_export": REPOSITORY / "export" / "prunedeploy_export",
    "prunedeploy_engines": REPOSITORY / "engines" / "prunedeploy_engines",
}
NOT_ON_THE_DEVICE = ("torch", "onnx", "captum", "pycocotools")
LOADED_LAZILY = ("onnxruntime", "tensorrt", "tensorrt_rtx")


def modules_of(package: str) -> list[str]:
    """Dotted names of every module in a package, `__main__` left out because importing it runs it."""
    folder = PACKAGES[package]
    names = []
    for path in sorted(folder.rglob("*.py")):
        parts = [package, *path.relative_to(folder).with_suffix("").parts]
        if parts[-1] == "__main__":
            continue
        names.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return names


def our_sources() -> list[Path]:
    """Every Python file of the project: packages, tests, benchmarks, setup.py."""
    folders = [*PACKAGES.values(), REPOSITORY / "tests", REPOSITORY / "benchmarks", REPOSITORY / "docs"]
    return [REPOSITORY / "setup.py", *(path for folder in folders for path in sorted(folder.rglob("*.py")))]


def run(*arguments: str, cwd: Path = REPOSITORY) -> subprocess.CompletedProcess[str]:
    """Run Python with the packages of this checkout on its path."""
    path = os.pathsep.join(str(folder.parent) for folder in PACKAGES.values())
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )


def test_imports_point_one_way() -> None:
    linted = run("-c", "from importlinter.cli import lint_imports_command; lint_imports_command()", "--no-cache")
    assert linted.returncode == 0, linted.stdout + linted.stderr
    assert "Contracts: " in linted.stdout
    assert " 0 broken" in linted.stdout


BLOCK_AND_IMPORT = """
import importlib, sys

blocked, modules = sys.argv[1].split(","), sys.argv[2].split(",")

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in blocked:
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocker())
for library in blocked:
    try:
        importlib.import_module(library)
    except ImportError:
        continue
    sys.exit(f"{library} could be imported: the blocker does not work")
for module in modules:
    importlib.import_module(module)
print(len(modules), "imported")
"""


def test_every_engines_module_imports_without_torch_onnx_or_any_runtime() -> None:
    modules = modules_of("prunedeploy_engines")
    assert "prunedeploy_engines.errors" in modules
    blocked = ",".join((*NOT_ON_THE_DEVICE, *LOADED_LAZILY))
    imported = run("-c", BLOCK_AND_IMPORT, blocked, ",".join(modules))
    assert imported.returncode == 0, imported.stderr
    assert imported.stdout.strip() == f"{len(modules)} imported"


@pytest.mark.parametrize("package", PACKAGES)
def test_every_module_imports_and_has_the_names_it_exports(package: str) -> None:
    for name in modules_of(package):
        module = importlib.import_module(name)
        exported = getattr(module, "__all__", [])
        assert len(exported) == len(set(exported)), f"{name}.__all__ names something twice"
        missing = [export for export in exported if not hasattr(module, export)]
        assert not missing, f"{name}.__all__ promises {missing}"


def test_every_folder_with_modules_is_a_package() -> None:
    for folder in PACKAGES.values():
        for path in folder.rglob("*.py"):
            assert (path.parent / "__init__.py").is_file(), f"{path.parent} lacks __init__.py, so no wheel has it"


def pickles_in(source: str) -> Iterator[tuple[int, str]]:
    """Yield line and text of whatever in ``source`` writes or reads pickles."""
    modules = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names if alias.name.split(".")[0] in modules)
        elif isinstance(node, ast.ImportFrom):
            if (node.module or "").split(".")[0] in modules:
                yield node.lineno, str(node.module)
            elif node.module == "torch":
                yield from ((node.lineno, a.name) for a in node.names if a.name in {"save", "load"})
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if node.value.id == "torch" and node.attr in {"save", "load"}:
                yield node.lineno, f"torch.{node.attr}"
            elif node.attr in {"read_pickle", "to_pickle"}:
                yield node.lineno, node.attr
        elif isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            allowed = not (isinstance(node.value, ast.Constant) and node.value.value is False)
            yield from [(node.value.lineno, "allow_pickle")] * allowed


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from dill import dumps",
        "from torch import load",
        "import torch\ntorch.save(x, path)",
        "np.load(path, allow_pickle=True)",
    ],
)
def test_the_search_for_pickles_finds_one(source: str) -> None:
    assert list(pickles_in(source))


def test_nothing_is_ever_pickled_or_unpickled() -> None:
    found = [
        f"{path.relative_to(REPOSITORY)}:{line}: {what}"
        for path in our_sources()
        for line, what in pickles_in(path.read_text(encoding="utf-8"))
    ]
    assert found == []


def test_version_is_stated_once() -> None:
    stating = []
    for path in our_sources():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and node.value == __version__:
                stating.append(path.relative_to(REPOSITORY).as_posix())
    assert stating == ["engines/prunedeploy_engines/version.py"]
    project = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    assert 'dynamic = ["version"]' in project
    assert f'"{__version__}"' not in project
