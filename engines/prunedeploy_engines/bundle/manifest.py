"""`bundle.json`: what a deployed folder says about itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, field_validator, model_serializer

from prunedeploy_engines.detection.nms import PRE_NMS_TOP_K
from prunedeploy_engines.errors import BundleError

SCHEMA_VERSION = 1
MANIFEST_NAME = "bundle.json"

Fraction = Annotated[float, Field(ge=0.0, le=1.0, allow_inf_nan=False)]
Side = Annotated[int, Field(ge=1)]
Byte = Annotated[int, Field(ge=0, le=255)]


class _Part(BaseModel):
    """Frozen, and a key that is not declared is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class _Record(BaseModel):
    """Frozen, and open to more keys: for people to read, nothing acts on it."""

    model_config = ConfigDict(frozen=True, extra="allow")


class InputSpec(_Part):
    """How an image becomes network input: greyscale if asked, then letterbox (or stretched), then [0, 1].

    Attributes:
        height: Height of the network input, in pixels.
        width: Width of the network input, in pixels.
        letterbox_colour: RGB of the padding.
        greyscale: Rec. 601 luma in all three channels.
        channels: 3, or 1 of a grey network.
        letterbox: Scaled with its aspect kept and padded; false: stretched to the input.
    """

    height: Side
    width: Side
    letterbox_colour: tuple[Byte, Byte, Byte] = (128, 128, 128)
    greyscale: bool = False
    channels: Literal[1, 3] = 3
    letterbox: bool = True


class Thresholds(_Part):
    """What counts as a detection: score greater than ``score``, IoU above ``iou`` suppresses."""

    score: Fraction = 0.5
    iou: Fraction = 0.45


class Suppression(_Part):
    """How much suppression of overlapping boxes may compute.

    Attributes:
        max_candidates: Pairs of box and class per image that enter it, the best by score; see docs/flood.md. That of a
            bundle from before there was a choice is what it always was.
    """

    max_candidates: Annotated[int, Field(ge=1)] = PRE_NMS_TOP_K


class OperatingPoint(_Record):
    """The score threshold of one precision, chosen when it was built, and what the network does there.

    Attributes:
        score_threshold: Detections have a higher score.
        precision: Right detections / detections, on held-out images.
        recall: Objects found / objects.
        f1: Their harmonic mean.
        chosen: By which rule.
        curve: Score threshold, precision and recall, thresholds descending.
    """

    score_threshold: Fraction
    precision: Fraction
    recall: Fraction
    f1: Fraction
    chosen: str
    curve: tuple[tuple[Fraction, Fraction, Fraction], ...] = ()


class FileEntry(_Part):
    """One file of the bundle.

    Attributes:
        bytes: Its size.
        sha256: Hexadecimal SHA-256 of its content.
        role: What it is for.
        precision: Precision of a model or engine: ``fp32``, ``fp16``, ``int8``.
        target: What an engine was built for, e.g. ``sm86``; None runs everywhere.
    """

    bytes: Annotated[int, Field(ge=0)]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    role: Literal["onnx", "engine", "metadata", "other"]
    precision: str | None = None
    target: str | None = None


class PruningRecord(_Record):
    """How the network was pruned; ratios are fractions of the prunable weights."""

    method: str
    scores: str | None = None
    ratio_requested: Fraction
    ratio_achieved: Fraction
    channel_multiple: int | None = None


class Provenance(_Record):
    """Where the network comes from."""

    commit: str | None = None
    configuration: dict[str, JsonValue] = {}
    seeds: dict[str, int] = {}
    versions: dict[str, str] = {}


class Manifest(_Part):
    """The whole of `bundle.json`.

    Attributes:
        created: ISO 8601 in UTC.
        thresholds: Thresholds of every precision that has no operating point of its own.
        nms: The bound on suppression.
        operating_points: By precision; a bundle that was built before there were any has none.
    """

    schema_version: Literal[1] = 1
    created: str
    class_names: Annotated[tuple[str, ...], Field(min_length=1)]
    input: InputSpec
    thresholds: Thresholds = Thresholds()
    nms: Suppression = Suppression()
    operating_points: dict[str, OperatingPoint] = {}
    pruning: PruningRecord | None = None
    metrics: dict[str, JsonValue] = {}
    provenance: Provenance = Provenance()
    files: dict[str, FileEntry]

    @model_serializer(mode="wrap")
    def _without_what_there_is_not(self, values: Callable[[Any], Any]) -> dict[str, Any]:
        """A bundle without operating points or a bound of its own looks as it did before there were any."""
        left_out = {"operating_points": {}, "nms": Suppression().model_dump()}
        return {key: value for key, value in values(self).items() if key not in left_out or value != left_out[key]}

    @field_validator("files")
    @classmethod
    def _stay_inside(cls, files: dict[str, FileEntry]) -> dict[str, FileEntry]:
        for name in files:
            check_name(name)
        return files

    def to_json(self) -> bytes:
        """Indented JSON, UTF-8."""
        return (self.model_dump_json(indent=2) + "\n").encode()


def check_name(name: str) -> None:
    """Refuse a file name that is not a plain relative path inside the bundle.

    Raises:
        ValueError: It is absolute, climbs out, is not normalised, or is ``bundle.json`` itself.
    """
    path = PurePosixPath(name)
    plain = str(path) == name and "\\" not in name and ":" not in name and "\0" not in name
    if not plain or name in ("", ".") or path.is_absolute() or ".." in path.parts:
        raise ValueError(f"file name {name!r} leaves the bundle or is not a plain relative path")
    if name == MANIFEST_NAME:
        raise ValueError(f"{MANIFEST_NAME} cannot list itself")


def read_manifest(path: Path) -> Manifest:
    """Read and validate ``bundle.json``.

    Raises:
        BundleError: Not there, not JSON, of another schema version, or a key is wrong (it is named).
    """
    try:
        content = json.loads(path.read_bytes(), object_pairs_hook=_unique)
    except FileNotFoundError:
        raise BundleError(f"there is no {MANIFEST_NAME}", where=path.parent, fix="give a bundle folder") from None
    except OSError as error:
        raise BundleError(f"cannot be read ({error.strerror})", where=path) from error
    except (ValueError, RecursionError) as error:
        raise BundleError(f"is not valid JSON ({error})", where=path, fix="build the bundle again") from error
    if not isinstance(content, dict):
        raise BundleError("is not a JSON object", where=path, fix="build the bundle again")
    version = content.get("schema_version")
    if version != SCHEMA_VERSION or isinstance(version, bool):
        raise BundleError(
            f"has schema_version {version!r}, this prunedeploy reads {SCHEMA_VERSION}",
            where=path,
            fix="install the prunedeploy that wrote it, or build the bundle again",
        )
    return parse_manifest(content, path)


def parse_manifest(content: dict[str, Any], where: Path) -> Manifest:
    """Validate the content of a manifest.

    Raises:
        BundleError: With the first key that is wrong.
    """
    try:
        return Manifest.model_validate(content)
    except ValidationError as error:
        raise BundleError(f"key {first_problem(error)}", where=where, fix="build the bundle again") from None


def first_problem(error: ValidationError) -> str:
    """The first key that is wrong, and what is wrong with it."""
    first = error.errors(include_url=False)[0]
    return f"{'.'.join(map(str, first['loc']))!r}: {first['msg']}"


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"key {next(key for key in keys if keys.count(key) > 1)!r} appears twice")
    return result
