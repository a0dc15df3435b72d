"""Slopes of activations under DeepLIFT's two rules."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from prunedeploy.scores.activation_slopes import secant
from prunedeploy.scores.deeplift_rules.interface import Slopes, Trace

Parts = Callable[[], tuple[Tensor, Tensor]]


def keep_slopes(found: Trace, index: int, activation: str, before: Tensor, rule: str, parts: Parts) -> None:
    """Keep the slopes of a layer's activation; a linear one has none.

    Args:
        found: Where to.
        index: Of the layer.
        activation: Name as in a Darknet cfg.
        before: What the activation takes, images first.
        rule: ``rescale`` or ``reveal-cancel``.
        parts: Gives positive and negative contributions to its difference, each ``(B, C, H, W)``.

    Reference: the Rescale rule, Shrikumar et al. 2017, section 3.5.2, equations 10 to 12.
    """
    if activation == "linear":
        return
    y, y0 = before[: found.images], before[found.images :]
    if rule == "reveal-cancel":
        found.slopes[index] = reveal_cancel_slopes(y0, *parts(), activation)
    else:
        slope = secant(y, y0, activation)
        found.slopes[index] = Slopes(slope, slope)


def reveal_cancel_slopes(reference: Tensor, positive: Tensor, negative: Tensor, activation: str) -> Slopes:
    """The RevealCancel rule, in secants.

    The effect of the positive part is the mean of its effect alone and its effect after the negative one, and the
    other way round.

    Args:
        reference: Input of the activation on the reference, any shape.
        positive: Sum of positive contributions to its difference, at least 0.
        negative: Sum of negative ones, at most 0.
        activation: Name as in a Darknet cfg.

    Reference: Shrikumar et al., Learning Important Features Through Propagating Activation Differences, 2017,
    section 3.5.3.
    """
    up, down = reference + positive, reference + negative
    both = up + negative
    return Slopes(
        (secant(up, reference, activation) + secant(both, down, activation)) / 2,
        (secant(down, reference, activation) + secant(both, up, activation)) / 2,
    )
