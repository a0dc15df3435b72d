"""The peak of the machine as a runtime reaches it: one large MatMul.

The device has no ``onnx`` package, so the two models that are needed are written byte by byte. Field numbers are
those of onnx.proto3 (ONNX 1.x).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from prunedeploy_engines.errors import ConfigError
from prunedeploy_engines.runtimes.onnx_wire import content, integer, text

Precision = Literal["fp32", "int8"]

_FLOAT, _UINT8, _INT8 = 1, 2, 3  # TensorProto.DataType
_TYPES: dict[Any, int] = {np.float32: _FLOAT, np.uint8: _UINT8, np.int8: _INT8}
_IR_VERSION = 8
_OPSET = 13


def matmul_model(size: int, seed: int = 0, precision: Precision = "fp32") -> bytes:
    """An ONNX model ``product = x @ weight``, all ``(size, size)``.

    The weight is a constant of the model, as a convolution's is: the runtime may pack it beforehand.

    Args:
        size: Height and width of the matrices.
        seed: Seed of the random weight.
        precision: ``"fp32"``: all float32. ``"int8"``: ``x`` and ``product`` uint8, the weight int8 with a scale for
            every column, around a MatMul between DequantizeLinear and QuantizeLinear, which runtimes turn into one
            of integers: what CPUs are fast at.
    """
    random = np.random.default_rng(seed)
    if precision == "fp32":
        weight = random.standard_normal((size, size), dtype=np.float32)
        nodes = _node("MatMul", ["x", "weight"], "product")
        return _model(nodes, _tensor("weight", weight), _FLOAT, size)
    constants: dict[str, npt.NDArray[Any]] = {
        "weight": random.integers(-127, 128, (size, size), dtype=np.int8),
        "weight_scale": np.full(size, 1 / 127, np.float32),
        "weight_zero": np.zeros(size, np.int8),
        "x_scale": np.array(1 / 255, np.float32),
        "x_zero": np.array(128, np.uint8),
        # The product of random values in [-1, 1] around 0 has a deviation of about sqrt(size) / 6.
        "product_scale": np.array(np.sqrt(size) / 200, np.float32),
    }
    nodes = (
        _node("DequantizeLinear", ["x", "x_scale", "x_zero"], "x_float")
        + _node("DequantizeLinear", ["weight", "weight_scale", "weight_zero"], "weight_float", axis=1)
        + _node("MatMul", ["x_float", "weight_float"], "product_float")
        + _node("QuantizeLinear", ["product_float", "product_scale", "x_zero"], "product")
    )
    tensors = b"".join(_tensor(name, value) for name, value in constants.items())
    return _model(nodes, tensors, _UINT8, size)


def matmul_input(size: int, seed: int = 0, precision: Precision = "fp32") -> npt.NDArray[Any]:
    """An input ``x`` of `matmul_model`."""
    random = np.random.default_rng(seed)
    if precision == "int8":
        return random.integers(0, 256, (size, size), dtype=np.uint8)
    return random.standard_normal((size, size), dtype=np.float32)


def matmul_call(runtime: str, *, threads: int | None, size: int, precision: Precision) -> Callable[[], object]:
    """A function that multiplies once on this machine's CPU.

    Args:
        runtime: ``"onnxruntime"`` or ``"openvino"``.
        threads: As for the models it is compared with; None leaves it to the runtime.
        size: Height and width of the matrices.
        precision: ``"fp32"`` or ``"int8"``.

    Raises:
        ConfigError: No such runtime for this.
        RuntimeUnavailableError: The runtime is not there.
    """
    model, x = matmul_model(size, precision=precision), matmul_input(size, 1, precision)
    if runtime == "onnxruntime":
        from prunedeploy_engines.runtimes.onnxruntime.session import open_session

        session = open_session(model, threads=threads, providers=("cpu",), allow_spinning=True)
        return lambda: session.run(None, {"x": x})
    if runtime != "openvino":
        raise ConfigError(f"there is no peak to measure for {runtime!r}", fix="use onnxruntime or openvino")
    from prunedeploy_engines.runtimes.openvino.library import cpu_settings, import_openvino

    ov = import_openvino()
    core = ov.Core()
    request = core.compile_model(core.read_model(model), "CPU", cpu_settings(threads)).create_infer_request()
    request.get_tensor("x").data[...] = x
    return lambda: request.infer(share_outputs=True)


def _model(nodes: bytes, tensors: bytes, data_type: int, size: int) -> bytes:
    """A ModelProto with the matrices ``x`` and ``product`` as input and output."""
    graph = (
        nodes
        + text(2, "matmul_probe")
        + tensors
        + content(11, _matrix("x", data_type, size))
        + content(12, _matrix("product", data_type, size))
    )
    return integer(1, _IR_VERSION) + content(7, graph) + content(8, text(1, "") + integer(2, _OPSET))


def _node(operator: str, inputs: list[str], output: str, **attributes: int) -> bytes:
    """A NodeProto as a field of the graph; attributes are whole numbers (AttributeProto type INT is 2)."""
    fields = b"".join(text(1, name) for name in inputs) + text(2, output) + text(4, operator)
    for name, value in attributes.items():
        fields += content(5, text(1, name) + integer(3, value) + integer(20, 2))
    return content(1, fields)


def _tensor(name: str, value: npt.NDArray[Any]) -> bytes:
    """A TensorProto as an initializer of the graph."""
    sizes = b"".join(integer(1, size) for size in value.shape)
    return content(5, sizes + integer(2, _TYPES[value.dtype.type]) + text(8, name) + content(9, value.tobytes()))


def _matrix(name: str, data_type: int, size: int) -> bytes:
    """A ValueInfoProto: ``(size, size)``."""
    dimension = content(1, integer(1, size))
    tensor_type = integer(1, data_type) + content(2, dimension + dimension)
    return text(1, name) + content(2, content(1, tensor_type))
