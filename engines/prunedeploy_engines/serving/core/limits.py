"""Bounds that are checked before anything is parsed, decoded or allocated for a request."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

from prunedeploy_engines.serving.core.errors import (
    InvalidRequestError,
    OverloadedError,
    ServingError,
    TooLargeError,
    UnsupportedMediaError,
)

if TYPE_CHECKING:
    from starlette.requests import Request

    from prunedeploy_engines.serving.core.settings import ServingSettings

MAX_CONTAINERS = 200_000
"""Lists and objects of a JSON body. A picture as nested lists has one for each of its rows."""

MAX_SIDE = 1 << 31
MAX_RANK = 8

_BODIES_HELD = 8
_ALL_BUT_STRUCTURE = bytes(set(range(256)) - set(b'[]{}"'))


class SlowClientError(ServingError):
    """The client took too long to send its request."""

    status, grpc_status, kind = 408, "DEADLINE_EXCEEDED", "slow-client"


class ClientGoneError(ServingError):
    """The client hung up while it was sending; nobody reads the answer."""

    status, grpc_status, kind = 499, "CANCELLED", "client-gone"


class BodyBudget:
    """Bytes of bodies that all requests together may hold: the queue counts images, not what clients send.

    Args:
        max_body_bytes: Largest size of one body; eight such may be held at once.
    """

    def __init__(self, max_body_bytes: int) -> None:
        self._most = _BODIES_HELD * max_body_bytes
        self._held = 0

    def take(self, size: int) -> None:
        """Count bytes in.

        Raises:
            OverloadedError: There is no room for them.
        """
        if self._held + size > self._most:
            raise OverloadedError("the server holds as many request bodies as it can")
        self._held += size

    def give_back(self, size: int) -> None:
        """Count bytes out that were taken."""
        self._held -= size


class HeldBody:
    """One request's share of a `BodyBudget`; a context manager that gives it back."""

    def __init__(self, budget: BodyBudget) -> None:
        self._budget = budget
        self._size = 0

    def add(self, size: int) -> None:
        """Take more; see `BodyBudget.take`."""
        self._budget.take(size)
        self._size += size

    def __enter__(self) -> HeldBody:
        return self

    def __exit__(self, *_: object) -> None:
        self._budget.give_back(self._size)


async def read_body(request: Request, settings: ServingSettings, held: HeldBody) -> bytes:
    """Read the body of a request, whether its length was announced or not.

    Args:
        request: Nothing of whose body has been read.
        settings: `max_body_bytes` and `body_timeout_s` bound it.
        held: Where its bytes are counted.

    Raises:
        TooLargeError: It is longer than allowed; the rest is not read.
        SlowClientError: It did not come in time.
        ClientGoneError: The client hung up.
        UnsupportedMediaError: It is compressed.
        OverloadedError: Too much is held already.
    """
    encoding = request.headers.get("content-encoding", "identity")
    if encoding != "identity":
        raise UnsupportedMediaError("Content-Encoding: compressed bodies are not taken", fix="send it as it is")
    announced = request.headers.get("content-length", "0")
    if not announced.isdecimal() or len(announced) > 18 or int(announced) > settings.max_body_bytes:
        raise body_too_large(settings.max_body_bytes)
    try:
        return await asyncio.wait_for(_collect(request, settings.max_body_bytes, held), settings.body_timeout_s)
    except asyncio.TimeoutError:
        raise SlowClientError(f"the body did not arrive within {settings.body_timeout_s:g} s") from None


async def _collect(request: Request, most: int, held: HeldBody) -> bytes:
    chunks: list[bytes] = []
    size = 0
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError("the client hung up")
        chunk = message.get("body", b"")
        size += len(chunk)
        if size > most:
            raise body_too_large(most)
        held.add(len(chunk))
        chunks.append(chunk)
        if not message.get("more_body", False):
            return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def body_too_large(most: int) -> TooLargeError:
    """The refusal of a body over the limit, in bytes."""
    return TooLargeError(f"the body is larger than the limit of {most} bytes")


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
        return json.loads(data.decode("utf-8"), parse_constant=_refuse_constant)
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
