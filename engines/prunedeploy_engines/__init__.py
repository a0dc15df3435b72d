"""What runs on the device: no torch, no onnx, only NumPy, Pillow and one inference runtime.

In the order of the data's flow::

    images       read_image: any image file -> uint8 RGB
    letterbox    image -> network input, and boxes back
    runtimes     open_runner: a model on a runtime by name
    runner       Runner, the contract; onnxruntime_runner, openvino_runner and tensorrt_runner fulfil it
    nms          network output -> detections
    detections   Detections, what a caller gets
    bundle       load_bundle: the deployed folder, verified, ties the above together
    latency      how a latency is measured; process_bench gives every model a process of its own
    doctor       what works on this machine, and what to install
    errors       what a user can mend

Everything is imported at first use: ``import prunedeploy_engines`` loads not even NumPy.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from prunedeploy_engines.version import __version__

if TYPE_CHECKING:
    from prunedeploy_engines.bundle import Bundle, load_bundle
    from prunedeploy_engines.detections import Detections
    from prunedeploy_engines.images import read_image
    from prunedeploy_engines.letterbox import letterbox
    from prunedeploy_engines.nms import nms
    from prunedeploy_engines.runner import Runner

__all__ = ["Bundle", "Detections", "Runner", "__version__", "letterbox", "load_bundle", "nms", "read_image"]

_HOMES = {
    "Bundle": "bundle",
    "Detections": "detections",
    "Runner": "runner",
    "letterbox": "letterbox",
    "load_bundle": "bundle",
    "nms": "nms",
    "read_image": "images",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


class _Package(ModuleType):
    """Keeps ``letterbox`` and ``nms`` functions: importing the modules of these names would rebind them."""

    def __setattr__(self, name: str, value: object) -> None:
        if name in _HOMES and isinstance(value, ModuleType):
            value = getattr(value, name)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
