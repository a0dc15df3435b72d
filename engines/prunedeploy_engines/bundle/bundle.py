"""The bundle: the folder that is copied to the device, verified when it is opened."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from prunedeploy_engines.bundle.files import BundleFile, place_file, refuse_reached, verify_file
from prunedeploy_engines.bundle.manifest import MANIFEST_NAME, SCHEMA_VERSION, Manifest, parse_manifest, read_manifest
from prunedeploy_engines.detection.detections import Detections
from prunedeploy_engines.detection.images import read_image, to_greyscale
from prunedeploy_engines.detection.letterbox import LetterboxGeometry, letterbox, to_input, unletterbox_boxes
from prunedeploy_engines.detection.nms import detections_from
from prunedeploy_engines.errors import BundleError, store_errors_as
from prunedeploy_engines.files import write_atomically, write_whole_folder
from prunedeploy_engines.locks import locked
from prunedeploy_engines.runtimes.onnx_file import NmsInGraph, read_onnx_header
from prunedeploy_engines.runtimes.runner import Float32Array, Runner

if TYPE_CHECKING:
    from typing_extensions import Self


__all__ = ["Bundle", "BundleFile", "load_bundle", "write_bundle"]


class Bundle:
    """A verified bundle; what `load_bundle` returns. A context manager that closes the runner of `detect`.

    Attributes:
        path: The folder.
        manifest: What ``bundle.json`` says.
    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest
        self._runner: Runner | None = None
        self._runner_lock = threading.Lock()

    def __repr__(self) -> str:
        return f"Bundle({str(self.path)!r}, {len(self.class_names)} classes, input {self.input_size})"

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the scores."""
        return self.manifest.class_names

    @property
    def input_size(self) -> tuple[int, int]:
        """(height, width) of the network input, in pixels."""
        return self.manifest.input.height, self.manifest.input.width

    def score_threshold(self, precision: str = "fp32") -> float:
        """The score that detections are above unless told otherwise: the precision's operating point, if it has one."""
        point = self.manifest.operating_points.get(precision)
        return self.manifest.thresholds.score if point is None else point.score_threshold

    def nms_in_graph(self, precision: str = "fp32") -> NmsInGraph | None:
        """The suppression in the graph of a precision's ONNX file; None without, or if there is no such file."""
        try:
            return read_onnx_header(self.model_path(precision)).nms
        except BundleError:
            return None

    def model_path(self, precision: str = "fp32", target: str | None = None) -> Path:
        """The ONNX file of a precision.

        Args:
            precision: ``"fp32"``, ``"fp16"`` or ``"int8"``.
            target: ``"cpu"`` or ``"gpu"``, of a precision that has a file for each; a file for no target in
                particular serves both. None takes the only one there is, or that for CPUs.

        Raises:
            BundleError: There is none (those there are listed).
        """
        return self._find("onnx", precision, target, default="cpu")

    def engine_path(self, precision: str = "fp32", target: str | None = None) -> Path:
        """The TensorRT plan of a precision and target, e.g. ``"sm86"``.

        Raises:
            BundleError: There is none, or several (those there are listed).
        """
        return self._find("engine", precision, target)

    def runner(
        self,
        runtime: str = "onnxruntime",
        precision: str = "fp32",
        *,
        threads: int | None = None,
        providers: Sequence[str] = ("cpu",),
        allow_spinning: bool = True,
        inference_precision: str | None = "f32",
        target: str | None = None,
        in_process: bool = False,
    ) -> Runner:
        """Open the model; the caller closes it.

        Args:
            runtime: ``"onnxruntime"``, ``"openvino"`` or ``"tensorrt"``.
            precision: ``"fp32"``, ``"fp16"`` or ``"int8"``.
            threads: Threads of one operator, on a CPU; None leaves it to the runtime.
            providers: ONNX Runtime only: execution providers, in order of preference.
            allow_spinning: ONNX Runtime only: let waiting threads spin.
            inference_precision: OpenVINO only: what float layers are computed in; None lets OpenVINO choose.
            target: Which of several files of one precision; None takes the one that fits the runtime.
            in_process: OpenVINO only: load it into this process; see `open_runner`.

        Raises:
            BundleError: The bundle has no such model or engine.
            ConfigError: No such runtime.
            RuntimeUnavailableError: The runtime is not there.
            EngineError: The file does not load, or takes another input than the bundle says.
        """
        from prunedeploy_engines.runtimes.opening import model_target, open_runner

        if runtime == "tensorrt":
            path = self.engine_path(precision, target)
        else:
            path = self.model_path(precision, target or model_target(runtime, providers))
        opened = open_runner(
            path,
            runtime,
            threads=threads,
            providers=providers,
            allow_spinning=allow_spinning,
            inference_precision=inference_precision,
            in_process=in_process,
        )
        if opened.input_size != self.input_size:
            size = opened.input_size
            opened.close()
            raise BundleError(f"the model's input is {size}, {MANIFEST_NAME} says {self.input_size}", self.path)
        return opened

    def prepare(
        self, image: str | Path | npt.NDArray[np.uint8], *, uint8: bool = False
    ) -> tuple[Float32Array | npt.NDArray[np.uint8], LetterboxGeometry]:
        """Turn an image into network input, as ``bundle.json`` says.

        Args:
            image: File, or ``(H, W, 3)`` uint8 RGB.
            uint8: For a runner with ``uint8_input``.

        Returns:
            ``(3, height, width)`` float32 in [0, 1], or ``(height, width, 3)`` uint8 (one channel of a
            grey network); and where the image lies in it.

        Raises:
            DataError: The file is not a usable image.
        """
        spec = self.manifest.input
        pixels = image if isinstance(image, np.ndarray) else read_image(image)
        if spec.greyscale or spec.channels == 1:
            pixels = to_greyscale(pixels)
        boxed, geometry = letterbox(pixels, self.input_size, spec.letterbox_colour, not spec.letterbox)
        return (boxed[..., : spec.channels] if uint8 else to_input(boxed, spec.channels)), geometry

    def detections(
        self,
        boxes_xyxy: Float32Array,
        scores: Float32Array,
        geometry: LetterboxGeometry,
        *,
        score_threshold: float | None = None,
        iou_threshold: float | None = None,
    ) -> Detections:
        """Turn the network's output for one image into detections in that image.

        Of more than the bundle's ``nms.max_candidates`` pairs of box and class above the threshold only the best by
        score are looked at.

        Args:
            boxes_xyxy: ``(M, 4)``, input pixels.
            scores: ``(M, C)`` in [0, 1].
            geometry: From `prepare`.
            score_threshold: In [0, 1]; None takes the bundle's.
            iou_threshold: In [0, 1]; None takes the bundle's.
        """
        thresholds = self.manifest.thresholds
        kept_boxes, kept_scores, class_ids = detections_from(
            boxes_xyxy,
            scores,
            score_threshold=thresholds.score if score_threshold is None else score_threshold,
            iou_threshold=thresholds.iou if iou_threshold is None else iou_threshold,
            pre_nms_top_k=self.manifest.nms.max_candidates,
        )
        in_image = unletterbox_boxes(kept_boxes, geometry).astype(np.float32, copy=False)
        return Detections(in_image, kept_scores, class_ids, self.class_names)

    def detect(
        self,
        image: str | Path | npt.NDArray[np.uint8],
        *,
        runner: Runner | None = None,
        score_threshold: float | None = None,
        iou_threshold: float | None = None,
    ) -> Detections:
        """Find the objects in an image.

        Args:
            image: File, or ``(H, W, 3)`` uint8 RGB.
            runner: Where to run; None is ``self.runner()``, opened at the first call and kept until `close`.
            score_threshold: In [0, 1]; None takes the bundle's.
            iou_threshold: In [0, 1]; None takes the bundle's.

        Raises:
            DataError: The file is not a usable image.
        """
        runner = self._own_runner() if runner is None else runner
        prepared, geometry = self.prepare(image, uint8=runner.uint8_input)
        boxes, scores = runner.infer(prepared[None])
        return self.detections(
            boxes[0], scores[0], geometry, score_threshold=score_threshold, iou_threshold=iou_threshold
        )

    def add_files(self, files: Mapping[str, BundleFile]) -> Bundle:
        """Put more files into the bundle, e.g. engines built on the device; an old one of the same name goes.

        Args:
            files: By their name in the bundle, a relative path with ``/``.

        Returns:
            The bundle as it is now; ``self`` does not change.

        Raises:
            BundleError: A name leaves the bundle, or the disk refuses.
        """
        where = self.path / MANIFEST_NAME
        waiting = f"{self.path} is being changed by another process; waiting"
        with locked(self.path, waiting=waiting), store_errors_as(BundleError):
            manifest = read_manifest(where)  # another process may have added some
            placed = {name: place_file(self.path, name, file) for name, file in files.items()}
            manifest = manifest.model_copy(update={"files": {**manifest.files, **placed}})
            write_atomically(where, manifest.to_json())
        return Bundle(self.path, manifest)

    def close(self) -> None:
        """Close the runner of `detect`; the bundle stays usable."""
        with self._runner_lock:
            if self._runner is not None:
                self._runner.close()
            self._runner = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _own_runner(self) -> Runner:
        with self._runner_lock:
            if self._runner is None:
                self._runner = self.runner()
            return self._runner

    def _find(self, role: str, precision: str, target: str | None, default: str | None = None) -> Path:
        there = [(name, entry) for name, entry in self.manifest.files.items() if entry.role == role]
        of_precision = {name: entry.target for name, entry in there if entry.precision == precision}
        fitting = _fitting(of_precision, target, default)
        if len(fitting) == 1:
            return self.path / fitting[0]
        asked = f"{role} of precision {precision}" + ("" if target is None else f" for {target}")
        listed = ", ".join(f"{name} ({entry.precision}, {entry.target})" for name, entry in there) or "none"
        count = "several" if fitting else "no"
        raise BundleError(f"has {count} {asked}; it has: {listed}", where=self.path)


