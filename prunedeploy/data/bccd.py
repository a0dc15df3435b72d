"""Fetch BCCD: 364 photos of blood cells with boxes, the data of ``configs/blood-cells.yaml``.

Blood Cell Count and Detection, Copyright (c) 2017 shenggan, MIT licence: https://github.com/Shenggan/BCCD_Dataset.
"""

from __future__ import annotations

import hashlib
import io
import re
import zipfile
import zlib
from pathlib import Path

from prunedeploy.public_weights import open_url, read_block
from prunedeploy_engines.errors import DownloadError, StoreError
from prunedeploy_engines.files import write_whole_folder

COMMIT = "d272fb14cdff6e473fafeeeba32aba5f560e9e43"
URL = f"https://codeload.github.com/Shenggan/BCCD_Dataset/zip/{COMMIT}"

CONTENT_SHA256 = "5f5a6b00066a74ecbf6e2fd6b98dea243f9b517fc6ca2a5c84e23c1b0fd39a5e"
"""Digest of the sorted lines ``PATH SHA256`` of all files; the archive's own may change: it is packed on demand."""

FILES = 733
MOST_BYTES = 64 << 20
"""The archive has some 10 MB, its files 9 MB."""

_WANTED = re.compile(
    r"[^/]+/(?:BCCD/)?((?:(?:Annotations|ImageSets/Main|JPEGImages)/)[\w-]+\.(?:xml|txt|jpg)|LICENSE)", re.ASCII
)


def fetch_bccd(folder: Path, url: str = URL) -> None:
    """Fetch the photos, the labels (Pascal VOC's XML), the splits and the licence into a new folder.

    A folder that holds exactly this is left as it is.

    Args:
        folder: Where they go.
        url: A zip of the repository, e.g. of a mirror.

    Raises:
        DownloadError: See `prunedeploy.public_weights.open_url`; or what came is not BCCD.
        StoreError: The folder is not empty, or cannot be written; nothing is left behind.
    """
    if folder.is_dir() and any(folder.iterdir()):
        files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
        if len(files) == FILES and _digest({name: path.read_bytes() for name, path in files.items()}) == CONTENT_SHA256:
            return
        raise StoreError("exists and does not hold BCCD as it was published", folder, "choose another folder")
    files_of_archive = _unpacked(_received(url), url)

    def fill(work: Path) -> None:
        for name, content in files_of_archive.items():
            path = work / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)

    write_whole_folder(folder, fill)


def _received(url: str) -> bytes:
    parts, size = [], 0
    with open_url(url) as response:
        while block := read_block(response, url):
            parts.append(block)
            size += len(block)
            if size > MOST_BYTES:
                raise DownloadError(f"is longer than {MOST_BYTES >> 20} MB, so it is not BCCD", url, "try a mirror")
    return b"".join(parts)


def _unpacked(archive: bytes, url: str) -> dict[str, bytes]:
    """The wanted files of the archive by their paths in the data folder, checked."""
    try:
        with zipfile.ZipFile(io.BytesIO(archive)) as packed:
            wanted = {match[1]: info for info in packed.infolist() if (match := _WANTED.fullmatch(info.filename))}
            if sum(info.file_size for info in wanted.values()) > MOST_BYTES:
                raise DownloadError("unpacks to more than BCCD has", url, "try a mirror")
            files = {name: packed.read(info) for name, info in wanted.items()}
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise DownloadError(f"is not a whole zip archive ({error})", url, "run the command again") from None
    if (found := _digest(files)) != CONTENT_SHA256:
        what = f"is not BCCD as it was published: {len(files)} files with SHA-256 {found}, not {CONTENT_SHA256}"
        raise DownloadError(what, url, "try again later, or a mirror")
    return files


def _digest(files: dict[str, bytes]) -> str:
    lines = sorted(f"{name} {hashlib.sha256(content).hexdigest()}\n" for name, content in files.items())
    return hashlib.sha256("".join(lines).encode()).hexdigest()
