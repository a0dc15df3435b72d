"""Writing a network as an ONNX file.

The graph is built directly from the layers, not traced: the file has one Conv per convolution, fixed shapes
but for the batch, and the same bytes every time.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import onnx
from onnx import ModelProto, TensorProto, ValueInfoProto, helper

from prunedeploy_engines.errors import EngineError
from prunedeploy_engines.version import __version__
from prunedeploy_export.graph.builder import IMAGES, GraphBuilder
from prunedeploy_export.graph.decode import BOXES, SCORES, add_decode
from prunedeploy_export.graph.edit import OnnxFile, write_model
from prunedeploy_export.graph.layers import add_layers
from prunedeploy_export.graph.network import Cfg, Network

OPSET = 17
"""What ONNX Runtime 1.20 and TensorRT 10 and all later ones read, and enough for every operator used here."""

_IR_VERSION = 8  # of opset 17; a newer one would shut out older runtimes for nothing
_MAX_BYTES = 2**31 - 1  # of a protobuf message
_GRAPH_BYTES = 16 << 20  # more than everything but the weights ever needs


def onnx_from_torch(
    network: Network,
    path: str | Path,
    *,
    class_names: Sequence[str] | None = None,
    opset: int = OPSET,
) -> OnnxFile:
    """Write a network with its decoding as a checked ONNX file.

    Input, float32: ``images`` ``(N, 3, H, W)``, RGB in [0, 1], letterboxed, or stretched if the cfg says so; N is free.
    Outputs, float32: ``boxes`` ``(N, M, 4)`` xyxy in input pixels and ``scores`` ``(N, M, C)`` in [0, 1], M in the
    order of `prunedeploy.models.decode`.

    Args:
        network: The network with batch normalisation folded, e.g. `prunedeploy.models.FoldedDarknet`.
        path: The file; its folder is made if it is not there.
        class_names: Names of the C classes, in order; written to the file's metadata as JSON.
        opset: Operator set, at least 17.

    Returns:
        What was written.

    Raises:
        ValueError: ``class_names`` are not C names, or ``opset`` is too old.
        EngineError: The weights do not fit into one ONNX file (2 GB).
        StoreError: The file cannot be written; nothing is left behind.
    """
    if opset < OPSET:
        raise ValueError(f"opset must be at least {OPSET}, got {opset}")
    entries = _metadata(network.cfg, class_names)
    weight_bytes = 4 * sum(weight.numel() + bias.numel() for weight, bias in network.folded.values())
    if weight_bytes > _MAX_BYTES - _GRAPH_BYTES:
        what = f"the weights take {weight_bytes / 1e9:.1f} GB, and one ONNX file holds 2 GB"
        raise EngineError(what, path, "prune the network more")
    model = _build_model(network, entries, opset)
    return write_model(model, path)


def _build_model(network: Network, entries: dict[str, str], opset: int) -> ModelProto:
    cfg = network.cfg
    model = ModelProto(ir_version=_IR_VERSION, producer_name="prunedeploy", producer_version=__version__)
    model.opset_import.append(helper.make_opsetid("", opset))
    helper.set_model_props(model, entries)
    model.graph.name = "detector"
    predictions = sum(head.prediction_count for head in cfg.heads)
    model.graph.input.append(_batch_of(IMAGES, *cfg.input_shape))
    model.graph.output.extend([_batch_of(BOXES, predictions, 4), _batch_of(SCORES, predictions, cfg.classes)])

    graph = GraphBuilder(model.graph)
    add_decode(graph, cfg, add_layers(graph, network))
    onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    graph.fill_weights()
    return model


def _batch_of(name: str, *shape: int) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *shape])


def _metadata(cfg: Cfg, class_names: Sequence[str] | None) -> dict[str, str]:
    """The file's metadata, sorted by key."""
    entries = {"input_size": json.dumps(cfg.input_shape[1:]), "precision": "fp32"}
    if not cfg.letterbox:
        entries["letterbox"] = "false"
    if class_names is not None:
        if len(class_names) != cfg.classes:
            raise ValueError(f"the network has {cfg.classes} classes, got {len(class_names)} names")
        entries["class_names"] = json.dumps(list(class_names), ensure_ascii=False)
    return dict(sorted(entries.items()))
