"""From the ``file_name`` of a JSON to a file in the data folder, also where another program wrote the path."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from urllib.parse import unquote


def leads_out(name: str) -> bool:
    """Whether a name is absolute or goes up, so that it is not taken as it stands."""
    path = PurePosixPath(name)
    return path.is_absolute() or ".." in path.parts


def found_images(names: Iterable[str], folder: Path) -> dict[str, Path | None]:
    r"""Find the file of every name, below ``folder`` or the folder above it.

    A name that is not there as it stands is looked for by the end of its path, the longest first: ``images\a.jpg``,
    ``C:\photos\a.jpg``, ``/data/upload/1/a.jpg`` and ``s3://bucket/a.jpg`` are all ``a.jpg`` of the folder, unless
    another name already stands for that file.

    Returns:
        By name: the file; where it would be if there is none; None if the name leads out of the data folder.
    """
    found: dict[str, Path | None] = {}
    missing = []
    for name in names:
        path = None if leads_out(name) else _existing(folder, PurePosixPath(name))
        if path is None:
            missing.append(name)
        found[name] = path
    taken = {path for path in found.values() if path is not None}
    for name in missing:
        tails = (_existing(folder, tail) for tail in _tails(name))
        by_tail = next((path for path in tails if path is not None and path not in taken), None)
        found[name] = by_tail or (None if leads_out(name) else folder / name)
    return found


def _existing(folder: Path, name: PurePosixPath) -> Path | None:
    for base in (folder, folder.parent):
        path = base / name
        try:
            if path.is_file():
                return path
        except OSError:  # a name that no file system takes, too long for one
            return None
    return None


def _tails(name: str) -> Iterable[PurePosixPath]:
    """Ends of a path that was written elsewhere, the longest first; none of them goes up."""
    below = unquote(name.rpartition("?d=")[2]).replace("\\", "/")
    parts = [part for part in below.split("/") if part]
    for start in range(len(parts)):
        if ".." not in parts[start:] and not parts[start].endswith(":"):
            yield PurePosixPath(*parts[start:])
