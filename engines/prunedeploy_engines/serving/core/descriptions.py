"""What the protocol says of a model: its tensors, and its configuration in Triton's words."""

from __future__ import annotations

from typing import Any

from prunedeploy_engines.serving.core.served_model import VERSION, ServedModel
from prunedeploy_engines.serving.core.settings import ServingSettings
from prunedeploy_engines.serving.core.tensors import BYTES

_PLATFORMS = {"onnxruntime": "onnxruntime_onnx", "tensorrt": "tensorrt_plan"}


def model_metadata(name: str, model: ServedModel, encoded: bool) -> dict[str, Any]:
    """Name, versions, platform, inputs and outputs, as the protocol's JSON.

    Args:
        name: Protocol name.
        model: Behind it.
        encoded: It is the one that takes files of images.
    """
    if encoded:
        inputs = [("image", BYTES, [-1])]
        outputs = [
            ("boxes", "FP32", [-1, -1, 4]),
            ("scores", "FP32", [-1, -1]),
            ("classes", "INT64", [-1, -1]),
            ("num_detections", "INT32", [-1]),
        ]
    else:
        # Either type is taken, see `images_of`; it names the one that reaches the network without a detour.
        inputs = [("images", "UINT8" if model.takes_uint8 else "FP32", [-1, *model.input_shape])]
        classes = len(model.bundle.class_names)
        outputs = [("boxes", "FP32", [-1, -1, 4]), ("scores", "FP32", [-1, -1, classes])]
    keys = ("name", "datatype", "shape")
    return {
        "name": name,
        "versions": [VERSION],
        "platform": "ensemble" if encoded else _PLATFORMS.get(model.runtime, model.runtime),
        "inputs": [dict(zip(keys, one, strict=True)) for one in inputs],
        "outputs": [dict(zip(keys, one, strict=True)) for one in outputs],
    }


def model_config(about: dict[str, Any], settings: ServingSettings) -> dict[str, Any]:
    """A model's configuration, as far as Triton's model configuration extension has words for it.

    Args:
        about: What `model_metadata` says of it.
        settings: The server's settings.
    """
    tensors = {part: [_configured(**one) for one in about[f"{part}s"]] for part in ("input", "output")}
    return {
        "name": about["name"],
        "platform": about["platform"],
        "backend": "prunedeploy",
        "version_policy": {"latest": {"num_versions": 1}},
        "max_batch_size": settings.max_images,
        **tensors,
        "instance_group": [{"name": about["name"], "count": settings.workers}],
        "dynamic_batching": {
            "preferred_batch_size": [settings.max_batch],
            "max_queue_delay_microseconds": round(1e3 * settings.max_delay_ms),
        },
        "model_transaction_policy": {"decoupled": False},
    }


def _configured(name: str, datatype: str, shape: list[int]) -> dict[str, Any]:
    """A tensor in the words of a model configuration, where a batch's first side is left out and no shape is empty."""
    data_type = "TYPE_STRING" if datatype == BYTES else f"TYPE_{datatype}"
    named = {"name": name, "data_type": data_type}
    return {**named, "dims": shape[1:]} if shape[1:] else {**named, "dims": [1], "reshape": {"shape": []}}
