"""Every section that hands channels on: the shrunk network computes what the masked one does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from prunedeploy.models import Darknet, parse_cfg, read_cfg
from prunedeploy.models.cfg_rewriting import with_input_size
from prunedeploy.pruning import shrink
from prunedeploy.pruning.coupling import coupling_groups
from prunedeploy.pruning.masks import apply_structured
from pruning.darknets import HEAD, conv, largest_difference, network, random_network

GATE = conv(16, activation="logistic")
ATTENTION = "attention from=2,4,6 heads=2 scale=0.5"
SECTIONS = {
    "avgpool": ("avgpool",),
    "local_avgpool": ("local_avgpool size=3 stride=2",),
    "dropout": ("dropout probability=.5",),
    "cost": ("cost type=sse",),
    "contrastive": ("contrastive classes=1",),
    "reorg": ("reorg stride=2",),
    "reorg by 3": (conv(18), "reorg stride=3"),
    "reorg reversed": ("reorg stride=2 reverse=1",),
    "reorg3d": ("reorg3d stride=2",),
    "reorg3d reversed": (conv(64), "reorg3d stride=2 reverse=1"),
    "sam": (GATE, "sam from=-2"),
    "sam behind a pooling of a gate": (GATE, "maxpool size=3 stride=1", "sam from=0"),
    "scale_channels": ("avgpool", conv(4, activation="swish"), GATE, "scale_channels from=0 activation=leaky"),
    "scale_channels by a map": (conv(1, activation="logistic"), "scale_channels from=0 scale_wh=1"),
    "attention": ("route layers=0", conv(8), "route layers=0", conv(8), "route layers=0", conv(16), ATTENTION),
    "attention beside its values": (
        *("route layers=0", conv(8), "route layers=0", conv(8), "route layers=0", conv(16), ATTENTION),
        *("route layers=6", conv(16, 3, groups=16), "shortcut from=7"),
    ),
    "YOLOv2": (conv(16), "reorg stride=2", "route layers=0", "maxpool size=2 stride=2", "route layers=-1,-3"),
}


def half(model: Darknet) -> dict[int, torch.Tensor]:
    """Every second unit of every group that may lose some; a group of one unit keeps it."""
    keep = {layer.index: torch.ones(layer.out_channels, dtype=torch.bool) for layer in model.cfg.convolutions}
    for group in coupling_groups(model.cfg):
        for member in group.members if group.prunable else ():
            keep[member.layer][member.filters[1::2]] = False
    return keep


@pytest.mark.parametrize("name", list(SECTIONS))
def test_shrunk_equals_masked_at_any_input_size(name: str) -> None:
    model = random_network(network(conv(16, 3), *SECTIONS[name], conv(16, 3), *HEAD, size=18), seed=1)
    keep = half(model)
    masked, small = apply_structured(model, keep), shrink(model, keep)
    assert small.parameter_count() < 0.75 * model.parameter_count()
    assert parse_cfg(small.cfg.text).layers == small.cfg.layers
    for size in ((18, 18), (24, 36)):
        assert largest_difference(masked, small, torch.rand(2, 3, *size)) < 1e-5


@pytest.mark.shared
@pytest.mark.parametrize("name", ["enet-coco", "yolov4-tiny_contrastive", "yolov2-tiny"])
def test_genuine_cfgs_shrink_to_what_they_compute_masked(shared: Path, name: str) -> None:
    cfg = with_input_size(read_cfg(shared / "real" / "darknet-cfg" / f"{name}.cfg"), (96, 128))
    model = random_network(cfg).double()
    keep = half(model)
    masked, small = apply_structured(model, keep), shrink(model, keep)
    assert small.parameter_count() < 0.6 * model.parameter_count()
    assert largest_difference(masked, small, torch.rand(1, 3, 96, 128, dtype=torch.float64)) < 1e-9
