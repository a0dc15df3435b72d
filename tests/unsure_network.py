"""Random weights that see hardly anything, so that builds of tests are quick."""

from __future__ import annotations

from pathlib import Path

import torch

from prunedeploy.models import Darknet


def save_unsure(network: Darknet, weights: Path) -> None:
    """Write a network's weights with objectness logits lower by 1.

    As initialised, nearly every box of every class scores more than the 0.001 that mAP counts from. Suppressing and
    matching these took three quarters of a tiny build's time; now a few are left.
    """
    cfg = network.cfg
    with torch.no_grad():
        for head in cfg.heads:
            bias = network.conv(head.inputs[0]).bias
            bias.view(len(head.anchor_indices), -1)[:, head.box_values] -= 1
    network.save(weights.with_suffix(".copy.cfg"), weights)
