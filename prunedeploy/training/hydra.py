"""HYDRA's third step: optimise importance scores against the robust loss while the weights stay frozen.

The forward pass uses the top-k scores only; the backward pass hands the gradient straight through the
selection to all scores. For structured pruning the selection is by coupled group of filters and multiplies
the output of convolution and normalisation, which is exactly what the shrunk network will lack. For n:m
pruning it is by block of input channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from prunedeploy.attacks import Pgd, ThreatModel
from prunedeploy.attacks.pgd import DTYPES
from prunedeploy.data.loader import Batch
from prunedeploy.models.darknet import Darknet, FoldedDarknet, check_images
from prunedeploy.models.loss import yolo_loss
from prunedeploy.pruning.coupling import coupling_groups
from prunedeploy.pruning.importance import straight_through_channel_masks, straight_through_weight_mask
from prunedeploy.pruning.semi_structured import NmPattern, patterned_convolutions, straight_through_nm_mask
from prunedeploy.training.adversarial import loss_terms
from prunedeploy.training.distributed import shard
from prunedeploy.training.loop import Objective
from prunedeploy.training.optimisation import LoopSettings


class ScoredDarknet(nn.Module):
    """A frozen network whose weights or filters are switched on by trainable scores.

    Args:
        model: The network, used in evaluation mode; not modified.
        scores: By layer index, weight-shaped.
        unit_counts: Structured: living units per coupling group, ``StructuredPlan.counts``.
        weight_counts: Unstructured: living weights by layer index.
        pattern: n:m: how many of how many weights of each block live.

    Attributes:
        scores: The trainable scores by ``str(layer index)``.

    Raises:
        ValueError: Not exactly one of the three is given.

    Reference: Sehwag et al., HYDRA, 2020, section 4.
    """

    def __init__(
        self,
        model: Darknet,
        scores: Mapping[int, Tensor],
        *,
        unit_counts: Sequence[int] | None = None,
        weight_counts: Mapping[int, int] | None = None,
        pattern: NmPattern | None = None,
    ) -> None:
        super().__init__()
        if sum(given is not None for given in (unit_counts, weight_counts, pattern)) != 1:
            raise ValueError("give one of unit_counts (structured), weight_counts (unstructured) and pattern (n:m)")
        self.cfg = model.cfg
        self.unit_counts = unit_counts
        self.weight_counts = weight_counts
        self.pattern = pattern
        self._groups = coupling_groups(model.cfg)
        frozen = FoldedDarknet(model)
        self._folded = frozen.folded
        self.scores = nn.ParameterDict({str(index): nn.Parameter(value.clone()) for index, value in scores.items()})

    def score_tensors(self) -> dict[int, Tensor]:
        """The scores by layer index, detached."""
        return {int(index): value.detach().clone() for index, value in self.scores.items()}

    def masked(self) -> dict[int, tuple[Tensor, Tensor]]:
        """Folded weight and bias of every layer under the current selection; gradients reach the scores."""
        scores = {int(index): value for index, value in self.scores.items()}
        masked = dict(self._folded)
        if self.unit_counts is not None:
            for index, mask in straight_through_channel_masks(scores, self.unit_counts, self._groups).items():
                weight, bias = self._folded[index]
                masked[index] = weight * mask.view(-1, 1, 1, 1), bias * mask
        elif self.pattern is not None:
            for layer in patterned_convolutions(self.cfg, self.pattern):
                weight, bias = self._folded[layer.index]
                masked[layer.index] = weight * straight_through_nm_mask(scores[layer.index], self.pattern), bias
        else:
            assert self.weight_counts is not None
            for index, count in self.weight_counts.items():
                weight, bias = self._folded[index]
                masked[index] = weight * straight_through_weight_mask(scores[index], count), bias
        return masked

    def network(self) -> FoldedDarknet:
        """The network under the current selection; gradients reach images and scores."""
        return FoldedDarknet.from_folded(self.cfg, self.masked())

    def forward(self, images: Tensor) -> list[Tensor]:
        """Compute the raw heads under the current selection; see `Darknet.forward`."""
        check_images(images, self.cfg)
        return self.network()(images)


def score_objective(
    scored: ScoredDarknet,
    model: Darknet,
    settings: LoopSettings,
    threat_model: ThreatModel,
    seed: int,
    device: torch.device,
) -> Objective:
    """The objective of score optimisation for `train`: the robust loss of the selected subnetwork.

    Args:
        scored: What is optimised.
        model: The network it was made from.
        settings: Precision of the inner attack and of the passes.
        threat_model: The inner attack, on the subnetwork.
        seed: Of random starts.
        device: Where the batches go.

    Reference: Sehwag et al., HYDRA, 2020, equation 3.
    """
    dtype = DTYPES[settings.precision]

    def objective(batch: Batch, step: int) -> dict[str, Tensor]:
        batch = shard(batch)
        targets = batch.targets.to(device)
        network = scored.network()
        frozen = {
            index: (weight.detach().to(dtype), bias.detach().to(dtype))
            for index, (weight, bias) in network.folded.items()
        }
        attacked = FoldedDarknet.from_folded(scored.cfg, frozen)
        attack = Pgd(model, attacked, threat_model, settings.precision, seed)
        images = attack(batch.images.to(device), targets, batch.image_ids, step)
        with torch.autocast(device.type, torch.bfloat16, enabled=settings.precision == "bf16"):
            heads = network(images)
        return loss_terms(yolo_loss(heads, targets, scored.cfg))

    return objective
