"""What a build was asked for and does not deliver, since it failed a gate or cannot be made; the rest is delivered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from prunedeploy_engines.errors import GateError

_BLOCKS = {"fp32": "export", "fp16": "export.fp16", "int8": "export.int8"}
_LIMITS = {
    "tensor": "raise {0}.parity_tolerance",
    "detections": "raise {0}.match_score or lower {0}.match_iou",
    "map": "raise {0}.map_tolerance",
    "budget": "raise {0}.map_budget",
}
_SHARES = {
    "tensor": "raise export.int8.parity_tolerance or lower export.int8.match_share",
    "detections": "lower export.int8.match_share or raise export.int8.match_score",
}


@dataclass(frozen=True)
class LeftOut:
    """One file or engine that is not delivered.

    Attributes:
        file: Name in the bundle that it would have had; of an engine that of its ONNX file.
        precision: ``fp32``, ``fp16`` or ``int8``.
        target: ``cpu`` or ``gpu`` of an int8 file, the GPU of an engine, None of other files.
        reason: What was measured and what is allowed, in one clause.
        gate: Which limit it missed, see `GateError`; ``pattern``, ``engine`` or None, where no limit would help.
        runtime: The only runtime on which it failed; None: it is not in the bundle at all.
        detail: What the library that refused it said.
    """

    file: str
    precision: str
    target: str | None
    reason: str
    gate: str | None = None
    runtime: str | None = None
    detail: str | None = None

    @property
    def line(self) -> str:
        """For people: what is left out, why, and which key would let it through."""
        what = self.file if self.runtime is None else f"{self.file} on {self.runtime}"
        what = f"the engine of {what} for {self.target}" if self.gate == "engine" else what
        remedy = limit_of(self.gate, self.precision)
        return f"{what} is left out: {self.reason}" + (f"; to let it through, {remedy}" if remedy else "")

    def as_dict(self) -> dict[str, Any]:
        """A row of ``left_out`` in ``results.json``."""
        return {**asdict(self), "to_let_it_through": limit_of(self.gate, self.precision), "line": self.line}

    def as_gate(self) -> dict[str, Any]:
        """A row of ``gates`` in ``results.json``."""
        return {"gate": self.gate or "export", "artefact": self.file, "passed": False, "reason": self.reason}


def limit_of(gate: str | None, precision: str) -> str | None:
    """Which key of the configuration to change so that a gate lets a precision through; None if there is none."""
    limits = {**_LIMITS, **_SHARES} if precision == "int8" else _LIMITS
    return limits[gate].format(_BLOCKS[precision]) if gate in limits else None


def with_its_limit(error: GateError, precision: str) -> GateError:
    """The error of a build that ends with it, with the key that would let the file through."""
    remedy = limit_of(error.gate, precision)
    fix = error.fix if remedy is None else f"it should not be deployed; to do so all the same, {remedy}"
    return GateError(error.what, error.where, fix, gate=error.gate)


def check_something_is_left(delivered: Sequence[object], left_out: Sequence[LeftOut]) -> None:
    """End a build that has nothing to deliver.

    Raises:
        GateError: Not one file; the line says why of each.
    """
    if not delivered:
        raise GateError(f"nothing can be delivered: {'. '.join(one.line for one in left_out)}")
