"""A convolutional layer with the parameters of its own that a training changes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunedeploy.models.sections.convolutional import Convolutional, conv2d

# Darknet normalises by sqrt(var) + 1e-6 (normalize_cpu in blas.c), PyTorch by sqrt(var + eps).
DARKNET_BN_EPS = 1e-6
BN_MOMENTUM = 0.03


class DarknetConv(nn.Module):
    """One convolutional layer: convolution, Darknet's batch normalisation, activation.

    The parameters carry Darknet's names and values, the variance without an epsilon, so that
    they are written back bit for bit.

    Args:
        layer: The layer of the cfg.

    Attributes:
        weight: ``(filters, in / groups, size, size)``.
        bias: ``(filters,)``; with batch normalisation its shift.
        scale: ``(filters,)``, or None without batch normalisation.
        mean: ``(filters,)``, running; only with batch normalisation. So is ``variance``, without any epsilon.
    """

    def __init__(self, layer: Convolutional) -> None:
        super().__init__()
        self.layer = layer
        self.momentum = BN_MOMENTUM
        self.weight = nn.Parameter(torch.empty(layer.weight_shape))
        nn.init.kaiming_normal_(self.weight, a=0.1, nonlinearity="leaky_relu")
        self.bias = nn.Parameter(torch.zeros(layer.out_channels))
        self.scale: nn.Parameter | None = None
        self.mean: Tensor
        self.variance: Tensor
        if layer.batch_normalize:
            self.scale = nn.Parameter(torch.ones(layer.out_channels))
            self.register_buffer("mean", torch.zeros(layer.out_channels))
            self.register_buffer("variance", torch.ones(layer.out_channels))

    def normalisation(self) -> tuple[Tensor, Tensor]:
        """Factor and shift, each ``(filters,)``, of batch normalisation in evaluation."""
        assert self.scale is not None
        factor = self.scale / (self.variance.sqrt() + DARKNET_BN_EPS)
        return factor, self.bias - self.mean * factor

    def folded(self, weight: Tensor | None = None, channel_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Weight and bias of the one convolution that equals convolution + normalisation in evaluation.

        Args:
            weight: As `forward`.
            channel_mask: As `forward`.
        """
        folded: Tensor = self.weight if weight is None else weight
        bias: Tensor = self.bias
        if self.scale is not None:
            factor, bias = self.normalisation()
            folded = folded * factor.view(-1, 1, 1, 1)
        if channel_mask is not None:
            folded, bias = folded * channel_mask.view(-1, 1, 1, 1), bias * channel_mask
        return folded, bias

    def forward(
        self,
        x: Tensor,
        weight: Tensor | None = None,
        channel_mask: Tensor | None = None,
        layer: Convolutional | None = None,
    ) -> Tensor:
        """Compute the layer.

        Args:
            x: ``(B, in, H, W)``.
            weight: Used in the place of the layer's own, e.g. masked; same shape.
            channel_mask: ``(filters,)``, multiplied onto the output before the activation.
            layer: One that uses these weights, to be computed in the place of this module's own.

        Returns:
            ``(B, filters, H', W')``.
        """
        layer = self.layer if layer is None else layer
        if self.scale is None or not self.training:
            y = conv2d(x, *self.folded(weight, channel_mask), layer)
            return layer.finish(y, inplace=True)
        y = conv2d(x, self.weight if weight is None else weight, None, layer)
        y = F.batch_norm(
            y, self.mean, self.variance, self.scale, self.bias, training=True, momentum=self.momentum, eps=1e-5
        )
        if channel_mask is not None:
            y = y * channel_mask.view(1, -1, 1, 1).to(y.dtype)
        return layer.finish(y)
