"""What a built engine says about its layers, in the JSON of TensorRT's engine inspector."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

# Words of the engine inspector, which gives a tensor's type either alone ("Half") or within its layout
# ("Thirty-two wide channel vectorized row major Int8 format"). The first that is found counts.
_BY_WORD = (
    ("bf16", "bf16"),
    ("bfloat16", "bf16"),
    ("int8", "int8"),
    ("fp8", "fp8"),
    ("fp16", "fp16"),
    ("half", "fp16"),
    ("fp32", "fp32"),
    ("float", "fp32"),
)


def layers_of_engine(information: str) -> dict[str, str]:
    """Precision of every convolution by the layer's name; empty where the inspector does not say enough.

    Args:
        information: See `described_layers`.
    """
    layers = described_layers(information)
    return {name: precision for name, (kind, precision) in layers.items() if precision and _is_convolution(kind)}


def described_layers(information: str) -> dict[str, tuple[str, str | None]]:
    """Kind and precision of all layers of a built engine, by name.

    Args:
        information: ``EngineInspector.get_engine_information`` in JSON, of an engine that was built with
            detailed profiling verbosity. Of another it has names only, which gives an empty result.
    """
    try:
        content = json.loads(information)
    except ValueError:  # names with a quotation mark in them make it invalid
        return {}
    layers = content.get("Layers") if isinstance(content, dict) else content
    described = (layer for layer in layers or [] if isinstance(layer, dict))
    return {str(layer.get("Name")): (_kind(layer), _precision_of(layer)) for layer in described}


def _kind(layer: Mapping[str, Any]) -> str:
    """The operation ("Convolution") where it is given, else the kernel's family ("CaskConvolution", "kgen")."""
    return str(layer.get("ParameterType") or layer.get("LayerType") or "")


def _is_convolution(kind: str) -> bool:
    # "correlation" is how the compiler of fused layers calls a convolution.
    return "convolution" in kind.lower() or kind == "correlation"


def _precision_of(layer: Mapping[str, Any]) -> str | None:
    """Type of the weights where there are some: a conversion of the input may be part of the layer."""
    weights, inputs = layer.get("Weights"), layer.get("Inputs")
    if isinstance(weights, dict):
        found = _named(str(weights.get("Type")))
        if found is not None:
            return found
    if not isinstance(inputs, list) or not inputs or not isinstance(inputs[0], dict):
        return None
    # TensorRT 10 has "Format/Datatype", 11 two entries.
    entries = ("format/datatype", "format", "datatype")
    return _named(" ".join(str(value) for key, value in inputs[0].items() if key.lower() in entries))


def _named(said: str) -> str | None:
    return next((name for word, name in _BY_WORD if word in said.lower()), None)
