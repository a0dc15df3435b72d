"""Locks between processes: one writer of a folder, one measurement on a machine."""

from __future__ import annotations

import os
import sys
import tempfile
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prunedeploy_engines.errors import StoreError

_measuring = threading.RLock()
_measuring_depth = 0


class FileLock:
    """An flock on a file, freed by `release`, by ``with``, or by the death of the process, however it dies.

    Where the system has no flock (Windows) nothing is locked.

    Args:
        path: The lock file, which is made if it is not there, or a folder.
        shared: Any number of processes may hold it shared, or one alone.
    """

    def __init__(self, path: str | Path, shared: bool = False) -> None:
        self.path = Path(path)
        self.shared = shared
        self._file: int | None = None

    def acquire(self, wait: bool = True) -> bool:
        """Take the lock; return False if another process has it and ``wait`` is False.

        Raises:
            StoreError: The file system has no locks, or refuses the file.
        """
        try:
            import fcntl
        except ImportError:
            return True
        mode = (fcntl.LOCK_SH if self.shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
        if self._file is not None:
            raise RuntimeError(f"{self.path} is locked by this object already")
        while True:
            try:
                self._file = _open_lock_file(self.path)
                fcntl.flock(self._file, mode)
                # Whoever had the lock may have removed its file: then this lock is on a file that nobody else
                # will find.
                if os.path.samestat(os.fstat(self._file), os.stat(self.path)):
                    _HELD.add(self)
                    return True
            except BlockingIOError:
                return False
            except FileNotFoundError:
                if not self.path.parent.is_dir():
                    raise StoreError("the folder of this lock is gone", self.path) from None
            except OSError as error:
                raise StoreError(f"cannot be locked ({error.strerror})", self.path, "use a local disk") from None
            finally:
                if self not in _HELD:
                    self._close()

    def release(self, remove: bool = False) -> None:
        """Free the lock, and remove its file first if asked to."""
        if self._file is not None:
            if remove:
                self.path.unlink(missing_ok=True)
            self._close()

    def _close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None
        _HELD.discard(self)

    def __enter__(self) -> FileLock:
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def _open_lock_file(path: Path) -> int:
    flags = os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        # For writing, as NFS wants it; not O_CREAT, which Linux refuses for another user's file in a sticky
        # folder.
        return os.open(path, os.O_RDWR | flags)
    except FileNotFoundError:
        return os.open(path, os.O_RDWR | os.O_CREAT | flags, 0o666)
    except (PermissionError, IsADirectoryError):
        return os.open(path, os.O_RDONLY | flags)


# A forked loader worker inherits the descriptor and would keep the lock of its killed parent until it dies
# itself.
_HELD: weakref.WeakSet[FileLock] = weakref.WeakSet()


def _let_go_in_child() -> None:
    for lock in list(_HELD):
        lock._close()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_let_go_in_child)


@contextmanager
def locked(path: str | Path, waiting: str | None = None) -> Iterator[None]:
    """Hold an exclusive lock on a file or folder.

    Args:
        path: File or folder to lock. Its content does not matter.
        waiting: Line for stderr if somebody else holds the lock; None waits silently.
    """
    lock = FileLock(Path(path).resolve())
    if not lock.acquire(wait=False):
        if waiting is not None:
            print(waiting, file=sys.stderr, flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


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
