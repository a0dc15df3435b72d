"""What attacks, and everything that measures a network, ask of one."""

from __future__ import annotations

from itertools import chain

import torch
from torch import Tensor, nn

from prunedeploy.models.darknet_cfg import DarknetCfg


class Detector(nn.Module):
    """A network with raw heads: ``detector(images (B, C, H, W) in [0, 1]) -> heads``, each ``(B, A * V, H, W)``.

    Attributes:
        cfg: Says what its heads mean.
        dtype: Data type that it computes in.
    """

    cfg: DarknetCfg
    dtype: torch.dtype = torch.float32

    @property
    def device(self) -> torch.device:
        """Where its values are."""
        own: Tensor = next(chain(self.parameters(), self.buffers()))
        return own.device

    def for_inference(self, dtype: torch.dtype = torch.float32) -> Detector:
        """What computes the same in evaluation mode with constant weights: a backward pass reaches the images only.

        Args:
            dtype: Data type of the computation.

        Returns:
            The network itself if it is such a one already.

        Raises:
            ValueError: It is, and computes in another type.
        """
        if dtype != self.dtype:
            raise ValueError(f"computes in {self.dtype}, not in {dtype}")
        return self
