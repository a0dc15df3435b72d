"""The training loop: a run that was stopped anywhere goes on bit for bit."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prunedeploy.attacks import ThreatModel
from prunedeploy.config import TrainingConfig
from prunedeploy.data.loader import Batch
from prunedeploy.training.adversarial import robust_objective
from prunedeploy.training.loop import DivergedError, Objective, train
from prunedeploy.training.optimisation import ParameterSet
from training.small import batch_of, batches, loop_settings, small_model, whole

STEPS = 7


class StoppedError(Exception):
    """Stands for the kill."""


def run(work: Path, settings: TrainingConfig, stop_after: int | None = None, stage: str = "robust") -> nn.Module:
    """Train the small network adversarially; stop by an exception after so many finished steps."""
    work.mkdir(exist_ok=True)
    model = small_model().to(memory_format=torch.channels_last)
    attack = ThreatModel(steps=1, random_start=True)
    done = 0

    def advance(count: int, loss: float) -> None:
        nonlocal done
        done += count
        if stop_after is not None and done >= stop_after:
            raise StoppedError

    return train(
        model, whole(model), batches, robust_objective(model, settings, attack, 0, torch.device("cpu")),
        settings, stage=stage, work=work, log=work / "log.jsonl", advance=advance,
    )  # fmt: skip


def state(module: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in module.state_dict().items()}


def assert_same_bits(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    for key, value in a.items():
        assert torch.equal(value, b[key]), key


VARIANTS: dict[str, dict[str, Any]] = {
    "sgd": {"optimizer": "sgd", "lr": 1e-3, "clip_norm": 10.0},
    "sgd-without-momentum": {"optimizer": "sgd", "lr": 1e-3, "momentum": 0.0},
    "sgd-ema": {"optimizer": "sgd", "lr": 1e-3, "clip_norm": 10.0, "ema": 0.9},
    "adamw-ema": {"optimizer": "adamw", "lr": 1e-3, "ema": 0.9, "warmup_steps": 2},
    "adamw-ema-bf16": {"optimizer": "adamw", "lr": 1e-3, "ema": 0.9, "precision": "bf16"},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_a_run_stopped_after_any_step_goes_on_bit_for_bit(name: str, tmp_path: Path) -> None:
    settings = loop_settings(steps=STEPS, checkpoint_every=3, **VARIANTS[name])
    whole = state(run(tmp_path / "whole", settings))
    whole_log = (tmp_path / "whole" / "log.jsonl").read_bytes()
    for stop in range(1, STEPS):
        work = tmp_path / f"stopped{stop}"
        with pytest.raises(StoppedError):
            run(work, settings, stop_after=stop)
        with (work / "log.jsonl").open("a") as log:
            log.write('{"stage": "robust", "step": 6, "lo')  # a line that the kill cut in two
        assert_same_bits(state(run(work, settings)), whole)
        assert (work / "log.jsonl").read_bytes() == whole_log


def test_a_run_stopped_again_and_again_arrives(tmp_path: Path) -> None:
    settings = loop_settings(steps=STEPS, checkpoint_every=2, **VARIANTS["adamw-ema"])
    whole = state(run(tmp_path / "whole", settings))
    work = tmp_path / "stopped"
    for stop in (3, 3, 5, 7):  # counted with the steps that the checkpoint held
        with pytest.raises(StoppedError):
            run(work, settings, stop_after=stop)
    assert_same_bits(state(run(work, settings)), whole)


def test_resuming_starts_from_the_checkpoint_and_not_from_the_beginning(tmp_path: Path) -> None:
    settings = loop_settings(steps=STEPS, checkpoint_every=3, lr=1e-3)
    with pytest.raises(StoppedError):
        run(tmp_path, settings, stop_after=5)
    asked: list[int] = []

    def watched(start: int) -> Iterator[Batch]:
        for number, batch in enumerate(batches(start), start):
            asked.append(number)
            yield batch

    model, advanced = small_model(), []
    train(
        model, whole(model), watched, robust_objective(model, settings, None, 0, torch.device("cpu")),
        settings, stage="robust", work=tmp_path, log=tmp_path / "log.jsonl",
        advance=lambda count, loss: advanced.append((count, math.isnan(loss))),
    )  # fmt: skip
    assert asked == [3, 4, 5, 6], "no batch before the checkpoint, none beyond the last step"
    assert advanced == [(3, True), *[(1, False)] * 4]


@pytest.mark.parametrize("damage", [b"", b"garbage", None])
def test_a_damaged_checkpoint_starts_the_stage_afresh(tmp_path: Path, damage: bytes | None) -> None:
    settings = loop_settings(steps=STEPS, checkpoint_every=3, lr=1e-3)
    whole = state(run(tmp_path / "whole", settings))
    work = tmp_path / "stopped"
    with pytest.raises(StoppedError):
        run(work, settings, stop_after=5)
    checkpoint = work / "checkpoint.safetensors"
    checkpoint.write_bytes(checkpoint.read_bytes()[:-100] if damage is None else damage)
    assert_same_bits(state(run(work, settings)), whole)
    assert (work / "log.jsonl").read_bytes() == (tmp_path / "whole" / "log.jsonl").read_bytes()


def test_lines_of_other_stages_survive_the_cut(tmp_path: Path) -> None:
    other = [json.dumps({"stage": "pretrain", "step": step, "loss": 1.0}) for step in range(20)]
    (tmp_path / "log.jsonl").write_text("\n".join(other) + "\n")
    settings = loop_settings(steps=4, lr=1e-3, checkpoint_every=2)
    with pytest.raises(StoppedError):
        run(tmp_path, settings, stop_after=3)
    run(tmp_path, settings)
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    assert lines[:20] == other
    assert [json.loads(line)["step"] for line in lines[20:]] == [0, 1, 2, 3]


def test_the_log_has_a_row_for_every_step_with_every_term(tmp_path: Path) -> None:
    run(tmp_path, loop_settings(steps=3, lr=1e-3, schedule="constant"))
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 1, 2]
    for row in rows:
        assert row["stage"] == "robust"
        assert row["lr"] == 1e-3
        assert row["grad_norm"] > 0
        assert row["loss"] == pytest.approx(row["box"] + row["objectness"] + row["classes"], rel=1e-5)


# --- one step, worked by hand ---


class OneWeight(nn.Module):
    """A loss that is linear in one weight, so that its gradient is known."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0, 2.0]))


