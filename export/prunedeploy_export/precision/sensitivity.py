"""How much each convolution suffers from int8, and which few are better left in fp32."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import ModelProto

from prunedeploy_engines.errors import GateError
from prunedeploy_export.graph.edit import convolutions, expose, head_convolutions
from prunedeploy_export.precision.calibration import Range, outputs_of
from prunedeploy_export.precision.quantisation import Activations, plan_quantisation, quantise

Images = npt.NDArray[Any]


@dataclass(frozen=True)
class ConvolutionCost:
    """What int8 in this one convolution alone does to the network's raw heads.

    Attributes:
        name: Name of the convolution.
        error: Mean over the heads of ||quantised - fp32||^2 / ||fp32||^2.
    """

    name: str
    error: float

    @property
    def sqnr_db(self) -> float:
        """The same as signal-to-quantisation-noise ratio in decibels; infinite without an error."""
        return math.inf if self.error <= 0 else -10 * math.log10(self.error)


def convolution_costs(
    model: ModelProto,
    ranges: Mapping[str, Range],
    images: Images,
    *,
    activations: Activations,
    threads: int | None = None,
) -> list[ConvolutionCost]:
    """Measure every convolution's cost in output error, one at a time.

    Args:
        model: The fp32 network.
        ranges: Ranges of all tensors of the plan that quantises everything.
        images: ``(K, 3, H, W)``, a few suffice.
        activations: As in the file that is to be made.
        threads: Threads of ONNX Runtime.

    Returns:
        One row per convolution, in the order of the graph.
    """
    heads = [node.output[0] for node in head_convolutions(model.graph)]
    names = [node.name for node in convolutions(model.graph)]
    exposed = expose(model, heads)
    reference = _run(exposed, heads, images, threads)
    costs = []
    for name in names:
        plan = plan_quantisation(exposed, activations, [other for other in names if other != name])
        found = _run(quantise(exposed, plan, ranges), heads, images, threads)
        errors = [
            float(np.square(b - a).sum(dtype=np.float64) / max(np.square(a).sum(dtype=np.float64), 1e-30))
            for a, b in zip(reference, found, strict=True)
        ]
        costs.append(ConvolutionCost(name, sum(errors) / len(errors)))
    return costs


def skip_within_budget(
    costs: Sequence[ConvolutionCost],
    always: Sequence[str],
    loss: Callable[[Sequence[str]], float],
    budget: float,
    largest_share: float = 0.5,
    accepted: Callable[[Sequence[str]], bool] | None = None,
) -> tuple[tuple[str, ...], tuple[tuple[int, float], ...]]:
    """Leave out as few convolutions as keep the loss within the budget, those that cost most first.

    Tried are 0, 1, 2, 4, 8 and so on beside ``always``.

    Args:
        costs: Costs of all convolutions.
        always: Names that stay in fp32 whatever they cost.
        loss: What is lost, e.g. in mAP, with these convolutions in fp32 and all others in int8.
        budget: Largest loss allowed.
        largest_share: Largest share of all convolutions that may be left out.
        accepted: Asked where the loss is within the budget: whether these convolutions will do in every other respect.
            If none will, the last ones within the budget are returned.

    Returns:
        Names of those that stay in fp32, and what was tried: each a number of skipped convolutions (beside
        ``always``) and the loss that was measured with it.

    Raises:
        GateError: Even with the largest share left out the loss is larger.
    """
    ranked = sorted(costs, key=lambda cost: -cost.error)
    candidates = [cost.name for cost in ranked if cost.name not in always]
    most = min(int(largest_share * len(costs)), len(candidates))
    counts = [0, *(2**power for power in range(32) if 2**power < most), most]
    trials: list[tuple[int, float]] = []
    within: tuple[str, ...] | None = None
    for count in dict.fromkeys(counts):
        skipped = (*always, *candidates[:count])
        lost = loss(skipped)
        trials.append((count, lost))
        if lost <= budget:
            within = skipped
            if accepted is None or accepted(skipped):
                break
    if within is not None:
        return within, tuple(trials)
    tried = ", ".join(f"{count}: {lost:.4f}" for count, lost in trials)
    raise GateError(
        f"int8 costs more than the budget of {budget:g}, also with convolutions left in fp32 ({tried})",
        fix="calibrate on more images or with another method, raise the budget, or deploy fp16",
        gate="budget",
    )


def _run(model: ModelProto, outputs: Sequence[str], images: Images, threads: int | None) -> list[npt.NDArray]:
    run = outputs_of(model, outputs, threads)
    return [np.concatenate(parts) for parts in zip(*map(run, images), strict=True)]
