"""A max pooling: the output's difference goes to one input of each window."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Size, Tensor

from prunedeploy.models.sections import Maxpool
from prunedeploy.models.sections.maxpool import pool_border
from prunedeploy.scores.deeplift_rules.blur import before_blur
from prunedeploy.scores.deeplift_rules.interface import LayerRule, Trace, Visit


@dataclass(frozen=True, eq=False)
class PoolShares:
    """To which input a maxpool's output difference goes, and how much of it per input difference.

    Attributes:
        source: ``(B, C, h * w)`` int64, position in the padded map.
        share: ``(B, C, h * w)`` in [0, 1].
        pooled: ``(C, h, w)`` of what is pooled, before a blur.
        size: Height and width of the map.
        padded_size: Those of the padded map.
        offset: Rows above and columns left of the map in it.
    """

    source: Tensor
    share: Tensor
    pooled: Size
    size: tuple[int, int]
    padded_size: tuple[int, int]
    offset: int


class MaxpoolRule(LayerRule[Maxpool]):
    """Says where the output's difference comes from.

    A larger maximum comes from the input's largest value, a smaller one from the reference's; there the input
    differs at least as much as the output, so a share never exceeds 1. Overlapping windows add up.
    """

    def forward(self, found: Trace, layer: Maxpool, inputs: list[Tensor], rule: str) -> Tensor:
        """See `LayerRule.forward`."""
        x, split = inputs[0], found.images
        if layer.depth:
            return self._over_channels(found, layer, x)
        border = pool_border(layer, x.shape[-2:])
        padded = F.pad(x, border, value=float("-inf"))
        pooled, source = F.max_pool2d(padded, layer.size, layer.strides, return_indices=True)
        y, y0 = pooled[:split].flatten(2), pooled[split:].flatten(2)
        source, source0 = source[:split].flatten(2), source[split:].flatten(2).expand(split, -1, -1)
        chosen = torch.where(y >= y0, source, source0)
        delta = F.pad(x[:split] - x[split:], border).flatten(2).gather(2, chosen)
        same = (source == source0).to(x.dtype)
        share = torch.where(delta == 0, same, (y - y0) / delta)
        found.kept[layer.index] = PoolShares(
            chosen, share, pooled.shape[1:], (x.shape[-2], x.shape[-1]), (padded.shape[-2], padded.shape[-1]), border[0]
        )
        return pooled if layer.blur is None else layer.blur.run(pooled)

    def _over_channels(self, found: Trace, layer: Maxpool, x: Tensor) -> Tensor:
        """The same where the window is a channel of every turn."""
        by_turns, split = layer.by_turns(x), found.images  # (B + references, turns, C, H, W)
        pooled, source = by_turns.max(1)
        y, y0 = pooled[:split], pooled[split:]
        source, source0 = source[:split], source[split:].expand(split, -1, -1, -1)
        chosen = torch.where(y >= y0, source, source0)[:, None]
        # What is missing of the last turn is -inf on both sides and never chosen.
        delta = (by_turns[:split] - by_turns[split:]).gather(1, chosen)[:, 0]
        share = torch.where(delta == 0, (source == source0).to(x.dtype), (y - y0) / delta)
        found.kept[layer.index] = chosen, share
        return pooled

    def backward(self, found: Trace, layer: Maxpool, output: Tensor, visit: Visit) -> Iterable[tuple[int, Tensor]]:
        """See `LayerRule.backward`."""
        if layer.depth:
            chosen, share = found.kept.pop(layer.index)
            turns = -(-layer.in_channels[0] // layer.out_channels)
            at_turns = output.new_zeros(len(output), turns, *output.shape[1:])
            at_turns.scatter_(1, chosen, (output * share)[:, None])
            return [(layer.inputs[0], at_turns.flatten(1, 2)[:, : layer.in_channels[0]])]
        pool: PoolShares = found.kept.pop(layer.index)
        if layer.blur is not None:
            output = before_blur(layer.blur, output, pool.pooled)
        batch, channels = output.shape[:2]
        rows, columns = pool.padded_size
        padded = output.new_zeros(batch, channels, rows * columns)
        padded.scatter_add_(2, pool.source, output.reshape(batch, channels, -1) * pool.share)
        top = pool.offset
        inside = padded.view(batch, channels, rows, columns)[:, :, top : top + pool.size[0], top : top + pool.size[1]]
        return [(layer.inputs[0], inside)]
