"""From a PyTorch detector to an ONNX file, and the proof that the file computes the same.

In the order of the data's flow::

    graph      a network -> model.onnx in fp32, and changes of its graph: uint8 images in, detections out
    precision  model.onnx -> fp16 and int8 files
    gates      what a file must pass before it is deployed
    twin       a file in PyTorch again, with its roundings and with gradients, to be attacked
    cluster    a bundle -> what the servers of a cluster run

Everything is imported at first use, so that the gates run where neither torch nor onnx is installed.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prunedeploy_export.gates.parity import check_detection_parity, check_map_parity, check_tensor_parity
    from prunedeploy_export.graph.edit import OnnxFile
    from prunedeploy_export.graph.from_torch import onnx_from_torch
    from prunedeploy_export.graph.nms import with_nms
    from prunedeploy_export.graph.uint8_input import with_uint8_input
    from prunedeploy_export.precision.files import Quantiser, fp16_from_fp32

__all__ = [
    "OnnxFile",
    "Quantiser",
    "check_detection_parity",
    "check_map_parity",
    "check_tensor_parity",
    "fp16_from_fp32",
    "onnx_from_torch",
    "with_nms",
    "with_uint8_input",
]

_HOMES = {
    "OnnxFile": "graph.edit",
    "Quantiser": "precision.files",
    "check_detection_parity": "gates.parity",
    "check_map_parity": "gates.parity",
    "check_tensor_parity": "gates.parity",
    "fp16_from_fp32": "precision.files",
    "onnx_from_torch": "graph.from_torch",
    "with_nms": "graph.nms",
    "with_uint8_input": "graph.uint8_input",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
