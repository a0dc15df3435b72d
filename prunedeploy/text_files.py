"""Text as people's editors leave it: cfgs, lists of names."""

from __future__ import annotations

import codecs
import re

_COMMENT = re.compile(r"(^|\s)#(\s.*)?$")


def decode_text(data: bytes) -> str:
    """Decode UTF-8, or UTF-16 that begins with a byte-order mark (Windows' editors write it).

    Bytes that are neither, such as a comment in a code page, become lone surrogates, which ``encode("utf-8",
    "surrogateescape")`` turns back into the same bytes. A mark in front of UTF-8 stays, as U+FEFF.

    Raises:
        UnicodeDecodeError: UTF-16 that is cut off or broken.
    """
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode("utf-16")
    return data.decode("utf-8", "surrogateescape")


def is_decoded(text: str) -> bool:
    """Whether `decode_text` could read all of it, i.e. no byte became a lone surrogate."""
    return not any("\udc80" <= character <= "\udcff" for character in text)


def listed_lines(data: bytes) -> list[str]:
    """The entries of a file with one entry per line, without blank lines and comments.

    A comment begins with a ``#`` that stands at the beginning or after a space, and is followed by a space or nothing:
    ``#1`` and ``player #7`` are names.

    Raises:
        UnicodeDecodeError: It is neither UTF-8 nor UTF-16 with a byte-order mark.
    """
    text = decode_text(data)
    if not is_decoded(text):
        data.decode("utf-8")  # raises, and says where
    lines = (_COMMENT.sub("", line).strip() for line in text.replace("\ufeff", "").splitlines())
    return [line for line in lines if line]
