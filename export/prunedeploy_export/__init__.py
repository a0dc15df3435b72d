"""From a PyTorch detector to an ONNX file, and the proof that the file computes the same.

In the order of the data's flow::

    network          what an exporter needs to know of a network
    onnx_from_torch  network -> model.onnx, fp32
    precision        model.onnx -> fp16 and int8 files
    onnx_uint8_input, onnx_nms   uint8 images in, detections out
    parity           the gates an artefact passes before it is deployed
    triton_repository, kserve_manifest   a bundle -> what a cluster's servers run

Everything is imported at first use, so that the gates run where neither torch nor onnx is installed.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .onnx_edit import OnnxFile
    from .onnx_from_torch import onnx_from_torch
    from .onnx_nms import with_nms
    from .onnx_uint8_input import with_uint8_input
    from .parity import check_detection_parity, check_map_parity, check_tensor_parity
    from .precision import Quantiser, fp16_from_fp32

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
    "OnnxFile": "onnx_edit",
    "Quantiser": "precision",
    "check_detection_parity": "parity",
    "check_map_parity": "parity",
    "check_tensor_parity": "parity",
    "fp16_from_fp32": "precision",
    "onnx_from_torch": "onnx_from_torch",
    "with_nms": "onnx_nms",
    "with_uint8_input": "onnx_uint8_input",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


class _Package(ModuleType):
    """Keeps ``onnx_from_torch`` a function: importing the module of this name would rebind it."""

    def __setattr__(self, name: str, value: object) -> None:
        if name in _HOMES and isinstance(value, ModuleType):
            value = getattr(value, name)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
