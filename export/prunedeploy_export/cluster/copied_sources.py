"""Modules of ours taken to a place that has no prunedeploy, as they are.

One source of truth: what runs there is the very text that runs here, so letterbox and suppression cannot differ.
"""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path

from prunedeploy_engines.version import __version__

PACKAGES = ("prunedeploy_export", "prunedeploy_engines")
_PACKAGE_TEXT = f'"""Those modules of prunedeploy {__version__} that are needed here, as they are there."""\n'


def copied_sources(module: str) -> dict[str, bytes]:
    """A module's file and those of all modules of ours that it imports when it is imported.

    Imports inside functions and under ``if TYPE_CHECKING`` are not followed: only what runs has to be there, and what
    is imported late is imported by those who have it.

    Args:
        module: E.g. ``"prunedeploy_export.cluster.triton_preprocess"``.

    Returns:
        Content by relative path, with an ``__init__.py`` that imports nothing for each package.
    """
    files: dict[str, bytes] = {}
    left = [module]
    while left:
        name = left.pop()
        path = f"{name.replace('.', '/')}.py"
        if path in files:
            continue
        files[path] = _source(name)
        left.extend(_imported(files[path]))
    for package in {folder.as_posix() for path in files for folder in Path(path).parents if folder.name}:
        files[f"{package}/__init__.py"] = _PACKAGE_TEXT.encode()
    return dict(sorted(files.items()))


def _source(module: str) -> bytes:
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"No module named {module!r}", name=module)
    return Path(spec.origin).read_bytes()


def _imported(source: bytes) -> list[str]:
    """Modules of ours that a module's own level imports by ``from package.module import ...``."""
    return [
        node.module
        for node in ast.parse(source).body
        if isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] in PACKAGES
    ]
