"""Pruning as zeros: which weights a choice of filters keeps, and networks with the rest set to zero."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor

from prunedeploy.models.darknet import Darknet
from prunedeploy.models.darknet_cfg import DarknetCfg
from prunedeploy.models.sections.convolutional import spread_by_group
from prunedeploy.models.sections.layer import live_outputs
from prunedeploy.pruning.coupling import IMAGE


def live_channels(cfg: DarknetCfg, keep: Mapping[int, Tensor]) -> dict[int, Tensor]:
    """Follow living filters through the network.

    Args:
        cfg: The unpruned network.
        keep: By layer index: ``(filters,)`` bool, True = lives. Convolutions not named keep all.

    Returns:
        For every layer, and -1 for the image: ``(channels,)`` bool, which channels of its output live.

    Raises:
        ValueError: A mask has a wrong shape, type or layer, or filters that a layer joins differ in fate.
    """
    if unknown := set(keep) - {layer.index for layer in cfg.convolutions}:
        raise ValueError(f"keep names layers that are not convolutions: {sorted(unknown)}")
    live: dict[int, Tensor] = {IMAGE: torch.ones(cfg.input_shape[0], dtype=torch.bool)}
    for layer in cfg.layers:
        inputs = [live[source] for source in layer.inputs]
        if layer.sources().terms:
            channels = live_outputs(layer, inputs)
        elif (owner := layer.sources().filters_of) is not None:
            channels = live[owner]
        else:
            channels = keep.get(layer.index, torch.ones(layer.out_channels, dtype=torch.bool)).cpu()
            if channels.dtype != torch.bool or tuple(channels.shape) != (layer.out_channels,):
                expected, got = f"({layer.out_channels},)", f"{channels.dtype} {tuple(channels.shape)}"
                raise ValueError(f"layer {layer.index}: expected a bool mask {expected}, got {got}")
        live[layer.index] = channels
    return live


def connected_kernels(cfg: DarknetCfg, live: Mapping[int, Tensor]) -> dict[int, Tensor]:
    """Which kernels the shrunk network still has: those whose filter and input channel live.

    Args:
        cfg: The unpruned network.
        live: What `live_channels` returns.

    Returns:
        For every convolution ``(filters, input channels / groups)`` bool.
    """
    return {
        layer.index: live[layer.index][:, None] & spread_by_group(layer, live[layer.inputs[0]])
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
                expected, got = tuple(weight.shape), f"{mask.dtype} {tuple(mask.shape)}"
                raise ValueError(f"layer {index}: expected a bool mask {expected}, got {got}")
            weight.masked_fill_(~mask.to(weight.device), 0.0)
    return masked
