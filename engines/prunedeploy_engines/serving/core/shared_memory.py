"""Shared memory of clients on the same machine: Triton's system shared memory extension.

Regions are read and written with ``pread`` and ``pwrite``, never mapped: a client may shrink its memory at any time,
and whoever touches a mapping beyond the end is killed by SIGBUS. It costs a copy, which is needed all the same, or a
client could change pixels after they were checked.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from prunedeploy_engines.serving.core.errors import InvalidRequestError, NotOfferedError, TooLargeError

FOLDER = Path("/dev/shm")  # where Linux keeps POSIX shared memory
MOST_REGIONS = 256
"""Each holds a file descriptor open."""

MOST_BYTES = 1 << 62
_LONGEST_NAME = 255


@dataclass(frozen=True)
class SharedBytes:
    """Where a tensor lies.

    Attributes:
        region: Name of a registered region.
        offset: Bytes from the region's start.
        size: Bytes.
    """

    region: str
    offset: int
    size: int


@dataclass(frozen=True)
class _Region:
    """A registered one; ``offset`` and ``size`` are bytes within the object ``key``."""

    key: str
    offset: int
    size: int
    descriptor: int
    writable: bool


def shared_bytes(parameters: Mapping[str, Any], where: str) -> SharedBytes | None:
    """Where a tensor's parameters say that it lies, or None if not in shared memory.

    Args:
        parameters: Of an input or output.
        where: Field, for the message.

    Raises:
        InvalidRequestError: They are incomplete or of the wrong kind.
    """
    region = parameters.get("shared_memory_region")
    if region is None:
        for name in ("shared_memory_byte_size", "shared_memory_offset"):
            if name in parameters:
                raise InvalidRequestError(f"{where}.parameters.{name} is given without shared_memory_region")
        return None
    if not isinstance(region, str):
        raise InvalidRequestError(f"{where}.parameters.shared_memory_region is not a string")
    numbers = {name: parameters.get(f"shared_memory_{name}", 0) for name in ("offset", "byte_size")}
    for name, value in numbers.items():
        if type(value) is not int or not 0 <= value <= MOST_BYTES:
            raise InvalidRequestError(f"{where}.parameters.shared_memory_{name} is not a whole number of bytes")
    if not numbers["byte_size"]:
        raise InvalidRequestError(f"{where}.parameters.shared_memory_byte_size is missing or 0")
    return SharedBytes(region, numbers["offset"], numbers["byte_size"])


class SharedRegions:
    """The regions of a server, by the names that clients have given them.

    Args:
        offered: Whether there are any.
        max_bytes: Largest size of an input.
    """

    def __init__(self, offered: bool, max_bytes: int) -> None:
        self.offered = offered
        self._max_bytes = max_bytes
        self._regions: dict[str, _Region] = {}

    def register(self, name: str, key: str, offset: int, byte_size: int) -> None:
        """Open a part of a client's shared memory.

        Args:
            name: What requests will call it.
            key: Name of the POSIX shared memory object, as for ``shm_open``.
            offset: Bytes from the object's start.
            byte_size: Bytes of the region.

        Raises:
            NotOfferedError: The server was not started with shared memory.
            InvalidRequestError: The name is taken or unusable, there is no such object, or it is smaller than that.
        """
        self.check_offered()
        if not 0 < len(name) <= _LONGEST_NAME or "/" in name or not name.isprintable():
            raise InvalidRequestError(f"name: a region has 1 to {_LONGEST_NAME} printable characters other than /")
        if name in self._regions:
            raise InvalidRequestError(f"name: region {name[:100]!r} is registered already", fix="unregister it first")
        if len(self._regions) >= MOST_REGIONS:
            raise InvalidRequestError(f"there are {MOST_REGIONS} regions already", fix="unregister some")
        if not 0 <= offset <= MOST_BYTES or not 0 < byte_size <= MOST_BYTES:
            raise InvalidRequestError("offset and byte_size are not whole numbers of bytes, or byte_size is 0")
        descriptor, writable = _opened(key)
        try:
            _check_size(descriptor, offset + byte_size, "key")
        except BaseException:
            os.close(descriptor)
            raise
        self._regions[name] = _Region(key, offset, byte_size, descriptor, writable)

    def unregister(self, name: str = "") -> None:
        """Close a region, or all of them; as with Triton, nothing happens if there is none of that name.

        Raises:
            NotOfferedError: The server was not started with shared memory.
        """
        self.check_offered()
        for one in [name] if name else list(self._regions):
            region = self._regions.pop(one, None)
            if region is not None:
                os.close(region.descriptor)

    def status(self, name: str = "") -> list[dict[str, Any]]:
        """A region, or all of them, as the protocol's JSON.

        Raises:
            NotOfferedError: The server was not started with shared memory.
            InvalidRequestError: There is none of that name.
        """
        self.check_offered()
        listed = {name: self._named(name, "name")} if name else self._regions
        return [
            {"name": one, "key": region.key, "offset": region.offset, "byte_size": region.size}
            for one, region in listed.items()
        ]

    def close(self) -> None:
        """Close all of them."""
        if self.offered:
            self.unregister()

    def check(self, place: SharedBytes, where: str, *, writing: bool = False) -> None:
        """Refuse a place that no tensor can be in.

        Args:
            place: Within a region.
            where: Field, for the message.
            writing: It is for an output.

        Raises:
            InvalidRequestError: There is no such region, it ends before, or it may not be written.
            TooLargeError: It is an input larger than a body may be.
        """
        self._located(place, where, writing)

    def read(self, place: SharedBytes, where: str) -> bytearray:
        """Copy an input out of a region.

        Raises:
            InvalidRequestError: See `check`, or the client has made its memory smaller.
            TooLargeError: See `check`.
        """
        descriptor, start = self._located(place, where, writing=False)
        _check_size(descriptor, start + place.size, where)
        data = bytearray(place.size)
        _all_of(os.preadv, descriptor, data, start, where)
        return data

    def write(self, place: SharedBytes, array: npt.NDArray[Any], where: str) -> None:
        """Copy an output into a region.

        Raises:
            InvalidRequestError: See `check`, it is larger than its place, or the client has made its memory smaller.
        """
        if array.nbytes > place.size:
            raise InvalidRequestError(f"{where} has {array.nbytes} bytes, more than shared_memory_byte_size")
        descriptor, start = self._located(place, where, writing=True)
        _check_size(descriptor, start + array.nbytes, where)  # or writing would make it larger again
        if array.nbytes:
            _all_of(os.pwritev, descriptor, np.ascontiguousarray(array).data.cast("B"), start, where)

    def _located(self, place: SharedBytes, where: str, writing: bool) -> tuple[int, int]:
        """File descriptor, and where in it the place begins."""
        if not self.offered:
            raise InvalidRequestError(f"{where}.parameters.shared_memory_region: shared memory is not offered")
        region = self._named(place.region, f"{where}.parameters.shared_memory_region")
        if place.offset + place.size > region.size:
            raise InvalidRequestError(
                f"{where}.parameters: shared_memory_offset and shared_memory_byte_size end behind the {region.size} "
                f"bytes of region {place.region[:100]!r}"
            )
        if writing and not region.writable:
            raise InvalidRequestError(f"{where}: the server may not write to region {place.region[:100]!r}")
        if not writing and place.size > self._max_bytes:
            raise TooLargeError(f"{where} is larger than the limit of {self._max_bytes} bytes")
        return region.descriptor, region.offset + place.offset

    def _named(self, name: str, where: str) -> _Region:
        region = self._regions.get(name)
        if region is None:
            raise InvalidRequestError(f"{where}: there is no region {name[:100]!r}", fix="register it first")
        return region

    def check_offered(self) -> None:
        """Refuse everything where shared memory is not offered.

        Raises:
            NotOfferedError: The server was not started with it.
        """
        if not self.offered:
            raise NotOfferedError("shared memory is an extension of the protocol that this server does not offer")


def _opened(key: str) -> tuple[int, bool]:
    """A descriptor of a shared memory object, and whether it can be written."""
    name = key.removeprefix("/")
    # What is printable has neither NUL nor halves of surrogates; semaphores lie in the same folder.
    usable = name.isprintable() and "/" not in name and not name.startswith((".", "sem."))
    if not usable or not 0 < len(name.encode()) <= _LONGEST_NAME:
        raise InvalidRequestError("key is not the name of a shared memory object", fix="give what shm_open was given")
    for flags, writable in ((os.O_RDWR, True), (os.O_RDONLY, False)):
        with contextlib.suppress(OSError, ValueError):
            # A link could lead anywhere, and a pipe would have the server wait.
            descriptor = os.open(FOLDER / name, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            if stat.S_ISREG(os.fstat(descriptor).st_mode):
                return descriptor, writable
            os.close(descriptor)
    raise InvalidRequestError(f"key: there is no shared memory {key[:100]!r} that the server may read")


def _check_size(descriptor: int, end: int, where: str) -> None:
    size = os.fstat(descriptor).st_size
    if end > size:
        raise InvalidRequestError(f"{where}: the shared memory has {size} bytes, and {end} are needed")


def _all_of(move: Callable[..., int], descriptor: int, data: Any, start: int, where: str) -> None:
    """Read into memory, or write from it, to its last byte."""
    view, done = memoryview(data), 0
    while done < len(view):
        try:
            moved = move(descriptor, [view[done:]], start + done)
        except OSError as error:  # such as no memory left for what was sparse
            raise InvalidRequestError(f"{where}: the shared memory cannot be used ({error.strerror})") from None
        if not moved:
            raise InvalidRequestError(f"{where}: the shared memory has become smaller")
        done += moved
