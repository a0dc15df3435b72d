"""The specification of a model that is measured: plain JSON values, since they go to another process.

- ``path``: ONNX file or engine; ``bundle``: the folder it belongs to, which says how an image becomes
  its input. A ``path`` that is a bundle stands for its model of ``precision``.
- ``runtime``: of `runtimes.open_runner` (``"onnxruntime"``), or ``"matmul"``: the peak of the runtime
  ``on`` (``"onnxruntime"``) on a MatMul of ``size`` x ``size`` (1024) in ``precision`` fp32 or int8; its
  ``describe`` has the ``macs`` of a call
- ``threads``: of one operator, None is one per physical core; ``providers``: of ONNX Runtime;
  ``inference_precision``: of OpenVINO (``"f32"``), None lets
  it choose
- ``batch``: images per call (1)
- ``images``: what `bench.images.load_images` reads, used in turn; without it random pixels from
  ``seed``
- ``kind``: ``"host"`` (default; tensors in, tensors out), ``"compute"`` (the model alone) or
  ``"end_to_end"`` (uint8 image in memory to detections; needs a bundle)
- ``flood``: of ``"end_to_end"``: the model runs, and suppression is given the heads of a case of `bench.flood.CASES`
  instead of its own
- ``factory`` and ``arguments``: ``"module:function"`` and JSON keyword arguments that give a
  `Runner`, for runtimes this package does not know, such as torch
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prunedeploy_engines.bench.latency import KINDS
from prunedeploy_engines.errors import ConfigError

_DEFAULTS: dict[str, Any] = {
    "path": None,
    "bundle": None,
    "runtime": "onnxruntime",
    "precision": "fp32",
    "threads": None,
    "providers": None,
    "inference_precision": "f32",
    "batch": 1,
    "images": None,
    "kind": "host",
    "flood": None,
    "seed": 0,
    "size": 1024,
    "on": "onnxruntime",
    "factory": None,
    "arguments": {},
}


def complete_spec(name: str, spec: Mapping[str, Any]) -> dict[str, Any]:
    """Fill in the defaults.

    Raises:
        ConfigError: An unknown key or kind, or nothing to measure.
    """
    unknown = sorted(set(spec) - set(_DEFAULTS))
    if unknown:
        raise ConfigError(f"model {name!r} has unknown keys {unknown}", fix=f"known are {sorted(_DEFAULTS)}")
    complete = {**_DEFAULTS, **spec}
    if complete["kind"] not in KINDS:
        raise ConfigError(f"model {name!r} has kind {complete['kind']!r}", fix=f"use {', '.join(KINDS)}")
    if complete["flood"] is not None and complete["kind"] != "end_to_end":
        raise ConfigError(f"model {name!r} floods suppression, which a kind of {complete['kind']!r} has none of")
    if complete["path"] is None and complete["factory"] is None and complete["runtime"] != "matmul":
        raise ConfigError(f"model {name!r} has no path")
    for key in ("path", "bundle", "images"):
        if complete[key] is not None:
            complete[key] = str(Path(complete[key]).absolute())
    return complete
