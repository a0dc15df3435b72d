"""Class names that lie beside a model file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from prunedeploy.data.class_names import read_names
from prunedeploy.data.formats.yolo import resolved
from prunedeploy_engines.errors import ConfigError


def names_beside(model: Path, classes: int | None) -> tuple[list[str], Path] | None:
    """Find the names of a network's classes, in the order of its outputs.

    Looked at: ``model.names`` beside ``model.cfg``; a bundle of the same folder; then the file that a ``.data`` names,
    other ``.names`` and ``classes.txt``, if they have as many names as the network has classes and do not contradict
    each other.

    Args:
        model: The network's file.
        classes: How many classes it has; None: not known, so that only the first two are taken.

    Returns:
        The names, and where they are from; None if nothing says them.

    Raises:
        ConfigError: ``model.names`` has another number of names.
    """
    own = model.with_suffix(".names")
    if own.is_file():
        names = read_names(own)
        if classes not in (None, len(names)):
            what = f"has {len(names)} names, the network has {classes} classes"
            raise ConfigError(what, own, "correct it, or give the names with --names")
        return names, own
    for bundle in (model.parent / "bundle" / "bundle.json", model.parent / "bundle.json"):
        names = _of_bundle(bundle)
        if names and classes in (None, len(names)):
            return names, bundle
    found: list[tuple[list[str], Path]] = []
    for path in _others(model.parent):
        try:
            names = read_names(path)
        except ConfigError:
            continue
        if len(names) == classes:
            found.append((names, path))
    return found[0] if found and all(names == found[0][0] for names, _ in found) else None


def _of_bundle(path: Path) -> list[str]:
    try:
        names = json.loads(path.read_bytes())["class_names"]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return [str(name) for name in names] if isinstance(names, list) else []


def _others(folder: Path) -> Iterator[Path]:
    for description in sorted(folder.glob("*.data")):
        for line in description.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition("=")
            if key.strip() == "names" and (path := resolved(folder, value.strip())) is not None and path.is_file():
                yield path
    yield from sorted(folder.glob("*.names"))
    if (listed := folder / "classes.txt").is_file():
        yield listed
