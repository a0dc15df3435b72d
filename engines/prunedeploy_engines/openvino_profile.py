"""What OpenVINO really executes: its runtime model, and the time of each layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prunedeploy_engines.layer_times import LayerTime, convolution_shares, ranked_layers
from prunedeploy_engines.openvino_library import run_error
from prunedeploy_engines.runner import Images

if TYPE_CHECKING:
    from prunedeploy_engines.openvino_runner import OpenVinoRunner

_PRECISIONS = {"f32": "fp32", "f16": "fp16", "bf16": "bf16", "u8": "int8", "i8": "int8"}
_CONVOLUTIONS = ("Convolution", "Deconvolution")


@dataclass(frozen=True)
class ExecutedNode:
    """A node after OpenVINO's own fusions.

    Attributes:
        name: OpenVINO's.
        kind: E.g. ``"Convolution"``.
        precision: What it computes in; None if OpenVINO does not say.
    """

    name: str
    kind: str
    precision: str | None


def profile(runner: OpenVinoRunner, images: Images, *, top: int | None = 10, runs: int = 10) -> list[LayerTime]:
    """Measure the layers in a compiled model of its own, after one run that is not counted.

    Args:
        runner: The model and how it runs. It is not used itself.
        images: As for `Runner.infer`.
        top: How many rows to return; None is all.
        runs: How often to run.

    Returns:
        The layers that cost most, in descending order.

    Raises:
        EngineError: The model does not compile or run.
    """
    compiled, ready = runner.compiled_to_profile(images)
    precisions = {node.name: node.precision for node in executed_nodes(compiled)}
    request = compiled.create_infer_request()
    request.get_input_tensor().data[...] = ready
    times: list[tuple[str, str, str | None, float]] = []
    try:
        for run in range(runs + 1):
            request.infer(share_outputs=True)
            if run:
                times += (
                    (info.node_name, info.node_type, precisions.get(info.node_name), _milliseconds(info))
                    for info in request.get_profiling_info()
                    if info.status == info.Status.EXECUTED
                )
    except Exception as error:  # OpenVINO raises RuntimeError for nearly everything
        raise run_error(error, runner.path) from error
    return ranked_layers(times, runs, top)


def computes_in(compiled: Any) -> dict[str, float] | None:
    """Share of the convolutions by precision; None without convolutions.

    Args:
        compiled: An ``openvino.CompiledModel``.
    """
    return convolution_shares(node.precision for node in executed_nodes(compiled) if node.kind in _CONVOLUTIONS)


def executed_nodes(compiled: Any) -> list[ExecutedNode]:
    """All nodes of a compiled model, from its runtime model."""
    nodes = []
    for node in compiled.get_runtime_model().get_ordered_ops():
        told = {key: value.astype(str) for key, value in node.get_rt_info().items()}
        precision = told.get("runtimePrecision") or None
        nodes.append(
            ExecutedNode(
                name=node.get_friendly_name(),
                kind=told.get("layerType", ""),
                precision=None if precision is None else _PRECISIONS.get(precision, precision),
            )
        )
    return nodes


def _milliseconds(info: Any) -> float:
    return float(info.real_time.total_seconds()) * 1000
