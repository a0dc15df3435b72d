"""Which of a bundle's models Triton can run for a target, and what it takes and gives."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from prunedeploy_engines.builder.build import RTX_MAGIC
from prunedeploy_engines.bundle import Bundle
from prunedeploy_engines.errors import BundleError, EngineError
from prunedeploy_engines.runtimes.onnx_file import header_from_metadata
from prunedeploy_engines.runtimes.onnxruntime.session import open_session
from prunedeploy_engines.runtimes.signature import detector_signature
from prunedeploy_engines.runtimes.tensorrt.engine_file import EngineFile, read_engine_file

PROCESSORS = ("cpu", "gpu")
_ONNX_TYPES = {"tensor(float)": "float32", "tensor(uint8)": "uint8", "tensor(int32)": "int32", "tensor(int64)": "int64"}
_TRITON_TYPES = {"float32": "TYPE_FP32", "uint8": "TYPE_UINT8", "int32": "TYPE_INT32", "int64": "TYPE_INT64"}


@dataclass(frozen=True)
class Tensor:
    """An input or output.

    Attributes:
        name: As the model has it.
        data_type: Triton's name, e.g. ``"TYPE_FP32"``.
        dims: Without the batch; -1 is left open.
        scalar: The model has one number per image, ``(N,)``. A batched tensor of Triton has at least one dimension
            behind the batch, so `dims` are ``(1,)``, and Triton reshapes.
    """

    name: str
    data_type: str
    dims: tuple[int, ...]
    scalar: bool = False


@dataclass(frozen=True)
class TritonDetector:
    """A model file for Triton.

    Attributes:
        path: The file.
        plan: The sidecar of a TensorRT plan; None for ONNX.
        on_gpu: Where it runs.
        input: ``images``.
        outputs: ``boxes`` and ``scores``, or ``detections`` and ``num_detections``.
        batch: The only batch it takes; None if any up to `max_batch`.
        max_batch: The largest batch of a plan's profile; None if there is no limit.
        nms_classes: Number of classes if suppression is in the graph; else None.
    """

    path: Path
    plan: EngineFile | None
    on_gpu: bool
    input: Tensor
    outputs: tuple[Tensor, Tensor]
    batch: int | None
    max_batch: int | None
    nms_classes: int | None

    @property
    def uint8_input(self) -> bool:
        """It takes ``(N, H, W, 3)`` uint8 images."""
        return self.input.data_type == "TYPE_UINT8"


def triton_detector(bundle: Bundle, target: str = "cpu", precision: str = "fp32") -> TritonDetector:
    """Choose the model of a verified bundle.

    Args:
        bundle: From `load_bundle`.
        target: ``"cpu"`` or ``"gpu"`` for the ONNX file on ONNX Runtime; what a TensorRT plan was built for, e.g.
            ``"sm86"``, for that plan.
        precision: ``"fp32"``, ``"fp16"`` or ``"int8"``.

    Raises:
        BundleError: There is no such model (those there are listed), or only a plan of TensorRT for RTX.
        EngineError: The file is not a detector, or its plan does not take single images.
        RuntimeUnavailableError: ONNX Runtime, which reads the file, is not installed.
    """
    if target in PROCESSORS:
        return _of_onnx(bundle, bundle.model_path(precision, target), on_gpu=target == "gpu")
    plan = _plan(bundle, target, precision)
    shapes = plan.profile.get("images") or []
    if len(shapes) != 3 or shapes[0][0] != 1:
        raise EngineError(
            f"takes batches from {shapes[0][0] if shapes else 'none'}, not from 1",
            where=plan.path,
            fix="build it again with `prunedeploy engine --batch 1,4,8`",
        )
    of_onnx = _of_onnx(bundle, _source(bundle, plan), on_gpu=True)
    return replace(of_onnx, path=plan.path, plan=plan, max_batch=shapes[2][0])


def _of_onnx(bundle: Bundle, path: Path, *, on_gpu: bool) -> TritonDetector:
    """Ask ONNX Runtime, which is what Triton opens the file with."""
    session = open_session(path, threads=1, providers=["cpu"], allow_spinning=False, optimise=False)
    inputs, outputs = session.get_inputs(), {value.name: value for value in session.get_outputs()}
    signature = detector_signature(
        {value.name: (_ONNX_TYPES.get(value.type, value.type), _sizes(value.shape)) for value in inputs},
        outputs,
        header_from_metadata(dict(session.get_modelmeta().custom_metadata_map)),
        path,
    )
    if signature.input_size != bundle.input_size:
        raise BundleError(f"the model's input is {signature.input_size}, bundle.json says {bundle.input_size}", path)
    first, second = (_tensor(outputs[name]) for name in signature.outputs)
    return TritonDetector(
        path=path,
        plan=None,
        on_gpu=on_gpu,
        input=_tensor(inputs[0]),
        outputs=(first, second),
        batch=signature.batch,
        max_batch=None,
        nms_classes=signature.nms_classes,
    )


def _tensor(value: Any) -> Tensor:
    kind = _ONNX_TYPES.get(value.type)
    if kind is None:
        raise EngineError(f"{value.name} is a {value.type}, which no detector of ours has")
    dims = tuple(-1 if size is None else size for size in _sizes(value.shape)[1:])
    return Tensor(value.name, _TRITON_TYPES[kind], dims or (1,), scalar=not dims)


def _sizes(shape: list[int | str | None]) -> list[int | None]:
    return [size if isinstance(size, int) else None for size in shape]


def _plan(bundle: Bundle, target: str, precision: str) -> EngineFile:
    """The plan of full TensorRT for a target and precision."""
    entries = [(name, entry) for name, entry in bundle.manifest.files.items() if entry.role == "engine"]
    there = [bundle.path / name for name, entry in entries if (entry.target, entry.precision) == (target, precision)]
    if not there:
        plans = ", ".join(f"{entry.target} ({entry.precision})" for _, entry in entries) or "none"
        raise BundleError(
            f"has no plan in {precision} for {target!r}; targets are cpu, gpu and those of its plans: {plans}",
            where=bundle.path,
            fix="choose one, or build the plan with `prunedeploy engine`",
        )
    sidecars = [read_engine_file(path, verify=False) for path in there]  # the bundle is verified by hash already
    full = [plan for plan in sidecars if plan.library == "tensorrt" and not _is_rtx(plan.path)]
    if not full:
        raise BundleError(
            f"its plan for {target} is one of TensorRT for RTX, which Triton's tensorrt backend cannot load",
            where=bundle.path,
            fix="build one with `prunedeploy engine --library tensorrt` on such a GPU, or take --target gpu",
        )
    if len(full) > 1:
        names = ", ".join(plan.path.name for plan in full)
        raise BundleError(f"has several plans in {precision} for {target}: {names}", where=bundle.path)
    return full[0]


def _is_rtx(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(RTX_MAGIC)) == RTX_MAGIC


def _source(bundle: Bundle, plan: EngineFile) -> Path:
    """The ONNX file that a plan was built from: it says what the plan gives, which the sidecar does not."""
    for name, entry in bundle.manifest.files.items():
        if entry.role == "onnx" and entry.sha256 == plan.onnx_sha256:
            return bundle.path / name
    raise BundleError(
        f"the ONNX file that {plan.path.name} was built from is not in it",
        where=bundle.path,
        fix="build the plan again with `prunedeploy engine`",
    )
