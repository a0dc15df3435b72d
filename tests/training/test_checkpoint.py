"""Checkpoints hold everything, in whatever memory layout it lay."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import nn

from prunedeploy.training.checkpoint import (
    load_checkpoint,
    optimizer_tensors,
    restore_optimizer,
    save_checkpoint,
)
from prunedeploy.training.optimisation import ParameterSet, make_optimizer
from training.small import loop_settings


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    groups = {
        "model": {"a.weight": torch.rand(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)},
        "optimizer": {"0.step": torch.tensor(3.0), "0.exp_avg": torch.rand(2)},
    }
    save_checkpoint(path, 41, groups)
    step, loaded = load_checkpoint(path)
    assert step == 41
    assert loaded.keys() == groups.keys()
    for group, values in groups.items():
        assert loaded[group].keys() == values.keys()
        for name, value in values.items():
            assert torch.equal(loaded[group][name], value)
    assert not list(tmp_path.glob("*.tmp"))
    with safe_open(str(path), framework="pt") as file:  # the file is safetensors, not a pickle
        assert len(list(file.keys())) == 3


def test_no_checkpoint_and_a_damaged_one_are_none(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    assert load_checkpoint(path) is None
    save_checkpoint(path, 1, {"model": {"a": torch.zeros(100)}})
    whole = path.read_bytes()
    for data in (b"", b"x", whole[:50], whole[:-1]):
        path.write_bytes(data)
        assert load_checkpoint(path) is None


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_a_restored_optimiser_takes_the_same_steps(
    optimizer: str, memory_format: torch.memory_format, tmp_path: Path
) -> None:
    # With a channels-last weight, fused AdamW once read restored moments in the wrong order.
    settings = loop_settings(steps=6, lr=0.01, optimizer=optimizer)

    def make() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(1)
        module = nn.Conv2d(8, 6, 3).to(memory_format=memory_format)
        return module, make_optimizer([ParameterSet(tuple(module.parameters()))], settings)

    def step(module: nn.Module, optimizer: torch.optim.Optimizer, number: int) -> None:
        x = torch.rand(2, 8, 6, 6, generator=torch.Generator().manual_seed(number))
        optimizer.zero_grad()
        module(x).square().mean().backward()
        optimizer.step()

    module, optimiser = make()
    for number in range(3):
        step(module, optimiser, number)
    save_checkpoint(tmp_path / "c", 3, {"model": module.state_dict(), "optimizer": optimizer_tensors(optimiser)})
    other, other_optimiser = make()
    _, groups = load_checkpoint(tmp_path / "c")
    other.load_state_dict(groups["model"])
    restore_optimizer(other_optimiser, groups["optimizer"])
    for number in range(3, 6):
        step(module, optimiser, number)
        step(other, other_optimiser, number)
    assert torch.equal(module.weight, other.weight)
    assert torch.equal(module.bias, other.bias)
