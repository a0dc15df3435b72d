"""Checkpoints inside a training stage: everything needed to go on bit for bit, as safetensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from prunedeploy_engines.files import write_atomically


def save_checkpoint(path: Path, step: int, groups: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Write a checkpoint atomically.

    Args:
        path: The file; replaced as a whole.
        step: Number of finished steps.
        groups: Named groups of named tensors, e.g. ``{"model": state_dict, "optimizer": ...}``.
    """
    tensors = {
        f"{group}/{name}": value.detach().contiguous()
        for group, values in groups.items()
        for name, value in values.items()
    }
    write_atomically(path, save(tensors, metadata={"checkpoint": json.dumps({"step": step})}))


def load_checkpoint(path: Path) -> tuple[int, dict[str, dict[str, Tensor]]] | None:
    """Read a checkpoint: finished steps and tensors by group; None if there is none that is whole."""
    if not path.is_file():
        return None
    groups: dict[str, dict[str, Tensor]] = {}
    try:
        with safe_open(str(path), framework="pt") as file:
            step = int(json.loads(file.metadata()["checkpoint"])["step"])
            for key in file.keys():  # noqa: SIM118 - not a mapping
                group, _, name = key.partition("/")
                groups.setdefault(group, {})[name] = file.get_tensor(key)
    except (SafetensorError, KeyError, ValueError, TypeError):
        return None
    return step, groups


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state as named tensors, ``parameter number.entry``."""
    state: dict[int, dict[str, Any]] = optimizer.state_dict()["state"]
    return {
        f"{number}.{entry}": torch.as_tensor(value)
        for number, entries in state.items()
        for entry, value in entries.items()
        if value is not None
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Undo `optimizer_tensors`."""
    document = optimizer.state_dict()
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        number, _, entry = name.partition(".")
        parameter = parameters[int(number)]
        if value.shape == parameter.shape:
            # A file knows no memory layout, and fused AdamW pairs values by their place in memory: with a
            # channels-last parameter a contiguous moment would be read in the wrong order.
            value = torch.empty_like(parameter, requires_grad=False).copy_(value)
        state.setdefault(int(number), {})[entry] = value
    document["state"] = state
    optimizer.load_state_dict(document)
