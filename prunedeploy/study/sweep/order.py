"""In which order models are trained, so that no worker runs out of them before the others.

Run by run: a sweep that is broken off has whole runs. But the adversarial pre-training of a run, which all its models
wait for, is begun one run ahead, while other workers still have something to do. Within a run the longest go first,
and short ones fill the end.
"""

from __future__ import annotations

from collections.abc import Sequence

from prunedeploy.config import TrainingConfig
from prunedeploy.study.sweep.plan import PlannedCell

PRETRAINING = "pretrain"


def training_order(cells: Sequence[PlannedCell], runs: Sequence[int]) -> list[PlannedCell]:
    """Sort models for training.

    Args:
        cells: With their stages.
        runs: In the order that they are to be finished in.
    """
    place = {run: number for number, run in enumerate(runs)}
    ordered = sorted(cells, key=lambda one: (place[one.cell.key.run], -expected_work(one)))
    seen: set[str] = set()
    ranks: dict[int, tuple[int, bool]] = {}
    for number, one in enumerate(ordered):
        shared = {stage.digest for stage in one.training if stage.name == PRETRAINING and not stage.is_done}
        is_first, run = bool(shared - seen), place[one.cell.key.run]
        ranks[number] = (max(0, run - 1) if is_first else run, not is_first)
        seen |= shared
    return [ordered[number] for number in sorted(ranks, key=ranks.__getitem__)]


def expected_work(planned: PlannedCell) -> float:
    """About how long the stages of a model take that the store does not have, in passes of an image.

    Trainings only: that is what models differ in. A step passes an image forward and back once for every step of its
    attack and once to train; where filters leave, a network takes less by about their ratio.
    """
    config = planned.cell.config.with_divided_steps()
    trained = 0.0 if config.pretrain.start == "bundled" else 1.0
    left = 1 - config.ratio if config.method in ("structured", "hybrid") else 1.0
    blocks: dict[str, tuple[TrainingConfig, float]] = {
        PRETRAINING: (config.pretrain, trained),
        "optimise-scores": (config.score_optimization, 1.0),
        "finetune": (config.finetune, left),
    }
    missing = [stage.name for stage in planned.training if not stage.is_done]
    return sum(_passes(block) * share for name, (block, share) in blocks.items() if name in missing)


def _passes(block: TrainingConfig) -> int:
    return block.steps * block.batch_size * (1 + block.attack.steps)
