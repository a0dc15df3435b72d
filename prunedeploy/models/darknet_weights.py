"""The Darknet ``.weights`` format: a header and one flat run of float32 values.

Per convolution in cfg order: with batch normalisation ``bias, scale, mean, variance, weights``,
without ``bias, weights``. Darknet's ``save_convolutional_weights`` is the specification.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from prunedeploy.models.darknet_cfg import Convolutional, DarknetCfg
from prunedeploy_engines.errors import DarknetFormatError

# major 0, minor 2, revision 0, then `seen` as int64: what Darknet itself writes.
NEW_HEADER = np.array([0, 2, 0], "<i4").tobytes() + np.array([0], "<i8").tobytes()

ConvParameters = dict[str, NDArray[np.float32]]


@dataclass(frozen=True)
class WeightFile:
    """The content of a weight file.

    Attributes:
        header: The header's bytes as read, 20 bytes (16 in files older than version 0.2).
        parameters: Per convolution, in cfg order: ``bias`` and ``weight``, and with batch normalisation
            ``scale``, ``mean``, ``variance``. ``weight`` is ``(filters, in / groups, size, size)``,
            the others ``(filters,)``. ``variance`` is Darknet's own, without any epsilon.
    """

    header: bytes
    parameters: tuple[ConvParameters, ...]


def parameter_shapes(layer: Convolutional) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a convolution's parameters in the order of the file."""
    names = ("bias", "scale", "mean", "variance") if layer.batch_normalize else ("bias",)
    return {**dict.fromkeys(names, (layer.out_channels,)), "weight": layer.weight_shape}


def weight_count(cfg: DarknetCfg) -> int:
    """Number of float32 values that a weight file of ``cfg`` holds."""
    return sum(int(np.prod(shape)) for layer in cfg.convolutions for shape in parameter_shapes(layer).values())


def read_weights(path: str | Path, cfg: DarknetCfg) -> WeightFile:
    """Read a weight file that belongs to ``cfg``.

    Raises:
        DarknetFormatError: The file is missing, too short, too long, or holds a value that is not finite or
            a negative variance.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DarknetFormatError(f"cannot be read ({error.strerror})", path, "give an existing .weights file") from None
    if len(data) < 16:
        raise DarknetFormatError(f"has {len(data)} bytes, not even a header", path, "download or export it again")
    major, minor = np.frombuffer(data, "<i4", count=2)
    header_bytes = 20 if int(major) * 10 + int(minor) >= 2 else 16
    expected = header_bytes + 4 * weight_count(cfg)
    if len(data) != expected:
        short = len(data) < expected
        raise DarknetFormatError(
            f"has {len(data):,} bytes, but {Path(cfg.where).name} needs {expected:,}: "
            f"{abs(len(data) - expected):,} {'missing' if short else 'left over'}",
            path,
            "give the weights that belong to this cfg" + (", or fetch the file again" if short else ""),
        )
    values = np.frombuffer(data, "<f4", offset=header_bytes)
    if not np.isfinite(values).all():
        what = f"value {int(np.argmin(np.isfinite(values)))} is not a finite number"
        raise DarknetFormatError(what, path, "fetch or export it again")
    parameters, at = [], 0
    for layer in cfg.convolutions:
        current: ConvParameters = {}
        for name, shape in parameter_shapes(layer).items():
            count = int(np.prod(shape))
            current[name] = values[at : at + count].reshape(shape)
            at += count
        if layer.batch_normalize and current["variance"].min() < 0:
            # As long as this cfg's file by chance, but laid out for other layers.
            what = f"has a negative variance for layer {layer.index} of {Path(cfg.where).name}"
            raise DarknetFormatError(what, path, "give the weights that belong to this cfg")
        parameters.append(current)
    return WeightFile(data[:header_bytes], tuple(parameters))


def weights_bytes(cfg: DarknetCfg, file: WeightFile) -> bytes:
    """The bytes of a weight file.

    Raises:
        ValueError: A parameter has another shape than ``cfg`` says.
    """
    parts = [file.header]
    for layer, current in zip(cfg.convolutions, file.parameters, strict=True):
        for name, shape in parameter_shapes(layer).items():
            value = np.ascontiguousarray(current[name], "<f4")
            if value.shape != shape:
                raise ValueError(f"layer {layer.index} {name}: expected shape {shape}, got {value.shape}")
            parts.append(value.tobytes())
    return b"".join(parts)
