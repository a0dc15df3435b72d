"""What an ONNX detector takes and gives, checked the same way for every runtime that reads ONNX files."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from prunedeploy_engines.errors import EngineError
from prunedeploy_engines.runtimes.onnx_file import OnnxHeader

INPUT = "images"
RAW_OUTPUTS = ("boxes", "scores")
NMS_OUTPUTS = ("detections", "num_detections")


@dataclass(frozen=True)
class DetectorSignature:
    """Input and outputs of a detector.

    Attributes:
        input_size: (height, width) in pixels.
        channels: Channels of an image: 3, or 1 of a grey network, wherever 3 is said.
        batch: The only batch it takes; None if any.
        uint8_input: Takes ``(N, H, W, 3)`` uint8 instead of ``(N, 3, H, W)`` float32.
        outputs: ``RAW_OUTPUTS`` or, with suppression in the graph, ``NMS_OUTPUTS``.
        nms_classes: Number of classes of a model with suppression in the graph; else None.
    """

    input_size: tuple[int, int]
    channels: int
    batch: int | None
    uint8_input: bool
    outputs: tuple[str, str]
    nms_classes: int | None

    def input_shape(self, batch: int) -> tuple[int, int, int, int]:
        """Shape of the input, for this batch."""
        height, width = self.input_size
        return (batch, height, width, self.channels) if self.uint8_input else (batch, self.channels, height, width)

    def check_batch(self, batch: int, where: Path) -> None:
        """Refuse a batch that the file does not take.

        Raises:
            EngineError: It is exported for another one.
        """
        if self.batch not in (None, batch):
            raise EngineError(
                f"takes batches of {self.batch}, not {batch}", where=where, fix="export it with a dynamic batch"
            )


def detector_signature(
    inputs: Mapping[str, tuple[str, Sequence[int | None]]],
    outputs: Collection[str],
    header: OnnxHeader,
    where: Path,
) -> DetectorSignature:
    """Check that a model is a detector.

    Args:
        inputs: Type (``"float32"``, ``"uint8"``...) and shape of every input; None is a size left open.
        outputs: Names of the outputs.
        header: What the file says about itself.
        where: The file, for the error.

    Raises:
        EngineError: It is not; the message says what it has.
    """
    given = next((names for names in (NMS_OUTPUTS, RAW_OUTPUTS) if set(names) <= set(outputs)), None)
    if set(inputs) != {INPUT} or given is None:
        raise EngineError(
            f"not a detector: it has inputs {sorted(inputs)} and outputs {sorted(outputs)}, not 'images' and "
            "'boxes', 'scores' or 'detections', 'num_detections'",
            where=where,
            fix="export it with prunedeploy, or make a network of it first: prunedeploy import",
        )
    kind, shape = inputs[INPUT]
    layouts = {"float32": ("(N, 3, H, W)", 1, (2, 3)), "uint8": ("(N, H, W, 3)", 3, (1, 2))}
    if kind not in layouts or not _fits(shape, *layouts[kind][1:]):
        wanted = " or ".join(f"{name} {layout[0]}" for name, layout in layouts.items())
        raise EngineError(f"the input must be {wanted} with fixed H and W, not {kind} {tuple(shape)}", where=where)
    if given == NMS_OUTPUTS and not header.class_names:
        raise EngineError(
            "suppression is in the graph, and the file does not say which classes there are",
            where=where,
            fix="export it with prunedeploy, or put class_names into its metadata",
        )
    height, width = (shape[axis] for axis in layouts[kind][2])
    return DetectorSignature(
        input_size=(int(height or 0), int(width or 0)),
        channels=int(shape[layouts[kind][1]] or 0),
        batch=shape[0],
        uint8_input=kind == "uint8",
        outputs=given,
        nms_classes=len(header.class_names) if given == NMS_OUTPUTS else None,
    )


def _fits(shape: Sequence[int | None], channel_axis: int, side_axes: tuple[int, int]) -> bool:
    sides_fixed = len(shape) == 4 and all(shape[axis] is not None for axis in side_axes)
    return sides_fixed and shape[channel_axis] in (1, 3)
