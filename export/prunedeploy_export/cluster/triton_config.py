"""The ``config.pbtxt`` of the four models that one detector is in Triton.

``<name>`` is the detector; ``<name>-preprocess`` and ``<name>-postprocess`` are Python models around it, and
``<name>-detect`` is the ensemble of the three: encoded images in, detections out.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
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
    written, plan = f"Written by prunedeploy {__version__}", detector.plan
    around = _python_parameters(bundle, detector, settings)
    before, after = (detector.input, IMAGE_SIZE), (*detector.outputs, IMAGE_SIZE)
    commented: list[tuple[Message, list[str]]] = [
        (_detector(name, detector, settings), [f"{written} from {detector.path.name}."]),
        (
            _python(f"{name}-preprocess", (ENCODED,), before, around, settings),
            [f"{written}: encoded images to network input."],
        ),
        (
            _python(f"{name}-postprocess", after, DETECTIONS, around, settings),
            [f"{written}: network output to detections in the client's images."],
        ),
        (_ensemble(name, bundle, detector, version), [f"{written}: encoded images to detections."]),
    ]
    if plan is not None:
        needs = f"A plan of TensorRT {plan.version} for {plan.target}: Triton must have that TensorRT, and such a GPU."
        commented[0][1].append(needs)
    return {str(message["name"]): to_pbtxt(message, comments) for message, comments in commented}


def _detector(name: str, detector: TritonDetector, settings: TritonSettings) -> Message:
    batching = detector.batch is None
    gathering: Message = {
        "preferred_batch_size": list(settings.preferred),
        "max_queue_delay_microseconds": round(settings.max_delay_ms * 1e3),
    }
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
            {"count": settings.instances, "kind": Symbol(f"KIND_{'GPU' if detector.on_gpu else 'CPU'}")}
        ],
        "dynamic_batching": {**(gathering if batching else {}), **_queue(settings)},
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
    inputs = map_entries({detector.input.name: black})
    return [{"name": f"batch of {size or detector.batch}", "batch_size": size, "inputs": inputs} for size in sizes]


def _python(
    name: str, inputs: Sequence[Tensor], outputs: Sequence[Tensor], parameters: list[Message], settings: TritonSettings
) -> Message:
    """A Python model. It is given whole requests, so that a request keeps the shapes of the protocol."""
    return {
        "name": name,
        "backend": "python",
        "default_model_filename": "model.py",
        "max_batch_size": 0,
        "version_policy": _NEWEST,
        "input": [_declared(tensor, -1) for tensor in inputs],
        "output": [_declared(tensor, -1) for tensor in outputs],
        "instance_group": [{"count": settings.python_instances, "kind": Symbol("KIND_CPU")}],
        "dynamic_batching": _queue(settings),
        "parameters": list(parameters),
    }


def _ensemble(name: str, bundle: Bundle, detector: TritonDetector, version: int) -> Message:
    # The network's outputs have the names of the detections too.
    inner = {tensor.name: f"network_{tensor.name}" for tensor in detector.outputs}
    steps = [
        (f"{name}-preprocess", _as_it_is(ENCODED), _as_it_is(detector.input, IMAGE_SIZE)),
        (name, _as_it_is(detector.input), inner),
        (f"{name}-postprocess", inner | _as_it_is(IMAGE_SIZE), _as_it_is(*DETECTIONS)),
    ]
    names: Value = {"string_value": json.dumps(bundle.class_names, ensure_ascii=False)}
    return {
        "name": f"{name}-detect",
        "platform": "ensemble",
        "max_batch_size": 0,
        "version_policy": _NEWEST,
        "input": [_declared(ENCODED, -1)],
        "output": [_declared(tensor, -1) for tensor in DETECTIONS],
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


def _as_it_is(*tensors: Tensor) -> dict[str, str]:
    """A map of names for tensors that an ensemble calls what its model calls them."""
    return {tensor.name: tensor.name for tensor in tensors}


def _of_network(tensor: Tensor, batch: int | None) -> Message:
    """An input or output of the detector; with a batch of its own, Triton does not batch."""
    own = [] if batch is None else [batch]
    declared = _declared(tensor, *own)
    return {**declared, "reshape": {"shape": own}} if tensor.scalar else declared


def _declared(tensor: Tensor, *batch: int) -> Message:
    """An input or output; of a model that is given whole requests the batch, -1, is one of its dimensions."""
    return {"name": tensor.name, "data_type": Symbol(tensor.data_type), "dims": [*batch, *tensor.dims]}


def _python_parameters(bundle: Bundle, detector: TritonDetector, settings: TritonSettings) -> list[Message]:
    thresholds = bundle.manifest.thresholds
    file = bundle.manifest.files[detector.path.relative_to(bundle.path).as_posix()]
    values: dict[str, Any] = {
        **bundle.manifest.input.model_dump(),
        "uint8_input": detector.uint8_input,
        "batch": detector.batch,
        "max_batch": settings.max_batch if detector.batch is None else detector.batch,
        "nms_classes": detector.nms_classes,
        "score_threshold": bundle.score_threshold(file.precision or "fp32"),
        "iou_threshold": thresholds.iou,
        "max_candidates": bundle.manifest.nms.max_candidates,
    }
    return map_entries({"detector": {"string_value": json.dumps(values)}})


def model_filename(detector: TritonDetector) -> str:
    """The name that Triton expects of a model file."""
    return "model.onnx" if detector.plan is None else "model.plan"
