"""HYDRA's third step: optimise importance scores against the robust loss while convolution weights stay frozen.

The forward pass uses the highest scores only; the backward pass hands the gradient straight through the selection
to all scores. What is selected depends on the granularity (`prunedeploy.pruning.granularity`): weights and kernels
multiply the weight; filters, by coupled group, multiply the output of convolution and normalisation, which is
exactly what the shrunk network will lack.

As in the authors' code, batch normalisation stays alive: the loss is taken in training mode, so every activation is
normalised with the statistics of the *masked* network, whose running averages follow; scale and shift train beside
the scores; the inner attack sees the masked network in evaluation mode. With the dense network's statistics a network
of which nine tenths are switched off sees nothing, and its scores learn nothing (docs/decisions/0011).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from prunedeploy.attacks import Pgd, ThreatModel
from prunedeploy.attacks.pgd import DTYPES
from prunedeploy.config import TrainingConfig
from prunedeploy.data.loader import Batch
from prunedeploy.models.darknet import Darknet, FoldedDarknet, check_images, run_layers
from prunedeploy.models.darknet_conv import DarknetConv
from prunedeploy.models.loss import yolo_loss
from prunedeploy.models.sections import Convolutional
from prunedeploy.pruning.cut import Masks, Selection
from prunedeploy.scores import scaled_scores
from prunedeploy.scores.interface import Scores
from prunedeploy.training.adversarial import loss_terms
from prunedeploy.training.distributed import shard
from prunedeploy.training.loop import Objective
from prunedeploy.training.optimisation import ParameterSet

STEP_3_BN_MOMENTUM = 0.1
"""PyTorch's own, which the authors use: statistics must follow a network that changes with every step."""


def starting_scores(scores: Scores, model: Darknet) -> Scores:
    """Any scores as score optimisation starts from them: in their own order, with the sizes that HYDRA's have.

    In each layer the score of rank n takes the magnitude that the n-th of HYDRA's scores has, and keeps its sign. So
    one learning rate suits every score, and heavy tails (DeepLIFT's, whose few largest leave all others next to
    nothing) do not decide what can still move. HYDRA's own stay as they are. Exact zeros become the smallest positive
    number: the gradient reaches a score through its absolute value, whose slope at 0 is 0, so they could never grow.

    Args:
        scores: By layer index, weight-shaped float; finite.
        model: The network that they are of.

    Returns:
        New tensors. Of equal scores the later one, in the order of the weights, ranks higher.

    Reference: Sehwag et al., HYDRA, 2020, equation 5.
    """
    starting = {}
    for index, sizes in scaled_scores(model).items():
        own = scores[index]
        rank = own.abs().flatten().argsort(stable=True)
        value = torch.empty_like(sizes).flatten()
        value[rank] = sizes.abs().flatten().sort().values
        value = torch.where(own < 0, -1.0, 1.0) * value.view_as(own)
        starting[index] = value.masked_fill_(value == 0, torch.finfo(value.dtype).tiny)
    return starting


class Normalisation(nn.Module):
    """What is alive of one convolutional layer while scores are optimised.

    It shares the layer's own tensors, so it must not be moved to another device or dtype.

    Args:
        conv: A layer with batch normalisation.

    Attributes:
        scale: ``(filters,)``, trainable; so is ``bias``, the shift.
        mean: ``(filters,)``, running; so is ``variance``.
    """

    def __init__(self, conv: DarknetConv) -> None:
        super().__init__()
        self.scale, self.bias = conv.scale, conv.bias
        self.register_buffer("mean", conv.mean)
        self.register_buffer("variance", conv.variance)


