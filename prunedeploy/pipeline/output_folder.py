"""The folder that a build writes into: whose it is, who is writing, and when it may be replaced.

A folder is a build's if it has a ``build.json`` of ours, which is written before anything else. The same
configuration resumes, another needs ``--overwrite``; a folder that is not a build's is never touched.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunedeploy.pipeline.store.store import read_json, write_json
from prunedeploy_engines.errors import StoreError
from prunedeploy_engines.files import is_leftover, recover_folder
from prunedeploy_engines.locks import FileLock

MARKER = "build.json"
LOCK = ".build.lock"
KIND = "prunedeploy build"
SCHEMA_VERSION = 1
ENTRIES = frozenset({"bundle", "model.cfg", "model.weights", "results.json", "detections", "report.html", "log.jsonl"})
"""What a build writes beside its ``build.json``. Anything else in the folder is somebody else's."""

UNFINISHED = re.compile(r"^\.(.+)\.[0-9a-f]{32}(\.old)?\.tmp$")
"""What `prunedeploy_engines.files` calls a file or folder until it is whole, and a folder while it is replaced."""


@dataclass(frozen=True)
class OutputFolder:
    """An output folder that this process alone writes into.

    Attributes:
        path: The folder, links resolved.
        resumed: True if an earlier build of the same configuration has written into it.
    """

    path: Path
    resumed: bool

    def file(self, name: str) -> Path:
        """Return the path of something that a build writes; the folders on the way to it are made.

        Args:
            name: Relative path, e.g. ``detections/original-clean.csv``.

        Raises:
            ValueError: Its first part is not in `ENTRIES`, so ``--overwrite`` would not know whose it is.
        """
        if name.split("/")[0] not in ENTRIES or ".." in Path(name).parts:
            raise ValueError(f"{name!r} is not below one of {sorted(ENTRIES)}")
        path = self.path / name
        with _usable(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
        return path


@contextmanager
def open_output_folder(
    out: str | Path, config_hash: str, *, provenance: Mapping[str, Any] | None = None, overwrite: bool = False
) -> Iterator[OutputFolder]:
    """Claim an output folder for the time of the ``with`` block; the claim dies with the process.

    A link to a folder is followed and stays as it is.

    Args:
        out: The folder; made if it is not there.
        config_hash: Hash of the configuration, see `prunedeploy.config.config_hash`.
        provenance: More for ``build.json``, plain JSON values, e.g. the configuration.
        overwrite: Remove what an earlier build wrote and start afresh; refused if the folder holds more.

    Raises:
        StoreError: The folder is a file, cannot be made, holds something that no build wrote or the build of
            another configuration, or another process is building into it.
    """
    path = _made(Path(out))
    _earlier_build(path)  # before the lock's file is put into a folder that is none of our business
    lock = FileLock(path / LOCK)
    if not lock.acquire(wait=False):
        raise StoreError("another process is building into this folder", out, "wait for it, or choose another --out")
    try:
        earlier = _earlier_build(path)
        resumed = earlier is not None and earlier["config_hash"] == config_hash and not overwrite
        if earlier is not None and not resumed:
            if not overwrite:
                what = f"holds the build of another configuration ({str(earlier['config_hash'])[:12]})"
                raise StoreError(what, out, "choose another --out, or replace it with --overwrite")
            _clear(path)
        _remove_unfinished(path)
        if not resumed:
            document = {"kind": KIND, "schema_version": SCHEMA_VERSION, "config_hash": config_hash}
            write_json(path / MARKER, {**document, **(provenance or {})})
        yield OutputFolder(path, resumed)
    finally:
        lock.release(remove=True)


def _made(out: Path) -> Path:
    """Return the folder with links resolved, made if need be."""
    with _usable(out):
        if out.exists() and not out.is_dir():
            raise StoreError("is a file, not a folder", out, "choose another --out")
        if out.is_symlink() and not out.exists():
            raise StoreError("is a link that points nowhere", out, "choose another --out")
        out.mkdir(parents=True, exist_ok=True)
        path = out.resolve()
        if not os.access(path, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, "not allowed to write in it")
        return path


def _earlier_build(path: Path) -> dict[str, Any] | None:
    """Return the ``build.json`` of the build that the folder holds, None if the folder is as good as empty.

    Raises:
        StoreError: The folder holds something that is not a build.
    """
    with _usable(path):
        names = _listed(path)
    if MARKER in names:
        document = read_json(path / MARKER)
        if isinstance(document, dict) and document.get("kind") == KIND and "config_hash" in document:
            return document
        raise StoreError("does not belong to a prunedeploy build", path / MARKER, "choose another --out")
    if others := [name for name in names if name != LOCK and not _is_ours_unfinished(name)]:
        raise StoreError(f"holds {others[0]}, but no build", path, "choose another --out; nothing was changed")
    return None


def _clear(path: Path) -> None:
    """Remove what builds write, ``build.json`` last, so that the folder is always recognised as a build's."""
    names = [name for name in _listed(path) if name not in {LOCK, MARKER}]
    if foreign := [name for name in names if name not in ENTRIES and not _is_ours_unfinished(name)]:
        what = f"holds {foreign[0]}, which no build wrote"
        raise StoreError(what, path, "move it away, or choose another --out; nothing was changed")
    with _usable(path):
        for name in names:
            _remove(path / name)


def _listed(path: Path) -> list[str]:
    """What is in the folder, but for what file managers and editors leave there."""
    return sorted(name for name in os.listdir(path) if not is_leftover(name))


def _is_ours_unfinished(name: str) -> bool:
    """Return whether a name is that of a build's file that was being written when its process was killed."""
    found = UNFINISHED.match(name)
    return found is not None and found[1] in {MARKER, *ENTRIES}


def _remove_unfinished(path: Path) -> None:
    """Remove what a killed build was writing; we have the lock, so nobody is writing it now.

    What it was replacing stays if the new one did not get into its place.
    """
    with _usable(path):
        for name in ENTRIES:
            recover_folder(path / name)
        for entry in path.iterdir():
            if _is_ours_unfinished(entry.name):
                _remove(entry)
            elif entry.name in ENTRIES and entry.is_dir() and not entry.is_symlink():
                for file in [file for file in entry.rglob(".*.tmp") if UNFINISHED.match(file.name)]:
                    file.unlink()


def _remove(entry: Path) -> None:
    if entry.is_dir() and not entry.is_symlink():
        shutil.rmtree(entry)
    else:
        entry.unlink()


@contextmanager
def _usable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(f"cannot be used ({error.strerror})", path, "choose another --out") from None
