"""How much the costly tests try: a part of it by default, all of it in `make test-slow`."""

from __future__ import annotations

import os

THOROUGH = os.environ.get("PRUNEDEPLOY_TESTS") == "thorough"


def examples(number: int) -> int:
    """Examples of a property test: a quarter of these unless all are asked for."""
    return number if THOROUGH else max(5, number // 4)
