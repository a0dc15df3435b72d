"""Locks between processes: one writer of a bundle, one measurement on a machine."""

from __future__ import annotations

import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_measuring = threading.RLock()
_measuring_depth = 0


@contextmanager
def locked(path: str | Path, waiting: str | None = None) -> Iterator[None]:
    """Hold an exclusive lock on an existing file or folder; the system frees it if the process dies.

    Args:
        path: File or folder to lock. Its content does not matter.
        waiting: Line for stderr if somebody else holds the lock; None waits silently.

    Where the system has no ``flock`` (Windows) nothing is locked.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if waiting is not None:
                print(waiting, file=sys.stderr, flush=True)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def measuring_lock(path: str | Path | None = None) -> Iterator[None]:
    """Let one process at a time measure on this machine, whoever runs it; re-entrant within a process.

    Args:
        path: Lock file; None is the one that all of prunedeploy shares, in the machine's temporary folder.
    """
    global _measuring_depth
    with _measuring:
        if _measuring_depth:
            yield
            return
        lock_file = shared_lock_file() if path is None else Path(path)
        _create(lock_file)
        with locked(lock_file, waiting=f"another measurement runs on this machine; waiting for {lock_file}"):
            _measuring_depth += 1
            try:
                yield
            finally:
                _measuring_depth -= 1


def shared_lock_file() -> Path:
    """The machine's lock file: in /tmp where there is one, since TMPDIR may differ between users and jobs."""
    folder = "/tmp" if os.access("/tmp", os.W_OK) else tempfile.gettempdir()
    return Path(folder) / "prunedeploy-measuring.lock"


def _create(lock_file: Path) -> None:
    # Never O_CREAT on an existing file: Linux refuses that for another user's file in a sticky folder.
    try:
        descriptor = os.open(lock_file, os.O_CREAT | os.O_EXCL | os.O_RDONLY, 0o666)
    except FileExistsError:
        return
    os.chmod(lock_file, 0o666)  # whatever the umask
    os.close(descriptor)
