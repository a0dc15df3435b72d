"""One forward pass over images and their references together: everything DeepLIFT's backward pass needs."""

from __future__ import annotations

import torch
from torch import Tensor

from prunedeploy.models.darknet import Darknet
from prunedeploy.scores.deeplift_rules import rule_of
from prunedeploy.scores.deeplift_rules.interface import Trace
from prunedeploy_engines.errors import PruningError

IMAGE = -1
RULES = ("rescale", "reveal-cancel")


@torch.no_grad()
def trace(model: Darknet, images: Tensor, reference: Tensor, rule: str) -> Trace:
    """Run images and references through the network as one batch.

    Args:
        model: In evaluation mode; batch normalisation is folded, so a weight's contribution is that of the folded
            weight and equals that of the weight itself.
        images: ``(B, 3, H, W)`` of the model's dtype.
        reference: ``(B, 3, H, W)``, or ``(1, 3, H, W)``: then it is computed once for the whole batch.
        rule: One of `RULES`.

    Raises:
        PruningError: An activation or a layer has no rule, or the reference has another size than the images.
        ValueError: The rule is unknown.
    """
    if rule not in RULES:
        raise ValueError(f"unknown rule {rule!r}; there are {', '.join(RULES)}")
    if reference.shape[1:] != images.shape[1:] or len(reference) not in (1, len(images)):
        raise PruningError(
            f"the reference is {tuple(reference.shape)}, the images are {tuple(images.shape)}",
            "scores.reference",
            "give a reference of the images' size",
        )
    folded = {layer.index: model.conv(layer.index).folded() for layer in model.cfg.convolutions}
    layout = torch.channels_last
    found = Trace(
        weights={index: weight.detach().contiguous(memory_format=layout) for index, (weight, _) in folded.items()},
        biases={index: bias.detach() for index, (_, bias) in folded.items()},
        others=model.layer_weights(),
        images=len(images),
    )
    outputs = {IMAGE: torch.cat([images, reference]).contiguous(memory_format=layout)}
    rules = {layer.index: rule_of(layer) for layer in model.cfg.layers if not layer.is_head}
    wanted = {
        index for layer in model.cfg.layers if not layer.is_head for index in rules[layer.index].deltas(layer, rule)
    }
    split = len(images)
    found.deltas[IMAGE] = outputs[IMAGE][:split] - outputs[IMAGE][split:]
    last_reader = {source: layer.index for layer in model.cfg.layers for source in layer.inputs}
    for layer in model.cfg.layers:
        inputs = [outputs[source] for source in layer.inputs]
        if layer.is_head:
            found.heads.append(inputs[0][:split])
            found.reference_heads.append(inputs[0][split:])
        else:
            result = rules[layer.index].forward(found, layer, inputs, rule)
            outputs[layer.index] = result
            if layer.index in wanted:
                found.deltas[layer.index] = result[:split] - result[split:]
        for source in layer.inputs:
            if last_reader[source] == layer.index:
                outputs.pop(source, None)
    return found
