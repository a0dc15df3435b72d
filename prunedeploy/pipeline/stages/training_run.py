"""One training of a stage: the loop with its batches, checkpoints, log and progress bar."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from prunedeploy.config import TrainingConfig
from prunedeploy.models import Darknet
from prunedeploy.pipeline.context import BuildContext, loop_settings
from prunedeploy.training.loop import Objective, train
from prunedeploy.training.optimisation import ParameterSet


def run_training(
    context: BuildContext,
    stage: str,
    block: TrainingConfig,
    model: Darknet,
    trained: torch.nn.Module,
    objective: Objective,
    work: Path,
    checkpoints: Path,
    steps: int | None = None,
    sets: Sequence[ParameterSet] | None = None,
) -> None:
    """Run the loop with a progress bar; leaves ``log.jsonl`` in the result and bad images named on the way.

    Args:
        context: The build's context.
        stage: Name in the log and of the bar.
        block: The training's settings.
        model: The network; left in evaluation mode.
        trained: What is checkpointed: the network itself, or a module around it.
        objective: What is minimised.
        work: The stage's result.
        checkpoints: Folder of checkpoints and of the log while it grows.
        steps: In the place of those of ``block``.
        sets: What is optimised; None: every parameter of ``trained`` that wants a gradient.
    """
    settings = loop_settings(block, steps)
    log = checkpoints / "log.jsonl"
    if trained is model:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # its stubs do not know it
    loader = context.loader(block, model.cfg, 0, clean=stage == "clean")
    if sets is None:
        sets = [ParameterSet(tuple(p for p in trained.parameters() if p.requires_grad))]
    with context.progress.task(stage, settings.steps) as advance:

        def batches(start: int) -> Iterator:
            loader.start_step = start
            return iter(loader)

        train(
            trained,
            sets,
            batches,
            objective,
            settings,
            stage=stage,
            work=checkpoints,
            log=log,
            advance=lambda count, loss: advance(count, loss=loss) if loss == loss else advance(count),
        )
    for path, reason in loader.skipped.items():
        context.progress.message(f"skipped in training: {path}: {reason}")
    if loader.skipped:
        context.progress.message(f"{len(loader.skipped)} images were skipped in training")
    model.eval()
    if log.is_file():
        shutil.copyfile(log, work / "log.jsonl")
