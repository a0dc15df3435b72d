"""The Darknet ``.weights`` format: a header and one flat run of float32 values.

Layer by layer in cfg order; a convolution has ``bias, scale, mean, variance, weights``, without batch normalisation
``bias, weights``. Darknet's ``save_convolutional_weights`` is the specification.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from prunedeploy.models.darknet_cfg import DarknetCfg
from prunedeploy.models.sections import Layer
from prunedeploy_engines.errors import DarknetFormatError

# major 0, minor 2, revision 0, then `seen` as int64: what Darknet itself writes.
NEW_HEADER = np.array([0, 2, 0], "<i4").tobytes() + np.array([0], "<i8").tobytes()

LayerParameters = dict[str, NDArray[np.float32]]


@dataclass(frozen=True)
class WeightFile:
    """The content of a weight file.

    Attributes:
        header: The header's bytes as read, 20 bytes (16 in files older than version 0.2).
        parameters: Per layer with weights, in cfg order. Of a convolution: ``bias`` and ``weight``, and with batch
            normalisation ``scale``, ``mean``, ``variance``. ``weight`` is ``(filters, in / groups, size, size)``,
            the others ``(filters,)``. ``variance`` is Darknet's own, without any epsilon.
    """

    header: bytes
    parameters: tuple[LayerParameters, ...]


def parameter_shapes(layer: Layer) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a layer's parameters in the order of the file."""
    return {name: weight.shape for name, weight in layer.weights_in_file().items()}


def layer_counts(cfg: DarknetCfg) -> list[int]:
    """Number of float32 values of each layer with weights in a weight file, in cfg order."""
    return [sum(math.prod(shape) for shape in parameter_shapes(layer).values()) for layer in cfg.weighted]


def weight_count(cfg: DarknetCfg) -> int:
    """Number of float32 values that a weight file of ``cfg`` holds."""
    return sum(layer_counts(cfg))


def layers_of_size(cfg: DarknetCfg, values: int) -> int | None:
    """How many of the network's layers with weights, from the first, have so many values; None if one would be cut."""
    ends = [0, *accumulate(layer_counts(cfg))]
    return ends.index(values) if values > 0 and values in ends else None


def measure(path: Path) -> int:
    """Number of float32 values that a weight file holds behind its header.

    Raises:
        DarknetFormatError: The file is missing, has no header, or ends inside a value.
    """
    try:
        with path.open("rb") as file:
            start, size = file.read(16), path.stat().st_size
    except OSError as error:
        raise DarknetFormatError(f"cannot be read ({error.strerror})", path, "give an existing .weights file") from None
    values, cut = divmod(size - _header_bytes(start, path), 4)
    if cut:
        raise DarknetFormatError(f"has {size:,} bytes and ends inside a number", path, _FETCH)
    return values


def _header_bytes(start: bytes, path: Path) -> int:
    if len(start) < 16:
        raise DarknetFormatError(f"has {len(start)} bytes, not even a header", path, "download or export it again")
    major, minor = np.frombuffer(start, "<i4", count=2)
    return 20 if int(major) * 10 + int(minor) >= 2 else 16


_FETCH = "it was cut off or altered on its way: fetch it again"


