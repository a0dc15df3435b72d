"""One backward pass of DeepLIFT over a traced network: multipliers, from the target to the images."""

from __future__ import annotations

import torch
from torch import Tensor

from prunedeploy.models.darknet_cfg import DarknetCfg
from prunedeploy.scores.deeplift_rules import rule_of
from prunedeploy.scores.deeplift_rules.interface import Trace, Visit
from prunedeploy.scores.deeplift_trace import IMAGE
from prunedeploy.scores.target import DetectionTarget


@torch.no_grad()
def backward(cfg: DarknetCfg, found: Trace, target: DetectionTarget, visit: Visit) -> Tensor:
    """Hand multipliers from the target back to the images, visiting every convolution on the way.

    Args:
        cfg: The network.
        found: Its trace. What rules kept is released as it is used.
        target: What is explained.
        visit: Called for each convolution that the target depends on, last to first.

    Returns:
        Multipliers of the images, ``(B, 3, H, W)``.
    """
    at: dict[int, Tensor] = {}
    heads = iter(reversed(target.weights))
    for layer in reversed(cfg.layers):
        if layer.is_head:
            _add(at, layer.inputs[0], next(heads))
            continue
        output = at.pop(layer.index, None)
        if output is not None:
            for source, multiplier in rule_of(layer).backward(found, layer, output, visit):
                _add(at, source, multiplier)
    return at[IMAGE]


def _add(at: dict[int, Tensor], index: int, multiplier: Tensor) -> None:
    at[index] = multiplier if index not in at else at[index] + multiplier
