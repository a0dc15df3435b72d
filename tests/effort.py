"""How much the costly tests try: a part of it by default, all of it in `make test-slow`."""

from __future__ import annotations

import os
from typing import Any

import pytest

THOROUGH = os.environ.get("PRUNEDEPLOY_TESTS") == "thorough"


def examples(number: int) -> int:
    """Examples of a property test: a quarter of these unless all are asked for."""
    return number if THOROUGH else max(5, number // 4)


def slow_after(number: int, *cases: Any) -> list[Any]:
    """Cases of a costly test: the first ``number`` of them by default, the others in `make test-slow`."""
    slow = pytest.mark.slow
    others = (pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=slow) for case in cases[number:])
    return [*cases[:number], *others]
