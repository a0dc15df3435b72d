"""Running a session on tensors that stay on the device.

Never run on a GPU by its authors: what is here was tried with the same calls on the CPU's memory, and the names
were checked against ONNX Runtime's API.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import numpy.typing as npt

from prunedeploy_engines.runtimes.onnxruntime.session import import_onnxruntime
from prunedeploy_engines.runtimes.signature import INPUT


class DeviceBinding:
    """Input and outputs of one batch size, in a device's memory.

    Args:
        session: An ``onnxruntime.InferenceSession``.
        outputs: Names of the outputs.
        device: ``"cuda"``, the first one that is visible, or ``"cpu"``.
    """

    def __init__(self, session: Any, outputs: tuple[str, str], device: str) -> None:
        self._session = session
        self._outputs = outputs
        self._device = device, 0
        self._binding: Any = None
        self._input: Any = None
        self._lock = threading.Lock()

    def upload(self, images: npt.NDArray[Any]) -> None:
        """Copy a batch into the device's memory."""
        images = np.ascontiguousarray(images)
        if self._input is not None and tuple(self._input.shape()) == images.shape:
            self._input.update_inplace(images)
            return
        ort = import_onnxruntime()
        self._input = ort.OrtValue.ortvalue_from_shape_and_type(images.shape, images.dtype.type, *self._device)
        self._input.update_inplace(images)
        self._binding = self._session.io_binding()
        self._binding.bind_ortvalue_input(INPUT, self._input)
        for name in self._outputs:
            self._binding.bind_output(name, *self._device)  # of a shape that ONNX Runtime finds out

    def run(self) -> None:
        """Run the model on what was uploaded; returns when the outputs are there."""
        self._session.run_with_iobinding(self._binding)
        self._binding.synchronize_outputs()

    def infer(self, images: npt.NDArray[Any]) -> tuple[Any, Any]:
        """Upload, run and fetch both outputs; one caller at a time."""
        with self._lock:
            self.upload(images)
            self.run()
            first, second = self._binding.copy_outputs_to_cpu()
        return first, second
