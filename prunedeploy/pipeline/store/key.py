"""What a stage is, what its result is stored under, and how one sees that a stored result is whole.

A stage is a pure function of its configuration and the content of its inputs. Its key hashes both, with the
stage's version number and torch's version; a measurement also keys on the machine. A stored result is a
folder with a ``stage.json`` that names every file in it with size and SHA-256.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime, timezone
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from prunedeploy_engines.errors import StoreError
from prunedeploy_engines.files import file_sha256, is_leftover, write_atomically

RECORD = "stage.json"
SCHEMA_VERSION = 1
ALWAYS_HASHED_BYTES = 64 << 20
"""Files up to this size are hashed whenever they are used; larger ones only if their modification time
changed."""


@cache
def torch_version() -> str:
    """Return the version of the installed torch without importing it, ``none`` if there is none."""
    try:
        return importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        return "none"


def machine_id() -> str:
    """Return 16 hexadecimal digits that differ between machines whose measurements must not be mixed.

    Host, processor, number of usable CPUs and NVIDIA GPUs count.
    """
    processor = [line for line in _lines_of("/proc/cpuinfo") if line.startswith("model name")][:1]
    gpus = [
        line
        for information in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
        for line in _lines_of(information)
        if line.startswith(("Model", "GPU UUID"))
    ]
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    host = _lines_of("/etc/machine-id")[:1] or [platform.node()]
    return _sha256([host, platform.machine(), processor, cpus, gpus])[:16]


@dataclass(frozen=True)
class StageKey:
    """Everything that the result of a stage depends on.

    Attributes:
        name: Name of the stage, e.g. ``finetune``: lower-case letters, digits and dashes.
        version: Raised whenever the stage's code changes its result.
        config: The settings it reads, plain JSON values; see `prunedeploy.config.result_settings`.
        inputs: Digest of the stage or SHA-256 of the content that each input is.
        machine: `machine_id` for a measurement, else None.
        torch: Version of torch.
    """

    name: str
    version: int
    config: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, str] = field(default_factory=dict)
    machine: str | None = None
    torch: str = field(default_factory=torch_version)

    def __post_init__(self) -> None:
        if not self.name or set(self.name) - set("abcdefghijklmnopqrstuvwxyz0123456789-"):
            raise ValueError(f"a stage's name is of lower-case letters, digits and dashes, got {self.name!r}")
        for name, digest in self.inputs.items():
            if not digest:
                raise ValueError(f"input {name!r} of stage {self.name} has no digest")

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the canonical JSON of all attributes, 64 hexadecimal digits."""
        return _sha256(self.as_dict())

    @property
    def folder_name(self) -> str:
        """``<name>-<digest>``, which no other result has."""
        return f"{self.name}-{self.digest}"

    def as_dict(self) -> dict[str, Any]:
        """Return what the digest is of."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def canonical_json(value: Any) -> str:
    """Return the one JSON text of a value: sorted keys, no spaces.

    Raises:
        ValueError: A value that JSON does not have (NaN, an array, a path), or a key that is not a string.
    """
    _refuse_other_keys(value)
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    except TypeError as error:
        raise ValueError(f"not plain JSON: {error}") from None


def write_record(folder: Path, key: StageKey, description: str, seconds: float) -> None:
    """Write a finished result's ``stage.json``, which lists every file in the folder.

    Args:
        folder: With the result in it, and nothing else.
        key: Key of the result.
        description: For people.
        seconds: Wall time of the last run of the stage; one that was resumed took longer in all.

    Raises:
        ValueError: Something in the folder is neither file nor folder, or is called ``stage.json``.
        StoreError: It cannot be written.
    """
    if (folder / RECORD).exists():
        raise ValueError(f"stage {key.name} wrote a file called {RECORD}, which is the store's own")
    files: list[dict[str, Any]] = [
        {
            "path": path.relative_to(folder).as_posix(),
            "bytes": path.stat().st_size,
            "sha256": file_sha256(path),
            "mtime_ns": path.stat().st_mtime_ns,
        }
        for path in walk_files(folder)
    ]
    record = {
        "schema_version": SCHEMA_VERSION,
        "digest": key.digest,
        "key": key.as_dict(),
        "description": description,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "seconds": round(seconds, 3),
        "computed_on": machine_id(),
        "bytes": sum(entry["bytes"] for entry in files),
        "files": files,
    }
    write_atomically(folder / RECORD, (json.dumps(record, indent=2, sort_keys=True) + "\n").encode())


def read_record(folder: Path) -> dict[str, Any]:
    """Return a result's ``stage.json``, its schema checked.

    Raises:
        StoreError: It is missing, or not what `write_record` writes.
    """
    path = folder / RECORD
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["schema_version"] != SCHEMA_VERSION:
            raise StoreError(f"is of schema {record['schema_version']}, not {SCHEMA_VERSION}", path)
        numbers = [record["seconds"], record["bytes"], *(entry["bytes"] for entry in record["files"])]
        texts = [record["created"], record["description"]]
        texts += [entry[name] for entry in record["files"] for name in ("path", "sha256")]
        plain = min(numbers) >= 0 and all(isinstance(text, str) for text in texts)
        if not plain or record["digest"] != _sha256(record["key"]):
            raise ValueError
    except OSError as error:
        raise StoreError(f"cannot be read ({error.strerror})", path) from None
    except (ValueError, TypeError, KeyError, AttributeError):
        raise StoreError("is not a stage's record", path) from None
    return record


def check_result(folder: Path, digest: str, hashed: bool = True) -> dict[str, Any]:
    """Check that a result is whole and return its record.

    Args:
        folder: Folder of the result.
        digest: That it must be the result of.
        hashed: Compare the content too, see `ALWAYS_HASHED_BYTES`; sizes are always compared.

    Raises:
        StoreError: Says which file is missing, added, of another size or of other content.
    """
    record = read_record(folder)
    if record["digest"] != digest:
        raise StoreError(f"is the record of another stage ({record['digest'][:12]})", folder / RECORD)
    listed = {entry["path"]: entry for entry in record["files"]}
    try:
        present = {path.relative_to(folder).as_posix(): path for path in walk_files(folder)}
        for name in sorted(listed.keys() ^ (present.keys() - {RECORD})):
            what = "is missing" if name in listed else "does not belong to the result"
            raise StoreError(what, folder / name)
        for name, entry in listed.items():
            status = present[name].stat()
            if status.st_size != entry["bytes"]:
                raise StoreError(f"has {status.st_size} bytes, {entry['bytes']} were written", folder / name)
            doubtful = status.st_size <= ALWAYS_HASHED_BYTES or status.st_mtime_ns != entry.get("mtime_ns")
            if hashed and doubtful and file_sha256(present[name]) != entry["sha256"]:
                raise StoreError("has changed since it was written", folder / name)
    except ValueError as error:
        raise StoreError(str(error), folder) from None
    except OSError as error:
        raise StoreError(f"cannot be read ({error.strerror})", error.filename or folder) from None
    return record


def walk_files(folder: Path) -> Iterator[Path]:
    """Yield every file below a folder, sorted, but what file managers and editors leave there.

    Raises:
        ValueError: There is a link, a device or a socket.
    """
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if is_leftover(entry.name):
            continue
        if entry.is_dir(follow_symlinks=False):
            yield from walk_files(Path(entry.path))
        elif entry.is_file(follow_symlinks=False):
            yield Path(entry.path)
        else:
            raise ValueError(f"{entry.name} is neither file nor folder; a result consists of these only")


def _sha256(value: Any) -> str:
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def _refuse_other_keys(value: Any) -> None:
    if isinstance(value, Mapping):
        if others := [key for key in value if not isinstance(key, str)]:
            raise ValueError(f"not plain JSON: key {others[0]!r} is not a string")
        value = list(value.values())
    for inner in value if isinstance(value, (list, tuple)) else ():
        _refuse_other_keys(inner)


def _lines_of(path: str | Path) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
