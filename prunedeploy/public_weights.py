"""Fetch the public Darknet weights: resumable, checked, and never half there.

A download grows in ``NAME.weights.part`` and gets its name only when its size and its checksum are right; where nobody
states a checksum (`weights_table`), when its size is.
"""

from __future__ import annotations

import errno
import hashlib
import http.client
import os
import re
import struct
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

from prunedeploy.weights_table import WEIGHTS, PublicFile
from prunedeploy_engines.errors import DownloadError
from prunedeploy_engines.files import file_digest, flush, write_atomically
from prunedeploy_engines.version import __version__

__all__ = ["WEIGHTS", "Progress", "PublicFile", "fetch_file", "open_url", "read_block", "weights_of"]

Progress = Callable[[int], None]
"""Called with the number of bytes that are there now and were not at the call before."""

_BLOCK = 1 << 18
_TIMEOUT_S = 30.0


_HASHES = {"sha256": "SHA-256", "sha1": "SHA-1"}
_PARTIAL_HEADER = struct.pack("<iiiq", 0, 2, 0, 0)
"""Major, minor, revision, images seen: what ``darknet partial`` writes in front of the first layers."""


def weights_of(name: str, sha256: str | None = None) -> PublicFile:
    """The public weights of a network.

    Args:
        name: A key of `WEIGHTS`.
        sha256: What the content must have, 64 hex digits; None: what the table states, if it states anything.

    Raises:
        DownloadError: Unknown name, or ``sha256`` is not one.
    """
    if name not in WEIGHTS:
        raise DownloadError(f"no public weights named {name!r}", fix=f"choose from {', '.join(WEIGHTS)}")
    if sha256 is None:
        return WEIGHTS[name]
    if not re.fullmatch("[0-9a-fA-F]{64}", sha256):
        raise DownloadError(f"{sha256!r} is not a SHA-256", "--sha256", "give its 64 hex digits")
    return replace(WEIGHTS[name], sha256=sha256.lower(), sha1=None, source="--sha256")


def fetch_file(
    file: PublicFile, folder: Path, *, base_url: str | None = None, progress: Progress = lambda _: None
) -> Path:
    """Fetch one file into ``folder``, unless it is there already.

    An interrupted download is continued if the server can (HTTP Range), and started again if it cannot. A file that is
    cut from another one is cut here, as ``darknet partial`` does it; the other one stays in the folder.

    Args:
        file: What to fetch.
        folder: Where to put it; made if missing.
        base_url: A mirror: the file is ``base_url/NAME``.
        progress: Told now and then how much has come; what an earlier call has left, first.

    Returns:
        The file's path.

    Raises:
        DownloadError: No network, the server refuses, the connection breaks (what has arrived is kept), the
            disk is full (likewise), the content is not the file's (what has arrived is removed), or another
            file of that name is there (it is left alone).
    """
    url = file.url if base_url is None else f"{base_url.rstrip('/')}/{file.name}"
    target = folder / file.name
    part = folder / f"{file.name}.part"
    try:
        if target.exists():
            if _difference(file, target) is None:
                return target
            raise DownloadError("another file of this name is there", target, "move it away, or choose another folder")
        if file.cut_from is not None:
            return _cut(file, fetch_file(file.cut_from, folder, base_url=base_url, progress=progress))
        folder.mkdir(parents=True, exist_ok=True)
        done = part.stat().st_size if part.exists() else 0
        if done > file.size:
            part.unlink()
            done = 0
        if done < file.size:
            _receive(file, url, part, done, progress)
        if (difference := _difference(file, part)) is not None:
            part.unlink()
            raise DownloadError(f"the content is not that of {file.name}: {difference}", url, "try again later")
        part.replace(target)
        flush(folder)  # so that the name survives a power cut
    except OSError as error:
        kept = "; run the command again to continue" if part.exists() else ""
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        what = "the disk is full" if full else f"cannot be written ({error.strerror or error})"
        fix = ("free space" if full else "choose a folder that can be written to") + kept
        raise DownloadError(what, folder, fix) from error
    return target


