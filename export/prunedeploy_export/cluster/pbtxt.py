"""Protocol Buffers' text format, written without Protocol Buffers: the form of Triton's ``config.pbtxt``."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Union

Value = Union[str, bool, int, float, "Symbol", "Message", Sequence["Value"]]
Message = Mapping[str, Value]
"""Fields by name: a sequence is a repeated field, a mapping another message."""

# Control characters in octal, as the text format has bytes; all others are UTF-8 as they are.
_OCTAL = {chr(number): f"\\{number:03o}" for number in (*range(32), 127)}
_ESCAPES = str.maketrans({**_OCTAL, "\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"})


class Symbol(str):
    """The name of an enumeration's value, which stands without quotes."""

    __slots__ = ()


def to_pbtxt(message: Message, comments: Sequence[str] = ()) -> str:
    """A message as text.

    Args:
        message: Its fields, in this order.
        comments: Lines to stand above it.

    Raises:
        ValueError: A number is not finite, or a name is none.
    """
    above = [f"# {' '.join(line.split())}" for line in comments]
    return "\n".join([*above, *_fields(message, "")]) + "\n"


def map_entries(values: Mapping[str, Value]) -> list[Message]:
    """A map field, which the text format has as a repeated message of key and value."""
    return [{"key": key, "value": value} for key, value in values.items()]


def _fields(message: Message, indent: str) -> Iterator[str]:
    for name, value in message.items():
        if not name.isidentifier():
            raise ValueError(f"{name!r} is not the name of a field")
        repeated = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
        if repeated is value and repeated and not any(isinstance(one, Mapping) for one in repeated):
            yield f"{indent}{name}: [{', '.join(_scalar(one) for one in repeated)}]"
            continue
        for one in repeated:
            if isinstance(one, Mapping):
                yield f"{indent}{name} {{"
                yield from _fields(one, indent + "  ")
                yield f"{indent}}}"
            else:
                yield f"{indent}{name}: {_scalar(one)}"


def _scalar(value: Value) -> str:
    if isinstance(value, Symbol):
        if not value.isidentifier():
            raise ValueError(f"{value!r} is not the name of an enumeration's value")
        return str(value)
    if isinstance(value, str):
        return f'"{value.translate(_ESCAPES)}"'
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)) and math.isfinite(value):
        return repr(value)
    raise ValueError(f"{value!r} has no place in a message")
