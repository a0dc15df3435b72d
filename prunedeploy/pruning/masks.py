"""Pruning as zeros: which weights a choice of filters keeps, and networks with the rest set to zero."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor

from prunedeploy.models.darknet import Darknet
from prunedeploy.models.darknet_cfg import Convolutional, DarknetCfg, Route, Shortcut
from prunedeploy.pruning.coupling import IMAGE


def live_channels(cfg: DarknetCfg, keep: Mapping[int, Tensor]) -> dict[int, Tensor]:
    """Follow living filters through the network.

    Args:
        cfg: The unpruned network.
        keep: By layer index: ``(filters,)`` bool, True = lives. Convolutions not named keep all.

    Returns:
        For every layer, and -1 for the image: ``(channels,)`` bool, which channels of its output live.

    Raises:
        ValueError: A mask has a wrong shape, type or layer, or filters that a shortcut adds differ in fate.
    """
    convolutions = {layer.index for layer in cfg.convolutions}
    if unknown := set(keep) - convolutions:
        raise ValueError(f"keep names layers that are not convolutions: {sorted(unknown)}")
    live: dict[int, Tensor] = {IMAGE: torch.ones(cfg.input_shape[0], dtype=torch.bool)}
    for layer in cfg.layers:
        inputs = [live[source] for source in layer.inputs]
        if isinstance(layer, Convolutional):
            mask = keep.get(layer.index)
            if mask is None:
                mask = torch.ones(layer.out_channels, dtype=torch.bool)
            if mask.dtype != torch.bool or tuple(mask.shape) != (layer.out_channels,):
                raise ValueError(
                    f"layer {layer.index}: expected a bool mask ({layer.out_channels},), "
                    f"got {mask.dtype} {tuple(mask.shape)}"
                )
            live[layer.index] = mask.cpu()
        elif isinstance(layer, Route):
            live[layer.index] = torch.cat([x.chunk(layer.groups)[layer.group_id] for x in inputs])
        elif isinstance(layer, Shortcut):
            if not torch.equal(inputs[0], inputs[1]):
                raise ValueError(f"layer {layer.index}: the shortcut adds channels and only one side lives")
            live[layer.index] = inputs[0]
        else:
            live[layer.index] = inputs[0]
    return live


def live_inputs(layer: Convolutional, live: Mapping[int, Tensor]) -> Tensor:
    """Which of the input channels that each filter reads live.

    Args:
        layer: The convolution.
        live: What `live_channels` returns.

    Returns:
        ``(filters, input channels / groups)`` bool.
    """
    filters, per_group = layer.weight_shape[:2]
    by_group = live[layer.inputs[0]].view(layer.groups, per_group)
    return by_group.repeat_interleave(filters // layer.groups, dim=0)


def connected_kernels(cfg: DarknetCfg, live: Mapping[int, Tensor]) -> dict[int, Tensor]:
    """Which kernels the shrunk network still has: those whose filter and input channel live.

    Args:
        cfg: The unpruned network.
        live: What `live_channels` returns.

    Returns:
        For every convolution ``(filters, input channels / groups)`` bool.
    """
    return {layer.index: live[layer.index][:, None] & live_inputs(layer, live) for layer in cfg.convolutions}


def weight_keep_masks(cfg: DarknetCfg, keep: Mapping[int, Tensor]) -> dict[int, Tensor]:
    """The keep_mask of structured pruning: a weight stays if its filter and its input channel live.

    Args:
        cfg: The unpruned network.
        keep: By layer index: ``(filters,)`` bool.

    Returns:
        For every convolution: bool, weight-shaped, True = keep.

    Raises:
        ValueError: As `live_channels`.
    """
    connected = connected_kernels(cfg, live_channels(cfg, keep))
    return {
        layer.index: connected[layer.index][:, :, None, None].expand(layer.weight_shape).contiguous()
        for layer in cfg.convolutions
    }


def apply_structured(model: Darknet, keep: Mapping[int, Tensor]) -> Darknet:
    """A copy in which dead filters give zero whatever their input.

    Beside the weights a dead filter's normalisation scale and shift (without normalisation: its bias)
    are zero, or its constant would live on behind the activation.

    Args:
        model: The unpruned network; not modified.
        keep: By layer index: ``(filters,)`` bool.

    Raises:
        ValueError: As `live_channels`.
    """
    return silence_dead(model, live_channels(model.cfg, keep))


def silence_dead(model: Darknet, live: Mapping[int, Tensor]) -> Darknet:
    """`apply_structured` for those who have followed the living filters already.

    Args:
        model: The unpruned network; not modified.
        live: What `live_channels` returns.
    """
    connected = connected_kernels(model.cfg, live)
    masked = copy.deepcopy(model)
    with torch.no_grad():
        for layer in masked.cfg.convolutions:
            conv = masked.conv(layer.index)
            # (filters, in / groups) -> (filters, in / groups, 1, 1)
            conv.weight.masked_fill_(~connected[layer.index][..., None, None].to(conv.weight.device), 0.0)
            dead = ~live[layer.index].to(conv.bias.device)
            conv.bias.masked_fill_(dead, 0.0)
            if conv.scale is not None:
                conv.scale.masked_fill_(dead, 0.0)
    return masked


def apply_unstructured(model: Darknet, keep_masks: Mapping[int, Tensor]) -> Darknet:
    """A copy in which single weights are zero.

    Args:
        model: The unpruned network; not modified.
        keep_masks: By layer index: bool, weight-shaped, True = keep. Convolutions not named keep all.

    Raises:
        ValueError: A mask has another shape or type than the weight (both shapes printed).
    """
    masked = copy.deepcopy(model)
    with torch.no_grad():
        for index, mask in keep_masks.items():
            weight = masked.conv(index).weight
            if mask.dtype != torch.bool or mask.shape != weight.shape:
                raise ValueError(
                    f"layer {index}: expected a bool mask {tuple(weight.shape)}, got {mask.dtype} {tuple(mask.shape)}"
                )
            weight.masked_fill_(~mask.to(weight.device), 0.0)
    return masked