def _fitting(targets: Mapping[str, str | None], target: str | None, default: str | None) -> list[str]:
    """Files, given with what each was made for, that serve a target."""
    if target is None and len(targets) == 1:
        return list(targets)
    wanted = target or default
    exact = [name for name, made_for in targets.items() if made_for == wanted]
    for_any = [name for name, made_for in targets.items() if made_for is None]
    return exact or for_any or ([] if target else list(targets))


def write_bundle(
    folder: str | Path,
    files: Mapping[str, BundleFile],
    *,
    class_names: Iterable[str],
    input: Mapping[str, Any],
    thresholds: Mapping[str, float] | None = None,
    nms: Mapping[str, int] | None = None,
    operating_points: Mapping[str, Mapping[str, Any]] | None = None,
    pruning: Mapping[str, Any] | None = None,
    metrics: Mapping[str, Any] | None = None,
    provenance: Mapping[str, Any] | None = None,
    created: str | None = None,
    overwrite: bool = False,
) -> Bundle:
    """Write a bundle: a reader sees the whole of it or nothing.

    Args:
        folder: What to write; must not exist, or be empty, unless ``overwrite``.
        files: By their name in the bundle, a relative path with ``/``.
        class_names: In the order of the scores.
        input: ``height``, ``width``, ``letterbox_colour``, ``greyscale``, ``channels``, ``letterbox``; see
            `manifest.InputSpec`.
        thresholds: ``score`` and ``iou``.
        nms: ``max_candidates``; see `manifest.Suppression`.
        operating_points: By precision; see `manifest.OperatingPoint`.
        pruning: See `manifest.PruningRecord`; None for a network that was not pruned.
        metrics: Any JSON object.
        provenance: ``commit``, ``configuration``, ``seeds``, ``versions``.
        created: ISO 8601; None is now.
        overwrite: Replace an existing bundle.

    Raises:
        BundleError: The folder is not empty, a field is wrong (named), or the disk refuses; nothing is left behind.
    """
    folder = Path(folder)
    content = {
        "schema_version": SCHEMA_VERSION,
        "created": created or datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "class_names": list(class_names),
        "input": dict(input),
        "thresholds": dict(thresholds or {}),
        "nms": dict(nms or {}),
        "operating_points": {precision: dict(point) for precision, point in (operating_points or {}).items()},
        "pruning": None if pruning is None else dict(pruning),
        "metrics": dict(metrics or {}),
        "provenance": dict(provenance or {}),
    }

    def fill(temporary: Path) -> Manifest:
        entries = {name: place_file(temporary, name, file) for name, file in files.items()}
        manifest = parse_manifest({**content, "files": entries}, folder / MANIFEST_NAME)
        write_atomically(temporary / MANIFEST_NAME, manifest.to_json())
        return manifest

    with store_errors_as(BundleError):
        return Bundle(folder, write_whole_folder(folder, fill, overwrite=overwrite))


def load_bundle(path: str | Path, verify: bool = True) -> Bundle:
    """Open a bundle.

    Args:
        path: The folder, or its ``bundle.json``.
        verify: Compare size and SHA-256 of every listed file. Other files in the folder are ignored, except one that
            a listed model takes its weights from.

    Raises:
        BundleError: Something is missing, changed, or leads out of the folder.
    """
    folder = Path(path)
    if folder.name == MANIFEST_NAME:
        folder = folder.parent
    if not folder.is_dir():
        raise BundleError("there is no such bundle", where=folder, fix="give the folder that a build wrote")
    manifest = read_manifest(folder / MANIFEST_NAME)
    root = folder.resolve()
    for name, entry in manifest.files.items():
        file = folder / name
        if not file.resolve().is_relative_to(root):
            raise BundleError(f"{name} is a link that leads out of the bundle", where=folder)
        if not file.is_file():
            raise BundleError(f"{name} is missing", where=folder, fix="copy the bundle again")
        if verify:
            verify_file(folder, name, entry)
    if verify:
        refuse_reached(folder, manifest)
    return Bundle(folder, manifest)
