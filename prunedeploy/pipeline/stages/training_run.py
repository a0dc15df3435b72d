"""One training of a stage: the loop with its batches, checkpoints, log and progress bar."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from prunedeploy.config import TrainingConfig
from prunedeploy.data.loader import Batch
from prunedeploy.models import Darknet
from prunedeploy.pipeline.context import BuildContext, StageResult
from prunedeploy.training.distributed import is_main_process
from prunedeploy.training.loop import train
from prunedeploy.training.optimisation import ParameterSet
from prunedeploy_engines.files import write_atomically

SKIPPED = "skipped.json"
"""Path and reason of every image that a training could not use; there is no such file if there was none."""


@contextmanager
def training_run(
    context: BuildContext, result: StageResult, name: str, block: TrainingConfig, model: Darknet
) -> Iterator[Callable[..., Any]]:
    """Prepare `train` for a stage: the block calls it with the module and the ``objective``.

    Unless it says which ``sets`` are trained, every parameter of the network is that wants a gradient. Afterwards
    ``log.jsonl`` is in the result, bad images are named, and the network is in evaluation mode.

    Args:
        context: The build's context.
        result: Result of the stage, being computed.
        name: Name in the log and of the bar; ``clean`` for a training without attack.
        block: The training's settings.
        model: The network.
    """
    assert result.work is not None, "nothing is trained for a result that is there"
    assert result.checkpoints is not None, "they come with the work"
    log = result.checkpoints / "log.jsonl"
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # its stubs do not know it
    loader = context.loader(block, model.cfg, clean=name == "clean")
    kept = result.checkpoints / SKIPPED  # a training that is resumed does not meet every bad image again
    skipped: dict[str, str] = json.loads(kept.read_text(encoding="utf-8")) if kept.is_file() else {}

    def batches(start: int) -> Iterator[Batch]:
        loader.start_step = start
        for batch in loader:
            new = {str(path): reason for path, reason in batch.skipped.items() if str(path) not in skipped}
            if new:
                skipped.update(new)
                if is_main_process():
                    write_atomically(kept, json.dumps(skipped).encode())
            yield batch

    every_parameter = ParameterSet(tuple(p for p in model.parameters() if p.requires_grad))
    with context.progress.task(name, block.steps) as advance:
        yield partial(
            train, sets=[every_parameter], batches=batches, settings=block,
            stage=name, work=result.checkpoints, log=log,
            advance=lambda count, loss: advance(count, loss=loss) if loss == loss else advance(count),
        )  # fmt: skip
    for path, reason in skipped.items():
        context.progress.message(f"skipped in training: {path}: {reason}")
    if skipped:
        context.progress.message(f"{len(skipped)} images were skipped in training")
        result.write(SKIPPED, skipped)
    model.eval()
    if log.is_file():
        shutil.copyfile(log, result.work / "log.jsonl")
