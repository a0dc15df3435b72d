"""Run a TensorRT plan on the GPU, through pinned host buffers and one CUDA stream.

Everything that can be wrong with the files is found before the library sees them: a plan that was cut short,
was made by another version or for another GPU gets one line here and not an abort in C++.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import threading
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from prunedeploy_engines.engine_from_onnx import EngineFile, read_engine_file
from prunedeploy_engines.errors import EngineError, RuntimeUnavailableError
from prunedeploy_engines.runner import Float32Array, Runner
from prunedeploy_engines.tensorrt_library import (
    EXTRAS,
    LIBRARIES,
    LibraryName,
    TensorRTLibrary,
    cuda_device,
    cuda_driver_problem,
    installed_version,
    load_library,
    summarise,
    version_problem,
)

_REBUILD = "build it again on this device with `prunedeploy engine`"


def tensorrt_unavailable_reason(library: LibraryName | None = None) -> str | None:
    """Why no plan can run here, or None if one can.

    Nothing of TensorRT is called to find out, so the answer is safe where its calls would abort.

    Args:
        library: The library that the plan needs; None if either will do.
    """
    wanted = LIBRARIES if library is None else (library,)
    versions = {name: installed_version(name) for name in wanted}
    if all(version is None for version in versions.values()):
        return f"{' and '.join(wanted)} {'is' if len(wanted) == 1 else 'are'} not installed"
    problems = [version_problem(name, version) for name, version in versions.items() if version is not None]
    if None not in problems:
        return " and ".join(str(problem) for problem in problems)
    problem = cuda_driver_problem()
    if problem is not None:
        return problem
    if _cudart() is None:
        return "cuda-python is not installed"
    return None


def check_batch(batch: int, engine: EngineFile, input_name: str) -> None:
    """Refuse a batch that the engine was not built for.

    Raises:
        EngineError: It names the profile's smallest and largest batch.
    """
    smallest, _, largest = (shape[0] for shape in engine.profile[input_name])
    if not smallest <= batch <= largest:
        raise EngineError(
            f"batch {batch} is outside the engine's profile: {input_name} takes {smallest} to {largest}",
            where=engine.path,
            fix="send other batches, or build the engine with another batch profile",
        )


def check_plan(engine: EngineFile, library: LibraryName | None = None) -> None:
    """Refuse a plan that this library, in this version, cannot load; needs no GPU.

    Raises:
        EngineError: The plan is of another library than asked for, or of another version than the installed
            one.
        RuntimeUnavailableError: The plan's library is not installed.
    """
    if library is not None and library != engine.library:
        raise EngineError(f"is a plan of {engine.library}, not of {library}", where=engine.path, fix=_REBUILD)
    if engine.library not in LIBRARIES:
        raise EngineError(f"is a plan of unknown library {engine.library!r}", where=engine.path, fix=_REBUILD)
    version = installed_version(engine.library)
    if version is None:
        raise RuntimeUnavailableError(
            f"{engine.library} is not installed",
            where=engine.path,
            fix=f"install prunedeploy[{EXTRAS[engine.library]}]",
        )
    if version != engine.version:
        raise EngineError(
            f"was built with {engine.library} {engine.version}, installed is {version}",
            where=engine.path,
            fix=_REBUILD,
        )


def deserialise(library: TensorRTLibrary, plan: bytes, where: Path) -> tuple[Any, Any]:
    """A plan's bytes to a runtime and its engine; the runtime must outlive the engine.

    Args:
        library: The library that made the plan, from `load_library`.
        plan: All of it.
        where: The file, for the error.

    Raises:
        EngineError: The library gives no engine; the message holds what it logged.
    """
    with library.logger.collect() as messages:
        runtime = library.trt.Runtime(library.logger)
        engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        name = f"{library.name} {library.version}"
        raise EngineError(f"{name} cannot load it: {summarise(messages)}", where=where, fix=_REBUILD)
    return runtime, engine


class TensorRTRunner(Runner):
    """A plan, ready to infer.

    Args:
        plan_path: A plan with its sidecar ``<plan>.json`` beside it.
        library: The library that must have made it; None takes the sidecar's word.

    Raises:
        EngineError: The plan is changed, foreign, of another version or GPU, or cannot be loaded.
        RuntimeUnavailableError: No library, driver, GPU or cuda-python here.
    """

    def __init__(self, plan_path: str | Path, *, library: LibraryName | None = None) -> None:
        self._engine_file = read_engine_file(plan_path)
        check_plan(self._engine_file, library)
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
            raise EngineError(
                f"was built for {self._engine_file.target}, here is {here}", where=plan_path, fix=_REBUILD
            )
        self._device_name = device.name
        self._lock = threading.Lock()  # one set of buffers, and a context is not thread-safe
        self._library = load_library(self._engine_file.library)
        self._cuda = CudaCalls(_cudart())
        self._buffers: dict[str, _Buffer] = {}
        self._stream: Any = None
        self._batch = 0
        try:
            self._load(Path(plan_path).read_bytes())
        except BaseException:
            with contextlib.suppress(EngineError):  # after a CUDA error freeing fails too; the first says why
                self.close()
            raise

    @property
    def runtime(self) -> str:
        """``"tensorrt"``, for both libraries."""
        return "tensorrt"

    @property
    def input_size(self) -> tuple[int, int]:
        """(height, width) of the network input, in pixels."""
        return self._input_size

    @property
    def engine_file(self) -> EngineFile:
        """What the plan's sidecar says."""
        return self._engine_file

    def describe(self) -> dict[str, Any]:
        """What runs, for a report; JSON values only."""
        engine = self._engine_file
        return {
            "runtime": self.runtime,
            "library": engine.library,
            "version": engine.version,
            "precision": engine.precision,
            "device": self._device_name,
            "target": engine.target,
            "builder_flags": engine.flags.get("builder_flags", []),
            "profile": engine.profile,
            "plan_sha256": engine.sha256,
        }

    def _load(self, plan: bytes) -> None:
        trt = self._library.trt
        with self._library.logger.collect() as messages:
            self._runtime, self._engine = deserialise(self._library, plan, self._engine_file.path)
            self._context = self._engine.create_execution_context()
            if self._context is None:
                raise self._error(f"no execution context: {summarise(messages)}", "free memory of the GPU")
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        inputs = [name for name in names if self._engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        outputs = [name for name in names if name not in inputs]
        if len(inputs) != 1 or not {"boxes", "scores"} <= set(outputs):
            raise self._error(
                f"needs one input and the outputs boxes and scores, has {inputs} and {outputs}",
                "export the network without NMS in the graph",
            )
        self._input = inputs[0]
        shape = tuple(self._engine.get_tensor_shape(self._input))
        if (
            len(shape) != 4
            or shape[1] != 3
            or self._engine.get_tensor_dtype(self._input) != trt.DataType.FLOAT
        ):
            raise self._error(
                f"the input must be float (N, 3, H, W), is {self._input} {shape}", "export it again"
            )
        self._input_size = (shape[2], shape[3])
        self._stream = self._cuda.call("cudaStreamCreate")
        self._set_batch(self._engine_file.profile[self._input][2][0])
        for name in names:
            dtype = np.dtype(trt.nptype(self._engine.get_tensor_dtype(name)))
            largest = tuple(self._context.get_tensor_shape(name))
            if any(size < 0 for size in largest):
                raise self._error(
                    f"the size of {name} {largest} depends on the data", "export boxes and scores"
                )
            self._buffers[name] = _Buffer(self._cuda, prod(largest), dtype)
            if not self._context.set_tensor_address(name, self._buffers[name].device):
                raise self._error(f"the address of {name} is refused")

    def _set_batch(self, batch: int) -> None:
        if batch == self._batch:
            return
        shape = (batch, *tuple(self._engine.get_tensor_shape(self._input))[1:])
        with self._library.logger.collect() as messages:
            if not self._context.set_input_shape(self._input, shape):
                raise self._error(f"input shape {shape} is refused: {summarise(messages)}")
        self._batch = batch

    def _infer(self, images: Float32Array) -> tuple[Float32Array, Float32Array]:
        check_batch(len(images), self._engine_file, self._input)
        with self._lock:
            self._set_batch(len(images))
            buffer = self._buffers[self._input]
            buffer.host[: images.size] = images.ravel()
            buffer.upload(images.size, self._stream)
            with self._library.logger.collect() as messages:
                if not self._context.execute_async_v3(int(self._stream)):
                    raise self._error(f"the engine does not run: {summarise(messages)}")
            shapes = {name: tuple(self._context.get_tensor_shape(name)) for name in ("boxes", "scores")}
            for name, shape in shapes.items():
                self._buffers[name].download(prod(shape), self._stream)
            self._cuda.call("cudaStreamSynchronize", self._stream)
            # astype copies: the caller keeps these arrays, the next call overwrites the buffers.
            boxes, scores = (
                self._buffers[name].host[: prod(shape)].reshape(shape).astype(np.float32)
                for name, shape in shapes.items()
            )
        return boxes, scores

    def _release(self) -> None:
        # The context goes before the memory that it points to, the engine before its runtime.
        self._context = self._engine = self._runtime = None
        for buffer in self._buffers.values():
            buffer.free()
        self._buffers.clear()
        if self._stream is not None:
            self._cuda.call("cudaStreamDestroy", self._stream)
            self._stream = None

    def _error(self, what: str, fix: str | None = None) -> EngineError:
        return EngineError(what, where=self._engine_file.path, fix=fix)


class CudaCalls:
    """cuda-python's runtime module, with every return code checked.

    Args:
        cudart: ``cuda.bindings.runtime`` or, before cuda-python 12.6, ``cuda.cudart``.
    """

    def __init__(self, cudart: Any) -> None:
        self.cudart = cudart

    def call(self, function: str, *arguments: Any) -> Any:
        """Call ``function``; its result, or None if it has none.

        Raises:
            EngineError: It returned an error code; the message says which and what it means.
        """
        code, *results = getattr(self.cudart, function)(*arguments)
        if int(code) != 0:
            _, text = self.cudart.cudaGetErrorString(code)
            meaning = text.decode(errors="replace") if isinstance(text, bytes) else str(text)
            raise EngineError(f"{function} failed: {meaning} (code {int(code)})")
        return results[0] if results else None


class _Buffer:
    """A tensor's memory: pinned on the host, as ``host``, and its twin on the device."""

    def __init__(self, cuda: CudaCalls, size: int, dtype: np.dtype[Any]) -> None:
        self._cuda = cuda
        self._pinned = self.device = 0
        nbytes = max(size * dtype.itemsize, 1)
        self._pinned = int(cuda.call("cudaMallocHost", nbytes))
        try:
            self.device = int(cuda.call("cudaMalloc", nbytes))
        except EngineError:
            self.free()
            raise
        memory = (ctypes.c_byte * nbytes).from_address(self._pinned)
        self.host = np.frombuffer(memoryview(memory), dtype=dtype, count=size)

    def upload(self, size: int, stream: Any) -> None:
        kind = self._cuda.cudart.cudaMemcpyKind.cudaMemcpyHostToDevice
        nbytes = size * self.host.itemsize
        self._cuda.call("cudaMemcpyAsync", self.device, self._pinned, nbytes, kind, stream)

    def download(self, size: int, stream: Any) -> None:
        kind = self._cuda.cudart.cudaMemcpyKind.cudaMemcpyDeviceToHost
        nbytes = size * self.host.itemsize
        self._cuda.call("cudaMemcpyAsync", self._pinned, self.device, nbytes, kind, stream)

    def free(self) -> None:
        pinned, device = self._pinned, self.device
        self._pinned = self.device = 0
        if device:
            self._cuda.call("cudaFree", device)
        if pinned:
            self._cuda.call("cudaFreeHost", pinned)


def _cudart() -> Any:
    for name in ("cuda.bindings.runtime", "cuda.cudart"):
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    return None
