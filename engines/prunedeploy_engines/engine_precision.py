"""Which precision a TensorRT network or engine really computes in, and whether that is what was ordered.

Precision is a property of the ONNX file, and the libraries do what the file says: one that is fp32 throughout
gives an fp32 engine, whatever its name. So the layers are read back and counted.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

PRECISIONS = ("fp32", "fp16", "bf16", "int8", "fp8")
"""What a convolution may compute in. Of the network's other types (whole numbers, bool) none is one of these."""

_BY_TYPE = {"FLOAT": "fp32", "HALF": "fp16", "BF16": "bf16", "INT8": "int8", "FP8": "fp8"}
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


def layers_of_network(trt: Any, network: Any) -> dict[str, str]:
    """Precision of every convolution of a parsed network, by the layer's name.

    A convolution is int8 (or fp8) if both its input and its weights come out of dequantisation from it: with
    one of the two missing there is no kernel that would compute in 8 bits.

    Args:
        trt: The library's module.
        network: The parsed, strongly typed network.
    """
    kind = trt.LayerType
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    makers = {layer.get_output(i).name: layer for layer in layers for i in range(layer.num_outputs)}

    def stored_as(tensor: Any) -> str | None:
        """8-bit type that a tensor was dequantised from, or None."""
        maker = None if tensor is None else makers.get(tensor.name)
        if maker is None or maker.type != kind.DEQUANTIZE:
            return None
        return _BY_TYPE.get(maker.get_input(0).dtype.name)

    found = {}
    for layer in layers:
        if layer.type in (kind.CONVOLUTION, kind.DECONVOLUTION):
            data = layer.get_input(0)
            weights = layer.get_input(1) if layer.num_inputs > 1 else None
            quantised = stored_as(data)
            same = quantised is not None and quantised == stored_as(weights)
            found[layer.name] = quantised if same and quantised else _BY_TYPE.get(data.dtype.name, data.dtype.name)
    return found


def types_of_network(network: Any) -> set[str]:
    """All floating-point and quantised types of the network's tensors, e.g. ``{"fp32", "int8"}``."""
    layers = (network.get_layer(i) for i in range(network.num_layers))
    tensors = (layer.get_output(i) for layer in layers for i in range(layer.num_outputs))
    return {_BY_TYPE[tensor.dtype.name] for tensor in tensors if tensor.dtype.name in _BY_TYPE}


def layers_of_engine(information: str) -> dict[str, str]:
    """The same of a built engine, from what its inspector says; empty where it does not say enough.

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
    return {str(layer.get("Name")): (_kind(layer), _precision_of(layer.get("Inputs"))) for layer in described}


def _kind(layer: Mapping[str, Any]) -> str:
    """The operation ("Convolution") where it is given, else the kernel's family ("CaskConvolution", "kgen")."""
    return str(layer.get("ParameterType") or layer.get("LayerType") or "")


def _is_convolution(kind: str) -> bool:
    # "correlation" is how the compiler of fused layers calls a convolution.
    return "convolution" in kind.lower() or kind == "correlation"


def _precision_of(inputs: Any) -> str | None:
    if not isinstance(inputs, list) or not inputs or not isinstance(inputs[0], dict):
        return None
    # TensorRT 10 has "Format/Datatype", 11 two entries.
    entries = ("format/datatype", "format", "datatype")
    said = " ".join(str(value) for key, value in inputs[0].items() if key.lower() in entries).lower()
    return next((name for word, name in _BY_WORD if word in said), None)


def counted(layers: Mapping[str, str]) -> dict[str, int]:
    """Number of layers by precision, the most frequent first."""
    return dict(Counter(layers.values()).most_common())


def network_precision(layers: Mapping[str, str], types: Collection[str]) -> str:
    """The one word for a network that nobody said anything about: its lowest precision.

    Args:
        layers: From `layers_of_network`.
        types: From `types_of_network`, which decides where there is no convolution.
    """
    there = set(layers.values()) or types
    return next((name for name in ("fp8", "int8", "bf16", "fp16") if name in there), "fp32")


def precision_problem(
    ordered: str,
    layers: Mapping[str, str],
    types: Collection[str] = (),
    skipped: Collection[str] | None = None,
) -> str | None:
    """Why these layers are not what was ordered, in one clause, or None.

    Args:
        ordered: One of `PRECISIONS`.
        layers: Precision of every convolution, by name.
        types: All types of the network; an fp32 one has no other, not even outside its convolutions.
        skipped: Of an int8 file: convolutions that it leaves in floating point on purpose; None if it does not say.
    """
    others = {name: precision for name, precision in layers.items() if precision != ordered}
    if ordered == "fp32" and not others:
        strange = sorted(set(types) - {"fp32"})
        return f"{' and '.join(strange)} was found in an fp32 network" if strange else None
    if ordered in ("int8", "fp8"):
        if layers and len(others) == len(layers):
            return f"none of its {len(layers)} convolutions computes in {ordered}"
        others = {} if skipped is None else {name: p for name, p in others.items() if name not in skipped}
    if not others:
        return None
    name, precision = next(iter(others.items()))
    return f"{len(others)} of {len(layers)} convolutions are not {ordered}, e.g. {name} is {precision}"
