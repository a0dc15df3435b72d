"""One training of a stage: the loop with its batches, checkpoints, log and progress bar."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from prunedeploy.config import TrainingConfig
from prunedeploy.data.loader import Batch
from prunedeploy.models import Darknet
from prunedeploy.pipeline.context import BuildContext, StageResult
from prunedeploy.training.loop import train
from prunedeploy.training.optimisation import ParameterSet


@contextmanager
def training_run(
    context: BuildContext, result: StageResult, name: str, block: TrainingConfig, model: Darknet
) -> Iterator[Callable[..., Any]]:
    """Prepare `train` for a stage: the block calls it with the module and the ``objective``.

    Unless it says which ``sets`` are trained, every parameter of the network is that wants a gradient. Afterwards
    ``log.jsonl`` is in the result, bad images are named, and the network is in evaluation mode.

    Args:
        context: The build's context.
        result: Of the stage, being computed.
        name: Name in the log and of the bar; ``clean`` for a training without attack.
        block: The training's settings.
        model: The network.
    """
    assert result.work is not None, "nothing is trained for a result that is there"
    assert result.checkpoints is not None, "they come with the work"
    log = result.checkpoints / "log.jsonl"
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # its stubs do not know it
    loader = context.loader(block, model.cfg, clean=name == "clean")

    def batches(start: int) -> Iterable[Batch]:
        loader.start_step = start
        return loader

    every_parameter = ParameterSet(tuple(p for p in model.parameters() if p.requires_grad))
    with context.progress.task(name, block.steps) as advance:
        yield partial(
            train, sets=[every_parameter], batches=batches, settings=block,
            stage=name, work=result.checkpoints, log=log,
            advance=lambda count, loss: advance(count, loss=loss) if loss == loss else advance(count),
        )  # fmt: skip
    for path, reason in loader.skipped.items():
        context.progress.message(f"skipped in training: {path}: {reason}")
    if loader.skipped:
        context.progress.message(f"{len(loader.skipped)} images were skipped in training")
    model.eval()
    if log.is_file():
        shutil.copyfile(log, result.work / "log.jsonl")
