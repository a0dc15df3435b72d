"""Bounds that are checked before anything is parsed, decoded or allocated for a request."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from prunedeploy_engines.serving.core.errors import InvalidRequestError, OverloadedError, TooLargeError

MAX_CONTAINERS = 200_000
"""Lists and objects of a JSON body. A picture as nested lists has one for each of its rows."""

MAX_SIDE = 1 << 31
MAX_RANK = 8

_BODIES_HELD = 8
_ALL_BUT_STRUCTURE = bytes(set(range(256)) - set(b'[]{}"'))


class BodyBudget:
    """Bytes of bodies that all requests together may hold: the queue counts images, not what clients send.

    Args:
        max_body_bytes: Largest size of one body; eight such may be held at once.
    """

    def __init__(self, max_body_bytes: int) -> None:
        self._most = _BODIES_HELD * max_body_bytes
        self._held = 0

    def check(self, size: int) -> None:
        """Refuse a body of an announced size that there is no room for now.

        Raises:
            OverloadedError: There is none.
        """
        if self._held + size > self._most:
            raise OverloadedError("the server holds as many request bodies as it can")

    @contextmanager
    def held(self) -> Iterator[Callable[[int], None]]:
        """One request's share, given back when the ``with`` ends.

        Yields:
            Takes more bytes; raises `OverloadedError` where there is no room for them.
        """
        share = 0

        def take(size: int) -> None:
            nonlocal share
            self.check(size)
            self._held += size
            share += size

        try:
            yield take
        finally:
            self._held -= share


def parse_json(text: bytes | memoryview, max_depth: int) -> Any:
    """Parse JSON (RFC 8259) that is known to be neither deep nor full of tiny containers.

    Args:
        text: UTF-8.
        max_depth: Lists and objects inside each other.

    Raises:
        InvalidRequestError: Not JSON, or nested too deep; NaN and Infinity are not JSON.
        TooLargeError: It has more than `MAX_CONTAINERS` lists and objects.
    """
    data = bytes(text)
    _check_structure(data, max_depth)
    try:
        return _DECODER.decode(data.decode("utf-8"))
    except UnicodeDecodeError:
        raise InvalidRequestError("the body is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise InvalidRequestError(f"the body is not JSON: {error.msg} at character {error.pos}") from None
    except (ValueError, RecursionError):  # a number with thousands of digits
        raise InvalidRequestError("the body has a number that cannot be read") from None


def _check_structure(data: bytes, max_depth: int) -> None:
    """Count brackets outside of strings, in time linear in the text and mostly in C.

    Up to the first mistake in the JSON the count is exact, and the parser stops there.
    """
    if b"\\" in data:
        # An escaped backslash first, so that what is left of \" belongs to a quote.
        data = data.replace(b"\\\\", b"").replace(b'\\"', b"")
    outside = b"".join(data.translate(None, _ALL_BUT_STRUCTURE).split(b'"')[::2])
    if len(outside) > 2 * MAX_CONTAINERS:
        raise TooLargeError(f"the body has more than {MAX_CONTAINERS} lists and objects")
    depth = 0
    for byte in outside:
        depth += 1 if byte in b"[{" else -1
        if depth > max_depth:
            raise InvalidRequestError(f"the body is nested deeper than {max_depth} lists and objects")


def _refuse_constant(name: str) -> None:
    raise InvalidRequestError(f"the body has {name}, which is not JSON")


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)


def element_count(shape: object, field: str) -> int:
    """Multiply the sides of a shape as a client gives it.

    Args:
        shape: Should be a list of whole numbers from 0 to 2^31 - 1.
        field: Its name in the request.

    Raises:
        InvalidRequestError: It is not.
    """
    if not isinstance(shape, list) or len(shape) > MAX_RANK:
        raise InvalidRequestError(f"{field} is not a list of at most {MAX_RANK} whole numbers")
    count = 1  # a Python int, which does not overflow
    for side in shape:
        if type(side) is not int or not 0 <= side < MAX_SIDE:
            raise InvalidRequestError(f"{field} has a side that is not a whole number from 0 to 2^31 - 1")
        count *= side
    return count


def check_count(count: int, most: int, field: str) -> None:
    """Refuse no images, and more than one request may have.

    Raises:
        InvalidRequestError: None.
        TooLargeError: Too many.
    """
    if count < 1:
        raise InvalidRequestError(f"{field} has no image")
    if count > most:
        raise TooLargeError(f"{field} has {count} images, more than the limit of {most}")
