"""Small networks of sections that OpenCV's Darknet reader knows: it computes what we do, before and after pruning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from prunedeploy.models import Darknet
from prunedeploy.models.decode import decode
from prunedeploy.pruning import shrink
from prunedeploy.pruning.coupling import coupling_groups
from pruning.darknets import conv, network, random_network

HEAD = (conv(12, norm=False, activation="linear"), "yolo mask=0,1 anchors=4,5,6,7 num=2 classes=1")
SE = ("avgpool", conv(4, activation="swish"), conv(8, activation="logistic"), "scale_channels from=0")
NETWORKS = {
    "avgpool": ((conv(8, 3), *SE, conv(8, 3), *HEAD), 16),
    "dropout": ((conv(8, 3), "dropout probability=.5", conv(8, 3), *HEAD), 16),
    "cost": ((conv(8, 3), "cost type=sse", conv(8, 3), *HEAD), 16),
    "reorg": ((conv(16, 3), "reorg stride=2", conv(8, 3), *HEAD), 16),
    # Four does not divide 20 / 2, and the map is joined with one of another depth, as in YOLOv2.
    "reorg at odd sizes": (
        (conv(8, 3), "maxpool size=2 stride=2", conv(16, 3), "reorg stride=2", "route layers=-2",
         "maxpool size=2 stride=2", "route layers=-1,-3", conv(8, 3), *HEAD),
        20,
    ),
    "a narrower layer added": ((conv(8, 3), conv(12, 3), "shortcut from=-2", conv(8, 3), *HEAD), 16),
    "a wider layer added": ((conv(12, 3), conv(8, 3), "shortcut from=-2 activation=leaky", conv(8, 3), *HEAD), 16),
    "sam": ((conv(8, 3), conv(8, 1, activation="logistic"), "sam from=-2", conv(8, 3), *HEAD), 16),
    "sam activated": ((conv(8, 3), conv(8, 3), "sam from=0 activation=leaky", conv(8, 3), *HEAD), 16),
}  # fmt: skip


def opencv(model: Darknet, folder: Path) -> Any:
    """The network as OpenCV reads it from the files that we write."""
    cv2 = pytest.importorskip("cv2", reason="OpenCV's Darknet reader is the reference")
    model.save(folder / "model.cfg", folder / "model.weights")
    return cv2.dnn.readNetFromDarknet(str(folder / "model.cfg"), str(folder / "model.weights"))


def half_of_the_units(model: Darknet) -> Darknet:
    """Without every second unit of every group that may lose some."""
    keep = {layer.index: torch.ones(layer.out_channels, dtype=torch.bool) for layer in model.cfg.convolutions}
    for group in coupling_groups(model.cfg):
        for member in group.members if group.prunable else ():
            keep[member.layer][member.filters[1::2]] = False
    return shrink(model, keep)


@pytest.mark.parametrize("pruned", [False, True], ids=["whole", "pruned"])
@pytest.mark.parametrize("name", list(NETWORKS))
def test_opencv_finds_the_same_heads_and_boxes(name: str, pruned: bool, tmp_path: Path) -> None:
    sections, size = NETWORKS[name]
    model = random_network(network(*sections, size=size), seed=3)
    if pruned:
        whole, model = model, half_of_the_units(model)
        assert model.parameter_count() < 0.7 * whole.parameter_count()
    net = opencv(model, tmp_path)
    image = np.random.default_rng(0).random((1, 3, size, size), dtype=np.float32)
    net.setInput(image)
    (head,) = model.cfg.heads
    with torch.no_grad():
        raw = model(torch.from_numpy(image))
        boxes, scores = (value[0].numpy() for value in decode(raw, model))
    np.testing.assert_allclose(net.forward(f"conv_{head.inputs[0]}"), raw[0].numpy(), rtol=0, atol=1e-4)

    # Rows of (centre x, centre y, width, height) in parts of the image, objectness, scores; a cell's anchors together.
    rows = net.forward(f"yolo_{head.index}")
    height, width = head.out_shape[1:]
    rows = rows.reshape(height, width, 2, 6).transpose(2, 0, 1, 3).reshape(-1, 6)
    centre, half = rows[:, :2] * size, rows[:, 2:4] * size / 2
    np.testing.assert_allclose(np.concatenate([centre - half, centre + half], axis=1), boxes, rtol=0, atol=1e-3)
    certain = scores[:, 0] > 0.21  # OpenCV gives 0 up to 0.2
    assert certain.any()
    np.testing.assert_allclose(rows[certain, 5], scores[certain, 0], rtol=0, atol=1e-4)
