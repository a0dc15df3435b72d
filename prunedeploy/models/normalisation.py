"""Put batch normalisation back into a network whose file has it folded away.

An exported network computes convolutions with biases; the normalisation that it was trained with is gone. Training
without it is another training, and score optimisation (HYDRA's step 3) needs the statistics of the masked network. What
went cannot be known, but need not be: with *any* mean m and variance v, the scale sqrt(v) and the shift b + m undo
them, so the function stays what it was. Measured on images, they are those that training would have found for these
weights, and normalisation in training mode begins where evaluation is.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from prunedeploy.models.darknet import Darknet, run_layers
from prunedeploy.models.darknet_cfg import DarknetCfg
from prunedeploy.models.darknet_conv import DARKNET_BN_EPS
from prunedeploy.models.sections import Convolutional
from prunedeploy.models.sections.convolutional import conv2d

LEAST_VARIANCE = 1e-6
"""Variances below are raised to it: the channel of a constant would be divided by nothing in training."""


def lacking_normalisation(cfg: DarknetCfg) -> list[Convolutional]:
    """The convolutions with a bias alone, but those of the heads' outputs, which have none in any network."""
    return [layer for layer in cfg.convolutions if not layer.batch_normalize and layer.index not in cfg.head_outputs]


def normalised_cfg(cfg: DarknetCfg) -> DarknetCfg:
    """The network with normalisation in every layer of `lacking_normalisation`, and in those that share its weights."""
    wanted = {layer.index for layer in lacking_normalisation(cfg)}
    uses = sorted(layer.index for layer in cfg.all_convolutions if layer.weights_from in wanted)
    return cfg.with_options({index: {"batch_normalize": 1} for index in uses}) if uses else cfg


@torch.no_grad()
def with_normalisation(model: Darknet, batches: Iterable[Tensor]) -> Darknet:
    """The same function with batch normalisation in every layer of `lacking_normalisation`.

    A convolution whose weights other layers share gets the statistics of all its uses.

    Args:
        model: The network, in evaluation mode; not modified.
        batches: Images, each ``(B, C, H, W)`` in [0, 1], that statistics are measured on.

    Returns:
        A new network in evaluation mode. Its heads differ by rounding alone.

    Raises:
        ValueError: There are no images.

    Reference: Ioffe and Szegedy, Batch Normalization, 2015, section 3: gamma and beta can restore the identity.
    """
    wanted = {layer.index for layer in lacking_normalisation(model.cfg)}
    sums = {index: torch.zeros(3, model.cfg.layers[index].out_channels, dtype=torch.float64) for index in wanted}

    def convolve(layer: Convolutional, x: Tensor) -> Tensor:
        conv = model.conv(layer.index)
        if layer.weights_from in sums:
            values = conv2d(x, conv.weight, None, layer).double()
            own = sums[layer.weights_from]
            own += torch.stack([torch.full_like(own[0], values[:, 0].numel()), values.sum((0, 2, 3)).cpu(),
                                values.square().sum((0, 2, 3)).cpu()])  # fmt: skip
        output: Tensor = conv(x, layer=layer)
        return output

    empty = True
    for images in batches:
        run_layers(model.cfg.layers, images, convolve, model.layer_weights())
        empty = False
    if empty:
        raise ValueError("statistics of normalisation need at least one image")
    result = Darknet(normalised_cfg(model.cfg), model.header)
    state = model.state_dict()
    for index, (count, total, squares) in sums.items():
        mean = total / count
        variance = (squares / count - mean.square()).clamp(min=LEAST_VARIANCE)
        prefix = f"convs.{index}."
        state[prefix + "mean"], state[prefix + "variance"] = mean.float(), variance.float()
        # In double: what the loaded values are multiplied with must undo what they are divided by.
        state[prefix + "scale"] = (state[prefix + "variance"].double().sqrt() + DARKNET_BN_EPS).float()
        state[prefix + "bias"] = (state[prefix + "bias"].double() + state[prefix + "mean"].double()).float()
    result.load_state_dict(state)
    return result.eval()
