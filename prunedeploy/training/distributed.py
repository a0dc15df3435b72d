"""Data-parallel training under an existing launcher: ``torchrun`` or ``accelerate launch``.

The launcher starts one process per device and sets ``WORLD_SIZE``, ``RANK`` and ``LOCAL_RANK``. Every process
computes on its share of each batch and the gradients are averaged; process 0 writes.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.distributed as dist
from torch import Tensor, nn

from prunedeploy.data.loader import Batch


def start_process_group(device: torch.device) -> None:
    """Join the launcher's process group; does nothing without a launcher."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")


def world() -> tuple[int, int]:
    """``(rank, number of processes)``; ``(0, 1)`` without a launcher."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def is_main_process() -> bool:
    """Whether this process writes logs, checkpoints and results."""
    return world()[0] == 0


def shard(batch: Batch) -> Batch:
    """This process's share of a batch: images ``rank, rank + n, ...``.

    The share's loss is a mean over fewer images; averaging the gradients of equal shares gives the gradient
    of the whole batch, so batch sizes must be multiples of the number of processes.

    Raises:
        ValueError: The batch does not split into equal shares.
    """
    rank, count = world()
    if count == 1:
        return batch
    if len(batch.images) % count:
        raise ValueError(f"a batch of {len(batch.images)} does not split over {count} processes")
    own = torch.arange(rank, len(batch.images), count)
    mine = batch.targets[:, 0].long() % count == rank
    targets = batch.targets[mine].clone()
    targets[:, 0] = (targets[:, 0] - rank) / count
    return replace(
        batch, images=batch.images[own], targets=targets, image_ids=[batch.image_ids[i] for i in own.tolist()]
    )


def own_share(whole: Tensor) -> Tensor:
    """This process's share of a tensor with one entry per image of a batch, as `shard` divides the batch."""
    rank, count = world()
    return whole[rank::count].clone()


def whole_batch(share: Tensor) -> Tensor:
    """Undo `own_share`: every process gets the entries of the whole batch, in its order."""
    _, count = world()
    if count == 1:
        return share
    shares = [torch.empty_like(share) for _ in range(count)]
    dist.all_gather(shares, share.contiguous())
    return torch.stack(shares, dim=1).flatten(0, 1)  # (B / n, n, ...) to (B, ...)


def average_gradients(parameters: Sequence[Tensor]) -> None:
    """Average gradients over all processes, in one flat reduction."""
    average([p.grad for p in parameters if p.grad is not None])


def average_buffers(module: nn.Module) -> None:
    """Average buffers (running means and variances) over all processes.

    Each process has seen its own share only. Without this they would attack different networks, and a resumed
    run, which restores what process 0 knew, would differ from an undisturbed one. Buffers that are not floating-point,
    such as masks, follow from the parameters and are equal everywhere.
    """
    average([buffer for buffer in module.buffers() if buffer.is_floating_point()])


@torch.no_grad()
def average(values: Sequence[Tensor]) -> None:
    """Average tensors of one dtype over all processes, in place."""
    _, count = world()
    if count == 1 or not values:
        return
    flat = torch.cat([value.flatten() for value in values])
    dist.all_reduce(flat)
    flat /= count
    at = 0
    for value in values:
        value.copy_(flat[at : at + value.numel()].view_as(value))
        at += value.numel()
