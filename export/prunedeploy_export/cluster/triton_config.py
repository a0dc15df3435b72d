"""The ``config.pbtxt`` of the four models that one detector is in Triton.

``<name>`` is the detector; ``<name>-preprocess`` and ``<name>-postprocess`` are Python models around it, and
``<name>-detect`` is the ensemble of the three: encoded images in, detections out.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from prunedeploy_engines.bundle import Bundle
from prunedeploy_engines.version import __version__
from prunedeploy_export.cluster.pbtxt import Message, Symbol, Value, map_entries, to_pbtxt
from prunedeploy_export.cluster.triton_detector import Tensor, TritonDetector

ENCODED = Tensor("image", "TYPE_STRING", ())
"""BYTES ``(N,)``: JPEG, PNG or WebP files."""

IMAGE_SIZE = Tensor("image_size", "TYPE_INT32", (2,))
DETECTIONS = (
    Tensor("boxes", "TYPE_FP32", (-1, 4)),
    Tensor("scores", "TYPE_FP32", (-1,)),
    Tensor("classes", "TYPE_INT64", (-1,)),
    Tensor("num_detections", "TYPE_INT32", ()),
)
"""``(N, K, 4)``, ``(N, K)``, ``(N, K)`` and ``(N,)``, as the server's ``<name>-detect`` gives them."""


_NEWEST: Message = {"latest": {"num_versions": 1}}


