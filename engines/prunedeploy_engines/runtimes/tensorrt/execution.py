"""An engine in the GPU's memory: its context, buffers, stream and graph, which belong together."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from prunedeploy_engines.errors import EngineError
from prunedeploy_engines.runtimes.layer_times import LayerExecution
from prunedeploy_engines.runtimes.tensorrt.cuda import CudaCalls, CudaGraph, PinnedBuffer
from prunedeploy_engines.runtimes.tensorrt.engine_file import EngineFile
from prunedeploy_engines.runtimes.tensorrt.library import TensorRTLibrary
from prunedeploy_engines.runtimes.tensorrt.log import summarise
from prunedeploy_engines.runtimes.tensorrt.plan import check_batch, deserialise
from prunedeploy_engines.runtimes.tensorrt.profile import measured_layers
from prunedeploy_engines.runtimes.tensorrt.tensors import EngineTensors, read_tensors


class EngineExecution:
    """A loaded engine. One call runs at a time: there is one set of buffers, and a context is not thread-safe.

    Attributes:
        tensors: What the engine takes and gives; set by `load`.

    Args:
        library: The library that made the plan.
        cuda: The CUDA runtime.
        about: What the plan's sidecar says.
        cuda_graph: Record the work of a batch size after its first run, and launch that from then on.
    """

    tensors: EngineTensors

    def __init__(
        self, library: TensorRTLibrary, cuda: CudaCalls, about: EngineFile, *, cuda_graph: bool = False
    ) -> None:
        self._library, self._cuda, self._about, self._wants_graph = library, cuda, about, cuda_graph
        self._lock = threading.Lock()
        self._runtime = self._engine = self._context = self._stream = None
        self._buffers: dict[str, PinnedBuffer] = {}
        self._events: tuple[Any, ...] = ()
        self._graph: CudaGraph | None = None
        self._batch = 0
        self._resident: object = None  # the images in the input's buffer on the device
        self._failed = False

    def load(self, plan: bytes) -> None:
        """Load the plan and allocate everything for its largest batch.

        Raises:
            EngineError: The plan does not load, is not a detector of ours, or there is not enough memory; `free`
                what there is then.
        """
        self._runtime, self._engine = deserialise(self._library, plan, self._about.path)
        self.tensors = read_tensors(self._library.trt, self._engine, self._about)
        self._stream = self._cuda.call("cudaStreamCreate")
        self._batch = self._about.profile[self.tensors.input][2][0]
        self._context = context = self._new_context(self._batch)
        for name, dtype in self.tensors.dtypes.items():
            largest = tuple(context.get_tensor_shape(name))
            if any(size < 0 for size in largest):
                problem = f"the size of {name} {largest} depends on the data"
                raise self._error(problem, "export the network again")
            self._buffers[name] = PinnedBuffer(self._cuda, prod(largest), dtype)
            self._place(context, name)

    def infer(self, images: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """Move images to the GPU, run, and fetch both outputs.

        Args:
            images: Images of the engine's own kind.

        Returns:
            The outputs in the order of `EngineTensors.outputs`; whole numbers stay int32, all else becomes
            float32. The arrays are the caller's.

        Raises:
            EngineError: The batch is outside the profile, or the GPU failed, now or before.
        """
        check_batch(len(images), self._about, self.tensors.input)
        with self._lock:
            context = self._set_batch(len(images))
            shapes = {name: tuple(context.get_tensor_shape(name)) for name in self.tensors.outputs}
            with self._on_gpu():
                self._resident = None
                self._upload(images)
                self._run()
                for name, shape in shapes.items():
                    self._buffers[name].download(prod(shape), self._stream)
                self._synchronise()
            # Copied: the caller keeps these arrays, the next call overwrites the buffers.
            first, second = (self._buffers[name].host[: prod(shape)].reshape(shape) for name, shape in shapes.items())
            whole = np.issubdtype(second.dtype, np.integer)
            results = first.astype(np.float32), second.astype(np.int32 if whole else np.float32)
            self._record_graph()
        return results

    def timed_run(self, images: npt.NDArray[Any]) -> float:
        """Run on images that stay on the GPU from one call to the next, as long as nothing else runs between.

        Args:
            images: Images of the engine's own kind; the same object is not moved again.

        Returns:
            The GPU's milliseconds, between an event before the run and one after it.

        Raises:
            EngineError: As `infer`.
        """
        check_batch(len(images), self._about, self.tensors.input)
        with self._lock:
            self._set_batch(len(images))
            with self._on_gpu():
                if self._resident is not images:
                    self._upload(images)
                    self._synchronise()
                    self._resident = images
                if not self._events:
                    self._events = tuple(self._cuda.call("cudaEventCreate") for _ in range(2))
                start, end = self._events
                self._cuda.call("cudaEventRecord", start, self._stream)
                self._run()
                self._cuda.call("cudaEventRecord", end, self._stream)
                self._synchronise()
                elapsed = float(self._cuda.call("cudaEventElapsedTime", start, end))
            self._record_graph()
        return elapsed

    def layer_times(self, images: npt.NDArray[Any], runs: int) -> list[LayerExecution]:
        """Run with the library's profiler on; see `measured_layers`.

        Args:
            images: Images of the engine's own kind.
            runs: How often; once more before, which is not counted.

        Raises:
            EngineError: As `infer`, or there is no memory for a second context.
        """
        check_batch(len(images), self._about, self.tensors.input)
        with self._lock:
            context = self._new_context(len(images))
            for name in self._buffers:
                self._place(context, name)
            with self._on_gpu():
                self._resident = None
                self._upload(images)

                def run() -> None:
                    self._enqueue(context)
                    self._synchronise()

                return measured_layers(self._library.trt, self._engine, context, run, runs)

    def free(self) -> None:
        """Free everything. On a GPU that has failed freeing fails too, which says nothing new."""
        # The context goes before the memory that it points to, the engine before its runtime.
        with self._forgiven():
            self._drop_graph()
        self._context = self._engine = self._runtime = None
        for buffer in self._buffers.values():
            with self._forgiven():
                buffer.free()
        self._buffers.clear()
        events, self._events = self._events, ()
        for event in events:
            with self._forgiven():
                self._cuda.call("cudaEventDestroy", event)
        stream, self._stream = self._stream, None
        if stream is not None:
            with self._forgiven():
                self._cuda.call("cudaStreamDestroy", stream)

    def _new_context(self, batch: int) -> Any:
        engine: Any = self._engine
        shape = (batch, *self.tensors.image_shape)
        with self._library.logger.collect() as messages:
            context = engine.create_execution_context()
            if context is None:
                raise self._error(f"no execution context: {summarise(messages)}", "free memory of the GPU")
            if not context.set_input_shape(self.tensors.input, shape):
                raise self._error(f"input shape {shape} is refused: {summarise(messages)}")
        return context

    def _place(self, context: Any, name: str) -> None:
        if not context.set_tensor_address(name, self._buffers[name].device):
            raise self._error(f"the address of {name} is refused")

    def _set_batch(self, batch: int) -> Any:
        """The context, set to a batch size."""
        context: Any = self._context
        if batch != self._batch:
            shape = (batch, *self.tensors.image_shape)
            self._drop_graph()  # it holds for the shapes that it was recorded with
            self._resident = None
            with self._library.logger.collect() as messages:
                if not context.set_input_shape(self.tensors.input, shape):
                    raise self._error(f"input shape {shape} is refused: {summarise(messages)}")
            self._batch = batch
        return context

    def _upload(self, images: npt.NDArray[Any]) -> None:
        buffer = self._buffers[self.tensors.input]
        buffer.host[: images.size] = images.ravel()
        buffer.upload(images.size, self._stream)

    def _run(self) -> None:
        if self._graph is not None:
            self._graph.launch()
        else:
            self._enqueue(self._context)

    def _enqueue(self, context: Any) -> None:
        stream: Any = self._stream
        with self._library.logger.collect() as messages:
            if not context.execute_async_v3(int(stream)):
                raise EngineError(f"the engine does not run: {summarise(messages)}")

    def _synchronise(self) -> None:
        self._cuda.call("cudaStreamSynchronize", self._stream)

    def _record_graph(self) -> None:
        """After a run without one: in the first the library sets things up that cannot be recorded."""
        if not self._wants_graph or self._graph is not None:
            return
        try:
            self._graph = CudaGraph(self._cuda, self._stream, lambda: self._enqueue(self._context))
        except EngineError as error:
            raise self._error(
                f"its work cannot be recorded as a CUDA graph: {error.what}", "open it without a CUDA graph"
            ) from error

    def _drop_graph(self) -> None:
        graph, self._graph = self._graph, None
        if graph is not None:
            graph.free()

    @contextlib.contextmanager
    def _on_gpu(self) -> Iterator[None]:
        """What fails inside leaves memory and stream in an unknown state: nothing runs in them again."""
        if self._failed:
            raise self._error("the GPU has failed while this was open", "open it again")
        try:
            yield
        except EngineError as error:
            self._failed = True
            raise self._error(f"the GPU failed: {error.what}", "open it again") from error

    def _forgiven(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.suppress(EngineError) if self._failed else contextlib.nullcontext()

    def _error(self, what: str, fix: str | None = None) -> EngineError:
        return EngineError(what, where=self._about.path, fix=fix)
