"""The gate of a twin: layer by layer it computes what ONNX Runtime computes with the same file.

A value that lies on the edge between two steps may round either way, as sums are made in another order; from there on
everything behind it differs a little, and after some dozen layers much does. So every tensor is compared on the inputs
that ONNX Runtime had for it: there a step is as far as two right programs can be apart, and few values are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from prunedeploy_engines.detection.letterbox import to_uint8_input
from prunedeploy_engines.errors import GateError
from prunedeploy_export.gates.parity import TENSOR_TOLERANCE
from prunedeploy_export.graph.edit import expose, metadata_of, read_model
from prunedeploy_export.precision.calibration import outputs_of
from prunedeploy_export.twin.network import OnnxTwin

STEP_SHARE = 1e-3
"""Largest share of values that may be a step apart."""
HALF_TOLERANCE = 5e-3
"""Of the heads of a file with half precision: every layer's rounding is on top of the one before."""

_FIX = "attack its parent instead (transfer), and report this"


@dataclass(frozen=True)
class TwinParity:
    """What `check_twin` measured.

    Attributes:
        images: Number of images.
        values: Quantised values that were compared.
        a_step_apart: How many of them differ, by one step.
        heads: Largest max|a - b| / max|a| of a raw head.
        tolerance: What was allowed of that.
    """

    images: int
    values: int
    a_step_apart: int
    heads: float
    tolerance: float


@torch.no_grad()
def check_twin(
    twin: OnnxTwin, path: str | Path, images: npt.NDArray[np.float32], threads: int | None = None
) -> tuple[TwinParity, list[torch.Tensor]]:
    """Require that quantised tensors are at most one step apart, `STEP_SHARE` of them at most, and heads agree.

    Args:
        twin: Of the file.
        path: The file.
        images: ``(N, C, H, W)`` in [0, 1], N >= 1.
        threads: Threads of ONNX Runtime.

    Returns:
        What was measured, and the twin's raw heads of all images, computed from ONNX Runtime's quantised tensors.

    Raises:
        GateError: They do not; names the tensor.
        RuntimeUnavailableError: ONNX Runtime is not there.
    """
    model, names = read_model(path), [*twin.quantised, *twin.heads]
    run = outputs_of(expose(model, names), names, threads)
    tolerance = HALF_TOLERANCE if metadata_of(model).get("precision") == "fp16" else TENSOR_TOLERANCE
    values = apart = 0
    worst, heads = 0.0, []
    for image in torch.from_numpy(images).to(twin.device):
        given = image[None].cpu().numpy()
        found = run(to_uint8_input(given)[0] if twin.uint8_input else given[0])
        engine = {name: torch.from_numpy(one).to(twin.device).float() for name, one in zip(names, found, strict=True)}
        own_heads, own = twin.tensors(image[None], {name: engine[name] for name in twin.quantised})
        for name, steps in own.items():
            difference = (steps - engine[name]).abs()
            if (most := float(difference.max())) > 1:
                raise GateError(f"its twin in PyTorch computes {name} {most:.0f} steps off", path, _FIX)
            values, apart = values + difference.numel(), apart + int(difference.sum())
        worst = max(worst, _apart(twin.heads, own_heads, engine, tolerance, path))
        heads.append(own_heads)
    if apart > STEP_SHARE * values:
        what = f"its twin in PyTorch computes {apart} of {values} values a step off"
        raise GateError(what, path, _FIX)
    parity = TwinParity(len(images), values, apart, worst, tolerance)
    return parity, [torch.cat(parts) for parts in zip(*heads, strict=True)]


def _apart(
    names: Sequence[str],
    heads: Sequence[torch.Tensor],
    engine: dict[str, torch.Tensor],
    tolerance: float,
    path: str | Path,
) -> float:
    """Largest relative difference of a raw head.

    Raises:
        GateError: It is more than the tolerance, or not a number.
    """
    worst = 0.0
    for name, head in zip(names, heads, strict=True):
        largest = max(float(engine[name].abs().max()), 1e-30)
        relative = float((head - engine[name]).abs().max()) / largest
        if not relative <= tolerance:
            what = (
                f"its twin in PyTorch computes {name} {relative:.2g} of its largest value off, more than {tolerance:g}"
            )
            raise GateError(what, path, _FIX)
        worst = max(worst, relative)
    return worst
