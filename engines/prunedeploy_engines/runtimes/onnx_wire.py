"""Writing small pieces of an ONNX file without the ``onnx`` package, which a device does not have.

The wire format is that of Protocol Buffers: a key ``field << 3 | type``, then a varint (type 0) or a length and
that many bytes (type 2). A message is the concatenation of its fields, so a field may be appended to a file.
"""

from __future__ import annotations


def integer(field: int, value: int) -> bytes:
    """A field that holds a whole number >= 0."""
    return _varint(field << 3) + _varint(value)


def content(field: int, value: bytes) -> bytes:
    """A field that holds bytes or another message."""
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def text(field: int, value: str) -> bytes:
    """A field that holds text."""
    return content(field, value.encode())


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
