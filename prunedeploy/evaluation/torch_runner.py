"""A PyTorch network behind the contract of every runner."""

from __future__ import annotations

from typing import Any

import torch

from prunedeploy.models.darknet import load_darknet
from prunedeploy.models.decode import decode
from prunedeploy.models.detector import Detector
from prunedeploy_engines.runtimes.runner import Float32Array, Runner


class TorchRunner(Runner):
    """A `Runner` on PyTorch in fp32: batch normalisation folded, no gradients, decoded boxes.

    It runs a copy: later changes of the model are not seen. The copy is on the model's device.

    Args:
        model: The network; not modified.
        threads: Threads of one operator while this runner infers (they are PyTorch's global setting, put back
            after each call); None leaves that setting alone.

    Attributes:
        model: The network that was given.
    """

    runtime = "torch"

    def __init__(self, model: Detector, threads: int | None = None) -> None:
        if threads is not None and threads < 1:
            raise ValueError(f"threads must be at least 1, got {threads}")
        self.model = model
        self._folded: Detector | None = model.for_inference()
        self.channels, self.input_size = model.cfg.input_shape[0], model.cfg.input_size
        self._device = model.device
        self._threads = threads

    def describe(self) -> dict[str, Any]:
        """What runs: version, precision, device, threads."""
        return {
            "runtime": self.runtime,
            "version": str(torch.__version__),
            "precision": "fp32",
            "computes_in": {"fp32": 1.0},
            "device": self._device.type,
            "threads": self._threads,
        }

    def _infer(self, images: Float32Array) -> tuple[Float32Array, Float32Array]:
        assert self._folded is not None
        ambient = torch.get_num_threads()
        threads = ambient if self._threads is None else self._threads
        try:
            if threads != ambient:
                torch.set_num_threads(threads)
            with torch.inference_mode():
                # A copy, because a read-only array (a memory map, say) cannot be shared with a tensor.
                heads = self._folded(torch.tensor(images, device=self._device))
                boxes, scores = decode(heads, self._folded)
                return boxes.cpu().numpy(), scores.cpu().numpy()
        finally:
            if threads != ambient:
                torch.set_num_threads(ambient)

    def _release(self) -> None:
        self._folded = None


def open_torch_runner(cfg: str, weights: str, threads: int | None = None) -> TorchRunner:
    """A runner from Darknet files; `prunedeploy_engines.bench.rounds` opens it in a process of its own."""
    return TorchRunner(load_darknet(cfg, weights), threads)
