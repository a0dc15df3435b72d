"""The few calls of the CUDA runtime that running a plan needs, through cuda-python: memory, one stream, graphs."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
from collections.abc import Callable
from typing import Any

import numpy as np

from prunedeploy_engines.errors import EngineError


def cudart() -> Any:
    """cuda-python's runtime module, or None: ``cuda.bindings.runtime``, before 12.6 ``cuda.cudart``."""
    for name in ("cuda.bindings.runtime", "cuda.cudart"):
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    return None


class CudaCalls:
    """cuda-python's runtime module, with every return code checked.

    Args:
        cudart: What `cudart` returns.
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


class PinnedBuffer:
    """A tensor's memory: pinned on the host, as ``host``, and its twin on the device.

    Attributes:
        device: Address of the twin.
        host: ``(size,)`` array over the pinned memory.

    Args:
        cuda: The CUDA runtime.
        size: Number of elements.
        dtype: Data type of an element.

    Raises:
        EngineError: There is no memory left.
    """

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
        """Start copying the first ``size`` elements to the device."""
        kind = self._cuda.cudart.cudaMemcpyKind.cudaMemcpyHostToDevice
        nbytes = size * self.host.itemsize
        self._cuda.call("cudaMemcpyAsync", self.device, self._pinned, nbytes, kind, stream)

    def download(self, size: int, stream: Any) -> None:
        """Start copying the first ``size`` elements to the host."""
        kind = self._cuda.cudart.cudaMemcpyKind.cudaMemcpyDeviceToHost
        nbytes = size * self.host.itemsize
        self._cuda.call("cudaMemcpyAsync", self._pinned, self.device, nbytes, kind, stream)

    def free(self) -> None:
        """Free both; a second call does nothing."""
        pinned, device = self._pinned, self.device
        self._pinned = self.device = 0
        if device:
            self._cuda.call("cudaFree", device)
        if pinned:
            self._cuda.call("cudaFreeHost", pinned)


class CudaGraph:
    """What a function puts on a stream, recorded once and launched as a whole.

    Args:
        cuda: The CUDA runtime.
        stream: Where ``enqueue`` puts its work; not the default stream. Nothing may be pending on it.
        enqueue: Puts work on the stream, without waiting for it.

    Raises:
        EngineError: The work cannot be recorded, e.g. because it has to wait for the host. The stream is
            usable afterwards.
    """

    def __init__(self, cuda: CudaCalls, stream: Any, enqueue: Callable[[], None]) -> None:
        self._cuda, self._stream, self._executable = cuda, stream, None
        mode = cuda.cudart.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        cuda.call("cudaStreamBeginCapture", stream, mode)
        try:
            enqueue()
        except EngineError:
            with contextlib.suppress(EngineError):  # it only repeats that the recording is void
                graph = cuda.call("cudaStreamEndCapture", stream)
                cuda.call("cudaGraphDestroy", graph)
            raise
        graph = cuda.call("cudaStreamEndCapture", stream)
        try:
            self._executable = cuda.call("cudaGraphInstantiate", graph, 0)
        finally:
            cuda.call("cudaGraphDestroy", graph)

    def launch(self) -> None:
        """Start all of the recorded work."""
        self._cuda.call("cudaGraphLaunch", self._executable, self._stream)

    def free(self) -> None:
        """Free it; a second call does nothing."""
        executable, self._executable = self._executable, None
        if executable is not None:
            self._cuda.call("cudaGraphExecDestroy", executable)
