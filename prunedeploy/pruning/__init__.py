"""From scores to a smaller network.

- `coupling`: which filters live and die together.
- `importance`: scores per weight to importance per unit, and straight-through masks for score optimisation.
- `granularity`: what can be removed (weights, kernels, n:m blocks, filters, filters and then weights), each behind
  the same interface; `cut` applies what they choose.
- `allocation`, `width_paths`, `latency_allocation` with `convolution_times`: how a ratio is shared out over layers.
- `width_search`: how many filters of each coupling group give a number of weights.
- `ratio`: the widths that meet a pruning ratio.
- `hybrid`: how many weights of a narrower network live, and which.
- `semi_structured`: which weights of every block live, n of m; and the proof that a weight has the pattern.
- `masks`: pruning as zeros.
- `shrink`: the smaller network.
- `dead_channels`: what zeros have made useless is removed, exactly; by `constants`, and `carriers` of them.
- `deviation`: how far two networks are apart.
- `subnet`: size and the pruning record.
"""

from prunedeploy.pruning.cut import Cut, Masks, make_cut
from prunedeploy.pruning.dead_channels import remove_dead_channels
from prunedeploy.pruning.granularity import (
    Allocation,
    Evidence,
    Filters,
    FiltersThenWeights,
    Granularity,
    Kernels,
    Pattern,
    Weights,
)
from prunedeploy.pruning.semi_structured import NmPattern
from prunedeploy.pruning.shrink import shrink

__all__ = [
    "Allocation",
    "Cut",
    "Evidence",
    "Filters",
    "FiltersThenWeights",
    "Granularity",
    "Kernels",
    "Masks",
    "NmPattern",
    "Pattern",
    "Weights",
    "make_cut",
    "remove_dead_channels",
    "shrink",
]
