"""Run a TensorRT plan on the GPU, through pinned host buffers and one CUDA stream.

Everything that can be wrong with the files is found before the library sees them: a plan that was cut short,
was made by another version or for another GPU gets one line here and not an abort in C++.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from prunedeploy_engines.errors import EngineError, RuntimeUnavailableError
from prunedeploy_engines.runtimes.layer_times import LayerExecution
from prunedeploy_engines.runtimes.runner import Images, Runner
from prunedeploy_engines.runtimes.tensorrt.cuda import CudaCalls, cudart
from prunedeploy_engines.runtimes.tensorrt.engine_file import read_engine_file
from prunedeploy_engines.runtimes.tensorrt.execution import EngineExecution
from prunedeploy_engines.runtimes.tensorrt.library import cuda_device, load_library
from prunedeploy_engines.runtimes.tensorrt.plan import REBUILD_HERE, check_plan, tensorrt_unavailable_reason


class TensorRTRunner(Runner):
    """A plan, ready to infer.

    Args:
        plan_path: A plan with its sidecar ``<plan>.json`` beside it.
        cuda_graph: Record the engine's work as a CUDA graph after the first call of a batch size, and launch
            that from then on. Another batch size is recorded anew.

    Raises:
        EngineError: The plan is changed, foreign, of another version or GPU, or cannot be loaded.
        RuntimeUnavailableError: No library, driver, GPU or cuda-python here.
    """

    runtime = "tensorrt"

    def __init__(self, plan_path: str | Path, *, cuda_graph: bool = False) -> None:
        self._engine_file = read_engine_file(plan_path)
        check_plan(self._engine_file)
        reason = tensorrt_unavailable_reason(self._engine_file.library)
        if reason is not None:
            raise RuntimeUnavailableError(
                f"a TensorRT plan cannot run here: {reason}",
                where=plan_path,
                fix="see `prunedeploy doctor`, or use runtime onnxruntime",
            )
        device = cuda_device()
        if device is None or device.target != self._engine_file.target:
            here = "no GPU" if device is None else f"{device.name} ({device.target})"
            problem = f"was built for {self._engine_file.target}, here is {here}"
            raise EngineError(problem, where=plan_path, fix=REBUILD_HERE)
        self._device_name = device.name
        self._cuda_graph = cuda_graph
        library_here = load_library(self._engine_file.library)
        self._execution = EngineExecution(library_here, CudaCalls(cudart()), self._engine_file, cuda_graph=cuda_graph)
        try:
            self._execution.load(Path(plan_path).read_bytes())
        except BaseException:
            with contextlib.suppress(EngineError):  # after a CUDA error freeing fails too; the first says why
                self.close()
            raise
        tensors = self._execution.tensors
        self.input_size, self.uint8_input = tensors.input_size, tensors.uint8_input
        self.channels = tensors.channels
        self.nms_classes = len(self._engine_file.class_names) if tensors.outputs[0] == "detections" else None

    def describe(self) -> dict[str, Any]:
        """What runs, for a report; JSON values only."""
        engine = self._engine_file
        return {
            "runtime": self.runtime,
            "library": engine.library,
            "version": engine.version,
            "precision": engine.precision,
            "computes_in": engine.computes_in,
            "computes_in_from": engine.layers_from,
            "device": self._device_name,
            "target": engine.target,
            "uint8_input": self.uint8_input,
            "nms": engine.nms,
            "cuda_graph": self._cuda_graph,
            "sparsity": engine.sparsity,
            "builder_flags": engine.flags.get("builder_flags", []),
            "profile": engine.profile,
            "plan_sha256": engine.sha256,
        }

    def compute_call(self, images: Images) -> Callable[[], float]:
        """A function that runs the engine once on images that lie on the GPU; the results stay there.

        It returns when the GPU is done, with the GPU's own milliseconds between two events around the run.

        Args:
            images: As for `infer`.
        """
        ready = np.ascontiguousarray(self._checked(images))

        def run() -> float:
            if self._closed:
                raise ValueError(f"{type(self).__name__} is closed")
            return self._execution.timed_run(ready)

        return run

    def _layer_times(self, images: npt.NDArray[Any], runs: int) -> list[LayerExecution]:
        return self._execution.layer_times(images, runs)

    def _infer(self, images: npt.NDArray[Any]) -> tuple[Any, Any]:
        return self._execution.infer(images)

    def _release(self) -> None:
        self._execution.free()
