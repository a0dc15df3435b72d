"""What a pruned network is: its size, its zeros, and the record of how it was pruned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from torch import Tensor

from prunedeploy.models.darknet import Darknet
from prunedeploy.models.darknet_cfg import DarknetCfg
from prunedeploy.pruning.coupling import couple, prunable_convolutions
from prunedeploy.pruning.ratio import Widths, layer_widths
from prunedeploy.pruning.semi_structured import NmPattern, dense_convolutions


def count_parameters(model: Darknet) -> int:
    """Number of trained values: weights, biases, normalisation scales and shifts; no running statistics."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_prunable_weights(cfg: DarknetCfg) -> int:
    """Number of weights of all prunable convolutions: what a pruning ratio is a fraction of."""
    total = 0
    for layer in prunable_convolutions(cfg):
        filters, per_group, height, width = layer.weight_shape
        total += filters * per_group * height * width
    return total


def sparsity(model: Darknet) -> float:
    """Zeros / weights, of all prunable convolutions; 0.0 where there are none."""
    total = count_prunable_weights(model.cfg)
    zeros = sum(int((model.conv(layer.index).weight == 0).sum()) for layer in prunable_convolutions(model.cfg))
    return zeros / total if total else 0.0


def pruning_record(cfg: DarknetCfg, widths: Widths) -> dict[str, Any]:
    """What the bundle says about a structured pruning; plain values for JSON.

    Args:
        cfg: The unpruned network.
        widths: How many filters live.
    """
    return {
        "method": "structured",
        "ratio_requested": widths.ratio_requested,
        "ratio_achieved": widths.ratio_achieved,
        "channel_multiple": widths.multiple,
        "layers": [asdict(row) for row in layer_widths(cfg, widths.counts, couple(cfg))],
    }


def unstructured_record(cfg: DarknetCfg, keep_masks: Mapping[int, Tensor], ratio: float) -> dict[str, Any]:
    """What the bundle says about an unstructured pruning; plain values for JSON.

    Args:
        cfg: The network.
        keep_masks: By layer index: bool, weight-shaped, the weights that live.
        ratio: What was asked for.
    """
    counted = {layer.index for layer in prunable_convolutions(cfg)}
    rows = []
    removed = total = 0
    for layer in cfg.convolutions:
        filters, per_group, height, width = layer.weight_shape
        before = filters * per_group * height * width
        after = int(keep_masks[layer.index].sum()) if layer.index in keep_masks else before
        rows.append(
            {
                "layer": layer.index,
                "filters_before": filters,
                "filters_after": filters,
                "weights_before": before,
                "weights_after": after,
                "counted": layer.index in counted,
            }
        )
        if layer.index in counted:
            total += before
            removed += before - after
    return {
        "method": "unstructured",
        "ratio_requested": ratio,
        "ratio_achieved": removed / total if total else 0.0,
        "channel_multiple": None,
        "layers": rows,
    }


def kernel_record(cfg: DarknetCfg, keep_masks: Mapping[int, Tensor], ratio: float) -> dict[str, Any]:
    """What the bundle says about a kernel pruning; see `unstructured_record`."""
    return {**unstructured_record(cfg, keep_masks, ratio), "method": "kernel"}


def hybrid_record(
    cfg: DarknetCfg, widths: Widths, keep_masks: Mapping[int, Tensor], ratio: float, filter_share: float
) -> dict[str, Any]:
    """What the bundle says about a hybrid pruning; plain values for JSON.

    Args:
        cfg: The unpruned network.
        widths: How many filters live.
        keep_masks: By layer index: bool, in the shapes that the filters leave, the weights that live.
        ratio: What was asked for.
        filter_share: The part of the removed weights that filters were to take.
    """
    filters = pruning_record(cfg, widths)
    rows = filters["layers"]
    total = sum(row["weights_before"] for row in rows if row["counted"])
    zeroed = sum(int((~mask).sum()) for mask in keep_masks.values())
    for row in rows:
        if row["layer"] in keep_masks:
            row["weights_after"] = int(keep_masks[row["layer"]].sum())
    removed = sum(row["weights_before"] - row["weights_after"] for row in rows if row["counted"])
    return {
        **filters,
        "method": "hybrid",
        "ratio_requested": ratio,
        "ratio_achieved": removed / total if total else 0.0,
        "filter_share": filter_share,
        "ratio_by_filters": widths.ratio_achieved,
        "ratio_by_weights": zeroed / total if total else 0.0,
    }


def nm_record(cfg: DarknetCfg, keep_masks: Mapping[int, Tensor], pattern: NmPattern, ratio: float) -> dict[str, Any]:
    """What the bundle says about an n:m pruning; plain values for JSON.

    Args:
        cfg: The network.
        keep_masks: By layer index: bool, weight-shaped, the weights that live.
        pattern: What they were made for.
        ratio: What was asked for.
    """
    dense = dense_convolutions(cfg, pattern)
    return {
        **unstructured_record(cfg, keep_masks, ratio),
        "method": "nm",
        "pattern": str(pattern),
        "dense_layers": [{"layer": index, "reason": reason} for index, reason in dense.items()],
    }
