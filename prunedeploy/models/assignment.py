"""Which predictions belong to which objects where there are no anchors, and what the ways to find out share.

`task_aligned` is that of ``dfl`` sections, `sim_ota` that of ``yolox`` sections.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Assignment:
    """The predictions that belong to objects, P pairs; none of them twice.

    Attributes:
        image: ``(P,)`` int64, index of the image in the batch.
        point: ``(P,)`` int64, index of the anchor point.
        target: ``(P,)`` int64, index of the object.
        alignment: ``(P,)`` in [0, 1]: the wanted score of the object's class.
    """

    image: Tensor
    point: Tensor
    target: Tensor
    alignment: Tensor


def rank_within(values: Tensor, group: Tensor, groups: int) -> Tensor:
    """The place of each value in its group, from the highest, which has 0; of equal ones the first comes first.

    Args:
        values: ``(P,)``.
        group: ``(P,)`` int64, of ``groups``.
        groups: How many groups there are.

    Returns:
        ``(P,)`` int64.
    """
    order = values.argsort(descending=True, stable=True)
    order = order[group[order].argsort(stable=True)]  # by group, then from the highest
    counts = torch.bincount(group, minlength=groups)
    starts = counts.cumsum(0) - counts
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), device=order.device) - starts[group[order]]
    return rank


def extreme_within(values: Tensor, group: Tensor, groups: int, how: str) -> Tensor:
    """The ``amax`` or ``amin`` of each value's group, shaped as ``values``; arguments as of `rank_within`."""
    return values.new_zeros(groups).scatter_reduce(0, group, values, how, include_self=False)[group]


def settled(taken: Tensor, fitness: Tensor, target: Tensor, place: Tensor, places: int) -> Tensor:
    """Give each prediction that several objects take to one: that of the highest fitness, of equal ones the first.

    Among its candidates are objects that did not take it.

    Args:
        taken: ``(P,)`` bool, of all pairs of an object and a prediction that it may take.
        fitness: ``(P,)``.
        target: ``(P,)`` int64, the object.
        place: ``(P,)`` int64, the prediction, counted through all images.
        places: How many predictions there are.

    Returns:
        ``(P,)`` bool.
    """
    several = torch.bincount(place[taken], minlength=places)[place] > 1
    owned = taken | several
    owned &= ~several | (fitness == extreme_within(fitness, place, places, "amax"))
    last = torch.iinfo(target.dtype).max
    return owned & (~several | (target == extreme_within(target.where(owned, last), place, places, "amin")))
