"""What ``samples/`` beside a sweep's rows holds: test images as its networks saw them, and what they found.

For every configuration and ratio of one run, and for the networks as given::

    samples.json                              boxes, scores, thresholds and the attack
    <configuration>/<ratio>-clean-<n>.png     the network's input, pixel by pixel; -pgd- is the attacked one
    <configuration>/<ratio>-clean-<n>.webp    the same enlarged, with the detections drawn

Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from prunedeploy.study.rows.rows import Row
from prunedeploy_engines.errors import ConfigError

FOLDER = "samples"
DOCUMENT = "samples.json"
Kind = Literal["clean", "pgd"]
KINDS: tuple[Kind, ...] = ("clean", "pgd")

Finite = Annotated[float, Field(allow_inf_nan=False)]
Pixels = Annotated[int, Field(ge=1, le=1 << 16)]
Fraction = Annotated[float, Field(ge=0, le=1)]
# A folder is named after it, so it must not lead anywhere else.
FolderName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Object(_Model):
    """Something in an image.

    Attributes:
        class_name: What it is.
        box_xyxy: In pixels of the network's input.
    """

    class_name: str
    box_xyxy: tuple[Finite, Finite, Finite, Finite]


class Detection(Object):
    """What a network takes for something.

    Attributes:
        score: In [0, 1].
    """

    score: Fraction


class SampleImage(_Model):
    """One test image in front of one network.

    Attributes:
        image_id: The data set's.
        file_name: Likewise.
        width: Width of the network's input.
        height: Likewise.
        ground_truth: What is there.
        clean: What the network finds, by descending score.
        pgd: What it finds when it is attacked.
    """

    image_id: int
    file_name: str
    width: Pixels
    height: Pixels
    ground_truth: tuple[Object, ...]
    clean: tuple[Detection, ...]
    pgd: tuple[Detection, ...]

    def detections(self, kind: Kind) -> tuple[Detection, ...]:
        """Those on the clean or on the attacked image."""
        return self.clean if kind == "clean" else self.pgd


class CellSamples(_Model):
    """The images of one network.

    Attributes:
        configuration: Configuration of its row, as are ratio and run.
        ratio: In [0, 1).
        run: The seed.
        digest: Digest of the stage that made the pictures.
        attack: PGD's settings.
        score_threshold: Detections have a higher score.
        iou_threshold: IoU threshold of non-maximum suppression.
        images: The same ones for every network of a sweep.
    """

    configuration: FolderName
    ratio: Annotated[float, Field(ge=0, lt=1)]
    run: Annotated[int, Field(ge=0)]
    digest: str
    attack: dict[str, Any]
    score_threshold: Fraction
    iou_threshold: Fraction
    images: tuple[SampleImage, ...]

    def picture(self, kind: Kind, number: int, suffix: str = ".png") -> str:
        """A picture's path below the folder; ``number`` counts from 1."""
        return f"{self.configuration}/{self.ratio:.10g}-{kind}-{number}{suffix}"


class SampleSet(_Model):
    """The images of a sweep.

    Attributes:
        schema_version: Schema version of this class.
        configuration_hash: As in the sweep's rows.
        cells: Those there are.
    """

    schema_version: Literal[1] = 1
    configuration_hash: str
    cells: tuple[CellSamples, ...]


def read_samples(folder: Path) -> SampleSet | None:
    """Read the images of a sweep.

    Args:
        folder: ``samples`` of its output folder.

    Returns:
        None if there are none.

    Raises:
        ConfigError: ``samples.json`` is not what a sweep writes.
    """
    path = folder / DOCUMENT
    try:
        return SampleSet.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(f"cannot be read ({error.strerror})", path, "make it readable, or remove it") from None
    except ValidationError:
        fix = "remove it and run the sweep again, which makes the pictures anew"
        raise ConfigError("is not what a sweep writes", path, fix) from None


def samples_of(out: Path, rows: Iterable[Row]) -> tuple[SampleSet | None, list[str]]:
    """Read the images that belong to rows; a report does not fail for want of them.

    Args:
        out: The sweep's output folder.
        rows: The rows of its ``rows.jsonl``.

    Returns:
        The images, or None; and a sentence where there are some that cannot be used.
    """
    try:
        samples = read_samples(out / FOLDER)
    except ConfigError as error:
        return None, [f"no sample images: {error}"]
    if samples is not None and any(row.configuration_hash != samples.configuration_hash for row in rows):
        return None, [f"no sample images: those in {out / FOLDER} are of another configuration than the rows"]
    return samples, []
