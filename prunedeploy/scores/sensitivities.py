"""Importance scores from gradients: how much a small change of a weight would change the loss or the detections.

All of them differentiate the network in evaluation mode, whatever mode it is in, at detached copies of its weights:
neither parameters nor their ``grad`` and ``requires_grad`` are touched.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from prunedeploy.data.batches import Batch
from prunedeploy.models.darknet import Darknet, FoldedDarknet, check_images, run_layers
from prunedeploy.scores.interface import DetectionLoss, Scores
from prunedeploy.scores.target import choose_target
from prunedeploy_engines.errors import PruningError


def snip_scores(model: Darknet, batches: Iterable[Batch], loss: DetectionLoss) -> Scores:
    """SNIP's connection sensitivity: ``|dL/dw * w|``, divided by its sum over all convolutions.

    ``dL/dw * w`` is the derivative of the loss by a factor on the weight, at factor 1 (the connection is there).

    Args:
        model: The network.
        batches: Images ``(B, 3, H, W)`` in [0, 1], and their boxes; L is the mean over all of them.
        loss: The detection loss.

    Returns:
        By layer index: weight-shaped, at least 0; all together sum to 1.

    Raises:
        PruningError: There are no images, or no weight has a gradient, so there is nothing to divide by.

    Reference: Lee et al., SNIP: Single-shot Network Pruning based on Connection Sensitivity, 2019, equations 4 and 5.
    """
    differentiable = _Differentiable(model)
    gradients = differentiable.zeros()
    count = 0
    for batch in batches:
        for index, gradient in differentiable.loss_gradients(batch, loss).items():
            gradients[index].add_(gradient, alpha=len(batch.images))
        count += len(batch.images)
    _check_count(count, "SNIP")
    sensitivities = {
        index: (gradient / count * differentiable.weights[index].detach()).abs()
        for index, gradient in gradients.items()
    }
    total = sum(float(value.sum(dtype=torch.float64)) for value in sensitivities.values())
    if total == 0.0:
        raise PruningError(
            "the loss does not depend on any weight, so SNIP has nothing to rank", "scores", "use another score"
        )
    return {index: value / total for index, value in sensitivities.items()}


def taylor_scores(model: Darknet, batches: Iterable[Batch], loss: DetectionLoss) -> Scores:
    """First-order Taylor importance: mean over minibatches of ``(dL/dw * w)^2``, L the minibatch's loss.

    ``dL/dw * w`` is, to first order, how much the loss falls when the weight is set to zero.

    Args:
        model: The network.
        batches: Minibatches of images ``(B, 3, H, W)`` in [0, 1] and their boxes. The square is taken of each
            minibatch's gradient, so the score depends on how images are grouped.
        loss: The detection loss.

    Returns:
        By layer index: weight-shaped, at least 0.

    Raises:
        PruningError: There are no images.

    Reference: Molchanov et al., Importance Estimation for Neural Network Pruning, 2019, equation 8 for a gate on a
    single weight, averaged over minibatches as in the paper's pruning algorithm.
    """
    differentiable = _Differentiable(model)
    squares = differentiable.zeros()
    count = 0
    for batch in batches:
        for index, gradient in differentiable.loss_gradients(batch, loss).items():
            squares[index].add_((gradient * differentiable.weights[index].detach()).square())
        count += 1
    _check_count(count, "Taylor")
    return {index: value / count for index, value in squares.items()}


def gradient_x_input_scores(
    model: Darknet, batches: Iterable[Batch], loss: DetectionLoss | None = None, *, predictions: int = 10
) -> Scores:
    """Mean over images of ``|w * d target / d w|``: the contribution of a weight in the linearised network.

    Replace the network by its tangent at an image: every activation by its slope there, every maximum by the value
    it chose. A weight's contribution to the target is then the sum over positions of multiplier x weight x input,
    the multiplier being the gradient; with a zero baseline for the layer's input that is ``w * d target / d w``.
    It is what DeepLIFT's scores become when its multipliers are replaced by gradients.

    Args:
        model: The network.
        batches: Images ``(B, 3, H, W)`` in [0, 1]; their grouping makes no difference.
        loss: Not used.
        predictions: Per head and image, how many predictions the target sums; see `choose_target`.

    Returns:
        By layer index: weight-shaped, at least 0.

    Raises:
        PruningError: There are no images.

    Reference: gradient x input as in Shrikumar et al., Learning Important Features Through Propagating Activation
    Differences, 2017, section 2.2, taken to weights by the linear rule (section 3.5.1).
    """
    differentiable = _Differentiable(model)
    sums = differentiable.zeros()
    count = 0
    for batch in batches:
        for image in batch.images:
            # One image at a time: absolute values are taken before the mean.
            heads = differentiable.heads(image[None])
            target = choose_target(model, [head.detach() for head in heads], predictions)
            for index, gradient in differentiable.gradients(target(heads).sum()).items():
                sums[index].add_((gradient * differentiable.weights[index].detach()).abs())
            count += 1
    _check_count(count, "gradient x input")
    return {index: value / count for index, value in sums.items()}


class _Differentiable:
    """The network in evaluation mode as a function of detached weights.

    Attributes:
        weights: The weights before normalisation by layer index, leaves that require gradients; they share the
            model's memory.
    """

    def __init__(self, model: Darknet) -> None:
        self.model = model
        self.weights = {
            layer.index: model.conv(layer.index).weight.detach().requires_grad_() for layer in model.cfg.convolutions
        }

    def zeros(self) -> Scores:
        """One zero per weight."""
        return {index: torch.zeros_like(weight.detach()) for index, weight in self.weights.items()}

    def heads(self, images: Tensor) -> list[Tensor]:
        """Raw heads, each ``(B, A * (5 + C), H, W)``, of the model's dtype and on its device."""
        check_images(images, self.model.cfg)
        folded = {}
        for index, weight in self.weights.items():
            conv = self.model.conv(index)
            kernel, bias = conv.folded(weight)
            folded[index] = (kernel, bias.detach())
        network = FoldedDarknet.from_folded(self.model.cfg, folded, self.model.layer_weights())
        like = next(iter(self.weights.values()))
        images = images.to(like).contiguous(memory_format=torch.channels_last)
        return run_layers(self.model.cfg.layers, images, network.convolve, network.weights)

    def gradients(self, value: Tensor) -> Scores:
        """Derivative of a 0-d value by every weight; zeros where it does not depend on one."""
        found = torch.autograd.grad(value, list(self.weights.values()), materialize_grads=True)
        return dict(zip(self.weights, found, strict=True))

    def loss_gradients(self, batch: Batch, loss: DetectionLoss) -> Scores:
        """Derivative of a batch's loss by every weight."""
        heads = self.heads(batch.images)
        return self.gradients(loss(heads, batch.targets.to(heads[0])))


def _check_count(count: int, name: str) -> None:
    if count == 0:
        raise PruningError(f"there are no images to take {name} scores on", "scores", "give at least one image")
