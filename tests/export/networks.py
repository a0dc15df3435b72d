"""Networks and independent arithmetic for the tests of the export."""

from __future__ import annotations

import re

import numpy as np
import torch

from prunedeploy.models.darknet import Darknet, FoldedDarknet, load_darknet, run_layers
from prunedeploy.models.darknet_cfg import DarknetCfg, parse_cfg
from prunedeploy.models.decode import decode
from prunedeploy.models.sections import Convolutional, Yolo
from prunedeploy.models.sections.convolutional import conv2d

# Every kind of layer, every activation, groups, dilation, odd and unequal sides, all paddings of pooling.
ODD_CFG = """[net]
height=45
width=63
channels=3

[convolutional]
batch_normalize=1
filters=8
size=3
stride=1
pad=1
activation=mish

[convolutional]
batch_normalize=1
filters=12
size=3
stride=2
pad=1
groups=4
activation=swish

[convolutional]
filters=12
size=3
stride=1
padding=1
dilation=2
activation=logistic

[shortcut]
from=-2
activation=relu

[route]
layers=-1
groups=3
group_id=1

[convolutional]
batch_normalize=1
filters=6
size=1
stride=1
activation=linear

[route]
layers=-1,-2,1
groups=2
group_id=0

[maxpool]
size=2
stride=1

[maxpool]
size=3
stride=1

[shortcut]
from=-2
activation=mish

[maxpool]
size=2
stride=2

[convolutional]
batch_normalize=1
filters=16
size=3
stride=2
pad=1
activation=leaky

[maxpool]
size=5
stride=1

[route]
layers=-1,-2

[convolutional]
filters=16
size=1
activation=relu

[convolutional]
filters=14
size=1
activation=linear

[yolo]
mask=0,2
anchors=9,14, 20,31.5, 44,25
classes=2
num=3
scale_x_y=1.05

[maxpool]
size=7
stride=1

[convolutional]
filters=3
size=1
activation=leaky

[route]
layers=14

[upsample]
stride=3

[convolutional]
batch_normalize=1
filters=8
size=2
stride=1
activation=leaky

[convolutional]
filters=7
size=1
activation=linear

[yolo]
mask=1
anchors=9,14, 20,31.5, 44,25
classes=2
num=3
"""


def random_network(cfg: str | DarknetCfg, seed: int = 0) -> Darknet:
    """A network with random weights whose activations do not explode, and with detections."""
    parsed = cfg if isinstance(cfg, DarknetCfg) else parse_cfg(cfg)
    model = load_darknet(parsed, seed=seed)
    generator = torch.Generator().manual_seed(seed)

    def normalise_by_statistics(layer: Convolutional, x: torch.Tensor) -> torch.Tensor:
        conv = model.conv(layer.index)
        if conv.scale is not None:
            y = conv2d(x, conv.weight, None, layer)
            conv.mean.copy_(y.mean((0, 2, 3)))
            conv.variance.copy_(y.var((0, 2, 3), correction=0) + 1e-3)
            conv.scale.copy_(torch.rand(conv.scale.shape, generator=generator) + 0.5)
            conv.bias.copy_(torch.randn(conv.bias.shape, generator=generator) * 0.3)
        return conv(x)

    with torch.no_grad():
        images = torch.rand((2, *parsed.input_shape), generator=generator)
        run_layers(parsed.layers, images, normalise_by_statistics)
        convolutions = {layer.index for layer in parsed.convolutions}
        for head in (head for head in parsed.heads if head.inputs[0] in convolutions):
            conv = model.conv(head.inputs[0])
            conv.weight.mul_(3.0)
            conv.bias.view(len(head.anchor_indices), -1)[:, head.box_values :] += 3.0
    return model


def narrow(cfg: DarknetCfg) -> DarknetCfg:
    """The same layers with a quarter of the filters at 96 x 160 pixels, so that a test takes no minute."""
    smaller = re.sub(r"(?m)^height=\d+", "height=96", re.sub(r"(?m)^width=\d+", "width=160", cfg.text))
    heads = {head.inputs[0] for head in cfg.heads}
    return parse_cfg(smaller).with_filters(
        {conv.index: conv.out_channels // 4 for conv in cfg.convolutions if conv.index not in heads}
    )


def random_images(cfg: DarknetCfg, number: int, seed: int = 0) -> np.ndarray:
    """``(number, 3, H, W)`` float32 in [0, 1]."""
    return np.random.default_rng(seed).random((number, *cfg.input_shape), dtype=np.float32)


def torch_outputs(model: Darknet, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Boxes and scores of the unfolded network in evaluation mode."""
    with torch.no_grad():
        boxes, scores = decode(model.eval()(torch.from_numpy(images)), model)
    return boxes.numpy(), scores.numpy()


def folded(model: Darknet) -> FoldedDarknet:
    """The network as the export takes it."""
    return FoldedDarknet(model)


def decode_in_a_loop(
    heads: list[np.ndarray], layers: list[Yolo], input_size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Decode what C Darknet gives, one prediction at a time, in float64.

    Args:
        heads: One image's heads ``(A, 5 + C, H, W)``, logistic already applied to all but width and height.
        layers: Their yolo layers.
        input_size: ``(height, width)``.

    Returns:
        Boxes ``(M, 4)`` xyxy in input pixels, scores ``(M, C)``.
    """
    boxes, scores = [], []
    for head, layer in zip(heads, layers, strict=True):
        _, _, height, width = head.shape
        for anchor, (anchor_w, anchor_h) in enumerate(layer.head_anchors_wh):
            for row in range(height):
                for column in range(width):
                    x, y, w, h, objectness, *classes = head[anchor, :, row, column].astype(np.float64)
                    centre_x = (column + x) / width * input_size[1]
                    centre_y = (row + y) / height * input_size[0]
                    half_w, half_h = anchor_w * np.exp(w) / 2, anchor_h * np.exp(h) / 2
                    boxes.append((centre_x - half_w, centre_y - half_h, centre_x + half_w, centre_y + half_h))
                    scores.append([objectness * probability for probability in classes])
    return np.array(boxes), np.array(scores)
