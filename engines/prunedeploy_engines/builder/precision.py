"""Which precision a TensorRT network or engine really computes in, and whether that is what was ordered.

Precision is a property of the ONNX file, and the libraries do what the file says: one that is fp32 throughout
gives an fp32 engine, whatever its name. So the layers are read back and counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

PRECISIONS = ("fp32", "fp16", "bf16", "int8", "fp8")
"""What a convolution may compute in. Of the network's other types (whole numbers, bool) none is one of these."""

_BITS = {"fp32": 32, "fp16": 16, "bf16": 16, "int8": 8, "fp8": 8}
_BY_TYPE = {"FLOAT": "fp32", "HALF": "fp16", "BF16": "bf16", "INT8": "int8", "FP8": "fp8"}


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
    ordered: str, layers: Mapping[str, str], types: Collection[str] = (), skipped: Collection[str] | None = None
) -> str | None:
    """Why these layers are not what was ordered, in one clause, or None.

    Args:
        ordered: One of `PRECISIONS`.
        layers: Precision of every convolution, by name.
        types: All types of the network; an fp32 one has no other, not even outside its convolutions.
        skipped: Convolutions that an int8 file leaves in floating point on purpose; None if it does not say.
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


def built_problem(ordered: str, layers: Mapping[str, str]) -> str | None:
    """Why a built engine's layers are not what was ordered, in one clause, or None.

    An engine's layers are fused ones, and the library may compute a few in more bits than was ordered; in fewer
    never, and not all of them.

    Args:
        ordered: One of `PRECISIONS`.
        layers: From `inspection.layers_of_engine`; empty if the engine does not tell.
    """
    fewer = {name: precision for name, precision in layers.items() if _BITS[precision] < _BITS[ordered]}
    if fewer:
        name, precision = next(iter(fewer.items()))
        return f"{len(fewer)} of {len(layers)} convolutions are not {ordered}, e.g. {name} is {precision}"
    if layers and ordered not in layers.values():
        return f"none of its {len(layers)} convolutions computes in {ordered}"
    return None
