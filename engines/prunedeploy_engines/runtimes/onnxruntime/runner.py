"""Running an exported ONNX file with ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from prunedeploy_engines.errors import EngineError, RuntimeUnavailableError
from prunedeploy_engines.runtimes.layer_times import LayerExecution
from prunedeploy_engines.runtimes.onnx_file import header_from_metadata
from prunedeploy_engines.runtimes.onnxruntime.binding import DeviceBinding
from prunedeploy_engines.runtimes.onnxruntime.profile import ExecutedGraph, executed_graph, layer_times, probe_input
from prunedeploy_engines.runtimes.onnxruntime.session import (
    CPU,
    GPU_PROVIDERS,
    TENSORRT,
    SessionSpec,
    import_onnxruntime,
    open_session,
    provider_names,
    run_error,
)
from prunedeploy_engines.runtimes.runner import Images, Runner
from prunedeploy_engines.runtimes.signature import INPUT, detector_signature

__all__ = ["OnnxRuntimeRunner", "import_onnxruntime", "open_session"]

_TYPES = {"tensor(float)": "float32", "tensor(uint8)": "uint8"}


class OnnxRuntimeRunner(Runner):
    """A `Runner` on ONNX Runtime, with exactly the providers that were asked for.

    Args:
        path: ONNX file: input ``images`` (N, 3, H, W) float32 or (N, H, W, 3) uint8, outputs ``boxes`` and
            ``scores`` or ``detections`` and ``num_detections``.
        threads: Threads of one operator; None is one per physical core.
        providers: ``"cpu"``, ``"cuda"``, ``"tensorrt"`` or ONNX Runtime's own names, in order of preference. ONNX
            Runtime replaces a missing one by the CPU with no more than a message; here that is an error. Single
            operators that a provider has no kernel for do run on the CPU; `describe` counts them.
        allow_spinning: Let waiting threads spin. Faster alone; with several sessions in one process they
            steal each other's cores.

    Raises:
        RuntimeUnavailableError: ONNX Runtime or a provider is not there, or not one operator runs on it.
        EngineError: The file is missing, is not an ONNX model, or not one with this input and these outputs.
    """

    runtime = "onnxruntime"

    def __init__(
        self,
        path: str | Path,
        *,
        threads: int | None = None,
        providers: Sequence[str] = ("cpu",),
        allow_spinning: bool = True,
    ) -> None:
        if threads is not None and threads < 1:
            raise ValueError(f"threads must be at least 1, got {threads}")
        self._path = Path(path)
        self._ort = import_onnxruntime()
        self._spec = SessionSpec(self._path, threads, provider_names(providers), allow_spinning)
        self._session = self._spec.open()
        self._executed: ExecutedGraph | None = None
        self._assigned = self._assigned_operators()
        header = header_from_metadata(dict(self._session.get_modelmeta().custom_metadata_map))
        self._precision = header.precision
        self._signature = signature = detector_signature(
            {value.name: (_TYPES.get(value.type, value.type), _shape(value)) for value in self._session.get_inputs()},
            [value.name for value in self._session.get_outputs()],
            header,
            self._path,
        )
        self.input_size, self.uint8_input = signature.input_size, signature.uint8_input
        self.channels = signature.channels
        self.nms_classes = signature.nms_classes
        self._binding: DeviceBinding | None = self._new_binding() if self._on_gpu else None

    def describe(self) -> dict[str, Any]:
        """What runs: library and version, providers, threads, file, and what the convolutions are computed in.

        The first call opens the model a second time and runs it once, since only a profile tells what ONNX
        Runtime made of the graph: about a second for YOLOv3 at 416.
        """
        executed = self._executed_graph()
        operators = self._assigned or (executed.operators if executed else {})
        described = {
            "runtime": self.runtime,
            "version": self._ort.__version__,
            "precision": self._precision,
            "computes_in": None if executed is None else executed.computes_in,
            "device": "gpu" if self._on_gpu else "cpu",
            "providers": list(self._spec.providers),
            "threads": self._spec.threads or (executed.threads if executed else None),
            "allow_spinning": self._spec.allow_spinning,
            "file": self._path.name,
        }
        if self._spec.providers[0] != CPU:
            described["nodes_by_provider"] = {name: sum(kinds.values()) for name, kinds in operators.items()}
            described["operators_on_cpu"] = operators.get(CPU, {})
        return described

    def compute_call(self, images: Images) -> Callable[[], object]:
        """See `Runner.compute_call`; on a GPU images and outputs stay in its memory."""
        ready = np.ascontiguousarray(self._checked(images))
        self._signature.check_batch(len(ready), self._path)
        if self._binding is None:
            return lambda: self._infer(ready)
        binding = self._new_binding()  # of its own: `infer` must not change what lies in it

        def run() -> None:
            try:
                binding.run()
            except Exception as error:  # ONNX Runtime's exceptions share no base class
                raise run_error(error, self._path) from error

        try:
            binding.upload(ready)
        except Exception as error:
            raise run_error(error, self._path) from error
        return run

    def _layer_times(self, images: npt.NDArray[Any], runs: int) -> Iterable[LayerExecution]:
        self._signature.check_batch(len(images), self._path)
        return layer_times(self._spec, np.ascontiguousarray(images), runs)

    def _infer(self, images: npt.NDArray[Any]) -> tuple[Any, Any]:
        self._signature.check_batch(len(images), self._path)
        try:
            if self._binding is not None:
                return self._binding.infer(images)
            first, second = self._session.run(list(self._signature.outputs), {INPUT: np.ascontiguousarray(images)})
        except Exception as error:  # ONNX Runtime's exceptions share no base class
            raise run_error(error, self._path) from error
        return first, second

    def _release(self) -> None:
        self._binding = None
        del self._session

    @property
    def _on_gpu(self) -> bool:
        return self._spec.providers[0] in GPU_PROVIDERS

    def _new_binding(self) -> DeviceBinding:
        return DeviceBinding(self._session, self._signature.outputs, "cuda")

    def _executed_graph(self) -> ExecutedGraph | None:
        """None where a second session would build engines again, or the file is gone."""
        if self._executed is None and TENSORRT not in self._spec.providers:
            probe = probe_input(self._signature.input_shape(self._signature.batch or 1), self.uint8_input)
            try:
                self._executed = executed_graph(self._spec, probe)
            except EngineError:
                return None
        return self._executed

    def _assigned_operators(self) -> dict[str, dict[str, int]]:
        """Operators by provider as ONNX Runtime placed them, before it fused any; empty where it does not tell."""
        asked = self._spec.providers[0]
        if asked == CPU or not hasattr(self._session, "get_provider_graph_assignment_info"):
            return {}
        assigned: dict[str, dict[str, int]] = {}
        for subgraph in self._session.get_provider_graph_assignment_info():
            kinds = assigned.setdefault(subgraph.ep_name, {})
            for node in subgraph.get_nodes():
                kinds[node.op_type] = kinds.get(node.op_type, 0) + 1
        if assigned and set(assigned) == {CPU}:
            raise RuntimeUnavailableError(
                f"{asked} has no kernel for any of the model's operators: all would run on the CPU",
                where=self._path,
                fix="ask for cpu, or install an ONNX Runtime with this provider",
            )
        return assigned


def _shape(value: Any) -> list[int | None]:
    return [size if isinstance(size, int) else None for size in value.shape]
