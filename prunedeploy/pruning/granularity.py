"""The granularities: for each, what is ranked, how much of every layer lives, and what a cut leaves.

Whatever is removed, a cut goes the same way. `Granularity.allocate` says how much of every layer lives,
`Granularity.selection` by scores what that is, as masks that hand gradients to the scores, and `cut.make_cut`
applies them. Score optimisation uses the same masks, so what is optimised is what is cut.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import torch
from pydantic import TypeAdapter
from torch import Tensor

from prunedeploy.models.darknet_cfg import DarknetCfg
from prunedeploy.pruning.allocation import Pieces, allocate_pieces, check_counts, kernel_pieces, weight_pieces
from prunedeploy.pruning.coupling import Coupling, couple, prunable_convolutions
from prunedeploy.pruning.cut import Cut, Masks, Selection
from prunedeploy.pruning.hybrid import connected_counts, straight_through_connected_mask
from prunedeploy.pruning.importance import (
    fitting_scores,
    mean_of_kernels,
    straight_through_channel_masks,
    straight_through_kernel_mask,
    straight_through_weight_mask,
    unit_importance,
    weight_magnitude,
)
from prunedeploy.pruning.latency_allocation import TimeTable, latency_path
from prunedeploy.pruning.masks import connected_kernels, live_channels
from prunedeploy.pruning.ratio import Widths, check_ratio, solve_widths
from prunedeploy.pruning.semi_structured import (
    NmPattern,
    check_nm_ratio,
    patterned_convolutions,
    straight_through_nm_mask,
)
from prunedeploy.pruning.subnet import hybrid_record, nm_record, structured_record, zeros_record
from prunedeploy.pruning.width_paths import erk_path, global_path
from prunedeploy.pruning.width_search import WidthPath, even_path


@dataclass(frozen=True)
class Allocation:
    """How much of every layer lives: what optimising scores does not change.

    Attributes:
        widths: Living filters; None where none may leave.
        pieces: By layer index, living weights or kernels; None where none may be zeroed, or a pattern says it.
    """

    widths: Widths | None = None
    pieces: Mapping[int, int] | None = None

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return _ALLOCATION.dump_python(self, mode="json")

    @staticmethod
    def from_json(document: Mapping[str, Any]) -> Allocation:
        """What `as_json` gave."""
        return _ALLOCATION.validate_python(document)


_ALLOCATION = TypeAdapter(Allocation)


@dataclass(frozen=True)
class Evidence:
    """What an allocation may go by.

    Attributes:
        scores: By layer index, weight-shaped.
        times: Times of convolutions on the target.
    """

    scores: Mapping[int, Tensor] | None = None
    times: TimeTable | None = None


NOTHING = Evidence()


@dataclass(frozen=True)
class Granularity(ABC):
    """What is removed, and how much of it.

    Attributes:
        ratio: Fraction of the weights of all prunable convolutions to remove, in [0, 1).
        allocation: How it is shared out over layers: one of ``allocations``.
    """

    ratio: float
    allocation: str = "uniform"

    allocations: ClassVar[tuple[str, ...]] = ("uniform", "global", "erk")

    @abstractmethod
    def allocate(self, cfg: DarknetCfg, evidence: Evidence = NOTHING) -> Allocation:
        """How much of every layer lives.

        Args:
            cfg: The unpruned network.
            evidence: Scores are needed by ``global`` and ``latency``, times by ``latency``.

        Raises:
            PruningError: The ratio cannot be reached.
            ValueError: Scores or times are missing, or scores do not fit the network.
        """

    @abstractmethod
    def selection(self, cfg: DarknetCfg, allocation: Allocation) -> Selection:
        """What makes masks of scores for the unpruned network ``cfg``."""

    @abstractmethod
    def record(self, cfg: DarknetCfg, cut: Cut, allocation: Allocation) -> dict[str, Any]:
        """What the bundle says about a cut of ``cfg``, the unpruned network; plain values for JSON."""


class PieceKind(NamedTuple):
    """What pieces of layers are ranked and zeroed.

    Attributes:
        name: What a piece is called.
        method: What pruning by it is called.
        pieces: Those of every layer of a network.
        importance: Of every piece, from |score| of every weight of a layer: weight-shaped to ``(pieces,)``.
        mask: Those that live, from the scores of a layer and their number.
    """

    name: str
    method: str
    pieces: Callable[[DarknetCfg], tuple[Pieces, ...]]
    importance: Callable[[Tensor], Tensor]
    mask: Callable[[Tensor, int], Tensor]


@dataclass(frozen=True)
class _Pieces(Granularity):
    """Pieces of layers become zero, the same number of each layer whatever the scores."""

    kind: ClassVar[PieceKind]

    def allocate(self, cfg: DarknetCfg, evidence: Evidence = NOTHING) -> Allocation:
        """How much of every layer lives; see `Granularity`."""
        check_ratio(self.ratio)
        importance = None
        if self.allocation == "global" and evidence.scores is not None:
            magnitudes = (
                (layer.index, weight_magnitude(evidence.scores, layer)) for layer in prunable_convolutions(cfg)
            )
            importance = {index: self.kind.importance(magnitude) for index, magnitude in magnitudes}
        pieces = self.kind.pieces(cfg)
        counts = allocate_pieces(cfg, pieces, self.allocation, 1.0 - self.ratio, importance)
        check_counts(cfg, pieces, counts, self.ratio, self.kind.name)
        return Allocation(pieces=counts)

    def selection(self, cfg: DarknetCfg, allocation: Allocation) -> Selection:
        """What makes masks of scores; see `Granularity`."""
        pieces, mask = allocation.pieces or {}, self.kind.mask
        layers = [layer for layer in cfg.convolutions if layer.index in pieces]
        return lambda scores: Masks(
            {}, {layer.index: mask(fitting_scores(scores, layer), pieces[layer.index]) for layer in layers}
        )

    def record(self, cfg: DarknetCfg, cut: Cut, allocation: Allocation) -> dict[str, Any]:
        """What the bundle says; see `Granularity`."""
        return zeros_record(cfg, cut.weights, self.ratio, self.kind.method)


@dataclass(frozen=True)
class Weights(_Pieces):
    """Unstructured: single weights by |score|."""

    kind = PieceKind("weight", "unstructured", weight_pieces, torch.flatten, straight_through_weight_mask)


@dataclass(frozen=True)
class Kernels(_Pieces):
    """Kernels by their mean |score|."""

    kind = PieceKind("kernel", "kernel", kernel_pieces, mean_of_kernels, straight_through_kernel_mask)


@dataclass(frozen=True)
class Pattern(Granularity):
    """n:m: weights of each block by |score|. The pattern says how many, in every layer that has whole blocks.

    Attributes:
        pattern: How many of how many live.
    """

    pattern: NmPattern = field(default=NmPattern(2, 4))

    allocations: ClassVar[tuple[str, ...]] = ("uniform",)

    def allocate(self, cfg: DarknetCfg, evidence: Evidence = NOTHING) -> Allocation:
        """How much of every layer lives; see `Granularity`."""
        check_nm_ratio(cfg, self.pattern, self.ratio)
        return Allocation()

    def selection(self, cfg: DarknetCfg, allocation: Allocation) -> Selection:
        """What makes masks of scores; see `Granularity`."""
        layers, pattern = patterned_convolutions(cfg, self.pattern), self.pattern
        return lambda scores: Masks(
            {}, {layer.index: straight_through_nm_mask(fitting_scores(scores, layer), pattern) for layer in layers}
        )

    def record(self, cfg: DarknetCfg, cut: Cut, allocation: Allocation) -> dict[str, Any]:
        """What the bundle says; see `Granularity`."""
        return nm_record(cfg, cut.weights, self.pattern, self.ratio)


@dataclass(frozen=True)
class Filters(Granularity):
    """Structured: filters, with those that they are coupled to, by the mean |score| of all their weights.

    Attributes:
        minimum: As `solve_widths`.
        multiple: As `solve_widths`.
    """

    minimum: int | None = None
    multiple: int = 8

    allocations: ClassVar[tuple[str, ...]] = ("uniform", "global", "erk", "latency")

    def allocate(self, cfg: DarknetCfg, evidence: Evidence = NOTHING) -> Allocation:
        """How much of every layer lives; see `Granularity`."""
        return Allocation(self._widths(cfg, couple(cfg), self.ratio, evidence))

    def _widths(self, cfg: DarknetCfg, coupling: Coupling, ratio: float, evidence: Evidence) -> Widths:
        path = even_path if ratio == 0.0 else _width_path(cfg, coupling, self.allocation, evidence)
        return solve_widths(cfg, ratio, self.minimum, self.multiple, coupling, path)

    def selection(self, cfg: DarknetCfg, allocation: Allocation) -> Selection:
        """What makes masks of scores; see `Granularity`."""
        assert allocation.widths is not None
        groups, counts = couple(cfg).groups, allocation.widths.counts
        return lambda scores: Masks(straight_through_channel_masks(scores, counts, groups), {})

    def record(self, cfg: DarknetCfg, cut: Cut, allocation: Allocation) -> dict[str, Any]:
        """What the bundle says; see `Granularity`."""
        assert allocation.widths is not None
        return structured_record(cfg, allocation.widths)


@dataclass(frozen=True)
class FiltersThenWeights(Filters):
    """Hybrid: filters for their share of the ratio, then single weights of what remains for the rest.

    Weights have no latency of their own: with ``latency`` they are shared out uniformly.

    Attributes:
        filter_share: The part of the removed weights that goes with filters, in [0, 1]. With 1 no weight is zeroed.
    """

    filter_share: float = 0.5

    def allocate(self, cfg: DarknetCfg, evidence: Evidence = NOTHING) -> Allocation:
        """How much of every layer lives; see `Granularity`."""
        widths = self._widths(cfg, couple(cfg), self.ratio * self.filter_share, evidence)
        filters = Allocation(widths)
        if self.filter_share == 1.0:
            return filters
        # Which filters of a group live does not matter to shapes, only to scores.
        equal = {layer.index: torch.zeros(()).expand(layer.weight_shape) for layer in cfg.convolutions}
        keep = super().selection(cfg, filters)(evidence.scores or equal).as_bool().filters
        how = "uniform" if self.allocation == "latency" else self.allocation
        return Allocation(widths, connected_counts(cfg, keep, self.ratio, how, evidence.scores))

    def selection(self, cfg: DarknetCfg, allocation: Allocation) -> Selection:
        """What makes masks of scores; see `Granularity`."""
        of_filters, pieces = super().selection(cfg, allocation), allocation.pieces or {}

        def select(scores: Mapping[int, Tensor]) -> Masks:
            masks = of_filters(scores)
            connected = connected_kernels(cfg, live_channels(cfg, masks.as_bool().filters))
            weights = {
                index: straight_through_connected_mask(scores[index], connected[index], count)
                for index, count in pieces.items()
            }
            return Masks(masks.filters, weights)

        return select

    def record(self, cfg: DarknetCfg, cut: Cut, allocation: Allocation) -> dict[str, Any]:
        """What the bundle says; see `Granularity`."""
        assert allocation.widths is not None
        return hybrid_record(cfg, allocation.widths, cut.weights, self.ratio, self.filter_share)


def _width_path(cfg: DarknetCfg, coupling: Coupling, allocation: str, evidence: Evidence) -> WidthPath:
    if allocation == "uniform":
        return even_path
    if allocation == "erk":
        return erk_path(cfg, coupling)
    if evidence.scores is None:
        raise ValueError(f"allocation {allocation} needs scores")
    importance = unit_importance(evidence.scores, coupling.groups)
    if allocation == "global":
        return global_path(importance, coupling)
    if allocation == "latency" and evidence.times is not None:
        return latency_path(cfg, coupling, importance, evidence.times)
    raise ValueError(f"cannot allocate filters by {allocation!r}" + " without times" * (allocation == "latency"))
