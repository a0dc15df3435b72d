"""What each of two processes does in the test of distributed training: ``two_processes.py OUT``."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from prunedeploy.attacks import ThreatModel
from prunedeploy.config import TrainingConfig
from prunedeploy.data.loader import Batch
from prunedeploy.models import Darknet, yolo_loss
from prunedeploy.pruning.granularity import Weights
from prunedeploy.scores import scaled_scores
from prunedeploy.training.adversarial import robust_objective
from prunedeploy.training.distributed import is_main_process, own_share, shard, start_process_group, whole_batch, world
from prunedeploy.training.hydra import ScoredDarknet, score_objective
from prunedeploy.training.loop import Objective, train
from training.small import batch_of, loop_settings, small_model, whole

SETTINGS = loop_settings(
    steps=4, lr=1e-3, optimizer="adamw", ema=0.5, checkpoint_every=2, clip_norm=5.0, schedule="constant"
)
# One plain step of descent, which can be followed by hand.
ONE_STEP = loop_settings(steps=1, lr=1e-3, momentum=0.0, weight_decay=0.0, schedule="constant")
FREE = loop_settings(
    steps=7, lr=1e-3, adversarial="free", replays=3, attack=ThreatModel(steps=1), checkpoint_every=2, clip_norm=5.0
)
SCORE_STEPS = loop_settings(steps=5, lr=0.5, checkpoint_every=2)
IMAGES = 4


def batches(start: int) -> Iterator[Batch]:
    step = start
    while True:
        yield batch_of(step, IMAGES)
        step += 1


def evaluation_objective(model: Darknet) -> Objective:
    """The loss without batch statistics, which alone is the same for a batch and for its shares."""

    def objective(batch: Batch, step: int) -> dict[str, Tensor]:
        batch = shard(batch)
        return {"loss": yolo_loss(model.eval()(batch.images), batch.targets, model.cfg).total}

    return objective


def run(work: Path, training_mode: bool, stop_after: int = 0, settings: TrainingConfig = SETTINGS) -> Darknet:
    """Train the small network; stop by an exception after so many steps."""
    model = small_model()
    threat_model = settings.attack if settings.adversarial == "free" else None
    objective = (
        robust_objective(model, settings, threat_model, 0, torch.device("cpu"))
        if training_mode
        else evaluation_objective(model)
    )
    taken = 0

    def advance(count: int, loss: float) -> None:
        nonlocal taken
        taken += count
        if stop_after and taken >= stop_after:
            raise InterruptedError

    work.mkdir(parents=True, exist_ok=True)
    train(
        model, whole(model), batches, objective, settings,
        stage="s", work=work, log=work / "log.jsonl", advance=advance,
    )  # fmt: skip
    return model


def optimise_scores(work: Path, stop_after: int = 0) -> ScoredDarknet:
    """Score optimisation of the small network; stop by an exception after so many steps."""
    model, taken = small_model(), 0
    select = Weights(0.5).selection(model.cfg, Weights(0.5).allocate(model.cfg))
    scored = ScoredDarknet(model, scaled_scores(model), select)

    def advance(count: int, loss: float) -> None:
        nonlocal taken
        taken += count
        if stop_after and taken >= stop_after:
            raise InterruptedError

    work.mkdir(parents=True, exist_ok=True)
    objective = score_objective(scored, SCORE_STEPS, ThreatModel(steps=1, random_start=True), 0, torch.device("cpu"))
    train(
        scored, scored.parameter_sets(0.01), batches, objective, SCORE_STEPS,
        stage="s", work=work, log=work / "log.jsonl", advance=advance,
    )  # fmt: skip
    return scored


def main() -> None:
    """Compute everything that the test looks at, and write one file per process."""
    out = Path(sys.argv[1])
    torch.set_num_threads(1)
    start_process_group(torch.device("cpu"))
    rank, count = world()
    assert (rank, count) == (int(os.environ["RANK"]), 2)
    assert is_main_process() == (rank == 0)
    values: dict[str, Tensor] = {}
    share = shard(batch_of(0, IMAGES))
    values["share.images"], values["share.targets"] = share.images, share.targets
    values["share.ids"] = torch.tensor(share.image_ids)
    for name, training_mode in (("eval", False), ("train", True)):
        model = run(out / name, training_mode)
        values.update({f"{name}.{key}": value for key, value in model.state_dict().items()})
    model = run(out / "one", training_mode=True, settings=ONE_STEP)
    values.update({f"one.{key}": value for key, value in model.state_dict().items()})
    try:
        run(out / "stopped", training_mode=True, stop_after=3)
    except InterruptedError:
        model = run(out / "stopped", training_mode=True)
        values.update({f"resumed.{key}": value for key, value in model.state_dict().items()})
    model = run(out / "free", training_mode=True, settings=FREE)
    values.update({f"free.{key}": value for key, value in model.state_dict().items()})
    try:
        run(out / "free-stopped", training_mode=True, stop_after=5, settings=FREE)
    except InterruptedError:
        model = run(out / "free-stopped", training_mode=True, settings=FREE)
        values.update({f"freed.{key}": value for key, value in model.state_dict().items()})
    values["gathered"] = whole_batch(own_share(batch_of(0, IMAGES).images))
    values.update({f"scored.{key}": value for key, value in optimise_scores(out / "scored").state_dict().items()})
    try:
        optimise_scores(out / "scored-stopped", stop_after=3)
    except InterruptedError:
        scored = optimise_scores(out / "scored-stopped")
        values.update({f"rescored.{key}": value for key, value in scored.state_dict().items()})
    try:
        shard(batch_of(0, 3))
    except ValueError as error:
        values["refused"] = torch.tensor([float("3 does not split over 2" in str(error))])
    save_file({key: value.detach().contiguous() for key, value in values.items()}, out / f"{rank}.safetensors")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
