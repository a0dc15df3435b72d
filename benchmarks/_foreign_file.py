"""An ONNX file of another program behind the contract of every runner, so that it is measured beside ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from prunedeploy_engines.runtimes.onnxruntime.session import import_onnxruntime, open_session, provider_names
from prunedeploy_engines.runtimes.runner import Float32Array, Runner


class ForeignFile(Runner):
    """Runs a file on ONNX Runtime as it is. What it gives is not decoded: time it by `compute_call` alone."""

    runtime = "onnxruntime"

    def __init__(self, path: Path, threads: int | None) -> None:
        self._path, self._threads = path, threads
        self._version = import_onnxruntime().__version__
        self._session = open_session(path, threads=threads, providers=provider_names(["cpu"]), allow_spinning=True)
        given = self._session.get_inputs()[0]
        self._input, (_, self.channels, *size) = given.name, given.shape
        self.input_size = tuple(size)

    def describe(self) -> dict[str, Any]:
        """What runs."""
        own = {"runtime": self.runtime, "version": self._version, "precision": "fp32", "computes_in": {"fp32": 1.0}}
        return {**own, "device": "cpu", "threads": self._threads, "file": self._path.name}

    def _infer(self, images: Float32Array) -> tuple[Float32Array, Float32Array]:
        self._session.run(None, {self._input: images})
        return np.zeros((len(images), 0, 4), np.float32), np.zeros((len(images), 0, 1), np.float32)


def open_foreign_file(path: str, threads: int | None = None) -> ForeignFile:
    """For a specification of `prunedeploy_engines.bench.rounds`, which opens it in a process of its own."""
    return ForeignFile(Path(path), threads)
