"""How a pruning ratio is shared out over coupling groups of filters: what each group wants as more and more stays.

`width_search.even_path` is the uniform one and `latency_allocation` has the one that goes by measured time. The search
then finds the point on the path that meets the ratio, in multiples of channels and above their minimum.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from prunedeploy.models.darknet_cfg import DarknetCfg
from prunedeploy.models.sections.channels import IntArray
from prunedeploy.pruning.allocation import erk_factor
from prunedeploy.pruning.coupling import Coupling, prunable_convolutions
from prunedeploy.pruning.width_search import Wanted, WidthPath


def global_path(importance: Sequence[Tensor], coupling: Coupling) -> WidthPath:
    """The units of the lowest importance in the whole network go first.

    Args:
        importance: Per coupling group ``(units,)``, from `unit_importance`; compared across groups as it is.
        coupling: The network's coupling.

    Raises:
        ValueError: An importance is NaN.
    """
    full = np.array(coupling.full_counts, dtype=float)
    prunable = [number for number, group in enumerate(coupling.groups) if group.prunable]
    values = {number: importance[number].detach().cpu().double().numpy() for number in prunable}
    if any(np.isnan(value).any() for value in values.values()):
        raise ValueError("an importance of a unit is NaN")
    everything = np.concatenate([values[number] for number in prunable] or [np.zeros(0)])
    # Place of every unit when all are ordered, the most important one first.
    places = np.empty(len(everything), dtype=np.int64)
    places[np.argsort(-everything, kind="stable")] = np.arange(len(everything))
    ends = np.cumsum([len(values[number]) for number in prunable])
    of_group = {
        number: np.sort(places[end - len(values[number]) : end])
        for number, end in zip(prunable, ends.tolist(), strict=True)
    }

    def path(levels: Sequence[IntArray]) -> Wanted:
        def wanted(fraction: float) -> NDArray[np.float64]:
            counts = full.copy()
            for number, own in of_group.items():
                counts[number] = np.searchsorted(own, fraction * len(everything))
            return counts

        return wanted

    return path


def erk_path(cfg: DarknetCfg, coupling: Coupling) -> WidthPath:
    """Widths from Erdos-Renyi-Kernel densities.

    A layer that keeps the fraction f of its filters and of its inputs keeps f^2 of its weights, so a layer of density
    d wants the fraction sqrt(d) of its filters. A group whose filters stand in several layers wants the mean of theirs.
    Densities are those of `erk_densities` with one common scale, capped at 1; since groups also set the inputs
    of layers with other densities, the scale is not solved for in closed form but found by the search.

    Args:
        cfg: The unpruned network.
        coupling: Its coupling.

    Reference: Evci et al., Rigging the Lottery, 2020, section 3.1.
    """
    factors = {layer.index: erk_factor(layer) for layer in prunable_convolutions(cfg)}
    least = min(factors.values(), default=1.0)
    full = np.array(coupling.full_counts, dtype=float)

    def wanted(fraction: float) -> NDArray[np.float64]:
        counts = full.copy()
        for number, group in enumerate(coupling.groups):
            if group.prunable:
                kept = [np.sqrt(min(1.0, fraction * factors[layer] / least)) for layer in group.layers]
                counts[number] *= np.mean(kept)
        return counts

    return lambda levels: wanted
