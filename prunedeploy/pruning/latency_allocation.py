"""Widths by measured time: filters go first where they cost most time for what they are worth.

Again and again, of all coupling groups the one gives up filters that saves most milliseconds per lost importance, until
every group is at its minimum. These widths in their order are a `WidthPath`, on which the search finds the point that
meets the ratio. A group may take several steps at once, since time falls in stairs: where a runtime computes 16
filters at a time, giving up 8 saves nothing and giving up 16 saves a lot.

The importance that a step loses is measured against what the group still has: log(before / after) of the summed
importance of its living units. So the price of a filter rises as its group gets narrow, and no group is emptied while
others are whole, which a sum of importances would do: they differ less within a layer than times do between layers.

Time saved is that of every convolution that writes or reads the group. What is between convolutions (shortcuts,
pooling, upsampling) is not counted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf, log

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from prunedeploy.models.darknet_cfg import DarknetCfg
from prunedeploy.models.sections.channels import IntArray
from prunedeploy.pruning.coupling import Coupling
from prunedeploy.pruning.width_search import Wanted, WidthPath

TimeTable = Callable[[int, float, float], float]
"""Milliseconds of a convolution: its layer index, filters, input channels."""

MOST_STEPS = 4
"""Of one group at once: with channels in multiples of 8 two stairs of 16."""

FLAT_TABLE = 1e-2
"""What all multiply-accumulates of a network count as, in parts of its whole time. Small, so that it decides only where
the table shows no time saved, as it does below the resolution of a measurement."""


def latency_path(cfg: DarknetCfg, coupling: Coupling, importance: Sequence[Tensor], time_ms: TimeTable) -> WidthPath:
    """The path of most time saved per lost importance.

    Args:
        cfg: The unpruned network.
        coupling: Its coupling.
        importance: Per coupling group ``(units,)``, from `unit_importance`.
        time_ms: Milliseconds of every convolution at any width up to its own.
    """

    def path(levels: Sequence[IntArray]) -> Wanted:
        states = np.stack(_Greedy(cfg, coupling, importance, time_ms, levels).states()).astype(float)

        def wanted(fraction: float) -> NDArray[np.float64]:
            return states[round((1.0 - fraction) * (len(states) - 1))]

        return wanted

    return path


class _Greedy:
    """The state of one descent from all units to the fewest."""

    def __init__(
        self,
        cfg: DarknetCfg,
        coupling: Coupling,
        importance: Sequence[Tensor],
        time_ms: TimeTable,
        levels: Sequence[IntArray],
    ) -> None:
        self.time_ms = time_ms
        self.levels = levels
        self.at = [len(level) - 1 for level in levels]
        self.counts = np.array([level[-1] for level in levels])
        # kept[g][n]: summed importance of the n most important units
        self.kept = [
            np.concatenate([[0.0], np.cumsum(np.sort(values.detach().cpu().double().numpy())[::-1])])
            for values in importance
        ]
        self.layers = {layer.index: layer for layer in cfg.convolutions}
        self.filters = {index: coupling.channels_per_unit[index] for index in self.layers}
        self.inputs = {index: coupling.channels_per_unit[layer.inputs[0]] for index, layer in self.layers.items()}
        self.touched = [
            [index for index in self.layers if self.filters[index][group] or self.inputs[index][group]]
            for group in range(len(levels))
        ]
        self.cost = {index: self._time_and_macs(index, self.counts) for index in self.layers}
        total_ms = sum(ms for ms, _ in self.cost.values())
        self.ms_per_mac = FLAT_TABLE * total_ms / sum(macs for _, macs in self.cost.values())
        self.gain = [self._gain(group) for group in range(len(levels))]

    def states(self) -> list[IntArray]:
        """Living units per group after every step, the first with all."""
        states = [self.counts.copy()]
        while max(self.gain, default=(-1.0, 0))[0] >= 0.0:
            group = max(range(len(self.gain)), key=lambda number: self.gain[number][0])
            self.at[group] -= self.gain[group][1]
            self.counts[group] = self.levels[group][self.at[group]]
            states.append(self.counts.copy())
            for index in self.touched[group]:
                self.cost[index] = self._time_and_macs(index, self.counts)
            for other, touched in enumerate(self.touched):
                if not set(touched).isdisjoint(self.touched[group]):
                    self.gain[other] = self._gain(other)
        return states

    def _gain(self, group: int) -> tuple[float, int]:
        """Milliseconds saved per lost importance, and by how many steps; negative if there are none left."""
        best = (-1.0, 0)
        for steps in range(1, min(MOST_STEPS, self.at[group]) + 1):
            after = self.counts.copy()
            after[group] = self.levels[group][self.at[group] - steps]
            saved = 0.0
            for index in self.touched[group]:
                (ms, macs), (new_ms, new_macs) = self.cost[index], self._time_and_macs(index, after)
                saved += (ms - new_ms) + self.ms_per_mac * (macs - new_macs)
            # Units of no importance go first, those that save most before the others.
            gain = saved / max(self._loss(group, int(after[group])), 1e-12)
            if gain > best[0]:
                best = (gain, steps)
        return best

    def _loss(self, group: int, after: int) -> float:
        before, left = self.kept[group][self.counts[group]], self.kept[group][after]
        if before <= 0.0:
            return 0.0
        return log(before / left) if left > 0.0 else inf

    def _time_and_macs(self, index: int, counts: IntArray) -> tuple[float, float]:
        layer = self.layers[index]
        filters, inputs = float(self.filters[index] @ counts), float(self.inputs[index] @ counts)
        macs = filters * inputs / layer.groups * layer.size**2 * layer.out_shape[1] * layer.out_shape[2]
        return self.time_ms(index, filters, inputs), macs