@dataclass(frozen=True)
class TritonSettings:
    """How Triton is to run a detector.

    Attributes:
        max_batch: Largest batch that the detector is given, and most images of one request.
        preferred_batch: Batch sizes that are sent off at once; empty: ``max_batch`` and half of it.
        max_delay_ms: How long the first of a batch waits for others.
        max_queue: Requests that may wait for the detector; more are refused at once.
        timeout_s: A request that has waited so long is refused.
        instances: Copies of the detector; on GPUs, per GPU.
        threads: Threads of one operator, on a CPU; None leaves it to ONNX Runtime.
        python_instances: Processes each of pre- and post-processing.
    """

    max_batch: int = 8
    preferred_batch: tuple[int, ...] = ()
    max_delay_ms: float = 2.0
    max_queue: int = 64
    timeout_s: float = 10.0
    instances: int = 1
    threads: int | None = None
    python_instances: int = 2

    @property
    def preferred(self) -> tuple[int, ...]:
        """The preferred sizes that hold, ascending."""
        return tuple(sorted(set(self.preferred_batch or (max(1, self.max_batch // 2), self.max_batch))))


def triton_configs(
    name: str, bundle: Bundle, detector: TritonDetector, settings: TritonSettings, version: int = 1
) -> dict[str, str]:
    """All four configurations.

    Args:
        name: Name of the detector.
        bundle: Where it comes from.
        detector: Its file.
        settings: How it is run; `max_batch` is one that the file takes.
        version: The only version there is.

    Returns:
        Content of ``config.pbtxt`` by model.
    """
    where = f"Written by prunedeploy {__version__}"
    around = _python_parameters(bundle, detector, settings)
    before, after = f"{name}-preprocess", f"{name}-postprocess"
    return {
        name: to_pbtxt(
            _detector(name, detector, settings), [f"{where} from {detector.path.name}.", *_built_by(detector)]
        ),
        before: to_pbtxt(
            _python(before, [ENCODED], _before_outputs(detector), around, settings),
            [f"{where}: encoded images to network input."],
        ),
        after: to_pbtxt(
            _python(after, [*_after_inputs(detector)], DETECTIONS, around, settings),
            [f"{where}: network output to detections in the client's images."],
        ),
        f"{name}-detect": to_pbtxt(
            _ensemble(name, bundle, detector, version), [f"{where}: encoded images to detections."]
        ),
    }


def _detector(name: str, detector: TritonDetector, settings: TritonSettings) -> Message:
    batching = detector.batch is None
    backend = ("onnxruntime", "onnxruntime_onnx") if detector.plan is None else ("tensorrt", "tensorrt_plan")
    fields: dict[str, Value] = {
        "name": name,
        "backend": backend[0],
        "platform": backend[1],
        "default_model_filename": model_filename(detector),
        "max_batch_size": settings.max_batch if batching else 0,
        "version_policy": _NEWEST,
        "input": [_of_network(detector.input, detector.batch)],
        "output": [_of_network(tensor, detector.batch) for tensor in detector.outputs],
        "instance_group": [
            {"count": settings.instances, "kind": Symbol("KIND_GPU" if detector.on_gpu else "KIND_CPU")}
        ],
        "dynamic_batching": _queue(settings)
        if not batching
        else {
            "preferred_batch_size": list(settings.preferred),
            "max_queue_delay_microseconds": round(settings.max_delay_ms * 1e3),
            **_queue(settings),
        },
    }
    if settings.threads is not None and not detector.on_gpu:
        threads: Value = {"string_value": str(settings.threads)}
        fields["parameters"] = map_entries({"intra_op_thread_count": threads})
    fields["model_warmup"] = _warmup(detector, settings)
    return fields


def _queue(settings: TritonSettings) -> Message:
    """A queue with an end, in which nobody waits for ever."""
    return {
        "default_queue_policy": {
            "timeout_action": Symbol("REJECT"),
            "default_timeout_microseconds": round(settings.timeout_s * 1e6),
            "allow_timeout_override": True,
            "max_queue_size": settings.max_queue,
        }
    }


def _warmup(detector: TritonDetector, settings: TritonSettings) -> list[Value]:
    """Requests that are run before the model counts as ready: one image, and each preferred batch."""
    sizes = sorted({1, *settings.preferred}) if detector.batch is None else [0]
    dims = list(detector.input.dims) if detector.batch is None else [detector.batch, *detector.input.dims]
    black: Value = {"data_type": Symbol(detector.input.data_type), "dims": dims, "zero_data": True}
    return [
        {
            "name": f"batch of {size or detector.batch}",
            "batch_size": size,
            "inputs": map_entries({detector.input.name: black}),
        }
        for size in sizes
    ]


def _python(
    name: str, inputs: list[Tensor], outputs: tuple[Tensor, ...], parameters: list[Message], settings: TritonSettings
) -> Message:
    """A Python model. It is given whole requests, so that a request keeps the shapes of the protocol."""
    return {
        "name": name,
        "backend": "python",
        "default_model_filename": "model.py",
        "max_batch_size": 0,
        "version_policy": _NEWEST,
        "input": [_of_requests(tensor) for tensor in inputs],
        "output": [_of_requests(tensor) for tensor in outputs],
        "instance_group": [{"count": settings.python_instances, "kind": Symbol("KIND_CPU")}],
        "dynamic_batching": _queue(settings),
        "parameters": list(parameters),
    }


def _ensemble(name: str, bundle: Bundle, detector: TritonDetector, version: int) -> Message:
    before = [tensor.name for tensor in _before_outputs(detector)]
    steps = [
        (f"{name}-preprocess", {ENCODED.name: ENCODED.name}, {output: output for output in before}),
        (
            name,
            {detector.input.name: detector.input.name},
            {output.name: _inner(output.name) for output in detector.outputs},
        ),
        (
            f"{name}-postprocess",
            {tensor.name: _inner(tensor.name) for tensor in detector.outputs} | {IMAGE_SIZE.name: IMAGE_SIZE.name},
            {tensor.name: tensor.name for tensor in DETECTIONS},
        ),
    ]
    names: Value = {"string_value": json.dumps(bundle.class_names, ensure_ascii=False)}
    return {
        "name": f"{name}-detect",
        "platform": "ensemble",
        "max_batch_size": 0,
        "version_policy": _NEWEST,
        "input": [_of_requests(ENCODED)],
        "output": [_of_requests(tensor) for tensor in DETECTIONS],
        "ensemble_scheduling": {
            "step": [
                {
                    "model_name": model,
                    "model_version": version,
                    "input_map": map_entries(inputs),
                    "output_map": map_entries(outputs),
                }
                for model, inputs, outputs in steps
            ]
        },
        "parameters": map_entries({"class_names": names}),
    }


def _inner(output: str) -> str:
    """An ensemble's tensor for an output of the network, whose names are those of the detections too."""
    return f"network_{output}"


def _before_outputs(detector: TritonDetector) -> tuple[Tensor, ...]:
    return (detector.input, IMAGE_SIZE)


def _after_inputs(detector: TritonDetector) -> tuple[Tensor, ...]:
    return (*detector.outputs, IMAGE_SIZE)


def _of_network(tensor: Tensor, batch: int | None) -> Message:
    """An input or output of the detector; with a batch of its own, Triton does not batch."""
    declared = _declared(tensor, [*tensor.dims] if batch is None else [batch, *tensor.dims])
    if tensor.scalar:
        return {**declared, "reshape": {"shape": [] if batch is None else [batch]}}
    return declared


def _of_requests(tensor: Tensor) -> Message:
    """An input or output of a model that is given whole requests: the batch is one of its dimensions."""
    return _declared(tensor, [-1, *tensor.dims])


def _declared(tensor: Tensor, dims: list[int]) -> Message:
    return {"name": tensor.name, "data_type": Symbol(tensor.data_type), "dims": dims}


def _python_parameters(bundle: Bundle, detector: TritonDetector, settings: TritonSettings) -> list[Message]:
    spec, thresholds = bundle.manifest.input, bundle.manifest.thresholds
    values: dict[str, Any] = {
        "height": spec.height,
        "width": spec.width,
        "letterbox_colour": list(spec.letterbox_colour),
        "greyscale": spec.greyscale,
        "uint8_input": detector.uint8_input,
        "batch": detector.batch,
        "max_batch": settings.max_batch if detector.batch is None else detector.batch,
        "nms_classes": detector.nms_classes,
        "score_threshold": thresholds.score,
        "iou_threshold": thresholds.iou,
    }
    return map_entries({"detector": {"string_value": json.dumps(values)}})


def _built_by(detector: TritonDetector) -> list[str]:
    if detector.plan is None:
        return []
    plan = detector.plan
    return [f"A plan of TensorRT {plan.version} for {plan.target}: Triton must have that TensorRT, and such a GPU."]


def model_filename(detector: TritonDetector) -> str:
    """The name that Triton expects of a model file."""
    return "model.onnx" if detector.plan is None else "model.plan"
