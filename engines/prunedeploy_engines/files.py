"""Writing files so that nobody ever reads half of one, and hashing them."""

from __future__ import annotations

import contextlib
import hashlib
import os
import uuid
from pathlib import Path

from prunedeploy_engines.errors import StoreError


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
        raise StoreError(
            f"cannot be written ({error.strerror})", path, "free space or choose another folder"
        ) from None


def file_sha256(path: str | Path) -> str:
    """Hexadecimal SHA-256 of a file's content."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
