"""A GPU and TensorRT for machines that have neither: real memory, bounds checked, ONNX Runtime inside.

It shows that the runner addresses, sizes, orders and frees things right, and what it does when a call fails;
whether TensorRT agrees only `-m gpu` can show. CUDA's rules that matter here are enforced: nothing is waited
for or copied while a graph is recorded, a graph is launched for the shapes it was recorded with, and after a
failure nothing works any more.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import math
from types import SimpleNamespace

import numpy as np

_NUMPY = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(uint8)": np.uint8,
    "tensor(int32)": np.int32,
}
_TYPES = {"FLOAT": np.float32, "HALF": np.float16, "UINT8": np.uint8, "INT32": np.int32}
STICKY = 719  # cudaErrorLaunchFailure
CAPTURING = 900  # cudaErrorStreamCaptureUnsupported


class StandIn:
    """Library, CUDA runtime, engine and execution context in one.

    Attributes:
        blocks: Memory that is allocated, by address.
        objects: Streams, events and graphs that are alive.
        fail: Names of calls that fail; ``"device"``: every call of CUDA and every execution.
        counts: How often the engine ran by itself (``"execute"``), in a graph (``"launch"``), and images were moved.

    Args:
        model: ONNX file's content.
        largest: Largest batch that the engine takes.
        layer_information: What the engine's inspector says.
    """

    def __init__(self, model: bytes, largest: int, layer_information: str = "{}") -> None:
        import onnxruntime

        self.session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        self.tensors = {value.name: value for value in (*self.session.get_inputs(), *self.session.get_outputs())}
        self.input = self.session.get_inputs()[0].name
        self.blocks, self.objects, self.fail = {}, set(), set()
        self.counts = {"execute": 0, "launch": 0, "upload": 0}
        self.largest, self.capturing, self.recorded = largest, False, {}
        self.layer_information, self.next_handle = layer_information, 7
        kinds = SimpleNamespace(**{name: name for name in _TYPES})
        self.trt = SimpleNamespace(
            TensorIOMode=SimpleNamespace(INPUT="input"),
            DataType=kinds,
            LayerInformationFormat=SimpleNamespace(JSON="json"),
            IProfiler=type("IProfiler", (), {}),
            nptype=_TYPES.__getitem__,
            Runtime=lambda logger: SimpleNamespace(deserialize_cuda_engine=lambda plan: self),
        )
        self.logger = SimpleNamespace(collect=lambda: contextlib.nullcontext([]))
        self.num_io_tensors, self.name, self.version = len(self.tensors), "tensorrt_rtx", "0"

    # CUDA
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)  # noqa: N815
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)  # noqa: N815

    def __getattribute__(self, name):
        if name.startswith("cuda") and name not in ("cudaGetErrorString", "cudaMemcpyKind", "cudaStreamCaptureMode"):
            if "device" in self.fail:
                return lambda *arguments: (STICKY, None)
            if name in self.fail:
                return lambda *arguments: (2, None)
        return super().__getattribute__(name)

    def cudaGetErrorString(self, code):  # noqa: N802
        return 0, {2: b"out of memory", STICKY: b"unspecified launch failure"}.get(code, b"not permitted")

    def _allocate(self, size):
        block = ctypes.create_string_buffer(size)
        self.blocks[ctypes.addressof(block)] = block
        return 0, ctypes.addressof(block)

    def _free(self, address):
        del self.blocks[address]
        return (0,)

    cudaMallocHost, cudaMalloc, cudaFree, cudaFreeHost = _allocate, _allocate, _free, _free  # noqa: N815

    def cudaMemcpyAsync(self, target, source, size, kind, stream):  # noqa: N802
        assert stream in self.objects
        assert size <= min(len(self.blocks[target]), len(self.blocks[source]))
        self.counts["upload"] += kind == 1
        ctypes.memmove(target, source, size)
        return (CAPTURING if self.capturing else 0,)

    def _create(self, *arguments):
        self.next_handle += 1
        self.objects.add(self.next_handle)
        return 0, self.next_handle

    def _destroy(self, handle):
        self.objects.remove(handle)
        return (0,)

    cudaStreamCreate = cudaEventCreate = _create  # noqa: N815
    cudaStreamDestroy = cudaEventDestroy = cudaGraphDestroy = cudaGraphExecDestroy = _destroy  # noqa: N815

    def cudaStreamSynchronize(self, stream):  # noqa: N802
        return (CAPTURING if self.capturing else 0,)

    def cudaEventRecord(self, event, stream):  # noqa: N802
        assert {event, stream} <= self.objects
        return (0,)

    def cudaEventElapsedTime(self, start, end):  # noqa: N802
        assert start != end
        return 0, 1.25

    def cudaStreamBeginCapture(self, stream, mode):  # noqa: N802
        assert not self.capturing
        self.capturing = True
        return (0,)

    def cudaStreamEndCapture(self, stream):  # noqa: N802
        assert self.capturing
        self.capturing = False
        return self._create()

    def cudaGraphInstantiate(self, graph, flags):  # noqa: N802
        code, handle = self._create()
        self.recorded[handle] = self.captured
        return code, handle

    def cudaGraphLaunch(self, graph, stream):  # noqa: N802
        assert graph in self.objects
        context, batch = self.recorded[graph]
        assert context.batch == batch
        self.counts["launch"] += 1
        context.compute()
        return (0,)

    def recorded_alive(self):
        """Records of the graphs that are not destroyed: a context in one keeps its shapes."""
        return [record for handle, record in self.recorded.items() if handle in self.objects]

    # Engine
    def create_execution_context(self):
        return Context(self)

    def create_engine_inspector(self):
        return SimpleNamespace(get_engine_information=lambda form: self.layer_information)

    def get_tensor_name(self, i):
        return sorted(self.tensors)[i]

    def get_tensor_mode(self, name):
        return "input" if name == self.input else "output"

    def get_tensor_dtype(self, name):
        kind = _NUMPY[self.tensors[name].type]
        return next(key for key, value in _TYPES.items() if value == kind)

    def get_tensor_shape(self, name):
        return (-1, *self.tensors[name].shape[1:])


class Context:
    """Execution context of a `StandIn`."""

    def __init__(self, owner: StandIn) -> None:
        self.owner, self.batch, self.addresses, self.profiler = owner, 0, {}, None

    def get_tensor_shape(self, name):
        return (self.batch, *self.owner.tensors[name].shape[1:])

    def set_input_shape(self, name, shape):
        assert name == self.owner.input
        assert not any(self in record for record in self.owner.recorded_alive())
        self.batch = shape[0]
        return shape[0] <= self.owner.largest

    def set_tensor_address(self, name, address):
        self.addresses[name] = self.owner.blocks[address]
        return True

    def execute_async_v3(self, stream):
        assert stream in self.owner.objects
        if self.owner.capturing:
            self.owner.captured = (self, self.batch)
            return "capture" not in self.owner.fail
        self.owner.counts["execute"] += 1
        if self.owner.fail & {"execute", "device"}:
            return False
        self.compute()
        if self.profiler is not None:
            for layer in json.loads(self.owner.layer_information)["Layers"]:
                self.profiler.report_layer_time(layer["Name"], layer["ms"])
        return True

    def compute(self):
        name = self.owner.input
        shape, kind = self.get_tensor_shape(name), _NUMPY[self.owner.tensors[name].type]
        images = np.frombuffer(self.addresses[name], kind, math.prod(shape)).reshape(shape)
        names = [output.name for output in self.owner.session.get_outputs()]
        for output, value in zip(names, self.owner.session.run(names, {name: images}), strict=True):
            assert value.nbytes <= len(self.addresses[output])
            ctypes.memmove(self.addresses[output], value.tobytes(), value.nbytes)
