"""Putting files into a bundle's folder and checking them there."""

from __future__ import annotations

import mmap
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pydantic import ValidationError

from prunedeploy_engines.bundle.manifest import MANIFEST_NAME, FileEntry, Manifest, check_name, first_problem
from prunedeploy_engines.errors import BundleError
from prunedeploy_engines.files import file_sha256, write_atomically


@dataclass(frozen=True)
class BundleFile:
    """A file to put into a bundle.

    Attributes:
        source: Where it is now, or its content.
        role: ``"onnx"``, ``"engine"``, ``"metadata"`` or ``"other"``.
        precision: Precision of a model or engine: ``"fp32"``, ``"fp16"``, ``"int8"``.
        target: What it was built for, e.g. ``"sm86"``; None runs everywhere.
    """

    source: Path | bytes
    role: str
    precision: str | None = None
    target: str | None = None


def verify_file(folder: Path, name: str, entry: FileEntry) -> None:
    """Compare one file's size and SHA-256 with its entry.

    Raises:
        BundleError: They differ.
    """
    size = (folder / name).stat().st_size
    if size != entry.bytes:
        raise BundleError(f"{name} has {size} bytes, not {entry.bytes}", where=folder, fix="copy the bundle again")
    if file_sha256(folder / name) != entry.sha256:
        raise BundleError(f"{name} was changed (SHA-256 differs)", where=folder, fix="copy the bundle again")


def refuse_reached(folder: Path, manifest: Manifest) -> None:
    """Look for files that the manifest does not list although a listed model takes its weights from them.

    What nothing listed reaches, such as the ``.DS_Store`` of a file manager, does no harm.

    Raises:
        BundleError: There is one.
    """
    listed = {*manifest.files, MANIFEST_NAME}
    if all(path.relative_to(folder).as_posix() in listed or path.is_dir() for path in folder.rglob("*")):
        return  # the usual case
    for name, entry in manifest.files.items():
        for location in _weight_files(folder / name) if entry.role == "onnx" else ():
            reached = (PurePosixPath(name).parent / location).as_posix()
            if reached not in listed:
                what = f"{name} takes weights from {reached}, which is not listed in {MANIFEST_NAME}"
                raise BundleError(what, where=folder, fix="build the bundle again")


def _weight_files(onnx: Path) -> Iterator[str]:
    """Where an ONNX file says its weights are, if they are not in it.

    That is the entry ``location`` of a TensorProto's external_data: field 1, the key, then field 2, the value.
    """
    if not onnx.stat().st_size:
        return
    with onnx.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        for match in re.finditer(rb"\x0a\x08location\x12(.)", content, re.DOTALL):
            yield content[match.end() : match.end() + match[1][0]].decode("utf-8", "replace")


def place_file(folder: Path, name: str, file: BundleFile) -> FileEntry:
    """Write one file into the folder and describe what was written.

    Raises:
        BundleError: The name leaves the bundle, the role is unknown, or a file cannot be read.
        StoreError: It cannot be written.
    """
    try:
        check_name(name)
    except ValueError as error:
        raise BundleError(str(error), where=folder) from None
    destination = folder / name
    try:
        if isinstance(file.source, bytes):
            write_atomically(destination, file.source)
        elif not (destination.exists() and destination.samefile(file.source)):  # an engine built in place
            write_atomically(destination, Path(file.source).read_bytes())
        entry = {"bytes": destination.stat().st_size, "sha256": file_sha256(destination), "role": file.role}
    except OSError as error:
        raise BundleError(f"cannot be read ({error.strerror})", where=str(file.source)) from error
    try:
        return FileEntry.model_validate({**entry, "precision": file.precision, "target": file.target})
    except ValidationError as error:
        raise BundleError(f"file {name}: {first_problem(error)}", where=folder) from None
