"""Another input size, other classes or anchors for a network: the same cfg with a few lines changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from prunedeploy.models.darknet_cfg import DarknetCfg
from prunedeploy.models.sections import Convolutional, Head
from prunedeploy_engines.errors import DarknetFormatError

NET = -1
"""The index of ``[net]`` in `DarknetCfg.with_options`."""


def largest_stride(cfg: DarknetCfg) -> int:
    """Input pixels per cell of the coarsest feature map: what the sides of the input must be multiples of."""
    strides = {NET: Fraction(1)}
    for layer in cfg.layers:
        strides[layer.index] = layer.pixels_per_cell([strides[source] for source in layer.inputs])
    return int(max(strides.values()))


def with_input_size(cfg: DarknetCfg, size: tuple[int, int]) -> DarknetCfg:
    """The network for images of another size; weights do not depend on it, anchors stay the same pixels.

    Args:
        cfg: The network.
        size: ``(height, width)`` in pixels.

    Raises:
        DarknetFormatError: A side is not a multiple of the largest stride.
    """
    height, width = size
    stride = largest_stride(cfg)
    if height % stride or width % stride:
        near = "x".join(str(max(1, round(side / stride)) * stride) for side in (width, height))
        what = f"an input of {width}x{height} (width x height) does not fit: its sides must be multiples of {stride}"
        raise DarknetFormatError(what, cfg.where, f"use {near}")
    return cfg.with_options({NET: {"width": width, "height": height}})


def with_letterbox(cfg: DarknetCfg, letterbox: bool) -> DarknetCfg:
    """The network for images that are letterboxed, or stretched, to its input; unchanged if it has them so."""
    return cfg if cfg.letterbox == letterbox else cfg.with_options({NET: {"letter_box": int(letterbox)}})


def with_classes(cfg: DarknetCfg, classes: int) -> DarknetCfg:
    """The network with heads for another number of classes.

    Raises:
        DarknetFormatError: A head does not read a convolution of its own.
    """
    changes: dict[int, dict[str, object]] = {}
    for head in cfg.heads:
        changes[head.index] = head.options_for(classes)
        convolution = head_convolution(cfg, head)
        owner, others = convolution.weights_from, head.in_channels[0] - convolution.out_channels
        for layer in cfg.all_convolutions:
            if layer.weights_from == owner:
                changes[layer.index] = {"filters": head.channels_for(classes) - others}
    return cfg.with_options(changes)


def head_convolution(cfg: DarknetCfg, head: Head) -> Convolutional:
    """The convolution that gives a head its classes: the one that it reads, or the last one that its route joins.

    Raises:
        DarknetFormatError: Something else gives them.
    """
    source = head.class_layer(cfg.layers)
    if not isinstance(source, Convolutional):
        what = f"this [{head.kind}] section reads no convolution, so its number of classes cannot be changed"
        raise DarknetFormatError(what, f"{cfg.where}:{head.line}", "put the convolution right before it")
    return source


@dataclass(frozen=True)
class AnchorSlots:
    """Which of a cfg's anchors are used, and by which head.

    Attributes:
        used: Indices of the anchors that some head has, ascending.
        masks: New ``mask`` of each head by layer index, where the sizes are shared out anew.
    """

    used: tuple[int, ...]
    masks: dict[int, tuple[int, ...]]


def anchor_slots(cfg: DarknetCfg) -> AnchorSlots:
    """How anchors, the smallest first, are shared out to heads: the finest head has the smallest.

    Where the heads' masks have as many places as there are anchors, they are numbered through from the finest head;
    otherwise, e.g. where two heads share an anchor, masks stay as they are and only the anchors that they name count.

    Raises:
        DarknetFormatError: Heads of several kinds list different numbers of anchors, or one has none.
    """
    for head in cfg.heads:
        if not head.has_anchors:
            at, fix = f"{cfg.where}:{head.line}", "leave --anchors out"
            raise DarknetFormatError(f"[{head.kind}] has no anchors", at, fix)
        if len(head.anchors_wh) != len(cfg.heads[0].anchors_wh):
            what = (
                f"lists {len(head.anchors_wh)} anchors, and layer {cfg.heads[0].index} {len(cfg.heads[0].anchors_wh)}"
            )
            at, fix = f"{cfg.where}:{head.line}", "keep the anchors of a network whose heads differ so"
            raise DarknetFormatError(f"{what}: new ones cannot be shared out to them", at, fix)
    heads = sorted(cfg.heads, key=lambda head: (-head.out_shape[1] * head.out_shape[2], -head.index))
    if sum(len(head.anchor_indices) for head in heads) != len(cfg.heads[0].anchors_wh):
        return AnchorSlots(tuple(sorted({index for head in heads for index in head.anchor_indices})), {})
    masks, first = {}, 0
    for head in heads:
        masks[head.index] = tuple(range(first, first + len(head.anchor_indices)))
        first += len(head.anchor_indices)
    return AnchorSlots(tuple(range(first)), masks)


def with_anchors(cfg: DarknetCfg, anchors_wh: Sequence[tuple[float, float]]) -> DarknetCfg:
    """The network with other anchors, shared out to its heads by `anchor_slots`.

    Args:
        cfg: The network.
        anchors_wh: Widths and heights in input pixels, the smallest first, one for each that is used.

    Raises:
        DarknetFormatError: As `anchor_slots`.
        ValueError: As many anchors as are used are needed.
    """
    slots = anchor_slots(cfg)
    if len(anchors_wh) != len(slots.used):
        raise ValueError(f"the network uses {len(slots.used)} anchors, got {len(anchors_wh)}")
    anchors = list(cfg.heads[0].anchors_wh)
    for index, anchor in zip(slots.used, anchors_wh, strict=True):
        anchors[index] = anchor
    changes: dict[int, dict[str, object]] = {
        head.index: {"anchors": head.anchors_option(anchors)} for head in cfg.heads
    }
    for index, mask in slots.masks.items():
        if "mask" in cfg.layers[index].options:  # a region has all anchors
            changes[index]["mask"] = ",".join(map(str, mask))
    return cfg.with_options(changes)
