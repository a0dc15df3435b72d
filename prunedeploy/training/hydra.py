"""HYDRA's third step: optimise importance scores against the robust loss while the weights stay frozen.

The forward pass uses the highest scores only; the backward pass hands the gradient straight through the selection
to all scores. What is selected depends on the granularity (`prunedeploy.pruning.granularity`): weights and kernels
multiply the weight; filters, by coupled group, multiply the output of convolution and normalisation, which is
exactly what the shrunk network will lack. How much of every layer lives is fixed before the first step.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from prunedeploy.attacks import Pgd, ThreatModel
from prunedeploy.attacks.pgd import DTYPES
from prunedeploy.data.loader import Batch
from prunedeploy.models.darknet import Darknet, FoldedDarknet, check_images
from prunedeploy.models.loss import yolo_loss
from prunedeploy.pruning.cut import Selection
from prunedeploy.scores.interface import Scores
from prunedeploy.scores.normalise import normalised_scores
from prunedeploy.training.adversarial import loss_terms
from prunedeploy.training.distributed import shard
from prunedeploy.training.loop import Objective
from prunedeploy.training.optimisation import LoopSettings


def starting_scores(scores: Scores) -> Scores:
    """Any scores as score optimisation starts from them: on HYDRA's scale, and none of them dead.

    Each layer becomes ``sqrt(6 / fan_in) * s / max|s|``, so that one learning rate suits every score; scores that are
    on this scale already, as HYDRA's own, stay as they are. Exact zeros become the smallest positive number: the
    gradient reaches a score through its absolute value, whose slope at 0 is 0, so they could never grow.

    Args:
        scores: By layer index, weight-shaped float.

    Returns:
        New tensors.

    Reference: Sehwag et al., HYDRA, 2020, equation 5, with the score in the place of the weight.
    """
    starting = {}
    for index, scaled in normalised_scores(scores, "scaled").items():
        # Scaling once more would only round: the order of scores that are nearly equal must not change.
        close = torch.allclose(scaled, scores[index], rtol=1e-5, atol=0.0)
        value = scores[index].clone() if close else scaled
        starting[index] = value.masked_fill_(value == 0, torch.finfo(value.dtype).tiny)
    return starting


class ScoredDarknet(nn.Module):
    """A frozen network whose weights, kernels or filters are switched on by trainable scores.

    Args:
        model: The network, used in evaluation mode; not modified.
        scores: By layer index, weight-shaped; see `starting_scores`.
        select: What the scores switch on, from `Granularity.selection`.

    Attributes:
        scores: The trainable scores by ``str(layer index)``.

    Reference: Sehwag et al., HYDRA, 2020, section 4.
    """

    def __init__(self, model: Darknet, scores: Mapping[int, Tensor], select: Selection) -> None:
        super().__init__()
        self.cfg = model.cfg
        self.select = select
        frozen = FoldedDarknet(model)
        self._folded = frozen.folded
        self.scores = nn.ParameterDict({str(index): nn.Parameter(value.clone()) for index, value in scores.items()})

    def score_tensors(self) -> dict[int, Tensor]:
        """The scores by layer index, detached."""
        return {int(index): value.detach().clone() for index, value in self.scores.items()}

    def masked(self) -> dict[int, tuple[Tensor, Tensor]]:
        """Folded weight and bias of every layer under the current selection; gradients reach the scores."""
        masks = self.select({int(index): value for index, value in self.scores.items()})
        masked = dict(self._folded)
        for index, mask in masks.weights.items():
            weight, bias = masked[index]
            masked[index] = weight * mask, bias
        for index, mask in masks.filters.items():
            weight, bias = masked[index]
            masked[index] = weight * mask.view(-1, 1, 1, 1), bias * mask
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
