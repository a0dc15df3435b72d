"""What OpenVINO really executes: its runtime model, and the time of each layer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy.typing as npt

from prunedeploy_engines.runtimes.layer_times import LayerExecution, convolution_shares

_PRECISIONS = {"f32": "fp32", "f16": "fp16", "bf16": "bf16", "u8": "int8", "i8": "int8"}
_CONVOLUTIONS = ("Convolution", "Deconvolution")


def layer_times(compiled: Any, images: npt.NDArray[Any], runs: int) -> Iterator[LayerExecution]:
    """Every execution of every layer, after one run that is not counted.

    Args:
        compiled: An ``openvino.CompiledModel`` that counts its layers' time.
        images: As it takes them.
        runs: How often to run.

    Raises:
        RuntimeError: OpenVINO could not run it.
    """
    precisions = {name: precision for name, _, precision in executed_nodes(compiled)}
    request = compiled.create_infer_request()
    request.get_input_tensor().data[...] = images
    for run in range(runs + 1):
        request.infer(share_outputs=True)
        for info in request.get_profiling_info() if run else ():
            if info.status == info.Status.EXECUTED:
                milliseconds = float(info.real_time.total_seconds()) * 1000
                yield info.node_name, info.node_type, precisions.get(info.node_name), milliseconds


def computes_in(compiled: Any) -> dict[str, float] | None:
    """Share of the convolutions by precision; None without convolutions.

    Args:
        compiled: An ``openvino.CompiledModel``.
    """
    return convolution_shares(precision for _, kind, precision in executed_nodes(compiled) if kind in _CONVOLUTIONS)


def executed_nodes(compiled: Any) -> Iterator[tuple[str, str, str | None]]:
    """All nodes of a compiled model after OpenVINO's own fusions, from its runtime model.

    Yields:
        OpenVINO's name, the kind, e.g. ``"Convolution"``, and what it computes in; None if OpenVINO does not say.
    """
    for node in compiled.get_runtime_model().get_ordered_ops():
        told = {key: value.astype(str) for key, value in node.get_rt_info().items()}
        precision = told.get("runtimePrecision") or None
        precision = None if precision is None else _PRECISIONS.get(precision, precision)
        yield node.get_friendly_name(), told.get("layerType", ""), precision