def linear(module: OneWeight, slope: float) -> Objective:
    return lambda batch, step: {"loss": slope * module.weight.sum()}


def train_one(module: nn.Module, objective: Objective, settings: TrainingConfig, tmp_path: Path) -> None:
    train(
        module, whole(module), batches, objective, settings,
        stage="s", work=tmp_path, log=tmp_path / "log.jsonl",
    )  # fmt: skip


def test_plain_descent_and_clipping_worked_by_hand(tmp_path: Path) -> None:
    # Gradient (3, 3), norm 3 sqrt 2. Clipped to 1: (0.7071, 0.7071). Step 0.1.
    module = OneWeight()
    settings = loop_settings(steps=1, lr=0.1, momentum=0.0, schedule="constant", clip_norm=1.0)
    train_one(module, linear(module, 3.0), settings, tmp_path)
    torch.testing.assert_close(module.weight.detach(), torch.tensor([1 - 0.07071068, 2 - 0.07071068]))
    row = json.loads((tmp_path / "log.jsonl").read_text())
    assert row["grad_norm"] == pytest.approx(3 * math.sqrt(2)), "the norm before clipping is logged"


def test_sets_have_a_learning_rate_and_a_limit_of_their_own(tmp_path: Path) -> None:
    # Both gradients are (3, 3), norm 3 sqrt 2, clipped to 1 each: (0.7071, 0.7071). Steps 0.1 and 0.02.
    one, other = OneWeight(), OneWeight()
    settings = loop_settings(steps=1, lr=0.1, momentum=0.0, schedule="constant", clip_norm=1.0)
    train(
        nn.ModuleList([one, other]), [ParameterSet((one.weight,)), ParameterSet((other.weight,), lr=0.02)], batches,
        lambda batch, step: {"loss": 3.0 * (one.weight.sum() + other.weight.sum())}, settings,
        stage="s", work=tmp_path, log=tmp_path / "log.jsonl",
    )  # fmt: skip
    torch.testing.assert_close(one.weight.detach(), torch.tensor([1 - 0.07071068, 2 - 0.07071068]))
    torch.testing.assert_close(other.weight.detach(), torch.tensor([1 - 0.014142136, 2 - 0.014142136]))
    assert json.loads((tmp_path / "log.jsonl").read_text())["grad_norm"] == pytest.approx(6.0), "of all together"


