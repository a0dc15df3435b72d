"""From scores to a smaller network.

- `coupling`: which filters live and die together.
- `importance`: scores per weight to importance per unit, and straight-through masks for score optimisation.
- `granularity`: what can be removed (weights, kernels, n:m blocks, filters, filters and then weights), each behind
  the same interface; `cut` applies what they choose.
- `allocation`, `width_paths`, `latency_allocation` with `convolution_times`: how a ratio is shared out over layers.
- `width_search`: how many filters of each coupling group give a number of weights.
- `ratio`: the widths that meet a pruning ratio.
- `unstructured`, `kernels`, `hybrid`: how many single weights, k x k slices, weights of a narrower network live.
- `semi_structured`: which weights of every block live, n of m; and the proof that a weight has the pattern.
- `masks`: pruning as zeros.
- `shrink`: the smaller network.
- `dead_channels`: what zeros have made useless is removed, exactly; by `constants`, and `carriers` of them.
- `deviation`: how far two networks are apart.
- `subnet`: size, sparsity and the pruning record.
"""

from prunedeploy.pruning.coupling import (
    Coupling,
    CouplingGroup,
    GroupMember,
    couple,
    coupling_groups,
    prunable_convolutions,
)
from prunedeploy.pruning.cut import Cut, Masks, make_cut
from prunedeploy.pruning.dead_channels import DeadChannelRecord, DeadFilters, remove_dead_channels
from prunedeploy.pruning.deviation import largest_deviation
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
from prunedeploy.pruning.importance import (
    straight_through_channel_masks,
    straight_through_weight_mask,
    unit_importance,
)
from prunedeploy.pruning.kernels import kernel_counts, straight_through_kernel_mask
from prunedeploy.pruning.masks import apply_structured, apply_unstructured, live_channels, weight_keep_masks
from prunedeploy.pruning.ratio import (
    LayerWidth,
    Widths,
    ratio_tolerance,
    solve_widths,
)
from prunedeploy.pruning.semi_structured import (
    NmPattern,
    check_nm_ratio,
    check_pattern,
    dense_convolutions,
    nm_ratio,
    patterned_convolutions,
    straight_through_nm_mask,
)
from prunedeploy.pruning.shrink import shrink, shrink_cfg
from prunedeploy.pruning.subnet import (
    count_parameters,
    count_prunable_weights,
    nm_record,
    pruning_record,
    sparsity,
    unstructured_record,
)
from prunedeploy.pruning.unstructured import keep_counts

__all__ = [
    "Allocation",
    "Coupling",
    "CouplingGroup",
    "Cut",
    "DeadChannelRecord",
    "DeadFilters",
    "Evidence",
    "Filters",
    "FiltersThenWeights",
    "Granularity",
    "GroupMember",
    "Kernels",
    "LayerWidth",
    "Masks",
    "NmPattern",
    "Pattern",
    "Weights",
    "Widths",
    "apply_structured",
    "apply_unstructured",
    "check_nm_ratio",
    "check_pattern",
    "count_parameters",
    "count_prunable_weights",
    "couple",
    "coupling_groups",
    "dense_convolutions",
    "keep_counts",
    "kernel_counts",
    "largest_deviation",
    "live_channels",
    "make_cut",
    "nm_ratio",
    "nm_record",
    "patterned_convolutions",
    "prunable_convolutions",
    "pruning_record",
    "ratio_tolerance",
    "remove_dead_channels",
    "shrink",
    "shrink_cfg",
    "solve_widths",
    "sparsity",
    "straight_through_channel_masks",
    "straight_through_kernel_mask",
    "straight_through_nm_mask",
    "straight_through_weight_mask",
    "unit_importance",
    "unstructured_record",
    "weight_keep_masks",
]
