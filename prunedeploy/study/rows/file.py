"""The file a study's rows stand in: one JSON object per line, only ever appended to.

What a crash can leave behind is a last line without an end. Readers skip it and say so; the one writer puts it
aside, into ``<name>.incomplete``, before it appends. A broken line anywhere else is damage, and an error.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from prunedeploy.study.rows.rows import Row, to_line
from prunedeploy_engines.errors import ConfigError, StoreError
from prunedeploy_engines.locks import FileLock

INCOMPLETE = ".incomplete"


@dataclass(frozen=True)
class ReadRows:
    """What a row file holds.

    Attributes:
        rows: In the order of the file.
        notes: What a person should know about the reading, a sentence each.
        incomplete: What stands behind the last whole line; empty in a whole file.
    """

    rows: tuple[Row, ...]
    notes: tuple[str, ...]
    incomplete: bytes


def read_rows(path: Path, configuration_hash: str | None = None) -> ReadRows:
    """Read a row file and change nothing.

    Args:
        path: The file.
        configuration_hash: Hash of the sweep whose rows these must be; None: all of the same, whichever it is.

    Raises:
        ConfigError: There is no such file, a line is not a row, or a row belongs to another configuration.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        fix = "give the rows that `prunedeploy sweep` writes"
        raise ConfigError(f"cannot be read ({error.strerror})", path, fix) from None
    lines = content.splitlines(keepends=True)
    incomplete = b""
    rows: list[Row] = []
    for number, line in enumerate(lines, 1):
        try:
            row = Row.model_validate_json(line)
        except ValidationError as error:
            if number == len(lines) and not line.endswith(b"\n"):
                incomplete = line
                break
            raise _not_a_row(error, f"{path}:{number}") from None
        expected = configuration_hash or (rows[0].configuration_hash if rows else row.configuration_hash)
        if row.configuration_hash != expected:
            raise ConfigError(
                f"a row of another configuration ({row.configuration_hash[:12]}, not {expected[:12]})",
                f"{path}:{number}",
                "give the configuration these rows were made with, or another output folder",
            )
        rows.append(row)
    note = f"{path}: the last line, {len(incomplete)} bytes, breaks off and is skipped; its model counts as not done"
    return ReadRows(tuple(rows), (note,) if incomplete else (), incomplete)


class RowFile:
    """A row file open for appending; one writer at a time, and what it appends is on the disk when it returns.

    Args:
        path: The file; made if it is not there, with its folder.
        configuration_hash: Hash of the rows to come, and of those that are there.

    Attributes:
        rows: What was there, then what was appended.
        notes: What a person should know, a sentence each.

    Raises:
        ConfigError: As `read_rows`.
        StoreError: Another process writes to the file, or it cannot be written.
    """

    def __init__(self, path: Path, configuration_hash: str) -> None:
        self.path = path
        self.configuration_hash = configuration_hash
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise not_written(path, error) from None
        self._lock = FileLock(path)
        if not self._lock.acquire(wait=False):
            raise StoreError("another process is writing to this file", path, "wait for it, or end it")
        try:
            found = read_rows(path, configuration_hash)
            self.notes = list(found.notes)
            if found.incomplete:
                self._put_aside(found.incomplete)
            # Unbuffered: after an error nothing waits to be written again.
            self._file = path.open("r+b", buffering=0)
        except BaseException:
            self._lock.release()
            raise
        self._file.seek(0, os.SEEK_END)
        self.rows = list(found.rows)

    def append(self, *rows: Row) -> None:
        """Write rows and wait until they are on the disk; after an error none of them is in the file.

        Raises:
            ValueError: A row has another configuration's hash.
            StoreError: The file system refuses, e.g. because the disk is full.
        """
        for row in rows:
            if row.configuration_hash != self.configuration_hash:
                raise ValueError(f"row of {row.configuration_hash!r} for a file of {self.configuration_hash!r}")
        end = self._file.seek(0, os.SEEK_END)
        # A last line that is whole may lack its newline.
        separator = b"\n" if end and os.pread(self._file.fileno(), 1, end - 1) != b"\n" else b""
        try:
            data = memoryview(separator + b"".join(to_line(row) for row in rows))
            while data:
                data = data[self._file.write(data) :]
            os.fsync(self._file.fileno())
        except OSError as error:
            self._file.truncate(end)
            raise not_written(self.path, error) from None
        self.rows += rows

    def close(self) -> None:
        """Close the file and let others write."""
        self._file.close()
        self._lock.release()

    def __enter__(self) -> RowFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _put_aside(self, incomplete: bytes) -> None:
        beside = self.path.with_name(self.path.name + INCOMPLETE)
        try:
            with beside.open("ab") as file:
                file.write(incomplete + b"\n")
                file.flush()
                os.fsync(file.fileno())
            os.truncate(self.path, self.path.stat().st_size - len(incomplete))
        except OSError as error:
            raise not_written(beside, error) from None
        self.notes.append(f"{self.path}: the broken line is kept in {beside}")


def _not_a_row(error: ValidationError, where: str) -> ConfigError:
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    what = f"is not a result row ({key + ': ' if key else ''}{first['msg']})"
    return ConfigError(what, where, "restore the file, or remove that line and let the sweep make it again")


def not_written(path: Path, error: OSError) -> StoreError:
    """What to say of a file that the system refuses to write."""
    return StoreError(f"cannot be written ({error.strerror})", path, "free space or choose another folder")