def test_without_a_clip_norm_the_gradient_is_left_alone(tmp_path: Path) -> None:
    module = OneWeight()
    settings = loop_settings(steps=1, lr=0.1, momentum=0.0, schedule="constant")
    train_one(module, linear(module, 1000.0), settings, tmp_path)
    torch.testing.assert_close(module.weight.detach(), torch.tensor([-99.0, -98.0]))


def test_the_average_of_weights_is_returned(tmp_path: Path) -> None:
    # The weight goes 1, 0.9, 0.8 (lr 0.1, slope 1). Decay of step t is min(0.9, (1 + t) / (10 + t)):
    # 0.1 * 1 + 0.9 * 0.9 = 0.91, then with 2 / 11: 0.91 * 2/11 + 0.8 * 9/11 = 0.82.
    module = OneWeight()
    settings = loop_settings(steps=2, lr=0.1, momentum=0.0, schedule="constant", ema=0.9)
    train_one(module, linear(module, 1.0), settings, tmp_path)
    assert float(module.weight[0].detach()) == pytest.approx(0.82)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_with_stage_step_and_advice(value: float, tmp_path: Path) -> None:
    module = OneWeight()

    def objective(batch: Batch, step: int) -> dict[str, Tensor]:
        return {"loss": module.weight.sum() * (value if step == 2 else 1.0)}

    with pytest.raises(DivergedError, match="loss of s is not finite at step 2; lower its lr"):
        train_one(module, objective, loop_settings(steps=5, lr=0.1), tmp_path)
    assert bool(torch.isfinite(module.weight).all()), "the weights before the bad step are still there"


def test_a_gradient_that_is_not_finite_stops_too(tmp_path: Path) -> None:
    module = OneWeight()

    def objective(batch: Batch, step: int) -> dict[str, Tensor]:
        return {"loss": (module.weight - module.weight.detach()).clamp(min=0).sqrt().sum()}

    with pytest.raises(DivergedError):
        train_one(module, objective, loop_settings(steps=5, lr=0.1), tmp_path)
    assert module.weight.tolist() == [1.0, 2.0]


def test_batches_that_end_early_are_an_error_and_not_a_shorter_training(tmp_path: Path) -> None:
    module = OneWeight()
    with pytest.raises(ValueError, match="ended before step 5"):
        train(
            module, whole(module), lambda start: iter([batch_of(0)] * 3), linear(module, 1.0),
            loop_settings(steps=5, lr=0.1), stage="s", work=tmp_path, log=tmp_path / "log.jsonl",
        )  # fmt: skip


def test_no_steps_change_nothing_and_load_nothing(tmp_path: Path) -> None:
    module = OneWeight()

    def never(start: int) -> Iterator[Batch]:
        raise AssertionError("a batch was asked for")

    train(
        module, whole(module), never, linear(module, 1.0), loop_settings(steps=0, lr=0.1, ema=0.9),
        stage="s", work=tmp_path, log=tmp_path / "log.jsonl",
    )  # fmt: skip
    assert module.weight.tolist() == [1.0, 2.0]