class ScoredDarknet(nn.Module):
    """A network whose weights, kernels or filters are switched on by trainable scores.

    Its parameters and buffers are what score optimisation changes, and no more: scores, normalisation, and the masks
    of the last step. The frozen convolution weights are not among them, so a checkpoint does not carry them.

    Args:
        model: The network; not modified.
        scores: By layer index, weight-shaped; see `starting_scores`.
        select: What the scores switch on, from `Granularity.selection`.
        freeze_bn: Keep normalisation as it is, statistics included, and compute in evaluation mode.

    Attributes:
        network: A copy of ``model`` whose normalisation follows.
        scores: The trainable scores by ``str(layer index)``.
        normalisation: `Normalisation` by ``str(layer index)``; empty with ``freeze_bn``.

    Reference: Sehwag et al., HYDRA, 2020, section 4, and the authors' code, ``utils/model.py`` (``freeze_vars``) and
    ``utils/adv.py``.
    """

    def __init__(
        self, model: Darknet, scores: Mapping[int, Tensor], select: Selection, freeze_bn: bool = False
    ) -> None:
        super().__init__()
        self.select = select
        # In a tuple, which nn.Module does not look into: its frozen weights are no state of this module.
        self._network = (copy.deepcopy(model).requires_grad_(False).train(not freeze_bn),)
        self.scores = nn.ParameterDict({str(index): nn.Parameter(value.clone()) for index, value in scores.items()})
        self.normalisation = nn.ModuleDict()
        for layer in () if freeze_bn else model.cfg.convolutions:
            if layer.batch_normalize:
                conv = self.network.conv(layer.index)
                conv.momentum = STEP_3_BN_MOMENTUM
                self.normalisation[str(layer.index)] = Normalisation(conv)
        self.normalisation.requires_grad_(True)
        last = self.masks().as_bool()
        self._last = nn.ModuleDict({"filters": nn.Module(), "weights": nn.Module()})
        for part, masks in last._asdict().items():
            for index, mask in masks.items():
                self._last[part].register_buffer(str(index), mask)

    @property
    def network(self) -> Darknet:
        """The network without masks: frozen weights, and normalisation as it stands."""
        return self._network[0]

    def score_tensors(self) -> dict[int, Tensor]:
        """The scores by layer index, detached."""
        return {int(index): value.detach().clone() for index, value in self.scores.items()}

    def parameter_sets(self, bn_lr: float) -> list[ParameterSet]:
        """What is trained: the scores at the configured learning rate, and scale and shift at their own.

        Args:
            bn_lr: Peak learning rate of scale and shift.
        """
        sets = [ParameterSet(tuple(self.scores.values()))]
        return [*sets, ParameterSet(tuple(self.normalisation.parameters()), bn_lr)] if self.normalisation else sets

    def masks(self) -> Masks:
        """The current selection; gradients reach the scores."""
        return self.select({int(index): value for index, value in self.scores.items()})

    def count_flips(self, masks: Masks) -> Tensor:
        """How many filters and weights have changed sides since the last call, or since the start; 0-d.

        Args:
            masks: From `masks`; remembered, also in a checkpoint.
        """
        flips = []
        for part, new in masks.as_bool()._asdict().items():
            for index, mask in new.items():
                last = self._last[part].get_buffer(str(index))
                flips.append((mask != last).sum())
                last.copy_(mask)
        return torch.stack(flips).sum() if flips else torch.zeros(())

    @torch.no_grad()
    def folded(self, masks: Masks, dtype: torch.dtype = torch.float32) -> FoldedDarknet:
        """The network under ``masks`` in evaluation mode, as it would be cut now; gradients reach images only.

        Args:
            masks: From `masks`.
            dtype: As `FoldedDarknet`.
        """
        folded = {}
        for layer in self.network.cfg.convolutions:
            conv, index = self.network.conv(layer.index), layer.index
            masked = conv.weight * masks.weights[index] if index in masks.weights else None
            weight, bias = conv.folded(masked, masks.filters.get(index))
            weight = weight.detach().to(dtype).contiguous(memory_format=torch.channels_last)
            folded[index] = (weight, bias.detach().to(dtype))
        return FoldedDarknet.from_folded(self.network.cfg, folded, self.network.layer_weights())

    def forward(self, images: Tensor, masks: Masks | None = None) -> list[Tensor]:
        """Compute the raw heads of the selected subnetwork; see `Darknet.forward`.

        With living normalisation this is the training mode: running statistics follow.

        Args:
            images: ``(B, C, H, W)`` float, RGB in [0, 1].
            masks: From `masks`, if the caller has them.
        """
        check_images(images, self.network.cfg)
        selected = self.masks() if masks is None else masks

        def convolve(layer: Convolutional, x: Tensor) -> Tensor:
            conv, index = self.network.conv(layer.index), layer.weights_from
            weight = conv.weight * selected.weights[index] if index in selected.weights else None
            output: Tensor = conv(x, weight, selected.filters.get(index), layer)
            return output

        return run_layers(self.network.cfg.layers, images, convolve, self.network.layer_weights())


def score_objective(
    scored: ScoredDarknet, settings: TrainingConfig, threat_model: ThreatModel, seed: int, device: torch.device
) -> Objective:
    """The objective of score optimisation for `train`: the robust loss of the selected subnetwork.

    Beside the loss it names ``flips``, the number of filters or weights that the last step switched on or off.

    Args:
        scored: What is optimised.
        settings: Precision of the inner attack and of the passes.
        threat_model: The inner attack, on the subnetwork in evaluation mode.
        seed: Seed of random starts.
        device: Where the batches go.

    Reference: Sehwag et al., HYDRA, 2020, equation 3.
    """

    def objective(batch: Batch, step: int) -> dict[str, Tensor]:
        batch = shard(batch)
        targets = batch.targets.to(device)
        masks = scored.masks()
        flips = scored.count_flips(masks)
        attacked = scored.folded(masks, DTYPES[settings.precision])
        attack = Pgd(scored.network, attacked, threat_model, settings.precision, seed)
        images = attack(batch.images.to(device), targets, batch.image_ids, step)
        images = images.contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16, enabled=settings.precision == "bf16"):
            heads = scored(images, masks)
        terms = yolo_loss([head.float() for head in heads], targets, scored.network.cfg)
        return {**loss_terms(terms), "flips": flips}

    return objective
