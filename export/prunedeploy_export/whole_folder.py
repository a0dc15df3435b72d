"""A folder that appears whole or not at all."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path

from prunedeploy_engines.errors import StoreError


def write_whole_folder(folder: Path, fill: Callable[[Path], None], *, overwrite: bool = False) -> None:
    """Fill a temporary folder beside the place, then move it there.

    Args:
        folder: The place. An empty folder there is taken as none.
        fill: Called with the temporary folder.
        overwrite: Replace a folder that is not empty.

    Raises:
        StoreError: There is something already, or the file system refuses; what was there stays, and nothing is
            left behind.
    """
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise StoreError("is not a folder", folder, "choose another one")
    temporary = folder.absolute().with_name(f".{folder.absolute().name}.{uuid.uuid4().hex}.tmp")
    old = temporary.with_suffix(".old.tmp")
    try:
        if folder.is_dir() and any(folder.iterdir()) and not overwrite:
            raise StoreError("exists and is not empty", folder, "choose another folder, or --overwrite it")
        temporary.mkdir(parents=True)
        fill(temporary)
        _flush(temporary)
        if folder.exists():
            folder.rename(old)  # renaming onto a folder that is not empty fails
        try:
            temporary.rename(folder)
        except OSError:
            if old.exists():
                old.rename(folder)
            raise
        _flush_entry(folder.absolute().parent)
    except OSError as error:
        raise StoreError(
            f"cannot be written ({error.strerror})", folder, "free space or choose another folder"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)


def _flush(folder: Path) -> None:
    """Bring everything to the disk before the folder gets its name."""
    for path in [*folder.rglob("*"), folder]:
        _flush_entry(path)


def _flush_entry(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
