"""What runs on the device: no torch, no onnx, only NumPy, Pillow and one inference runtime.

In the order of the data's flow::

    detection   an image file -> network input -> detections in the image's pixels
    runtimes    Runner, the contract, and a room for each runtime that fulfils it
    bundle      load_bundle: the deployed folder, verified, ties the above together
    serving     bundles behind HTTP and gRPC
    bench       how latencies are measured and compared
    builder     ONNX -> TensorRT engine
    doctor      what works on this machine, and what to install
    machine     what a measurement ran on: hardware, state, energy
    markup      pages of HTML, pictures in SVG
    errors, files, locks              what a user can fix; whole files; one writer at a time
    processes, child                  Python beside Python

Everything is imported at first use: ``import prunedeploy_engines`` loads not even NumPy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from prunedeploy_engines.version import __version__

if TYPE_CHECKING:
    from prunedeploy_engines.bundle import Bundle, load_bundle
    from prunedeploy_engines.detection.detections import Detections
    from prunedeploy_engines.detection.images import read_image
    from prunedeploy_engines.detection.letterbox import letterbox
    from prunedeploy_engines.detection.nms import nms
    from prunedeploy_engines.runtimes.runner import Runner

__all__ = ["Bundle", "Detections", "Runner", "__version__", "letterbox", "load_bundle", "nms", "read_image"]

_HOMES = {
    "Bundle": "bundle",
    "Detections": "detection.detections",
    "Runner": "runtimes.runner",
    "letterbox": "detection.letterbox",
    "load_bundle": "bundle",
    "nms": "detection.nms",
    "read_image": "detection.images",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
