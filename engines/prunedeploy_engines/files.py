"""Writing files and folders so that nobody ever reads half of one or loses the one before it, and hashing files."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import os
import re
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from prunedeploy_engines.errors import StoreError

Filled = TypeVar("Filled")

_LEFTOVERS = {".DS_Store", "Thumbs.db", "ehthumbs.db", "desktop.ini", "Desktop.ini", ".directory"}
_SWAP_FILE = re.compile(r"\..+\.sw[a-p]|\.#.+|#.+#")  # of vi, and of Emacs

REPLACED = ".old.tmp"
"""How the name of a folder ends while it is replaced."""


def write_atomically(path: str | Path, data: bytes) -> None:
    """Write a file so that a reader sees the old content or the whole new one, never a part.

    Raises:
        StoreError: The file system refuses, e.g. because the disk is full; nothing is left behind.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise StoreError(f"cannot be written ({error.strerror})", path, "free space or choose another folder") from None


def write_whole_folder(folder: Path, fill: Callable[[Path], Filled], *, overwrite: bool = False) -> Filled:
    """Fill a temporary folder beside the place, then move it there.

    A folder cannot be renamed onto a full one, so replacing takes two renames. If the second one fails, the first is
    taken back; if the process is killed between them, the next call puts the old folder back, see `recover_folder`.

    Args:
        folder: The place. An empty folder there is taken as none.
        fill: Called with the temporary folder.
        overwrite: Replace a folder that is not empty.

    Returns:
        What ``fill`` returned.

    Raises:
        StoreError: There is something already, or the file system refuses; what was there stays, and nothing is
            left behind.
    """
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        what = "is a link" if folder.is_symlink() else "is not a folder"
        raise StoreError(what, folder, "move it away, or choose another folder")
    temporary = folder.absolute().with_name(f".{folder.absolute().name}.{uuid.uuid4().hex}.tmp")
    old = temporary.with_suffix(REPLACED)
    try:
        recover_folder(folder)
        if _is_full(folder) and not overwrite:
            raise StoreError("exists and is not empty", folder, "choose another folder, or --overwrite it")
        temporary.mkdir(parents=True)
        filled = fill(temporary)
        for path in [*temporary.rglob("*"), temporary]:
            flush(path)  # before the folder gets its name
        try:
            if folder.exists():
                folder.rename(old)
            temporary.rename(folder)
        except BaseException:  # Ctrl-C too
            if old.exists() and not folder.exists():
                old.rename(folder)
            raise
        flush(temporary.parent)
        with contextlib.suppress(OSError):
            old.rename(temporary)  # out of the way of `recover_folder`, which must not find it half deleted
    except OSError as error:
        raise StoreError(
            f"cannot be written ({error.strerror})", folder, "free space or choose another folder"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return filled


def recover_folder(folder: Path) -> None:
    """Clean up after a process that was killed while it replaced a folder with `write_whole_folder`.

    What it was replacing is put back if there is nothing in its place, and removed if the new folder is there.

    Raises:
        OSError: The file system refuses.
    """
    folder = folder.absolute()
    # Listed before looking whether the folder is there, so that what a live process moves aside is not removed.
    replaced = list(folder.parent.glob(f".{glob.escape(folder.name)}.{32 * '[0-9a-f]'}{REPLACED}"))
    # Renaming sets ctime: the newest first.
    for old in sorted(replaced, key=lambda path: path.stat().st_ctime_ns, reverse=True):
        if _is_full(folder):
            shutil.rmtree(old, ignore_errors=True)
        else:
            old.rename(folder)


def _is_full(folder: Path) -> bool:
    return folder.is_dir() and not all(is_leftover(path.name) for path in folder.iterdir())


def is_leftover(name: str) -> bool:
    """Whether a file is of the kind that file managers and editors leave in folders that somebody looks into."""
    return name in _LEFTOVERS or name.startswith("._") or name.endswith("~") or _SWAP_FILE.fullmatch(name) is not None


def flush(path: Path) -> None:
    """Bring a file, or what a folder lists, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_sha256(path: str | Path) -> str:
    """Hexadecimal SHA-256 of a file's content."""
    return file_digest(path, "sha256")


def file_digest(path: str | Path, kind: str) -> str:
    """Hexadecimal checksum of a file's content; ``kind`` is hashlib's name of it, e.g. ``sha1``."""
    digest = hashlib.new(kind)
    with Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
