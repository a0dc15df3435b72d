"""The peak of the machine as the runtime reaches it: one large MatMul.

The device has no ``onnx`` package, so the one model that is needed is written byte by byte. Field numbers
are those of onnx.proto3 (ONNX 1.x); the wire format is that of Protocol Buffers: a key ``field << 3 |
type``, then a varint (type 0) or a length and that many bytes (type 2).
"""

from __future__ import annotations

import time

import numpy as np

_FLOAT = 1  # TensorProto.DataType
_IR_VERSION = 8
_OPSET = 13


def matmul_model(size: int, seed: int = 0) -> bytes:
    """An ONNX model ``product = x @ weight``, both ``(size, size)`` float32.

    The weight is a constant of the model, as a convolution's is: the runtime may pack it beforehand.
    """
    weight = np.random.default_rng(seed).standard_normal((size, size), dtype=np.float32)
    tensor = (
        _integer(1, size)
        + _integer(1, size)
        + _integer(2, _FLOAT)
        + _text(8, "weight")
        + _bytes(9, weight.tobytes())
    )
    node = _text(1, "x") + _text(1, "weight") + _text(2, "product") + _text(4, "MatMul")
    graph = (
        _bytes(1, node)
        + _text(2, "matmul_probe")
        + _bytes(5, tensor)
        + _bytes(11, _matrix("x", size))
        + _bytes(12, _matrix("product", size))
    )
    opset = _text(1, "") + _integer(2, _OPSET)
    return _integer(1, _IR_VERSION) + _bytes(7, graph) + _bytes(8, opset)


def matmul_flops(size: int) -> int:
    """FLOPs of one call: a multiplication and an addition per product."""
    return 2 * size**3


def peak_matmul_gflops(
    *, threads: int | None = None, size: int = 1024, seconds: float = 1.0, min_calls: int = 10
) -> float:
    """The highest GFLOP/s that ONNX Runtime reaches on a float32 MatMul on this machine's CPU.

    The fastest call counts, since what is asked is the peak.

    Args:
        threads: As for the models it is compared with; None is one per physical core.
        size: Of the square matrices.
        seconds: How long to try, at least.
        min_calls: How often to try, at least.

    Raises:
        RuntimeUnavailableError: ONNX Runtime is not there.
    """
    from prunedeploy_engines.onnxruntime_runner import open_session

    session = open_session(
        matmul_model(size), threads=threads, providers=("CPUExecutionProvider",), allow_spinning=True
    )
    x = np.random.default_rng(1).standard_normal((size, size), dtype=np.float32)
    best = float("inf")
    end = time.perf_counter() + seconds
    calls = 0
    while calls < min_calls or time.perf_counter() < end:
        start = time.perf_counter()
        session.run(None, {"x": x})
        best = min(best, time.perf_counter() - start)
        calls += 1
    return matmul_flops(size) / best / 1e9


def _matrix(name: str, size: int) -> bytes:
    """A ValueInfoProto: float32, ``(size, size)``."""
    dimension = _bytes(1, _integer(1, size))
    tensor_type = _integer(1, _FLOAT) + _bytes(2, dimension + dimension)
    return _text(1, name) + _bytes(2, _bytes(1, tensor_type))


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _integer(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _text(field: int, value: str) -> bytes:
    return _bytes(field, value.encode())
