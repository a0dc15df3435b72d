"""Structured pruning for good: the smaller network in which dead filters do not exist."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from prunedeploy.models.darknet import Darknet
from prunedeploy.models.darknet_cfg import DarknetCfg
from prunedeploy.pruning.masks import connected_kernels, live_channels


def shrink_cfg(cfg: DarknetCfg, live: Mapping[int, Tensor]) -> DarknetCfg:
    """The cfg of the smaller network; it differs in ``filters=`` lines, ``groups=`` and the like only.

    Args:
        cfg: The unpruned network.
        live: What `live_channels` returns.

    Raises:
        ValueError: A grouped convolution or a sliced route would be left with parts of different sizes; or a
            convolution would lose all filters.
    """
    return cfg.with_options(
        {
            layer.index: layer.smaller([live[source] for source in layer.inputs], live[layer.index])
            for layer in cfg.layers
        }
    )


def shrink(model: Darknet, keep: Mapping[int, Tensor]) -> Darknet:
    """Build the smaller network with the kept parameters.

    In evaluation mode it computes what `apply_structured` computes with the same ``keep``.

    Args:
        model: The network, masked or not; not modified.
        keep: By layer index: ``(filters,)`` bool, True = lives. Convolutions not named keep all.

    Returns:
        New network on the same device and of the same type, with ``model``'s header and training mode.

    Raises:
        ValueError: As `live_channels` and `shrink_cfg`.
    """
    return without_dead(model, live_channels(model.cfg, keep))


def without_dead(model: Darknet, live: Mapping[int, Tensor]) -> Darknet:
    """`shrink` for those who have followed the living filters already.

    Args:
        model: The network, masked or not; not modified.
        live: What `live_channels` returns.

    Raises:
        ValueError: As `shrink_cfg`.
    """
    cfg = shrink_cfg(model.cfg, live)
    weights = {layer.index: model.conv(layer.index).weight.detach() for layer in model.cfg.convolutions}
    shrunk = shrink_weights(model.cfg, live, weights)
    with torch.random.fork_rng(devices=[]):
        small = Darknet(cfg, model.header).to(next(model.parameters()))
    with torch.no_grad():
        for layer in model.cfg.convolutions:
            source = model.conv(layer.index)
            filters = live[layer.index].to(source.weight.device)
            state = {
                name: shrunk[layer.index] if name == "weight" else value[filters]
                for name, value in source.state_dict().items()
            }
            small.conv(layer.index).load_state_dict(state)
        kept = small.layer_weights()
        for index, own in model.layer_weights().items():
            for name, value in own.items():
                axis = model.cfg.layers[index].weights_in_file()[name].channel_axis
                channels = live[index].nonzero()[:, 0].to(value.device)
                kept[index][name].copy_(value if axis is None else value.index_select(axis, channels))
    return small.train(model.training)


def shrink_weights(cfg: DarknetCfg, live: Mapping[int, Tensor], values: Mapping[int, Tensor]) -> dict[int, Tensor]:
    """Cut what is weight-shaped down to the shapes of the smaller network.

    Args:
        cfg: The unpruned network.
        live: What `live_channels` returns.
        values: By layer index: weights, scores or masks, in the shapes of ``cfg``.

    Returns:
        By layer index: ``(kept filters, kept input channels / groups, k, k)``.
    """
    kernels = connected_kernels(cfg, live)
    shrunk = {}
    for index, value in values.items():
        connected = kernels[index].to(value.device)
        filters = int(connected.any(1).sum())
        # (filters, in / groups, k, k)[(filters, in / groups) bool] -> (kept filters * kept inputs, k, k)
        shrunk[index] = value[connected].view(filters, -1, *value.shape[2:])
    return shrunk
