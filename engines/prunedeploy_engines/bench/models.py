"""The models that `prunedeploy bench` is given, and the file of each that a row runs."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunedeploy_engines.bundle.source import ModelSource, find_model
from prunedeploy_engines.errors import ConfigError, EngineError, RuntimeUnavailableError

if TYPE_CHECKING:
    from prunedeploy_engines.bundle import Bundle

_TITLES = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO", "tensorrt": "TensorRT"}


@dataclass(frozen=True)
class ModelFile:
    """One file (or PyTorch network) that can be measured.

    Attributes:
        precision: What it says it is; None if that is not known.
        spec: Keys of its specification, see `bench.spec`.
        file: Its path, None for a network.
        name: In its bundle.
    """

    precision: str | None
    spec: dict[str, Any]
    file: Path | None = None
    name: str | None = None


class Subject:
    """A model that was named, and its bundle, opened and verified once.

    Attributes:
        source: What was named.
        name: In tables.
        bundle: None if it has none.
    """

    def __init__(self, source: ModelSource, name: str) -> None:
        self.source = source
        self.name = name
        self.bundle: Bundle | None = None if source.bundle is None else source.load_bundle()

    @property
    def is_engine(self) -> bool:
        """It is a TensorRT plan."""
        return self.source.given.suffix == ".plan"

    @property
    def zero_share(self) -> float:
        """Zeros among the weights of its convolutions, as its build counted them; 0.0 where nobody did."""
        metrics = {} if self.bundle is None else self.bundle.manifest.metrics
        zeros, weights = metrics.get("zero_weights"), metrics.get("weights")
        return zeros / weights if isinstance(zeros, int) and isinstance(weights, int) and weights else 0.0

    @property
    def filters(self) -> tuple[int, int] | None:
        """How many filters there were and are, as its build counted them; None where nobody did."""
        manifest = None if self.bundle is None else self.bundle.manifest
        if manifest is None or manifest.pruning is None:
            return None
        before, after = (manifest.pruning.model_extra or {}).get("filters_before"), manifest.metrics.get("filters")
        return (before, after) if isinstance(before, int) and isinstance(after, int) else None


def find_subjects(paths: Sequence[Path]) -> list[Subject]:
    """The models to measure: what `find_model` knows, and TensorRT engines.

    They are named by short names, or by whole paths where those are the same.

    Raises:
        ConfigError: There is nothing, or something else.
        BundleError: A bundle is incomplete or altered.
    """
    sources = [
        ModelSource(path, "onnx") if path.suffix == ".plan" and path.is_file() else find_model(path)
        for path in dict.fromkeys(paths)
    ]
    short = [source.name for source in sources]
    return [
        Subject(source, name if short.count(name) == 1 else str(source.given))
        for source, name in zip(sources, short, strict=True)
    ]


def find_file(subject: Subject, runtime: str, provider: str | None, precision: str | None) -> ModelFile:
    """Find what a row runs.

    Args:
        subject: The model.
        runtime: One of `RUNTIMES`.
        provider: ONNX Runtime's provider.
        precision: None is that of the file that was named.

    Raises:
        PrunedeployError: The model has no such file, or the runtime is not there.
    """
    if runtime == "torch":
        return _network(subject, precision)
    from prunedeploy_engines.runtimes.opening import model_target, unavailable_reason

    if (reason := unavailable_reason(runtime)) is not None:
        raise RuntimeUnavailableError(f"{_TITLES[runtime]} cannot run here: {reason}")
    given = subject.source.given
    if subject.is_engine:
        from prunedeploy_engines.runtimes.tensorrt.engine_file import read_engine_file

        return ModelFile(read_engine_file(given, verify=False).precision, {"path": given}, given)
    if runtime == "tensorrt":
        return _engine(subject, precision)
    if subject.source.onnx is not None:
        return _onnx_file(subject, subject.source.onnx)
    if subject.bundle is None:
        fix = "give the bundle or the ONNX file that a build made of it, or measure it with --runtime torch"
        raise ConfigError(f"is a Darknet network, which {_TITLES[runtime]} does not run", given, fix)
    assert precision is not None
    target = model_target(runtime, (provider or "cpu",))
    return _of_bundle(subject.bundle, subject.bundle.model_path(precision, target), precision)


def _network(subject: Subject, precision: str | None) -> ModelFile:
    source = subject.source
    if source.cfg is None or source.weights is None:
        fix = "give a build's output folder, or leave torch out of --runtime"
        raise ConfigError("has no PyTorch network to measure", source.given, fix)
    if precision not in (None, "fp32"):
        raise ConfigError(f"PyTorch runs the fp32 network only, not {precision}", source.given)
    if importlib.util.find_spec("torch") is None:
        raise RuntimeUnavailableError("torch is not installed", fix="pip install 'prunedeploy[train]'")
    arguments = {"cfg": str(source.cfg.absolute()), "weights": str(source.weights.absolute())}
    spec = {"factory": "prunedeploy.evaluation.torch_runner:open_torch_runner", "arguments": arguments}
    return ModelFile("fp32", {**spec, "bundle": source.bundle}, source.weights)


def _engine(subject: Subject, precision: str | None) -> ModelFile:
    from prunedeploy_engines.runtimes.tensorrt.library import cuda_device

    if subject.bundle is None or precision is None:
        fix = "build one with `prunedeploy engine` and give its .plan file"
        raise ConfigError("is not a bundle, so no TensorRT engine belongs to it", subject.source.given, fix)
    device = cuda_device()
    path = subject.bundle.engine_path(precision, None if device is None else device.target)
    return _of_bundle(subject.bundle, path, precision)


def _onnx_file(subject: Subject, path: Path) -> ModelFile:
    from prunedeploy_engines.runtimes.onnx_file import read_onnx_header

    try:
        precision = read_onnx_header(path).precision
    except EngineError:
        precision = "fp32"  # the runtime will say what is wrong with the file
    listed = {} if subject.bundle is None else subject.bundle.manifest.files
    if subject.bundle is not None and path.name in listed:
        return _of_bundle(subject.bundle, path, precision)
    return ModelFile(precision, {"path": path}, path)


def _of_bundle(bundle: Bundle, path: Path, precision: str) -> ModelFile:
    name = path.absolute().relative_to(bundle.path.absolute()).as_posix()
    return ModelFile(precision, {"path": path, "bundle": bundle.path}, path, name)
