"""Torch-Pruning's cut of the same network, for comparison only."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from torch import Tensor, nn

from prunedeploy.models import Darknet, FoldedDarknet
from prunedeploy.models.darknet import run_layers
from prunedeploy.models.darknet_conv import DARKNET_BN_EPS
from prunedeploy.models.sections import Convolutional
from prunedeploy.models.sections.activations import activate
from prunedeploy.pruning.coupling import prunable_convolutions
from prunedeploy_export import onnx_from_torch


class PlainDarknet(nn.Module):
    """The same network in ordinary ``Conv2d`` and ``BatchNorm2d`` modules, which Torch-Pruning understands."""

    def __init__(self, model: Darknet) -> None:
        super().__init__()
        self.layers = model.cfg.layers
        self.blocks = nn.ModuleDict()
        for layer in model.cfg.convolutions:
            own = model.conv(layer.index)
            conv = nn.Conv2d(
                layer.in_channels[0], layer.out_channels, layer.size, layer.stride, layer.padding,
                bias=not layer.batch_normalize,
            )  # fmt: skip
            conv.weight.data.copy_(own.weight.data)
            block = nn.ModuleList([conv])
            if own.scale is not None:
                norm = nn.BatchNorm2d(layer.out_channels, eps=DARKNET_BN_EPS)
                norm.weight.data.copy_(own.scale.data)
                norm.bias.data.copy_(own.bias.data)
                norm.running_mean.copy_(own.mean)
                norm.running_var.copy_(own.variance)
                block.append(norm)
            else:
                assert conv.bias is not None
                conv.bias.data.copy_(own.bias.data)
            self.blocks[str(layer.index)] = block

    def _convolve(self, layer: Convolutional, x: Tensor) -> Tensor:
        for module in self.blocks[str(layer.index)]:
            x = module(x)
        return activate(x, layer.activation)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Raw heads."""
        return run_layers(self.layers, images, self._convolve)


def torch_pruning_cut(dense: Darknet, ratio: float, path: Path) -> tuple[int, float]:
    """Cut with group magnitude importance to the same share of prunable weights, and export.

    Returns:
        MACs of the result and seconds of the cut.
    """
    import torch_pruning as tp

    prunable = {str(layer.index) for layer in prunable_convolutions(dense.cfg)}
    example = torch.zeros(1, 3, *dense.cfg.input_size)

    def weights(network: PlainDarknet) -> int:
        return sum(network.blocks[index][0].weight.numel() for index in prunable)

    best: tuple[float, PlainDarknet, float] | None = None
    low, high = 0.0, 1.0
    # The fraction of channels that gives the ratio of weights, by bisection; the last cut's time is reported.
    for _ in range(8):
        share = (low + high) / 2
        network = PlainDarknet(dense).eval()
        heads = [network.blocks[index][0] for index in network.blocks if index not in prunable]
        started = time.perf_counter()
        pruner = tp.pruner.MagnitudePruner(
            network, example, importance=tp.importance.GroupMagnitudeImportance(p=2), pruning_ratio=share,
            ignored_layers=heads, round_to=8,
        )  # fmt: skip
        pruner.step()
        seconds = time.perf_counter() - started
        achieved = 1 - weights(network) / weights(PlainDarknet(dense))
        if best is None or abs(achieved - ratio) < abs(best[0] - ratio):
            best = achieved, network, seconds
        low, high = (share, high) if achieved < ratio else (low, share)
    assert best is not None
    achieved, network, seconds = best
    print(f"Torch-Pruning asked for {ratio}, removed {achieved:.4f} of the prunable weights")
    # The same widths through our exporter, so that both cuts are measured as the same kind of graph, decoding included.
    cfg = dense.cfg.with_filters({int(i): block[0].out_channels for i, block in network.blocks.items()})
    folded = {}
    for index, block in network.blocks.items():
        conv = block[0]
        if len(block) == 2:
            norm = block[1]
            factor = norm.weight / (norm.running_var.sqrt() + norm.eps)
            folded[int(index)] = (
                conv.weight * factor.view(-1, 1, 1, 1),
                norm.bias - norm.running_mean * factor,
            )
        else:
            folded[int(index)] = conv.weight, conv.bias
    detached = {index: (weight.detach(), bias.detach()) for index, (weight, bias) in folded.items()}
    onnx_from_torch(FoldedDarknet.from_folded(cfg, detached), path)
    return cfg.macs, seconds
