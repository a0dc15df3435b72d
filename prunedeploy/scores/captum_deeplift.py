"""DeepLIFT scores by Captum: `LayerDeepLift`, one convolution at a time.

Slow, and right only where Captum is: `deeplift` is what pruning uses unless told otherwise (``scores.backend``), and
this is what it is compared with. Captum hooks modules, so it is given a copy of the network in which every activation
and pool is a module of its own that runs once.

Where Captum 0.9 is right was tried in float64, on networks of two convolutions and a head: the part of the target's
difference from the reference that the multipliers at the first convolution do not explain.

- linear, relu, leaky, logistic, shortcut, route, upsample, maxpool without overlap: below 2e-14.
- mish 13 %, swish 8 %: it knows no such module and takes the plain gradient without a word. Refused.
- maxpool 2/1 68 %, 3/2 52 %, 3/1 87 %, 5/1 93 %: where windows overlap, what goes back to one cell through the
  last window replaces the rest. Refused.
- maxpool of several images: a cell whose input does not differ from the reference gets the gradient of the batch's
  first image. The difference is 0 there but contributions of single weights are not, so such networks are explained
  image by image.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_weight

from prunedeploy.data.batches import Batch
from prunedeploy.models.darknet import Darknet
from prunedeploy.models.darknet_cfg import DarknetCfg
from prunedeploy.models.darknet_conv import DarknetConv
from prunedeploy.models.sections import Convolutional, Layer, Maxpool, Shortcut
from prunedeploy.models.sections.activations import leaky_slope
from prunedeploy.models.sections.convolutional import conv2d
from prunedeploy.models.sections.maxpool import pool_border
from prunedeploy.scores.deeplift import DeepLift, SummationToDelta, check_explained
from prunedeploy.scores.reference import ReferenceFunction
from prunedeploy.scores.target import DetectionTarget, choose_target
from prunedeploy_engines.errors import PruningError

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"linear": nn.Identity, "relu": nn.ReLU, "logistic": nn.Sigmoid}
"""Those that Captum has a rule for, beside leaky ones of any slope."""


def check_captum_is_right(cfg: DarknetCfg) -> None:
    """Refuse a network for which Captum's multipliers are wrong.

    Raises:
        PruningError: Names the first layer that makes them wrong.
    """
    for layer in cfg.layers:
        if (reason := _why_wrong(layer)) is not None:
            what = f"layer {layer.index} [{layer.kind}] {reason}"
            raise PruningError(what, f"{cfg.where}:{layer.line}", "use scores.backend=own, which has a rule for it")


def _has_rule(activation: str) -> bool:
    return activation in ACTIVATIONS or leaky_slope(activation) is not None


def _module(activation: str) -> nn.Module:
    slope = leaky_slope(activation)
    return ACTIVATIONS[activation]() if slope is None else nn.LeakyReLU(slope)


def _why_wrong(layer: Layer) -> str | None:
    if isinstance(layer, Convolutional | Shortcut) and not _has_rule(layer.activation):
        return f"has the activation {layer.activation}, of which Captum's DeepLIFT takes the plain gradient"
    if isinstance(layer, Maxpool) and layer.size > min(layer.strides):
        windows = f"windows that overlap (size {layer.size}, stride {layer.stride})"
        return f"has {windows}, in which Captum's DeepLIFT loses contributions"
    if isinstance(layer, Convolutional) and layer.shares_weights:
        return f"shares the weights of layer {layer.weights_from}, which Captum's DeepLIFT is not set up for"
    if isinstance(layer, Convolutional | Maxpool) and layer.blur is not None:
        return "has antialiasing, which Captum's DeepLIFT is not set up for"
    if isinstance(layer, Maxpool) and layer.depth:
        return "has its maximum over channels, which Captum's DeepLIFT is not set up for"
    if not (layer.linear or layer.is_head or isinstance(layer, Convolutional | Shortcut | Maxpool)):
        return "is of a kind that Captum's DeepLIFT is not set up for"
    return None


def captum_multipliers(
    model: Darknet, images: Tensor, reference: Tensor, target: DetectionTarget, layer: int
) -> Tensor:
    """Rescale multipliers at the output of one bare convolution, before normalisation and activation.

    Args:
        model: The network; its evaluation mode is explained.
        images: ``(B, 3, H, W)`` of the model's dtype.
        reference: ``(B, 3, H, W)`` or ``(1, 3, H, W)``.
        target: What is explained, chosen from the same images.
        layer: Index of the convolution.

    Returns:
        ``(B, filters, H', W')``: change of the target per change of that output.

    Raises:
        PruningError: The network has a layer for which Captum's multipliers are wrong.
    """
    return _HookableDarknet(model, target).multipliers(images, reference, layer)


def captum_deeplift(
    model: Darknet,
    batches: Iterable[Batch],
    *,
    reference: ReferenceFunction,
    predictions: int = 10,
    layer_done: Callable[[int], object] = lambda images: None,
) -> DeepLift:
    """Score every weight by the mean over images of its absolute contribution under the Rescale rule.

    One forward and one backward pass per convolution, where `deeplift` needs one for all.

    Args:
        model: The network; its evaluation mode is explained. Not modified.
        batches: Images ``(B, 3, H, W)`` in [0, 1]; read once.
        reference: Gives the reference of each batch.
        predictions: Per head and image, how many predictions the target sums; see `choose_target`.
        layer_done: Called after every convolution of every batch, with the number of images.

    Returns:
        As `deeplift`; the target's summation-to-delta is that of Captum's multipliers at the pixels.

    Raises:
        PruningError: As `deeplift`, or the network has a layer for which Captum's multipliers are wrong.

    Reference: Kokhlikyan et al., Captum: A unified and generic model interpretability library for PyTorch, 2020;
    Shrikumar et al., Learning Important Features Through Propagating Activation Differences, 2017, section 3.5.2.
    """
    like = next(model.parameters())
    copy = _HookableDarknet(model, None)
    sums = {layer.index: torch.zeros_like(model.conv(layer.index).weight.detach()) for layer in model.cfg.convolutions}
    residuals = dict.fromkeys(sums, 0.0)
    count, missed, explained = 0, 0.0, 0.0
    for batch in batches:
        images, compared = batch.images.to(like), reference(batch.images).to(like)
        with torch.no_grad():
            heads, inputs = copy.trace(images)
            reference_heads, reference_inputs = copy.trace(compared)
            copy.target = choose_target(model, heads, predictions)
            delta_target = copy.target(heads) - copy.target(reference_heads)
        at_pixels = copy.multipliers(images, compared, None)
        found = ((images - compared) * at_pixels).flatten(1).sum(1)
        missed += float((found - delta_target).abs().sum())
        explained += float(delta_target.abs().sum())
        for layer in model.cfg.convolutions:
            index, conv = layer.index, copy.convolutions[str(layer.index)]
            multipliers = copy.multipliers(images, compared, index)
            with torch.no_grad():
                outcomes = multipliers * (conv(inputs[index]) - conv(reference_inputs[index]))
            weight, deltas = model.conv(index).weight.detach(), inputs[index] - reference_inputs[index]
            for delta, multiplier, outcome in zip(deltas, multipliers, outcomes, strict=True):
                contribution = weight * _weight_gradient(layer, delta, multiplier)
                sums[index] += contribution.abs()
                if bool(outcome.any()):
                    residual = float((contribution.sum() - outcome.sum()).abs() / outcome.abs().sum())
                    residuals[index] = max(residuals[index], residual)
            layer_done(len(images))
        count += len(images)
    check_explained(count, explained)
    scores = {index: value / count for index, value in sums.items()}
    return DeepLift(scores, SummationToDelta(residuals, missed / explained), count)


def _weight_gradient(layer: Convolutional, delta: Tensor, multipliers: Tensor) -> Tensor:
    """The linear rule (Shrikumar et al. 2017, section 3.5.1) for one image, summed over positions.

    Args:
        layer: The convolution.
        delta: ``(in, H, W)``, the input's difference from the reference.
        multipliers: ``(filters, H', W')``.

    Returns:
        Weight-shaped: sum over p of ``multipliers[o, p] * delta[i, p + kl]``.
    """
    return conv2d_weight(
        delta[None],
        layer.weight_shape,
        multipliers[None],
        stride=layer.strides,
        padding=layer.padding,
        dilation=layer.dilation,
        groups=layer.groups,
    )


class _Affine(nn.Module):
    """Batch normalisation in evaluation, Darknet's way."""

    factor: Tensor
    shift: Tensor

    def __init__(self, conv: DarknetConv) -> None:
        super().__init__()
        factor, shift = conv.normalisation()
        self.register_buffer("factor", factor.detach().view(1, -1, 1, 1))
        self.register_buffer("shift", shift.detach().view(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor + self.shift


class _BareConvolution(nn.Module):
    """A convolution without what comes after it, on the model's own memory."""

    def __init__(self, conv: DarknetConv) -> None:
        super().__init__()
        self.layer = conv.layer
        self.weight = nn.Parameter(conv.weight.detach())
        self.bias = nn.Parameter(conv.bias.detach()) if conv.scale is None else None

    def forward(self, x: Tensor) -> Tensor:
        return conv2d(x, self.weight, self.bias, self.layer)


class _HookableDarknet(nn.Module):
    """A copy of the network for Captum, sharing its weights' memory: images to the target, ``(B,)``.

    Captum runs images and references as one batch of twice the size, images first; the target is chosen for the
    images and applied to both halves.
    """

    def __init__(self, model: Darknet, target: DetectionTarget | None) -> None:
        super().__init__()
        check_captum_is_right(model.cfg)
        self.cfg = model.cfg
        self.target = target
        self.weights = model.layer_weights()
        self.convolutions = nn.ModuleDict()
        self.after = nn.ModuleDict()
        for layer in model.cfg.layers:
            name = str(layer.index)
            if isinstance(layer, Convolutional):
                conv = model.conv(layer.index)
                self.convolutions[name] = _BareConvolution(conv)
                norm = [] if conv.scale is None else [_Affine(conv)]
                self.after[name] = nn.Sequential(*norm, _module(layer.activation))
            elif isinstance(layer, Shortcut):
                self.after[name] = _module(layer.activation)
            elif isinstance(layer, Maxpool):
                self.after[name] = nn.MaxPool2d(layer.size, layer.strides)

    def forward(self, images: Tensor) -> Tensor:
        assert self.target is not None
        halves = zip(*(head.chunk(2) for head in self.heads(images)), strict=True)
        return torch.cat([self.target(list(half)) for half in halves])

    def heads(self, images: Tensor) -> list[Tensor]:
        """Raw heads in cfg order."""
        outputs = {-1: images}
        heads = []
        for layer in self.cfg.layers:
            inputs = [outputs[source] for source in layer.inputs]
            if layer.is_head:
                heads.append(inputs[0])
            else:
                outputs[layer.index] = self._run(layer, inputs)
        return heads

    def _run(self, layer: Layer, inputs: list[Tensor]) -> Tensor:
        name = str(layer.index)
        if isinstance(layer, Convolutional):
            return self.after[name](self.convolutions[name](inputs[0]))
        if isinstance(layer, Shortcut):
            return self.after[name](layer.total(inputs, self.weights.get(layer.index, {})))
        if isinstance(layer, Maxpool):
            border = pool_border(layer, inputs[0].shape[-2:])
            return self.after[name](F.pad(inputs[0], border, value=float("-inf")))
        return layer.run(inputs, self.weights.get(layer.index, {}))

    def trace(self, images: Tensor) -> tuple[list[Tensor], dict[int, Tensor]]:
        """Raw heads in cfg order, and by layer index what every convolution reads, ``(B, in, H, W)``."""
        found: dict[int, Tensor] = {}
        handles = [
            module.register_forward_pre_hook(lambda _, args, index=int(name): found.update({index: args[0]}))
            for name, module in self.convolutions.items()
        ]
        try:
            return self.heads(images), found
        finally:
            for handle in handles:
                handle.remove()

    def multipliers(self, images: Tensor, reference: Tensor, layer: int | None) -> Tensor:
        """As `captum_multipliers`; None: at the pixels, ``(B, 3, H, W)``."""
        from captum.attr import DeepLift as AtPixels
        from captum.attr import LayerDeepLift

        assert self.target is not None
        if layer is None:
            explain = AtPixels(self).attribute
        else:
            at_layer = LayerDeepLift(self, self.convolutions[str(layer)])
            unread = {"allow_unused": True, "materialize_grads": True}  # a layer that no head reads
            explain = partial(at_layer.attribute, grad_kwargs=unread)
        whole, parts = self.target, []
        size = 1 if any(isinstance(other, Maxpool) for other in self.cfg.layers) else len(images)
        for start in range(0, len(images), size):
            part = slice(start, start + size)
            self.target = DetectionTarget(tuple(weight[part] for weight in whole.weights))
            compared = reference if len(reference) == 1 else reference[part]
            with warnings.catch_warnings():
                # Hooks come and go on our copy of the network, and the pixels' gradients are asked for.
                warnings.filterwarnings("ignore", "Setting forward, backward hooks|Input Tensor 0 did not", UserWarning)
                # The multipliers themselves: contributions divided by differences lose them where a difference is 0.
                found = explain(images[part], compared, custom_attribution_func=lambda values: values)
            parts.append(found.detach())
        self.target = whole
        return torch.cat(parts)
