"""What an engine takes and gives, read from the engine itself and checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from prunedeploy_engines.errors import EngineError
from prunedeploy_engines.runtimes.tensorrt.engine_file import EngineFile


@dataclass(frozen=True)
class EngineTensors:
    """Names and types of an engine's inputs and outputs.

    Attributes:
        input: Name of the images.
        image_shape: Shape of one image, ``(3, H, W)`` or, uint8, ``(H, W, 3)``; of a grey network 1 for 3.
        uint8_input: The images are uint8.
        outputs: ``("boxes", "scores")`` or ``("detections", "num_detections")``.
        dtypes: NumPy types of all tensors, by name; also of outputs that nobody asked for, which need memory
            all the same.
    """

    input: str
    image_shape: tuple[int, int, int]
    uint8_input: bool
    outputs: tuple[str, str]
    dtypes: dict[str, np.dtype[Any]]

    @property
    def input_size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.image_shape[:2] if self.uint8_input else self.image_shape[1:]

    @property
    def channels(self) -> int:
        """Channels of an image."""
        return self.image_shape[2] if self.uint8_input else self.image_shape[0]


def read_tensors(trt: Any, engine: Any, about: EngineFile) -> EngineTensors:
    """Read and check them.

    Args:
        trt: The library's module.
        engine: ``ICudaEngine``.
        about: The plan, for errors.

    Raises:
        EngineError: It is not a detector as we export it; the message says what it is.
    """
    names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
    inputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
    outputs = [name for name in names if name not in inputs]
    pairs = (("boxes", "scores"), ("detections", "num_detections"))
    pair = next((pair for pair in pairs if set(pair) <= set(outputs)), None)
    if len(inputs) != 1 or pair is None:
        raise EngineError(
            f"needs one input and the outputs boxes and scores, or detections and num_detections, "
            f"has {inputs} and {outputs}",
            where=about.path,
            fix="export it again",
        )
    if pair == pairs[1] and not about.class_names:
        raise EngineError(
            "has suppression in its graph and no class names, so the number of classes is unknown",
            where=about.path,
            fix="export it again with prunedeploy",
        )
    shape = tuple(engine.get_tensor_shape(inputs[0]))
    dtype = engine.get_tensor_dtype(inputs[0])
    as_uint8 = dtype == trt.DataType.UINT8 and len(shape) == 4 and shape[3] in (1, 3)
    as_float = dtype in (trt.DataType.FLOAT, trt.DataType.HALF) and len(shape) == 4 and shape[1] in (1, 3)
    if not as_uint8 and not as_float:
        raise EngineError(
            f"the input must be float (N, 3, H, W) or uint8 (N, H, W, 3), is {inputs[0]} {shape} {dtype}",
            where=about.path,
            fix="export it again",
        )
    return EngineTensors(
        inputs[0], shape[1:], as_uint8, pair, {name: _numpy_type(trt, engine, name, about) for name in names}
    )


def _numpy_type(trt: Any, engine: Any, name: str, about: EngineFile) -> np.dtype[Any]:
    dtype = engine.get_tensor_dtype(name)
    try:
        return np.dtype(trt.nptype(dtype))
    except TypeError as error:
        raise EngineError(f"{name} is {dtype}, which NumPy does not have", where=about.path) from error
