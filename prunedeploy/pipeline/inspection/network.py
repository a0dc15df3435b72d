"""The layers of a cfg, what may be removed of each, and the totals."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

from prunedeploy.models.darknet_cfg import DarknetCfg
from prunedeploy.models.darknet_weights import weight_count
from prunedeploy.models.sections import Layer
from prunedeploy.pipeline.inspection.keys import key_meanings
from prunedeploy.pruning.coupling import CouplingGroup, coupling_groups, prunable_convolutions

HEADER_BYTES = 20
"""Of a weight file as Darknet has written it since version 0.2; before that it had four bytes less."""


def network_document(cfg: DarknetCfg) -> dict[str, Any]:
    """What a cfg describes: plain values for JSON.

    Args:
        cfg: Any parsed cfg.

    Returns:
        ``input``, ``classes``, ``heads``, ``layers`` (one row per section), ``totals``, ``keys``, ``ignored`` and
        ``not_for_darknet``.
    """
    groups = coupling_groups(cfg)
    channels, height, width = cfg.input_shape
    counted = {layer.index for layer in prunable_convolutions(cfg)}
    return {
        "input": {"channels": channels, "height": height, "width": width, "letterbox": cfg.letterbox},
        "classes": cfg.classes,
        "heads": [head.index for head in cfg.heads],
        "layers": [_row(layer, groups, counted) for layer in cfg.layers],
        "totals": _totals(cfg, counted),
        "keys": [asdict(key) for key in key_meanings(cfg)],
        "ignored": [asdict(option) for option in cfg.ignored_options],
        "not_for_darknet": cfg.not_for_darknet,
    }


def _row(layer: Layer, groups: tuple[CouplingGroup, ...], counted: set[int]) -> dict[str, Any]:
    """One layer; what only a layer with filters can have is None of the others."""
    kernels = layer.weights_in_file().get("weight")  # none where another layer's are used
    row = {
        "index": layer.index,
        "kind": layer.kind,
        "line": layer.line,
        "inputs": list(layer.inputs),
        "out_shape": list(layer.out_shape),
        "weights": 0 if kernels is None else math.prod(kernels.shape),
        "macs": getattr(layer, "macs", 0),
    }
    own = [group for group in groups if layer.index in group.layers]
    if not own:
        return {**row, "filters": None, "removable": None, "why_not": None, "counted": None, "coupled_with": None}
    return {
        **row,
        "filters": layer.out_channels,
        "removable": sum(_filters_of(layer.index, group) for group in own if group.prunable),
        "why_not": "; ".join(dict.fromkeys(group.reason for group in own if group.reason is not None)) or None,
        "counted": layer.index in counted,
        "coupled_with": sorted({other for group in own for other in group.layers} - {layer.index}),
    }


def _filters_of(index: int, group: CouplingGroup) -> int:
    return sum(member.filters.numel() for member in group.members if member.layer == index)


def _totals(cfg: DarknetCfg, counted: set[int]) -> dict[str, Any]:
    values = weight_count(cfg)
    return {
        "layers": len(cfg.layers),
        "convolutions": len(cfg.convolutions),
        "filters": sum(layer.out_channels for layer in cfg.convolutions),
        "weights": sum(layer.weight_count for layer in cfg.convolutions),
        "prunable_weights": sum(layer.weight_count for layer in cfg.convolutions if layer.index in counted),
        "macs": cfg.macs,
        "values_in_weights_file": values,
        "weights_file_bytes": HEADER_BYTES + 4 * values,
    }
