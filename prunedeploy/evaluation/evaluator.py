"""Evaluate any number of runners on clean and on attacked images, in one loop.

The images are read once and attacked once in every way, with the gradients of one PyTorch model; every runner then
sees the same pixels. For the runner of that very model the result is its robust mAP; for any other, an exported
engine say, it is what attacks made with the parent do to it, and is marked as *transfer*. An attack that needs no
gradients is made on each runner itself.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prunedeploy.data.loader import Batch
from prunedeploy.data.records import CocoDataset
from prunedeploy.evaluation.bootstrap import RESAMPLES, Interval
from prunedeploy.evaluation.candidates import Candidates
from prunedeploy.evaluation.detecting import IOU_THRESHOLD, SCORE_THRESHOLD, Thresholds, detect_batch
from prunedeploy.evaluation.detection_table import DetectionTable
from prunedeploy.evaluation.ensemble import Ensemble, ensemble_of
from prunedeploy.evaluation.measurement import PAPER_SCORE_THRESHOLD, Measurement, measure
from prunedeploy.evaluation.torch_runner import TorchRunner
from prunedeploy.models.detector import Detector
from prunedeploy.models.loss import yolo_losses
from prunedeploy_engines.runtimes.runner import Runner

Attack = Callable[[Detector, Tensor, Tensor], Tensor]
"""``attack(model, images (B, 3, H, W), targets (T, 6)) -> attacked images``; both as a `Batch` has them."""

OwnAttack = Callable[[Runner, Batch, Mapping[str, Tensor]], tuple[Tensor, NDArray[np.int64]]]
"""``attack(runner, batch, made) -> attacked images, queries (B,)``, as `prunedeploy.evaluation.black_box.BlackBox`.

It asks the runner that is measured. ``made`` has the batch as each attack of the model left it, by its name.
"""

PGD = "pgd"
"""Name of an attack that is given without one: the paper's."""

# Name in ``results.json`` (of ``clean`` or ``pgd`` images), part of a `Measurement`, and mean of that.
_FIGURES = (
    ("map_{}", "usual", "map_50_95"),
    ("map50_{}", "usual", "map_50"),
    ("map_{}_conf50", "conf50", "map_50_95"),
)


@dataclass(frozen=True)
class Evaluation:
    """One runner's result.

    Attributes:
        runner: What ran, of `Runner.describe`.
        n_images: How many images were evaluated.
        clean: On the images as they are.
        attacked: On the images as each attack left them, by its name; of an ensemble, what is reported.
        transfer: The attacked images were made with another model than the one that ran.
        ensembles: By their names, how each came about.
        queries: How often the runner was asked about each image, ``(B,)``, by the attacks that were made on it itself.
        candidates: Of ``clean`` and of each single attack, how many pairs of box and class the images had.
    """

    runner: dict[str, Any]
    n_images: int
    clean: Measurement
    attacked: Mapping[str, Measurement]
    transfer: bool
    ensembles: Mapping[str, Ensemble] = field(default_factory=dict)
    queries: Mapping[str, NDArray[np.int64]] = field(default_factory=dict)
    candidates: Mapping[str, Candidates] = field(default_factory=dict)

    def metrics(self) -> dict[str, float | None]:
        """The figures by their names in ``results.json``; None where undefined or not measured."""
        return self._by_name("result")

    def intervals(self) -> dict[str, Interval | None]:
        """The bootstrap interval of every figure of `metrics`; None where there is none."""
        return self._by_name("intervals")

    def _by_name(self, part: str) -> dict[str, Any]:
        """Both means of one part of `Scored`, of clean and of attacked images."""
        found = {}
        kinds: dict[str, Measurement | None] = {"clean": self.clean, **(self.attacked or {PGD: None})}
        for name, threshold, mean in _FIGURES:
            for kind, measured in kinds.items():
                means = None if measured is None else getattr(getattr(measured, threshold), part)
                found[name.format(figure_name(kind))] = None if means is None else getattr(means, mean)
        return found


def figure_name(attack: str) -> str:
    """How an attack is called within the names of figures: ``apgd:box`` is ``apgd_box`` in ``map_apgd_box``."""
    return attack.replace(":", "_")


