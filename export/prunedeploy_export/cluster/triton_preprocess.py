"""The model that Triton runs before the detector: encoded images in, network input out.

`triton_repository` copies this file, as it is, into the model's folder; Triton's Python backend runs it there. So it
may import only NumPy, Pillow and those modules of prunedeploy that need no more (they are copied with it).
"""

from __future__ import annotations

import importlib
import json
from typing import Any

import numpy as np
import numpy.typing as npt

from prunedeploy_engines.detection.images import MAX_PIXELS, to_greyscale
from prunedeploy_engines.detection.letterbox import batch_to_input, letterbox
from prunedeploy_engines.serving.core.decoding import decode_image, open_image
from prunedeploy_engines.serving.core.errors import ServingError


class TritonPythonModel:
    """``image`` BYTES ``(N,)`` to ``images``, as the detector takes them, and ``image_size`` INT32 ``(N, 2)``.

    What the input looks like stands in the parameter ``detector`` of ``config.pbtxt``, a JSON object.
    """

    def initialize(self, args: dict[str, str]) -> None:
        """Read the settings; Triton calls it once.

        Args:
            args: ``model_config`` is the configuration as JSON.
        """
        # This module exists only inside Triton's Python backend.
        self._triton: Any = importlib.import_module("triton_python_backend_utils")
        try:
            importlib.import_module("PIL.Image")
        except ImportError as error:  # better now than at the first request
            raise RuntimeError("Triton's image lacks Pillow; add it with `pip install --no-deps pillow`") from error
        parameters = json.loads(args["model_config"])["parameters"]
        settings = json.loads(parameters["detector"]["string_value"])
        self._size = (int(settings["height"]), int(settings["width"]))
        red, green, blue = settings["letterbox_colour"]
        self._colour = (int(red), int(green), int(blue))
        self._greyscale = bool(settings["greyscale"])
        self._stretch = not settings["letterbox"]
        self._channels = int(settings["channels"])
        self._uint8_input = bool(settings["uint8_input"])
        self._batch: int | None = settings["batch"]
        self._max_batch = int(settings["max_batch"])
        self._max_pixels = int(settings.get("max_pixels", MAX_PIXELS))

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer requests; a bad image spoils the request that it came with and no other."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        triton = self._triton
        try:
            images, sizes = self._prepare(triton.get_input_tensor_by_name(request, "image").as_numpy())
        except ValueError as error:
            return triton.InferenceResponse(error=triton.TritonError(str(error), triton.TritonError.INVALID_ARG))
        return triton.InferenceResponse([triton.Tensor("images", images), triton.Tensor("image_size", sizes)])

    def _prepare(self, encoded: npt.NDArray[np.object_]) -> tuple[npt.NDArray[Any], npt.NDArray[np.int32]]:
        """Decode and letterbox.

        Args:
            encoded: ``(N,)`` bytes.

        Returns:
            The detector's input, and ``(N, 2)`` height and width of the upright images.

        Raises:
            ValueError: There are too few or too many images, or one cannot be used (its number is said).
        """
        count = encoded.size
        if not 1 <= count <= self._max_batch or self._batch not in (None, count):
            allowed = f"1 to {self._max_batch}" if self._batch is None else f"exactly {self._batch}"
            raise ValueError(f"a request must have {allowed} images, this one has {count}")
        boxed, sizes = [], []
        for number, content in enumerate(encoded.reshape(-1)):
            try:
                pixels = decode_image(open_image(bytes(content), self._max_pixels))
            except ServingError as error:
                raise ValueError(f"image {number}: {error}") from None
            sizes.append(pixels.shape[:2])
            pixels = to_greyscale(pixels) if self._greyscale or self._channels == 1 else pixels
            boxed.append(letterbox(pixels, self._size, self._colour, self._stretch)[0])
        stacked = np.ascontiguousarray(np.stack(boxed)[..., : self._channels])
        images = stacked if self._uint8_input else batch_to_input(stacked)
        return images, np.array(sizes, np.int32)
