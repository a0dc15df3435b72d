"""Networks, batches and losses for the tests of scores."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from prunedeploy.data.batches import Batch
from prunedeploy.models import Darknet, load_darknet, yolo_loss
from prunedeploy.scores.deeplift_backward import backward
from prunedeploy.scores.deeplift_rules.convolutional import weight_gradients
from prunedeploy.scores.deeplift_rules.interface import Multipliers
from prunedeploy.scores.deeplift_trace import trace
from prunedeploy.scores.interface import Scores
from prunedeploy.scores.target import DetectionTarget
from pruning.darknets import conv, network, random_network

NO_TARGETS = torch.zeros(0, 6)

# A convolution of one weight and a head of six: what comes out can be worked out by hand.
TINY = network(
    "convolutional filters=1 size=1 activation=leaky",
    "convolutional filters=6 size=1 activation=linear",
    "yolo mask=0 anchors=4,5 classes=1",
    size=1,
    channels=1,
)


def tiny_model() -> Darknet:
    """``head = (1, -2, 0.5, 0, 0, 4) * leaky(3 x - 1)``."""
    model = load_darknet(TINY)
    with torch.no_grad():
        model.conv(0).weight.fill_(3.0)
        model.conv(0).bias.fill_(-1.0)
        model.conv(1).weight.copy_(torch.tensor([1.0, -2.0, 0.5, 0.0, 0.0, 4.0]).view(6, 1, 1, 1))
        model.conv(1).bias.zero_()
    return model


def pixels(*values: float) -> Batch:
    """One image of one pixel per value."""
    return Batch(torch.tensor(values).view(-1, 1, 1, 1), NO_TARGETS, list(range(len(values))))


def sum_of_heads(heads: list[Tensor], targets: Tensor) -> Tensor:
    """Mean over images of the sum of all raw outputs."""
    return torch.stack([head.flatten(1).sum(1) for head in heads]).sum(0).mean()


def detection_loss(model: Darknet) -> Callable[[list[Tensor], Tensor], Tensor]:
    """The loss that the pipeline hands to scores."""
    return lambda heads, targets: yolo_loss(heads, targets, model.cfg).total


def mixed_network(activation: str = "leaky", seed: int = 0) -> Darknet:
    """Normalisation, shortcut, grouped route, pool, upsample and two heads, in float64."""
    cfg = network(
        conv(4, 3, activation=activation),  # 0: 4 x 8 x 8
        conv(4, 3, activation=activation),  # 1
        f"shortcut from=-2 activation={activation}",  # 2
        "maxpool size=2 stride=2",  # 3: 4 x 4 x 4
        conv(6, 3, norm=False, activation=activation),  # 4: 6 x 4 x 4
        conv(6, 1, norm=False, activation="linear"),  # 5
        "yolo mask=0 anchors=3,4,6,5 classes=1",  # 6
        "route layers=4 groups=2 group_id=1",  # 7: 3 x 4 x 4
        "upsample stride=2",  # 8: 3 x 8 x 8
        "route layers=-1,2",  # 9: 7 x 8 x 8
        conv(4, 1, activation=activation),  # 10
        conv(4, 3, groups=2, activation=activation),  # 11
        conv(6, 1, norm=False, activation="linear"),  # 12
        "yolo mask=1 anchors=3,4,6,5 classes=1",  # 13
        size=8,
    )
    return random_network(cfg, seed).double().eval()


def random_batches(counts: Iterable[int], size: int = 8, seed: int = 0) -> list[Batch]:
    """Batches of random images with two boxes each, the same images for the same total."""
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for count in counts:
        images, boxes = [], []
        for number in range(count):
            images.append(torch.rand(3, size, size, generator=generator, dtype=torch.float64))
            for _ in range(2):
                box = 0.2 + 0.5 * torch.rand(4, generator=generator, dtype=torch.float64)
                boxes.append(torch.cat([torch.tensor([number, 0.0], dtype=torch.float64), box]))
        batches.append(Batch(torch.stack(images), torch.stack(boxes), list(range(count))))
    return batches


def contributions(
    model: Darknet, images: Tensor, reference: Tensor, target: DetectionTarget, rule: str = "rescale"
) -> Scores:
    """What each weight contributes to the target of each image, with its sign.

    Args:
        model: The network.
        images: ``(B, 3, H, W)`` in [0, 1], of the model's dtype.
        reference: ``(B, 3, H, W)`` or ``(1, 3, H, W)``.
        target: What is explained.
        rule: ``rescale`` or ``reveal-cancel``.

    Returns:
        By layer index: ``(B, *weight shape)``. B times the network's size: for small networks.

    Raises:
        PruningError: As `deeplift`.
    """
    found = trace(model, images, reference, rule)
    parts: Scores = {}

    def visit(multipliers: Multipliers) -> None:
        layer = multipliers.layer
        weight, delta = found.weights[layer.index], found.deltas[layer.inputs[0]]
        parts[layer.index] = torch.stack([weight * g for g in weight_gradients(multipliers, delta, weight)])

    backward(model.cfg, found, target, visit)
    return parts


def multipliers_at_convolutions(
    model: Darknet, images: Tensor, reference: Tensor, target: DetectionTarget
) -> dict[int, Tensor]:
    """Rescale multipliers at the output of every bare convolution, before normalisation and activation.

    Args:
        model: The network.
        images: ``(B, 3, H, W)``.
        reference: ``(B, 3, H, W)`` or ``(1, 3, H, W)``.
        target: What is explained.

    Returns:
        By layer index: ``(B, filters, H', W')``.
    """
    found: dict[int, Tensor] = {}

    def visit(multipliers: Multipliers) -> None:
        conv = model.conv(multipliers.layer.index)
        at_bare = multipliers.positive
        if conv.scale is not None:
            at_bare = at_bare * conv.normalisation()[0].detach().view(1, -1, 1, 1)
        found[multipliers.layer.index] = at_bare

    backward(model.cfg, trace(model, images, reference, "rescale"), target, visit)
    return found
