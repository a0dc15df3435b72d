"""Running an exported ONNX file with OpenVINO."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from prunedeploy_engines.errors import EngineError
from prunedeploy_engines.runtimes.layer_times import LayerExecution
from prunedeploy_engines.runtimes.onnx_file import read_onnx_header
from prunedeploy_engines.runtimes.openvino.library import cpu_settings, import_openvino, load_error, run_error
from prunedeploy_engines.runtimes.openvino.profile import computes_in, layer_times
from prunedeploy_engines.runtimes.runner import Images, Runner
from prunedeploy_engines.runtimes.signature import INPUT, detector_signature

PRECISION_HINTS = ("f32", "bf16", "f16")
_TYPES = {"f32": "float32", "u8": "uint8"}
_KEPT_BATCHES = 4  # compiled models, each with its own copy of the weights in the layout of its kernels


class OpenVinoRunner(Runner):
    """A `Runner` on OpenVINO.

    The model is compiled once per batch size, since with a dynamic shape int8 networks are much slower: the slim
    YOLOv3 at 160 takes 2.6 ms instead of 1.2 in int8 and 3.8 instead of 3.4 in fp32 (YOLOv3 at 416 the same within
    5 %; two cores). The last few batch sizes are kept.

    Args:
        path: ONNX file, as for `OnnxRuntimeRunner`.
        threads: None leaves it to OpenVINO: one per physical core of the machine, which in a container with a CPU
            quota may be more than it has.
        inference_precision: What float layers are computed in: ``"f32"``, ``"bf16"``, ``"f16"``, or None to let
            OpenVINO choose, which takes bf16 where the CPU has it.

    Raises:
        RuntimeUnavailableError: OpenVINO is not there.
        EngineError: The file is missing, is not an ONNX model, or not one with this input and these outputs.
    """

    runtime = "openvino"

    def __init__(
        self, path: str | Path, *, threads: int | None = None, inference_precision: str | None = "f32"
    ) -> None:
        if threads is not None and threads < 1:
            raise ValueError(f"threads must be at least 1, got {threads}")
        if inference_precision is not None and inference_precision not in PRECISION_HINTS:
            raise ValueError(f"inference_precision must be one of {PRECISION_HINTS}, got {inference_precision!r}")
        self._path = Path(path)
        self._hint = inference_precision
        ov = import_openvino()
        self._version = ov.__version__
        if not self._path.is_file():
            raise EngineError("there is no such ONNX file", where=self._path)
        self._header = read_onnx_header(self._path)  # what is no ONNX file makes OpenVINO print
        self._core = ov.Core()
        self._settings = cpu_settings(threads, inference_precision)
        try:
            self._model = self._core.read_model(str(self._path))
        except Exception as error:  # OpenVINO raises RuntimeError for nearly everything
            raise load_error(error, self._path) from error
        self._signature = signature = detector_signature(
            {str(port.get_any_name()): (_type(port), _shape(port)) for port in self._model.inputs},
            [name for port in self._model.outputs for name in port.get_names()],
            self._header,
            self._path,
        )
        self.input_size, self.uint8_input = signature.input_size, signature.uint8_input
        self.channels = signature.channels
        self.nms_classes = signature.nms_classes
        self._lock = threading.Lock()
        self._compiled: dict[int, tuple[Any, Any]] = {}  # batch -> compiled model, request; oldest use first
        compiled, _ = self._for_batch(self._signature.batch or 1)
        self._computes_in = computes_in(compiled)
        self._threads = int(compiled.get_property("INFERENCE_NUM_THREADS"))

    def describe(self) -> dict[str, Any]:
        """What runs: version, device, threads, file, and what the convolutions are computed in."""
        return {
            "runtime": self.runtime,
            "version": self._version,
            "precision": self._header.precision,
            "computes_in": self._computes_in,
            "device": "cpu",
            "threads": self._threads,
            "inference_precision": self._hint,
            "file": self._path.name,
        }

    def compute_call(self, images: Images) -> Callable[[], object]:
        """See `Runner.compute_call`."""
        ready = np.ascontiguousarray(self._checked(images))
        with self._lock:
            compiled, _ = self._for_batch(len(ready))
        request = compiled.create_infer_request()  # of its own: `infer` must not change its input
        request.get_tensor(INPUT).data[...] = ready

        def run() -> None:
            try:
                request.infer(share_outputs=True)
            except Exception as error:  # OpenVINO raises RuntimeError for nearly everything
                raise run_error(error, self._path) from error

        return run

    def _layer_times(self, images: npt.NDArray[Any], runs: int) -> list[LayerExecution]:
        with self._lock:
            compiled = self._compile(len(images), {"PERF_COUNT": True})
        try:
            return list(layer_times(compiled, images, runs))
        except Exception as error:  # OpenVINO raises RuntimeError for nearly everything
            raise run_error(error, self._path) from error

    def _infer(self, images: npt.NDArray[Any]) -> tuple[Any, Any]:
        with self._lock:
            _, request = self._for_batch(len(images))
            try:
                # Copied into OpenVINO's own memory: an array of ours that it shares is let go by its threads,
                # which do not hold Python's lock.
                request.get_tensor(INPUT).data[...] = images
                request.infer(share_outputs=True)
            except Exception as error:  # OpenVINO raises RuntimeError for nearly everything
                raise run_error(error, self._path) from error
            first, second = (request.get_tensor(name).data.copy() for name in self._signature.outputs)
        return first, second

    def _release(self) -> None:
        self._compiled.clear()
        self._model = None

    def _for_batch(self, batch: int) -> tuple[Any, Any]:
        """Compiled model and request of a batch size."""
        found = self._compiled.pop(batch, None)
        if found is None:
            compiled = self._compile(batch, {})
            found = compiled, compiled.create_infer_request()
            while len(self._compiled) >= _KEPT_BATCHES:
                del self._compiled[next(iter(self._compiled))]
        self._compiled[batch] = found
        return found

    def _compile(self, batch: int, more: dict[str, Any]) -> Any:
        self._signature.check_batch(batch, self._path)
        try:
            if self._signature.batch is None:
                self._model.reshape(list(self._signature.input_shape(batch)))
            return self._core.compile_model(self._model, "CPU", {**self._settings, **more})
        except Exception as error:  # OpenVINO raises RuntimeError for nearly everything
            raise load_error(error, self._path) from error


def _type(port: Any) -> str:
    name = str(port.get_element_type().get_type_name())
    return _TYPES.get(name, name)


def _shape(port: Any) -> list[int | None]:
    return [int(size.get_length()) if size.is_static else None for size in port.get_partial_shape()]
