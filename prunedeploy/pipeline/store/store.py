"""Results of stages on disk, each under its key: computed once, shared by builds, never half there.

Layout of a store::

    store.json                 says that this folder is a store
    results/<name>-<digest>/   whole results, each with its stage.json
    work/<digest>.<unique>/    results in the making; one whose lock is free was left by a killed process
    checkpoints/<name>-<digest>/  of a training that runs or was killed; gone when its stage ends
    locks/<digest>.compute     held by the process that computes the key
    locks/<digest>.use         held, shared, by every process that uses the result

A result is made under a unique name in ``work``, every file and folder of it is fsynced, and then it is
renamed.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from prunedeploy.pipeline.store.key import StageKey, check_result, walk_files, write_record
from prunedeploy_engines.errors import StoreError
from prunedeploy_engines.files import flush, is_leftover, write_atomically
from prunedeploy_engines.locks import FileLock

MARKER = "store.json"
SCHEMA_VERSION = 1
ROOMS = ("results", "work", "checkpoints", "locks")
Kind = Literal["result", "damaged", "work", "checkpoint"]
_PROTECTED_BY: dict[Kind, tuple[str, ...]] = {
    "result": ("compute", "use"),
    "damaged": ("compute", "use"),
    "work": ("compute",),
    "checkpoint": ("compute",),
}
_log = logging.getLogger(__name__).warning


@dataclass(frozen=True)
class StoreRow:
    """One thing in a store.

    Attributes:
        kind: ``result``; ``damaged``, a result that is not whole; ``work``, one in the making;
            ``checkpoint``.
        name: Name of the stage; empty if not known.
        digest: Digest of the stage's key.
        path: Folder.
        bytes: Size in bytes of all files in it.
        last_used: Seconds since the epoch.
        in_use: A live process computes or uses it.
        seconds: What computing it took; None if not a whole result.
        created: UTC, ISO 8601; None if not a whole result.
        description: For people; for a damaged result, what is wrong with it.
    """

    kind: Kind
    name: str
    digest: str
    path: Path
    bytes: int
    last_used: float
    in_use: bool
    seconds: float | None = None
    created: str | None = None
    description: str = ""


class Store:
    """A folder with the results of stages.

    Use it in a ``with`` block: results that were asked for are protected against `gc` until it is closed.

    Args:
        root: Folder; made if it is not there.
        say: Called with one line when a lock must be waited for or a damaged result is computed again.

    Raises:
        StoreError: The folder holds something else, is of another schema, or cannot be written.
    """

    def __init__(self, root: str | Path, say: Callable[[str], None] = _log) -> None:
        self.root = Path(root)
        self._say = say
        self._uses: dict[str, FileLock] = {}
        with _as_store_error(self.root):
            self.root.mkdir(parents=True, exist_ok=True)
            self._claim()
            for room in ROOMS:
                (self.root / room).mkdir(exist_ok=True)

    def _claim(self) -> None:
        marker = self.root / MARKER
        if not marker.exists():
            others = [
                name for name in os.listdir(self.root) if not (name.startswith(f".{MARKER}.") or is_leftover(name))
            ]
            if not others:
                write_json(marker, {"kind": "prunedeploy store", "schema_version": SCHEMA_VERSION})
            elif not marker.exists():  # not made meanwhile by another process
                raise StoreError(f"is not a store, it holds {sorted(others)[0]}", self.root, "choose another --store")
        content = read_json(marker)
        if not isinstance(content, dict) or content.get("kind") != "prunedeploy store":
            raise StoreError("is not a store's", marker, "choose another --store")
        if content.get("schema_version") != SCHEMA_VERSION:
            raise StoreError(f"is of schema {content.get('schema_version')}, not {SCHEMA_VERSION}", marker)

    def folder(self, key: StageKey) -> Path:
        """Return where a result is or will be."""
        return self.root / "results" / key.folder_name

    @contextmanager
    def computing(self, key: StageKey, description: str = "") -> Iterator[Path | None]:
        """Give an empty folder to write a result into, which is stored when the block ends; None if it is there whole.

        A damaged result is thrown away with a warning and computed again: a stage is a pure function. While the block
        runs, this process has the key's lock, and `checkpoint_dir` is its alone. If it raises, nothing of the result
        is kept.

        Args:
            key: Key of the result.
            description: For ``store ls``.

        Raises:
            StoreError: The disk is full, or the store cannot be written.
        """
        self._use(key.digest)
        is_there = self.has(key)
        with ExitStack() as stack:
            if not is_there:
                stack.enter_context(self._locked(key))
                is_there = self.has(key, repair=True)
            elif self._checkpoints(key).exists():  # killed between the end of the stage and the removal of these
                lock = self._lock(key.digest, "compute")
                if lock.acquire(wait=False):
                    shutil.rmtree(self._checkpoints(key), ignore_errors=True)
                    lock.release()
            yield None if is_there else stack.enter_context(self._stored(key, description))
        with suppress(OSError):
            os.utime(self.folder(key))  # when it was last used, for gc

    def load(self, key: StageKey) -> Path:
        """Return the folder of a result that is there.

        Raises:
            StoreError: It is not there or damaged.
        """
        self._use(key.digest)
        folder = self.folder(key)
        if not folder.is_dir():
            raise StoreError(f"has no result of {key.name} {key.digest[:12]}", self.root, "run the build that makes it")
        try:
            check_result(folder, key.digest)
        except StoreError as error:
            raise StoreError(error.what, error.where, "run `prunedeploy store gc`, then the build again") from None
        return folder

    def has(self, key: StageKey, repair: bool = False) -> bool:
        """Return whether a result is there whole; one that is damaged is removed, with a warning, to ``repair`` it."""
        folder = self.folder(key)
        if not folder.exists():
            return False
        try:
            check_result(folder, key.digest)
        except StoreError as error:
            if repair:
                self._say(f"computing {key.name} again, its stored result is damaged: {error}")
                self._discard(folder, key.digest)
            return False
        return True

    def checkpoint_dir(self, key: StageKey) -> Path:
        """Return the folder for a stage's checkpoints, made if need be.

        It outlives a killed process and is found again under the same key; it goes when the stage's result is
        stored.
        """
        folder = self._checkpoints(key)
        with _as_store_error(self.root):
            folder.mkdir(exist_ok=True)
        return folder

    def ls(self, hashed: bool = False) -> list[StoreRow]:
        """Return everything in the store: results by stage and age, then what is being made or was left.

        Args:
            hashed: Find damage by content; otherwise by size only, which is quick.
        """
        with _as_store_error(self.root):
            rows = [self._result_row(folder, hashed) for folder in self._folders("results")]
            rows += [self._row("work", folder) for folder in self._folders("work")]
            rows += [self._row("checkpoint", folder) for folder in self._folders("checkpoints")]
        order = list(_PROTECTED_BY)
        return sorted(rows, key=lambda row: (order.index(row.kind), row.name, row.last_used))

    def gc(
        self, keep: Collection[str] = (), older_than_days: float | None = None, dry_run: bool = False
    ) -> list[StoreRow]:
        """Remove what no build needs, never what a live process has locked.

        Always removed: what killed processes left in ``work``, damaged results, checkpoints of stages that
        have ended. With ``older_than_days`` also results and checkpoints that were not used for so long.

        Args:
            keep: Digests, or beginnings of them, of results and checkpoints that stay.
            older_than_days: 0 removes everything that is not in use; None: age does not matter.
            dry_run: Only say what would be removed.

        Returns:
            What was removed.
        """
        removed = []
        for row in self.ls(hashed=True):
            old = older_than_days is not None and time.time() - row.last_used >= older_than_days * 86400
            ended = row.kind == "checkpoint" and any((self.root / "results").glob(f"*-{row.digest}"))
            kept = row.kind != "work" and any(row.digest.startswith(beginning) for beginning in keep)
            if row.in_use or not (row.kind in {"work", "damaged"} or ended or (old and not kept)):
                continue
            if dry_run or self._remove(row):
                removed.append(row)
        return removed

    def close(self) -> None:
        """Give the results that were used free for `gc`."""
        for lock in self._uses.values():
            lock.release()
        self._uses.clear()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def _stored(self, key: StageKey, description: str) -> Iterator[Path]:
        """Give a folder in ``work`` that becomes the result when the block ends well."""
        room = self.root / "work"
        work = room / f"{key.digest}.{uuid.uuid4().hex}"
        for leftover in room.glob(f"{key.digest}.*"):  # we have the lock, so its owner is dead
            shutil.rmtree(leftover, ignore_errors=True)
        started = time.monotonic()
        try:
            with _as_store_error(self.root, only_full_disk=True):
                work.mkdir()
                yield work
            with _as_store_error(self.root):
                write_record(work, key, description, time.monotonic() - started)
                for path in [*work.rglob("*"), work]:
                    flush(path)  # before it gets its name
                self._publish(work, key)
        finally:
            shutil.rmtree(work, ignore_errors=True)
        shutil.rmtree(self._checkpoints(key), ignore_errors=True)

    def _publish(self, work: Path, key: StageKey) -> None:
        folder = self.folder(key)
        try:
            work.rename(folder)
        except OSError as error:
            # Where locks do not work (some network disks) another process may have been first; its result is
            # as good.
            if error.errno not in {errno.ENOTEMPTY, errno.EEXIST}:
                raise
            check_result(folder, key.digest)
        flush(folder.parent)

    def _discard(self, folder: Path, digest: str) -> None:
        """Remove a folder so that it is there whole or not at all: renamed first, then deleted."""
        grave = self.root / "work" / f"{digest}.{uuid.uuid4().hex}"
        with _as_store_error(self.root):
            folder.rename(grave)
            flush(folder.parent)
        shutil.rmtree(grave, ignore_errors=True)

    def _checkpoints(self, key: StageKey) -> Path:
        return self.root / "checkpoints" / key.folder_name

    def _lock(self, digest: str, purpose: str, shared: bool = False) -> FileLock:
        return FileLock(self.root / "locks" / f"{digest}.{purpose}", shared)

    def _use(self, digest: str) -> None:
        if digest not in self._uses:
            lock = self._lock(digest, "use", shared=True)
            lock.acquire()
            self._uses[digest] = lock

    @contextmanager
    def _locked(self, key: StageKey) -> Iterator[None]:
        lock = self._lock(key.digest, "compute")
        if not lock.acquire(wait=False):
            self._say(f"waiting: another process is computing {key.name} {key.digest[:12]}")
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def _folders(self, room: str) -> list[Path]:
        return [path for path in sorted((self.root / room).iterdir()) if _digest_of(path)]

    def _in_use(self, kind: Kind, digest: str) -> bool:
        for purpose in _PROTECTED_BY[kind]:
            lock = self._lock(digest, purpose)
            if lock.path.exists():
                if not lock.acquire(wait=False):
                    return True
                lock.release()
        return False

    def _row(self, kind: Kind, folder: Path, **more: Any) -> StoreRow:
        digest = _digest_of(folder)
        size, used = 0, 0.0
        with suppress(OSError, ValueError):  # it may be renamed or removed while we look
            used = folder.stat().st_mtime
            for path in walk_files(folder):
                status = path.stat()
                size += status.st_size
                used = max(used, status.st_mtime) if kind == "checkpoint" else used
        name = folder.name.rpartition("-")[0]
        return StoreRow(kind, name, digest, folder, size, used, self._in_use(kind, digest), **more)

    def _result_row(self, folder: Path, hashed: bool) -> StoreRow:
        try:
            record = check_result(folder, _digest_of(folder), hashed)
        except StoreError as error:
            return self._row("damaged", folder, description=str(error))
        more = {name: record[name] for name in ("seconds", "created", "description")}
        return self._row("result", folder, **more)

    def _remove(self, row: StoreRow) -> bool:
        """Remove a row's folder under the locks that protect it; return False if somebody has one of them."""
        locks = [self._lock(row.digest, purpose) for purpose in _PROTECTED_BY[row.kind]]
        try:
            if not all(lock.acquire(wait=False) for lock in locks) or not row.path.exists():
                return False
            if row.kind == "damaged" and self._result_row(row.path, hashed=True).kind == "result":
                return False  # repaired meanwhile
            self._discard(row.path, row.digest)
            for lock in locks:
                lock.release(remove=True)
            return True
        finally:
            for lock in locks:
                lock.release()


