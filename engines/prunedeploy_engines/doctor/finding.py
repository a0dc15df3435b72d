"""One line of the doctor's report, and the words that many of them share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "missing", "limited"]


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's report.

    Attributes:
        name: What was looked at.
        status: ``"ok"``; ``"limited"``: works in part; ``"missing"``: not there.
        detail: What it can do here, and in which version.
        advice: What to do to get more; empty if nothing is to be done.
    """

    name: str
    status: Status
    detail: str
    advice: str = ""


def install(extra: str) -> str:
    """The command that brings an extra."""
    return f"pip install 'prunedeploy[{extra}]'"
