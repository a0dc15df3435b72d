"""Names of classes that an exported file carries in its metadata."""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping

_KEYS = ("names", "class_names", "classes", "labels")


def names_in(metadata: Mapping[str, str], classes: int) -> list[str] | None:
    """The names, if the file has one for each class.

    They stand there as a Python or JSON literal, a list or a table by number; nothing is evaluated.

    Args:
        metadata: By key.
        classes: Number of classes.
    """
    for key in _KEYS:
        found = _literal(metadata.get(key, ""))
        if isinstance(found, dict):
            by_number = {str(number): name for number, name in found.items()}
            found = [by_number.get(str(number)) for number in range(classes)] if len(found) == classes else None
        if isinstance(found, (list, tuple)) and len(found) == classes and all(isinstance(one, str) for one in found):
            names = [" ".join(str(one).split()) for one in found]
            if all(names):
                return names
    return None


def _literal(text: str) -> object:
    if not text or len(text) > 1 << 20:
        return None
    for parse in (json.loads, ast.literal_eval):
        try:
            return parse(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
            continue
    return None