def write_json(path: str | Path, value: Any) -> None:
    """Write plain values as indented JSON, atomically.

    Raises:
        ValueError: A value that JSON does not have, such as NaN.
        StoreError: The file cannot be written.
    """
    write_atomically(path, (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())


def read_json(path: str | Path) -> Any:
    """Read a JSON file.

    Raises:
        StoreError: It is not there or not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise StoreError(f"cannot be read ({error.strerror})", path) from None
    except ValueError:
        raise StoreError("is not JSON", path) from None


def _digest_of(folder: Path) -> str:
    """Return the digest in a folder's name, empty if there is none."""
    found = re.search(r"(?:^|-)([0-9a-f]{64})(?:\.[0-9a-f]{32})?$", folder.name)
    return found[1] if found else ""


def is_disk_full(error: BaseException) -> bool:
    """Return whether an error, or what it came from, says that there is no room: disk, quota or size limit.

    safetensors and numpy raise errors without an ``errno`` for that, hence the look at their texts.
    """
    full = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
    text = re.compile(r"(os error |code: )(27|28|122)\b|No space left|StorageFull|requested and \d+ written")
    seen: BaseException | None = error
    while seen is not None:
        if (isinstance(seen, OSError) and seen.errno in full) or text.search(str(seen)):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


@contextmanager
def _as_store_error(root: Path, only_full_disk: bool = False) -> Iterator[None]:
    try:
        yield
    except StoreError:
        raise
    except Exception as error:
        if is_disk_full(error):
            what = "no space is left on this disk (nothing half-written was kept)"
            raise StoreError(what, root, "free space, or choose another --store") from error
        if isinstance(error, OSError) and not only_full_disk:
            raise StoreError(f"the store cannot be used ({error.strerror})", error.filename or root) from error
        raise
