"""Free adversarial training against a plain loop, and stopped after any step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prunedeploy.attacks import ThreatModel
from prunedeploy.config import TrainingConfig
from prunedeploy.models import FoldedDarknet, yolo_loss
from prunedeploy.training.adversarial import distillation_loss, robust_objective
from prunedeploy.training.checkpoint import load_checkpoint
from prunedeploy.training.free import FreeObjective
from prunedeploy.training.loop import train
from training.small import batch_of, batches, loop_settings, small_model, whole

CPU = torch.device("cpu")
ATTACK = ThreatModel(eps=0.06, step_size=0.04, steps=1)
STEPS, REPLAYS = 8, 3


class StoppedError(Exception):
    """Stands for the kill."""


def free_settings(**more: Any) -> TrainingConfig:
    plain = {"momentum": 0.0, "weight_decay": 0.0, "schedule": "constant"}
    return loop_settings(
        **{"steps": STEPS, "lr": 1e-3, "adversarial": "free", "replays": REPLAYS, "attack": ATTACK, **plain, **more}
    )


def run(
    work: Path, settings: TrainingConfig, stop_after: int | None = None, **more: Any
) -> tuple[dict[str, Tensor], Tensor]:
    """Train the small network; its state, and the perturbation."""
    work.mkdir(exist_ok=True)
    model = small_model().to(memory_format=torch.channels_last)
    objective = robust_objective(model, settings, settings.attack, 0, CPU, **more)
    assert isinstance(objective, FreeObjective)
    done = 0

    def advance(count: int, loss: float) -> None:
        nonlocal done
        done += count
        if stop_after is not None and done >= stop_after:
            raise StoppedError

    train(
        model, whole(model), batches, objective, settings,
        stage="free", work=work, log=work / "log.jsonl", advance=advance,
    )  # fmt: skip
    assert objective.carried is not None
    return {key: value.clone() for key, value in model.state_dict().items()}, objective.carried


def plain_loop(model: nn.Module, teacher: FoldedDarknet | None = None) -> Tensor:
    """Algorithm 1 of the paper, with the clamping of the authors' code."""
    model.train()
    delta = torch.zeros(2, 3, 16, 16)
    for step in range(STEPS):
        batch = batch_of(step // REPLAYS)
        leaf = delta.clone().requires_grad_(True)
        heads = model((batch.images + leaf).clamp(0, 1))
        loss = yolo_loss(heads, batch.targets, model.cfg).total
        if teacher is not None:
            loss = loss + 0.5 * distillation_loss(heads, teacher(batch.images), model)
        gradients = torch.autograd.grad(loss, [leaf, *model.parameters()])
        delta = (delta + ATTACK.step_size * gradients[0].sign()).clamp(-ATTACK.eps, ATTACK.eps)
        with torch.no_grad():
            for parameter, gradient in zip(model.parameters(), gradients[1:], strict=True):
                parameter -= 1e-3 * gradient
    return delta


@pytest.mark.parametrize("distilled", [False, True])
def test_weights_and_perturbation_are_those_of_a_plain_loop(distilled: bool, tmp_path: Path) -> None:
    teacher = FoldedDarknet(small_model(seed=5)) if distilled else None
    state, perturbation = run(tmp_path, free_settings(), teacher=teacher, distillation=0.5 * distilled)
    model = small_model()
    expected = plain_loop(model, teacher)
    torch.testing.assert_close(perturbation, expected, rtol=0, atol=1e-6)
    start = small_model().state_dict()
    for key, value in model.state_dict().items():
        torch.testing.assert_close(state[key], value, rtol=1e-5, atol=1e-6, msg=key)
        assert not torch.equal(state[key], start[key]), key
    # Steps of 0.04 in a ball of 0.06: some pixels have been stopped at its edge, none is outside.
    assert float(perturbation.abs().max()) == pytest.approx(ATTACK.eps)
    assert {round(abs(value), 3) for value in perturbation.flatten().tolist()} >= {0.02, 0.06}


VARIANTS: dict[str, dict[str, Any]] = {
    "sgd": {"momentum": 0.9, "clip_norm": 10.0},
    "adamw-ema-bf16": {"optimizer": "adamw", "momentum": 0.9, "ema": 0.9, "precision": "bf16"},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_a_run_stopped_after_any_step_goes_on_bit_for_bit(name: str, tmp_path: Path) -> None:
    settings = free_settings(checkpoint_every=2, **VARIANTS[name])
    expected, perturbation = run(tmp_path / "whole", settings)
    log = (tmp_path / "whole" / "log.jsonl").read_bytes()
    for stop in range(1, STEPS):
        work = tmp_path / f"stopped{stop}"
        with pytest.raises(StoppedError):
            run(work, settings, stop_after=stop)
        state, found = run(work, settings)
        assert torch.equal(found, perturbation)
        assert all(torch.equal(value, state[key]) for key, value in expected.items())
        assert (work / "log.jsonl").read_bytes() == log


def test_the_checkpoint_holds_the_perturbation_and_without_it_a_run_would_differ(tmp_path: Path) -> None:
    settings = free_settings(checkpoint_every=4)
    with pytest.raises(StoppedError):
        run(tmp_path, settings, stop_after=6)
    loaded = load_checkpoint(tmp_path / "checkpoint.safetensors")
    assert loaded is not None
    step, groups = loaded
    _, after_four = run(tmp_path / "four", free_settings(steps=4))
    assert step == 4
    assert torch.equal(groups["carried"]["batch"], after_four)
    _, fresh = run(tmp_path / "fresh", free_settings(steps=1))
    assert not torch.equal(fresh, after_four)


def test_each_batch_is_asked_for_once_and_none_beyond_the_last_step(tmp_path: Path) -> None:
    model, asked, seen = small_model(), [], []
    objective = robust_objective(model, free_settings(), ATTACK, 0, CPU)

    class Watched(FreeObjective):
        def __call__(self, batch: Any, step: int) -> dict[str, Tensor]:
            seen.append((step, batch.image_ids[0]))
            return objective(batch, step)

    def watched(start: int) -> Any:
        for number, batch in enumerate(batches(start), start):
            asked.append(number)
            yield batch

    watching = Watched(lambda *_: {}, ATTACK, REPLAYS, CPU)
    train(
        model, whole(model), watched, watching, free_settings(),
        stage="free", work=tmp_path, log=tmp_path / "log.jsonl",
    )  # fmt: skip
    assert asked == [0, 1, 2]
    assert seen == [(step, 100 * (step // REPLAYS)) for step in range(STEPS)]