def evaluate(
    runners: Runner | Mapping[str, Runner],
    batches: Iterable[Batch],
    dataset: CocoDataset,
    *,
    attack: Attack | Mapping[str, Attack] | None = None,
    ensembles: Mapping[str, Sequence[str]] | None = None,
    attacked_model: Detector | None = None,
    own_attacks: Mapping[str, OwnAttack] | None = None,
    lattice: Callable[[Tensor, Tensor], Tensor] | None = None,
    iou_threshold: float = IOU_THRESHOLD,
    score_threshold: float = SCORE_THRESHOLD,
    resamples: int = RESAMPLES,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Evaluation]:
    """Run detectors on clean and attacked images and compute mAP.

    Args:
        runners: By the name their result gets; a single one is named after its runtime.
        batches: An `prunedeploy.data.loader.EvaluationLoader` with the runners' input size.
        dataset: Ground truth. Images that the loader left out (bad ones, where allowed) do not count.
        attack: Makes the attacked images of a batch; several by their names, a single one is `PGD`. None evaluates
            clean images only.
        ensembles: Which of the attacks each ensemble consists of, by its name; see `prunedeploy.evaluation.ensemble`.
        attacked_model: The model whose gradients the attacks use.
        own_attacks: Attacks that ask each runner itself, by name; none may be called as one of the others is.
        lattice: Makes 255ths of attacked and clean images, for runners that take uint8 images; without it those round.
        iou_threshold: NMS drops a box whose IoU with a better one of its class is greater, in [0, 1].
        score_threshold: Detections have a score above it, in [0, `PAPER_SCORE_THRESHOLD`].
        resamples: Resamples of the bootstrap; 0 computes no intervals.
        seed: Seed of the bootstrap.
        progress: Called with the number of images after each batch.

    Returns:
        One `Evaluation` per runner, by its name.

    Raises:
        DataError: A network has other classes than the data set, or the loader meets a bad image.
        ValueError: An attack without a model, attacked images that are no images (wrong shape, pixels not in
            [0, 1]), or a score threshold outside its range.
    """
    named = {runners.runtime: runners} if isinstance(runners, Runner) else dict(runners)
    if not 0 <= score_threshold <= PAPER_SCORE_THRESHOLD:
        raise ValueError(f"score_threshold must be in [0, {PAPER_SCORE_THRESHOLD}], got {score_threshold}")
    attacks = {PGD: attack} if callable(attack) else dict(attack or {})
    if attacks and attacked_model is None:
        raise ValueError("an attack needs the model whose gradients it uses: attacked_model")
    thresholds = Thresholds(iou_threshold, score_threshold)
    tables: dict[tuple[str, str], list[DetectionTable]] = defaultdict(list)  # of runner and attack; clean: ""
    counted: dict[tuple[str, str], list[Candidates]] = defaultdict(list)  # likewise
    losses: dict[str, list[float]] = {one: [] for members in (ensembles or {}).values() for one in members}
    judge = attacked_model.for_inference() if losses and attacked_model is not None else None
    queries: dict[tuple[str, str], list[NDArray[np.int64]]] = defaultdict(list)
    image_ids: list[int] = []
    for batch in batches:
        made: dict[str, Tensor] = {}
        for kind, make in {"": None, **attacks}.items():
            images = in_8_bits = batch.images
            if make is not None and attacked_model is not None:
                images = in_8_bits = made[kind] = make(attacked_model, batch.images, batch.targets)
                _check_attacked(images, batch.images)
                if lattice is not None and any(runner.uint8_input for runner in named.values()):
                    in_8_bits = lattice(images, batch.images)
            for name, runner in named.items():
                seen = in_8_bits if runner.uint8_input else images
                found = detect_batch(runner, seen, batch, dataset, thresholds, counted[name, kind])
                tables[name, kind].append(found)
            if judge is not None and kind in losses:
                losses[kind] += _losses(judge, images, batch)
        for kind, ask in (own_attacks or {}).items():
            for name, runner in named.items():
                images, asked = ask(runner, batch, made)
                _check_attacked(images, batch.images)
                found = detect_batch(runner, images, batch, dataset, thresholds, counted[name, kind])
                tables[name, kind].append(found)
                queries[name, kind].append(asked)
        image_ids += batch.image_ids
        if progress is not None:
            progress(len(batch.image_ids))

    def measured(table: DetectionTable) -> Measurement:
        return measure(dataset, table, image_ids, resamples=resamples, seed=seed)

    def result(name: str, runner: Runner) -> Evaluation:
        kinds = (*attacks, *(own_attacks or {}))
        attacked = {kind: measured(DetectionTable.concatenate(tables[name, kind])) for kind in kinds}
        found = {
            ensemble: ensemble_of(
                {one: attacked[one] for one in members},
                {one: dict(zip(image_ids, losses[one], strict=True)) for one in members},
                measured,
            )
            for ensemble, members in (ensembles or {}).items()
        }
        return Evaluation(
            runner=runner.describe(),
            n_images=len(image_ids),
            clean=measured(DetectionTable.concatenate(tables[name, ""])),
            attacked=attacked | {ensemble: one.reported for ensemble, one in found.items()},
            # The model that was attacked, is it what ran?
            transfer=bool(attacks) and not (isinstance(runner, TorchRunner) and runner.model is attacked_model),
            ensembles=found,
            queries={kind: np.concatenate(queries[name, kind]) for kind in own_attacks or {}},
            candidates={
                kind or "clean": Candidates.concatenate(parts) for (of, kind), parts in counted.items() if of == name
            },
        )

    return {name: result(name, runner) for name, runner in named.items()}


@torch.no_grad()
def _losses(network: Detector, images: Tensor, batch: Batch) -> list[float]:
    """The detection loss of each image."""
    heads = network(images.to(network.device))
    found: list[float] = yolo_losses(heads, batch.targets.to(network.device), network.cfg).tolist()
    return found


def _check_attacked(images: Tensor, clean: Tensor) -> None:
    if images.shape != clean.shape or images.dtype != torch.float32:
        raise ValueError(
            f"attacked images must be {tuple(clean.shape)} float32, got {tuple(images.shape)} {images.dtype}"
        )
    low, high = float(images.min()), float(images.max())
    if not (low >= 0 and high <= 1):  # NaN fails too
        raise ValueError(f"attacked images must have pixels in [0, 1], got {low} to {high}")
