"""Attacked images on disk, so that an engine that runs later or elsewhere sees exactly the same ones.

A NumPy ``.npy`` file, ``(N, 3, H, W)`` float32, pixels in [0, 1], and beside it ``<name>.ids.npy`` with
the image ids in its order. The pixels are **not** quantised to 8 bits: rounding would change the attack
that is measured.
"""

from __future__ import annotations

import contextlib
import io
import os
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray

from prunedeploy.data.loader import Batch
from prunedeploy_engines.errors import DataError, StoreError
from prunedeploy_engines.files import write_atomically

_FIX = "evaluate again with the same data set and options"


def ids_path(path: str | Path) -> Path:
    """Where the image ids of a file of attacked images are."""
    return Path(path).with_suffix(".ids.npy")


class AttackedImageWriter:
    """Writes batches as they come; a context manager.

    The file appears, whole, when the context is left without an error.

    Args:
        path: The ``.npy`` file.
        input_size: (height, width) of the images.

    Raises:
        StoreError: In any method: the file system refuses.
    """

    def __init__(self, path: str | Path, input_size: tuple[int, int]) -> None:
        self._path = Path(path)
        self._temporary = self._path.with_name(f".{self._path.name}.{uuid.uuid4().hex}.tmp")
        self._input_size = input_size
        self._image_ids: list[int] = []
        self._file: BinaryIO | None = None

    def __enter__(self) -> AttackedImageWriter:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._temporary.open("wb")
            # NumPy pads the header for a growing first axis, so the final count fits into the same bytes.
            self._header_bytes = self._write_header(self._file)
        except OSError as error:
            self._discard()
            raise self._refused(error) from None
        return self

    def write(self, images: NDArray[np.float32], image_ids: list[int]) -> None:
        """Append ``(B, 3, H, W)`` float32 images and their ids."""
        expected = (len(image_ids), 3, *self._input_size)
        if images.shape != expected or images.dtype != np.float32:
            raise ValueError(f"images must be {expected} float32, got {images.shape} {images.dtype}")
        if self._file is None:
            raise ValueError("the writer is not open")
        try:
            self._file.write(np.ascontiguousarray(images).data)
        except OSError as error:
            raise self._refused(error) from None
        self._image_ids += image_ids

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None or self._file is None:
            self._discard()
            return
        try:
            self._file.seek(0)
            if self._write_header(self._file) != self._header_bytes:
                raise RuntimeError("NumPy changed the length of a .npy header")
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            # Old images never stand beside new ids, whenever this is killed.
            self._path.unlink(missing_ok=True)
            self._write_ids()
            self._temporary.replace(self._path)
        except OSError as refused:
            raise self._refused(refused) from None
        finally:
            self._discard()

    def _write_header(self, file: BinaryIO) -> int:
        shape = (len(self._image_ids), 3, *self._input_size)
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
        return file.tell()

    def _write_ids(self) -> None:
        buffer = io.BytesIO()
        np.save(buffer, np.array(self._image_ids, np.int64), allow_pickle=False)
        write_atomically(ids_path(self._path), buffer.getvalue())

    def _discard(self) -> None:
        with contextlib.suppress(OSError):
            if self._file is not None:
                self._file.close()
        with contextlib.suppress(OSError):
            self._temporary.unlink()

    def _refused(self, error: OSError) -> StoreError:
        return StoreError(f"cannot be written ({error.strerror})", self._path, "free space or choose another folder")


def attacked_batches(path: str | Path, batches: Iterable[Batch]) -> Iterator[Batch]:
    """The batches of a loader with their images replaced by the attacked ones.

    Args:
        path: What was given as ``save_attacked`` to `prunedeploy.evaluation.evaluate`.
        batches: The loader's batches; its images, in their order, must be those of the file. The batch size
            may be another.

    Raises:
        DataError: The file is missing, not such a file, or of other images.
    """
    try:
        images = np.load(path, mmap_mode="r", allow_pickle=False)
        image_ids = np.load(ids_path(path), allow_pickle=False).tolist()
    except (OSError, ValueError) as error:
        raise DataError(f"no readable attacked images ({error})", path, _FIX) from None
    fits = images.ndim == 4 and images.shape[:2] == (len(image_ids), 3)
    if not fits or images.dtype != np.float32:
        raise DataError(f"not attacked images: {images.shape} {images.dtype}", path, _FIX)
    start = 0
    for batch in batches:
        stop = start + len(batch.image_ids)
        same_size = images.shape[1:] == tuple(batch.images.shape[1:])
        if image_ids[start:stop] != list(batch.image_ids) or not same_size:
            raise DataError("the attacked images are of other images or of another size", path, _FIX)
        yield replace(batch, images=torch.from_numpy(np.array(images[start:stop])))
        start = stop
    if start != len(image_ids):
        raise DataError(f"{len(image_ids)} attacked images for {start} images", path, _FIX)
