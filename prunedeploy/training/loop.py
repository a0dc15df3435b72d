"""One training loop for every stage: adversarial training, score optimisation, fine-tuning."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from prunedeploy.config import TrainingConfig
from prunedeploy.data.loader import Batch
from prunedeploy.training.checkpoint import load_checkpoint, optimizer_tensors, restore_optimizer, save_checkpoint
from prunedeploy.training.distributed import (
    average_buffers,
    average_gradients,
    is_main_process,
    own_share,
    whole_batch,
)
from prunedeploy.training.optimisation import ParameterSet, WeightAverage, learning_rate, make_optimizer
from prunedeploy_engines.errors import PrunedeployError
from prunedeploy_engines.files import write_atomically

Objective = Callable[[Batch, int], dict[str, Tensor]]
Batches = Callable[[int], Iterable[Batch]]


@runtime_checkable
class ReplayingObjective(Protocol):
    """An objective that sees every batch for several steps in a row and carries a tensor from step to step.

    Attributes:
        replays: Steps that each batch is seen for.
        carried: ``(B, ...)``, one entry per image of this process's share of a batch; None before the first step. It is
            checkpointed, so that a resumed training goes on with it.
    """

    replays: int
    carried: Tensor | None

    def __call__(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """As any objective."""
        ...


class DivergedError(PrunedeployError):
    """The loss is not finite any more."""


def train(
    module: nn.Module,
    sets: Sequence[ParameterSet],
    batches: Batches,
    objective: Objective | ReplayingObjective,
    settings: TrainingConfig,
    *,
    stage: str,
    work: Path,
    log: Path,
    advance: Callable[[int, float], object] = lambda count, loss: None,
) -> nn.Module:
    """Minimise an objective, checkpointing so that a killed run goes on bit for bit.

    Args:
        module: What is checkpointed and averaged: parameters and buffers. Modified in place.
        sets: What is optimised, of the module's parameters.
        batches: Given the number of a batch, from 0, yields that one and all after it. Each is one step, or as many
            as a `ReplayingObjective` says.
        objective: From a batch and its step (from 0) to named 0-d terms; ``loss`` is minimised, all are
            logged.
        settings: Lengths, rates, precision.
        stage: Name in the log.
        work: Folder for checkpoints.
        log: The ``log.jsonl`` to append to; cut back to the checkpoint's step on resume.
        advance: Called after every step with 1 and the loss.

    Returns:
        ``module``, holding the average of weights if ``settings.ema`` is above 0.

    Raises:
        DivergedError: The loss is not finite.
        ValueError: ``batches`` ended before the last step.
    """
    trained = [parameter for part in sets for parameter in part.tensors]
    optimizer = make_optimizer(sets, settings)
    average = WeightAverage(module, settings.ema) if settings.ema > 0 else None
    checkpoint = work / "checkpoint.safetensors"
    replaying = objective if isinstance(objective, ReplayingObjective) else None
    done, carried = _resume(checkpoint, module, optimizer, average)
    if replaying is not None and carried is not None:
        replaying.carried = own_share(carried)
    _cut_log(log, stage, done)
    if done:
        advance(done, math.nan)
    with log.open("a", encoding="utf-8") if is_main_process() else contextlib.nullcontext() as lines:
        for step, batch in _numbered(batches, done, settings.steps, replaying.replays if replaying else 1):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(settings, step) * group["lr_factor"]
            optimizer.zero_grad(set_to_none=True)
            terms = objective(batch, step)
            terms["loss"].backward()
            average_gradients(trained)
            limit = settings.clip_norm or math.inf
            norm = math.hypot(*(float(nn.utils.clip_grad_norm_(part.tensors, limit)) for part in sets))
            values = {name: float(value.detach()) for name, value in terms.items()}
            if not math.isfinite(values["loss"]) or not math.isfinite(norm):
                raise DivergedError(f"the loss of {stage} is not finite at step {step}", fix="lower its lr")
            optimizer.step()
            average_buffers(module)
            if average is not None:
                average.update(module, step)
            if lines is not None:
                row = {"stage": stage, "step": step, "lr": optimizer.param_groups[0]["lr"], "grad_norm": norm}
                lines.write(json.dumps({**row, **values}) + "\n")
            advance(1, values["loss"])
            if (step + 1) % settings.checkpoint_every or step + 1 == settings.steps:
                continue
            # All processes take part, though one writes.
            carried = None if replaying is None or replaying.carried is None else whole_batch(replaying.carried)
            if lines is not None:
                # The log first: a checkpoint never knows more steps than the log holds.
                lines.flush()
                groups = {"model": module.state_dict(), "optimizer": optimizer_tensors(optimizer)}
                if average is not None:
                    groups["average"] = average.values
                if carried is not None:
                    groups["carried"] = {"batch": carried}
                save_checkpoint(checkpoint, step + 1, groups)
    if average is not None:
        module.load_state_dict(average.values)
    return module


def _numbered(batches: Batches, start: int, end: int, replays: int) -> Iterator[tuple[int, Batch]]:
    """Steps ``start`` to ``end - 1`` with their batches, step s with batch s // replays; loads none beyond them."""
    if start >= end:
        return
    first = start // replays
    for number, batch in enumerate(batches(first), first):
        for step in range(max(start, number * replays), min(end, (number + 1) * replays)):
            yield step, batch
        if (number + 1) * replays >= end:
            return
    raise ValueError(f"the batches ended before step {end}")


def _resume(
    checkpoint: Path, module: nn.Module, optimizer: torch.optim.Optimizer, average: WeightAverage | None
) -> tuple[int, Tensor | None]:
    """Finished steps, and what the objective carried, of the whole batch."""
    loaded = load_checkpoint(checkpoint)
    if loaded is None:
        return 0, None
    step, groups = loaded
    module.load_state_dict(groups["model"])
    restore_optimizer(optimizer, groups.get("optimizer", {}))
    if average is not None:
        for name, value in average.values.items():
            value.copy_(groups["average"][name])
    return step, groups.get("carried", {}).get("batch")


def _cut_log(log: Path, stage: str, done: int) -> None:
    """Drop what a killed run logged for ``stage`` beyond its checkpoint, half-written lines included."""
    if not log.is_file() or not is_main_process():
        return
    kept = []
    for line in log.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if row["stage"] != stage or row["step"] < done:
            kept.append(line + "\n")
    write_atomically(log, "".join(kept).encode())
