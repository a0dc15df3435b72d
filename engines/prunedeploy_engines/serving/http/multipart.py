"""Files of a ``multipart/form-data`` body (RFC 7578) that lies in memory and stays there."""

from __future__ import annotations

from dataclasses import dataclass, field

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from prunedeploy_engines.serving.core.errors import InvalidRequestError, TooLargeError

_MOST_HEADER_BYTES = 4096


@dataclass
class _Part:
    """A part being read: its headers' bytes, and its content."""

    name: bytes = b""
    value: bytes = b""
    header_bytes: int = 0
    headers: dict[bytes, bytes] = field(default_factory=dict)
    chunks: list[bytes] = field(default_factory=list)


def files_of(body: bytes, content_type: str, wanted: str, most: int) -> list[bytes]:
    """Take the parts of a name out of a multipart body, in their order.

    Args:
        body: All of it.
        content_type: The header, with the boundary.
        wanted: Name of the parts; others are refused.
        most: So many parts are allowed.

    Raises:
        InvalidRequestError: It is damaged, has no boundary, or another part.
        TooLargeError: It has more parts, or long part headers.
    """
    _, options = parse_options_header(content_type)
    boundary = options.get(b"boundary", b"")
    if not 1 <= len(boundary) <= 70:
        raise InvalidRequestError("Content-Type has no boundary of 1 to 70 characters")
    parts: list[_Part] = []
    finished = False

    def begin() -> None:
        if len(parts) == most:
            raise TooLargeError(f"the body has more than {most} parts")
        parts.append(_Part())

    def header_name(data: bytes, start: int, end: int) -> None:
        _grow(parts[-1], end - start)
        parts[-1].name += data[start:end]

    def header_value(data: bytes, start: int, end: int) -> None:
        _grow(parts[-1], end - start)
        parts[-1].value += data[start:end]

    def header_end() -> None:
        part = parts[-1]
        part.headers[part.name.lower()] = part.value
        part.name = part.value = b""

    def content(data: bytes, start: int, end: int) -> None:
        parts[-1].chunks.append(data[start:end])

    def end() -> None:
        nonlocal finished
        finished = True

    callbacks = {
        "on_part_begin": begin,
        "on_header_field": header_name,
        "on_header_value": header_value,
        "on_header_end": header_end,
        "on_part_data": content,
        "on_end": end,
    }
    try:
        parser = MultipartParser(boundary, callbacks)  # type: ignore[arg-type]  # those of its callbacks that matter
        parser.write(body)
        parser.finalize()
    except FormParserError:
        raise InvalidRequestError("the multipart body is damaged") from None
    if not finished:
        raise InvalidRequestError("the multipart body does not end with its boundary")
    return [_content(part, index, wanted) for index, part in enumerate(parts)]


def _grow(part: _Part, size: int) -> None:
    part.header_bytes += size
    if part.header_bytes > _MOST_HEADER_BYTES:
        raise TooLargeError(f"a part has headers of more than {_MOST_HEADER_BYTES} bytes")


def _content(part: _Part, index: int, wanted: str) -> bytes:
    _, options = parse_options_header(part.headers.get(b"content-disposition", b""))
    if options.get(b"name") != wanted.encode():
        raise InvalidRequestError(f"part {index} of the body is not named {wanted!r}")
    return b"".join(part.chunks)
