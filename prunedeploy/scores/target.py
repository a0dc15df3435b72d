"""What an attribution explains: the sum of chosen logits of a detector's heads.

Objectness times class probability would not do: DeepLIFT's rules have no product. And a head that is left out
would leave the layers that only it reads without any score, so every head has a part. Of a head that reads
probabilities (``new_coords``) those take the place of logits.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from prunedeploy.models.decode import HasCfg


@dataclass(frozen=True, eq=False)
class DetectionTarget:
    """A sum of logits that were chosen once, from the clean image.

    Attributes:
        weights: Per head ``(B, A * V, H, W)``: 1 where a logit is part of the sum, 0 elsewhere.
    """

    weights: tuple[Tensor, ...]

    def __call__(self, heads: list[Tensor]) -> Tensor:
        """The target of each image.

        Args:
            heads: Raw heads in cfg order, each ``(B, A * V, H, W)``; or B = 1, the same for all images.

        Returns:
            ``(B,)``.
        """
        parts = [(weight * head).flatten(1).sum(1) for weight, head in zip(self.weights, heads, strict=True)]
        return torch.stack(parts).sum(0)


@torch.no_grad()
def choose_target(model: HasCfg, heads: list[Tensor], predictions: int) -> DetectionTarget:
    """Choose the predictions that the network is surest of, the same number in every head.

    Of each chosen prediction the objectness logit, where there is one, and the logit of its likeliest class are part of
    the target.

    Args:
        model: Gives the heads' layout.
        heads: Raw heads of the clean images in cfg order, each ``(B, A * V, H, W)``.
        predictions: Per head and image, at least 1; all, if a head has fewer.

    Raises:
        ValueError: ``predictions`` is below 1, or the heads do not fit the cfg.
    """
    if predictions < 1:
        raise ValueError(f"predictions must be at least 1, got {predictions}")
    weights = []
    for raw, head in zip(heads, model.cfg.heads, strict=True):
        split = head.split(raw)  # (B, A, H, W, V)
        best_class = head.class_logits(raw).argmax(-1)  # (B, N)
        score = head.scores(raw).gather(2, best_class[..., None])[..., 0]
        count = min(predictions, score[0].numel())
        chosen = score.topk(count, dim=1).indices  # (B, count)
        weight = torch.zeros(split.shape, dtype=raw.dtype, device=raw.device).flatten(1, 3)  # (B, N, V)
        image = torch.arange(len(raw), device=raw.device)[:, None]
        if head.has_objectness:
            weight[image, chosen, head.box_values] = 1.0
        weight[image, chosen, head.class_start + best_class.gather(1, chosen)] = 1.0
        # (B, N, V) -> (B, A, H, W, V) -> (B, A, V, H, W) -> the head's own layout
        weights.append(weight.view(split.shape).permute(0, 1, 4, 2, 3).reshape(raw.shape))
    return DetectionTarget(tuple(weights))
