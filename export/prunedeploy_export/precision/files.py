"""fp16 and int8 files from the fp32 file: precision is a property of the ONNX file."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from onnx import ModelProto

from prunedeploy_engines.errors import DataError, EngineError
from prunedeploy_export.graph.edit import (
    OnnxFile,
    convolutions,
    head_convolutions,
    metadata_of,
    opset_of,
    read_model,
    set_metadata,
    write_model,
)
from prunedeploy_export.precision.calibration import Method, Range, choose_range, collect_histograms
from prunedeploy_export.precision.half import to_half_precision
from prunedeploy_export.precision.quantisation import Activations, negative_slopes, plan_quantisation, quantise
from prunedeploy_export.precision.sensitivity import Images, convolution_costs, skip_within_budget

HARMLESS_ERROR = 1e-4
"""The first convolution becomes int8 only if that alone changes the heads by no more (40 dB)."""

_OLDEST_OPSET = 13  # DequantizeLinear with a scale per channel

Loss = Callable[[ModelProto], float]


@dataclass(frozen=True)
class Calibration:
    """In which steps an int8 file rounds activations, and what stays in fp32 whatever it costs.

    Attributes:
        ranges: Of every tensor that may become 8 bits, by name.
        always: Names of convolutions: the heads', and the first one where it is not harmless.
    """

    ranges: dict[str, Range]
    always: tuple[str, ...]

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Calibration:
        """Undo `dataclasses.asdict`, by way of JSON or not; floats survive both."""
        return cls({name: Range(**one) for name, one in values["ranges"].items()}, tuple(values["always"]))


@dataclass(frozen=True)
class Quantisation:
    """How an int8 file was made; stands in its metadata under ``quantisation``.

    Attributes:
        activations: ``"uint8"`` with zero points, for CPUs; ``"int8"`` symmetric, for TensorRT.
        weights: ``"int8, symmetric, per output channel"``.
        method: How ranges are chosen, see `calibration.choose_range`.
        images: How many images were calibrated with; ``seed`` drew them.
        seed: See there.
        convolutions: How many compute in 8 bits, of ``convolutions_in_all``.
        convolutions_in_all: See there.
        skipped: Names of those that stay in fp32.
        budget: Largest loss of mAP allowed, None if it was not measured.
        trials: Each a number of skipped convolutions (beside the heads) and the loss of mAP measured with it.
        costs_db: By convolution, signal-to-quantisation-noise ratio of the heads with it alone in int8.
        trained_steps: How many steps its weights were trained for with these roundings. 0: they are those of the fp32
            file, and the metadata do not say it.
    """

    activations: Activations
    weights: str
    method: Method
    images: int
    seed: int
    convolutions: int
    convolutions_in_all: int
    skipped: tuple[str, ...]
    budget: float | None
    trials: tuple[tuple[int, float], ...]
    costs_db: dict[str, float]
    trained_steps: int = 0


def fp16_from_fp32(source: str | Path, path: str | Path) -> OnnxFile:
    """Write the fp16 version of an fp32 file.

    Raises:
        EngineError: The source cannot be used, or a weight does not fit into half precision.
    """
    model = to_half_precision(_fp32(source))
    set_metadata(model, precision="fp16")
    return write_model(model, path)


class Quantiser:
    """Calibrates one fp32 network once, then writes its int8 files.

    Args:
        source: The fp32 file.
        calibration_images: ``(K, 3, H, W)`` float32 in [0, 1], from training.
        seed: That drew them, for the record.
        method: How ranges are chosen.
        sensitivity_images: How many of them are used to measure each convolution's cost.
        threads: Threads of ONNX Runtime.
        kept: Ranges and convolutions in fp32 that weights were trained for, instead of new ones. Of one kind of
            activations, so only files of that are to be written.

    Raises:
        EngineError: The source cannot be used.
        DataError: There are no images, or they do not fit the network.
    """

    def __init__(
        self,
        source: str | Path,
        calibration_images: Images,
        *,
        seed: int,
        method: Method = "percentile",
        sensitivity_images: int = 8,
        threads: int | None = None,
        kept: Calibration | None = None,
    ) -> None:
        self._model, self._kept = _fp32(source), kept
        self._images, self._seed, self._method = calibration_images, seed, method
        self._few = calibration_images[: max(1, sensitivity_images)]
        self._threads = threads
        self._heads = [node.name for node in head_convolutions(self._model.graph)]
        self._names = [node.name for node in convolutions(self._model.graph)]
        shape = [dim.dim_value for dim in self._model.graph.input[0].type.tensor_type.shape.dim][1:]
        if len(calibration_images) and list(calibration_images.shape[1:]) != shape:
            expected = ", ".join(map(str, shape))
            raise DataError(f"calibration images must be (K, {expected}), got {calibration_images.shape}")
        if kept is not None:
            return
        # The plan for CPUs that leaves nothing out has every tensor of any other plan. All of them are measured,
        # also those that take another one's scale: with that one left in fp32 they need a scale of their own.
        tensors = plan_quantisation(self._model, "uint8").tensors
        self._histograms = collect_histograms(self._model, tensors, calibration_images, threads=threads)
        self._slopes = negative_slopes(self._model)

    def write(
        self,
        path: str | Path,
        activations: Activations,
        *,
        loss: Loss | None = None,
        budget: float | None = None,
        accepted: Callable[[ModelProto], bool] | None = None,
        trained_steps: int = 0,
    ) -> tuple[OnnxFile, Quantisation]:
        """Write an int8 file.

        The convolutions of the heads stay in fp32, since what they give is decoded in fp32; the first one too,
        unless it is measured to be harmless. More are left out, those that cost most first, as long as the loss
        is above the budget or the network is not accepted.

        Args:
            path: The file.
            activations: ``"uint8"`` for CPUs, ``"int8"`` for TensorRT.
            loss: What an int8 network loses in mAP; None measures none and leaves out no more.
            budget: Largest loss allowed.
            accepted: Whether a network within the budget passes; None: it does.
            trained_steps: For the record, see `Quantisation`.

        Raises:
            GateError: The budget cannot be met, see `sensitivity.skip_within_budget`.
        """
        ranges = self.ranges(activations)
        costs = convolution_costs(self._model, ranges, self._few, activations=activations, threads=self._threads)
        first = costs[0]
        harmful = first.error > HARMLESS_ERROR and first.name not in self._heads
        always: Sequence[str] = [first.name, *self._heads] if harmful else self._heads
        if self._kept is not None:
            always = self._kept.always
        trials: tuple[tuple[int, float], ...] = ()
        skipped: Sequence[str] = always
        if loss is not None and budget is not None:

            def lost(names: Sequence[str]) -> float:
                return loss(self._quantised(ranges, activations, names))

            def passes(names: Sequence[str]) -> bool:
                return accepted is None or accepted(self._quantised(ranges, activations, names))

            skipped, trials = skip_within_budget(costs, always, lost, budget, accepted=passes)
        model = self._quantised(ranges, activations, skipped)
        record = Quantisation(
            activations=activations,
            weights="int8, symmetric, per output channel",
            method=self._method,
            images=len(self._images),
            seed=self._seed,
            convolutions=len(self._names) - len(skipped),
            convolutions_in_all=len(self._names),
            skipped=tuple(skipped),
            budget=None if loss is None else budget,
            trials=trials,
            costs_db={cost.name: round(min(cost.sqnr_db, 200.0), 2) for cost in costs},
            trained_steps=trained_steps,
        )
        said = asdict(record)
        if not trained_steps:
            del said["trained_steps"]
        set_metadata(model, precision="int8", quantisation=json.dumps(said))
        return write_model(model, path), record

    def ranges(self, activations: Activations) -> dict[str, Range]:
        """What is kept of each tensor's values, by name."""
        if self._kept is not None:
            return self._kept.ranges
        symmetric = activations == "int8"
        return {
            name: choose_range(
                histogram,
                self._method,
                levels=254 if symmetric else 255,
                symmetric=symmetric,
                negative_slope=1.0 if symmetric else self._slopes.get(name, 1.0),
            )
            for name, histogram in self._histograms.items()
        }

    def _quantised(self, ranges: dict[str, Range], activations: Activations, skipped: Sequence[str]) -> ModelProto:
        return quantise(self._model, plan_quantisation(self._model, activations, skipped), ranges)


def _fp32(source: str | Path) -> ModelProto:
    model = read_model(source)
    precision = metadata_of(model).get("precision", "fp32")
    if precision != "fp32":
        raise EngineError(f"is {precision} already", where=source, fix="give the fp32 file")
    if opset_of(model) < _OLDEST_OPSET:
        raise EngineError(
            f"has opset {opset_of(model)}, other precisions need {_OLDEST_OPSET} or later",
            where=source,
            fix="export it again",
        )
    return model
