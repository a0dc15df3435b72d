"""What a pruned network is: its size, and the record of how it was pruned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from torch import Tensor

from prunedeploy.models.darknet import Darknet
from prunedeploy.models.darknet_cfg import DarknetCfg
from prunedeploy.pruning.ratio import LayerWidth, Widths, layer_widths
from prunedeploy.pruning.semi_structured import NmPattern, dense_convolutions


def count_parameters(model: Darknet) -> int:
    """Number of trained values: weights, biases, normalisation scales and shifts; no running statistics."""
    return sum(parameter.numel() for parameter in model.parameters())


def structured_record(cfg: DarknetCfg, widths: Widths) -> dict[str, Any]:
    """What the bundle says about a structured pruning; plain values for JSON.

    Args:
        cfg: The unpruned network.
        widths: How many filters live.
    """
    rows = layer_widths(cfg, widths.counts)
    return _record("structured", widths.ratio_requested, widths.ratio_achieved, widths.multiple, rows)


def zeros_record(cfg: DarknetCfg, keep_masks: Mapping[int, Tensor], ratio: float, method: str) -> dict[str, Any]:
    """What the bundle says about a pruning that leaves zeros only; plain values for JSON.

    Args:
        cfg: The network.
        keep_masks: By layer index: bool, weight-shaped, the weights that live.
        ratio: What was asked for.
        method: What it is called.
    """
    rows = _with_zeros(layer_widths(cfg), keep_masks)
    return _record(method, ratio, _removed(rows), None, rows)


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
    rows = _with_zeros(layer_widths(cfg, widths.counts), keep_masks)
    total = sum(row.weights_before for row in rows if row.counted)
    zeroed = sum(int((~mask).sum()) for mask in keep_masks.values())
    return {
        **_record("hybrid", ratio, _removed(rows), widths.multiple, rows),
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
        **zeros_record(cfg, keep_masks, ratio, "nm"),
        "pattern": str(pattern),
        "dense_layers": [{"layer": index, "reason": reason} for index, reason in dense.items()],
    }


def _with_zeros(rows: Sequence[LayerWidth], keep_masks: Mapping[int, Tensor]) -> list[LayerWidth]:
    return [
        replace(row, weights_after=int(keep_masks[row.layer].sum())) if row.layer in keep_masks else row for row in rows
    ]


def _removed(rows: Sequence[LayerWidth]) -> float:
    """Removed weights / weights, of the convolutions that the ratio counts; 0.0 where there are none."""
    counted = [row for row in rows if row.counted]
    total = sum(row.weights_before for row in counted)
    return sum(row.weights_before - row.weights_after for row in counted) / total if total else 0.0


def _record(
    method: str, requested: float, achieved: float, multiple: int | None, rows: Sequence[LayerWidth]
) -> dict[str, Any]:
    return {
        "method": method,
        "ratio_requested": requested,
        "ratio_achieved": achieved,
        "channel_multiple": multiple,
        "layers": [asdict(row) for row in rows],
    }