def _difference(file: PublicFile, path: Path) -> str | None:
    """Return in what a file on disk is not the one meant, or None."""
    size = path.stat().st_size
    if size != file.size:
        return f"{size} bytes instead of {file.size}"
    if file.checked_by is not None:
        stated = getattr(file, file.checked_by)
        if (found := file_digest(path, file.checked_by)) != stated:
            return f"{_HASHES[file.checked_by]} {found} instead of {stated}"
    return None


def _cut(file: PublicFile, whole: Path) -> Path:
    """Write the first layers of a whole file beside it.

    Raises:
        DownloadError: They are not what ``file`` says; nothing is written.
    """
    with whole.open("rb") as source:
        source.seek(len(_PARTIAL_HEADER))
        content = _PARTIAL_HEADER + source.read(file.size - len(_PARTIAL_HEADER))
    if file.sha256 is not None and (found := hashlib.sha256(content).hexdigest()) != file.sha256:
        what = f"the first layers are not those of {file.name}: SHA-256 {found} instead of {file.sha256}"
        raise DownloadError(what, whole, "give another --sha256, or none")
    target = whole.parent / file.name
    write_atomically(target, content)
    return target


def _receive(file: PublicFile, url: str, part: Path, done: int, progress: Progress) -> None:
    """Append what is missing to ``part``, or write it anew if the server sends everything."""
    with open_url(url, done) as response:
        resumed = done > 0 and response.status == http.client.PARTIAL_CONTENT
        if resumed and not response.headers.get("Content-Range", "").startswith(f"bytes {done}-"):
            raise DownloadError("the server sent a different range than was asked for", url, f"remove {part}")
        if not resumed:
            done = 0
        length = response.headers.get("Content-Length", "")
        if length.isdigit() and done + int(length) != file.size:
            offered = f"the server offers {done + int(length)} bytes, {file.name} has {file.size}"
            raise DownloadError(offered, url, "try a mirror")
        progress(done)
        with part.open("ab" if resumed else "wb") as output:
            while done <= file.size and (
                block := read_block(response, url)
            ):  # the caller sees the size of a longer one
                output.write(block)
                done += len(block)
                progress(len(block))
            output.flush()
            os.fsync(output.fileno())
    if done < file.size:
        what = f"the connection broke off after {done} of {file.size} bytes"
        raise DownloadError(what, url, "run the command again to continue")


def open_url(url: str, done: int = 0) -> http.client.HTTPResponse:
    """Ask for what is at an address, from byte ``done`` on if the server can.

    Raises:
        DownloadError: No http address, no network, or the server refuses.
    """
    if urlsplit(url).scheme not in ("http", "https"):
        raise DownloadError("this is not an http or https address", url, "give one")
    # Asking for the identity encoding: the bytes counted are then the bytes of the file.
    headers = {"User-Agent": f"prunedeploy/{__version__}", "Accept-Encoding": "identity"}
    if done:
        headers["Range"] = f"bytes={done}-"
    try:
        response: http.client.HTTPResponse = urllib.request.urlopen(
            urllib.request.Request(url, headers=headers), timeout=_TIMEOUT_S
        )
    except urllib.error.HTTPError as error:
        error.close()
        raise DownloadError(f"the server says {error.code} {error.reason}", url, "try again later") from None
    except (OSError, http.client.HTTPException, ValueError) as error:  # URLError is an OSError
        reason = getattr(error, "reason", None) or error
        fix = "check the network connection and proxy settings"
        raise DownloadError(f"cannot be reached ({reason})", url, fix) from None
    return response


def read_block(response: http.client.HTTPResponse, url: str) -> bytes:
    """Read a block, empty at the end; an error of the network is not one of the disk, though both are OSErrors."""
    try:
        return response.read(_BLOCK)
    except http.client.IncompleteRead as error:
        return error.partial
    except (OSError, http.client.HTTPException) as error:
        reason = f"the connection broke ({error or type(error).__name__})"
        raise DownloadError(reason, url, "run the command again to continue") from None