def read_weights(path: str | Path, cfg: DarknetCfg, layers: int | None = None) -> WeightFile:
    """Read a weight file that belongs to ``cfg``.

    Args:
        path: The file.
        cfg: The network.
        layers: Number of layers with weights, from the first, that the file holds; None: all.

    Raises:
        DarknetFormatError: The file is missing, too short, too long, or holds a value that is not finite or
            a negative variance.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DarknetFormatError(f"cannot be read ({error.strerror})", path, "give an existing .weights file") from None
    header_bytes = _header_bytes(data[:16], path)
    weighted = cfg.weighted[:layers]
    if len(data) != header_bytes + 4 * sum(layer_counts(cfg)[:layers]):
        raise wrong_size(path, cfg, (len(data) - header_bytes) / 4)
    values = np.frombuffer(data, "<f4", offset=header_bytes)
    if not np.isfinite(values).all():
        what = f"value {int(np.argmin(np.isfinite(values)))} is not a finite number"
        raise DarknetFormatError(what, path, "fetch or export it again")
    parameters, at = [], 0
    for layer in weighted:
        current: LayerParameters = {}
        for name, shape in parameter_shapes(layer).items():
            count = math.prod(shape)
            current[name] = values[at : at + count].reshape(shape)
            at += count
        if "variance" in current and current["variance"].min() < 0:
            # As long as this cfg's file by chance, but laid out for other layers.
            what = f"has a negative variance for layer {layer.index} of {Path(cfg.where).name}"
            raise DarknetFormatError(what, path, "give the weights that belong to this cfg")
        parameters.append(current)
    return WeightFile(data[:header_bytes], tuple(parameters))


def wrong_size(path: Path, cfg: DarknetCfg, values: float) -> DarknetFormatError:
    """What a file of so many values is to this network, as far as that tells, and what to do."""
    size, counts = path.stat().st_size, layer_counts(cfg)
    off = round(4 * (values - sum(counts)))
    what = f"has {size:,} bytes, but {Path(cfg.where).name} needs {size - off:,}: "
    what += f"{abs(off):,} {'left over' if off > 0 else 'missing'}"
    fix = "give the weights that belong to this cfg"
    if off < 0:
        whole = sum(end <= values for end in accumulate(counts))
        if values > sum(counts[:whole]):
            part = cfg.weighted[whole]
            what += f"; it ends inside the {part.kind.removesuffix('al')} of layer {part.index}"
            fix += ", or fetch the file again if it was cut off on its way"
        elif whole:
            kind = "convolutions" if len(cfg.weighted) == len(cfg.convolutions) else "layers with weights"
            what += f"; it holds the first {whole} of {len(counts)} {kind}, which only a training can start from"
    if (parted := _parts_at(path, cfg)) is not None:
        before, at = parted
        what += (
            f"; its layers part from this cfg's at layer {at}"
            if before is None
            else (f"; up to layer {before} it reads like this cfg's file, at layer {at} no longer")
        )
    return DarknetFormatError(what, path, fix)


def _parts_at(path: Path, cfg: DarknetCfg) -> tuple[int | None, int] | None:
    """Where a file is seen to be of another network: where a running variance would be negative.

    A file is nothing but numbers, and about half of the weights are negative, so what lies in the place of a variance
    tells whether the layers before it have the sizes that they have in the file.

    Returns:
        Index of the last layer whose variance can be one, None if there is none before; and of the first whose cannot.
        None if all that the file holds can.
    """
    data = path.read_bytes()
    start = _header_bytes(data[:16], path)
    values = np.frombuffer(data, "<f4", (len(data) - start) // 4, start)
    at, last = 0, None
    for layer in cfg.weighted:
        for name, shape in parameter_shapes(layer).items():
            block = values[at : at + math.prod(shape)]
            at += math.prod(shape)
            if name != "variance" or len(block) < math.prod(shape):
                continue
            if not bool((block >= 0).all()):  # NaN among them
                return last, layer.index
            last = layer.index
    return None


def weights_bytes(cfg: DarknetCfg, file: WeightFile) -> bytes:
    """The bytes of a weight file.

    Raises:
        ValueError: A parameter has another shape than ``cfg`` says.
    """
    parts = [file.header]
    for layer, current in zip(cfg.weighted, file.parameters, strict=True):
        for name, shape in parameter_shapes(layer).items():
            value = np.ascontiguousarray(current[name], "<f4")
            if value.shape != shape:
                raise ValueError(f"layer {layer.index} {name}: expected shape {shape}, got {value.shape}")
            parts.append(value.tobytes())
    return b"".join(parts)
