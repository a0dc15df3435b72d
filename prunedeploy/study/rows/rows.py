"""A result row: what is known about one finished model, or why it could not be finished."""

from __future__ import annotations

import json
from typing import Annotated, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, model_validator

Map = Annotated[float, Field(ge=0, le=1)]
Text = Annotated[str, Field(min_length=1)]


class CellKey(NamedTuple):
    """Which model of the grid: the first three of a row's fields."""

    configuration: str
    ratio: float
    run: int


class Row(BaseModel):
    """One model of a study, as it stands on one line of its row file. What was not measured is None.

    Attributes:
        schema_version: Schema version of this class.
        configuration: ``<method>-<scores>``, with ``-grey`` behind it for greyscale; or one of
            `prunedeploy.study.statistics.design.REFERENCES`, at ratio 0.
        ratio: Requested pruning ratio, weights removed / prunable weights, in [0, 1).
        run: The seed. What has the same run in two configurations may share its pre-training.
        configuration_hash: Hash of the sweep that the row belongs to.
        ratio_achieved: What came out, in [0, 1).
        params: Parameters of the network.
        map_pgd: COCO mAP at IoU .50 to .95 on PGD images of the very model, in [0, 1], score threshold 0.001.
        map_clean: The same on clean images.
        map_pgd_conf50: At the paper's score threshold of 0.5.
        map_clean_conf50: The same on clean images.
        map_ensemble: Under the ensemble of attacks, else as ``map_pgd``; of studies whose ``robustness`` asks for it.
        time_ms: Mean inference time of one image, milliseconds.
        runtime: What ``time_ms`` was measured with, e.g. ``onnxruntime``.
        machine: Where ``time_ms`` was measured; times of two machines are never compared.
        machine_name: The same for people, e.g. the processor's name.
        time_noisy: Whether its samples scatter by more than 10 %.
        score_seconds: What computing the initial importance scores took.
        optimise_seconds: What optimising them took; None where that step is left out.
        score_machine: Where the two were measured.
        error: Why there is no result, in one line; then nothing is measured.
        finished: When, ISO 8601.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    schema_version: Literal[1] = 1
    configuration: Text
    ratio: Annotated[float, Field(ge=0, lt=1)]
    run: NonNegativeInt
    configuration_hash: Text
    ratio_achieved: Annotated[float, Field(ge=0, lt=1)] | None = None
    params: NonNegativeInt | None = None
    map_pgd: Map | None = None
    map_clean: Map | None = None
    map_pgd_conf50: Map | None = None
    map_clean_conf50: Map | None = None
    map_ensemble: Map | None = None
    time_ms: PositiveFloat | None = None
    runtime: Text | None = None
    machine: Text | None = None
    machine_name: Text | None = None
    time_noisy: bool | None = None
    score_seconds: NonNegativeFloat | None = None
    optimise_seconds: NonNegativeFloat | None = None
    score_machine: Text | None = None
    error: Text | None = None
    finished: Text | None = None

    @model_validator(mode="after")
    def _belongs_together(self) -> Row:
        measured = [name for name in MEASURED if getattr(self, name) is not None]
        if self.error is not None and measured:
            raise ValueError(f"a row with an error has no results, this one has {', '.join(measured)}")
        if self.error is None and not measured:
            raise ValueError("a row without an error has results, this one has none")
        if self.time_ms is not None and self.machine is None:
            raise ValueError("time_ms needs the machine it was measured on")
        return self

    @property
    def cell(self) -> CellKey:
        """Which model of the grid this is about."""
        return CellKey(self.configuration, self.ratio, self.run)


MAPS = ("map_pgd", "map_clean", "map_pgd_conf50", "map_clean_conf50")
MEASURED = (*MAPS, "map_ensemble", "time_ms", "score_seconds", "optimise_seconds")
"""Fields that count as results."""


def to_line(row: Row) -> bytes:
    """Return a row as one line of a row file, newline included; what is None is left out."""
    document = row.model_dump(mode="json", exclude_none=True)
    return json.dumps(document, separators=(",", ":"), allow_nan=False).encode() + b"\n"
