"""ONNX to a TensorRT plan, with a sidecar that says what the plan is.

Precision is a property of the ONNX file: networks are strongly typed and no precision flag is ever set. The
plan stays the bare bytes that the library made (a header of ours would stop Triton from loading it); what we
know of it goes into ``<plan>.json`` beside it. Plans are not reproducible, so the cache compares what went
in.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from prunedeploy_engines.errors import EngineError
from prunedeploy_engines.files import file_sha256, write_atomically
from prunedeploy_engines.tensorrt_library import (
    LibraryName,
    Progress,
    TensorRTLibrary,
    cuda_device,
    installed_version,
    load_library,
    progress_monitor,
    rtx_targets,
    summarise,
)

SCHEMA_VERSION = 1
RTX_MAGIC = b"vtrt"
ON_DEVICE = "build the engine on the device itself with `prunedeploy engine`"

Batch = tuple[int, int, int]
Profile = dict[str, list[list[int]]]


@dataclass(frozen=True)
class EngineFile:
    """A plan on disk and where it came from: the content of its sidecar.

    Attributes:
        path: The plan.
        library: ``"tensorrt"`` or ``"tensorrt_rtx"``.
        version: The library's version, all parts.
        target: E.g. ``"sm86"``.
        device: Name of the GPU it was built on; None if built ahead of time.
        precision: ``"fp32"``, ``"fp16"``, ``"bf16"``, ``"int8"`` or ``"fp8"``: what the convolutions compute
            in.
        bytes: Size of the plan.
        sha256: Of the plan.
        key: Of everything that went into it, see `engine_key`.
        onnx_sha256: Of the ONNX file.
        profile: Per input the smallest, best and largest shape that it accepts.
        flags: Builder settings, among them the library's own flags that were on (``builder_flags``, e.g.
            TF32).
        created: UTC, ISO 8601.
        cached: True if it was already there and nothing was built; not stored.
    """

    path: Path
    library: LibraryName
    version: str
    target: str
    device: str | None
    precision: str
    bytes: int
    sha256: str
    key: str
    onnx_sha256: str
    profile: Profile
    flags: dict[str, Any]
    created: str
    cached: bool = False


def engine_from_onnx(
    onnx_path: str | Path,
    out_folder: str | Path,
    *,
    target: str,
    library: LibraryName | None = None,
    batch: Batch = (1, 1, 8),
    workspace_bytes: int | None = None,
    optimization_level: int | None = None,
    progress: Progress | None = None,
) -> EngineFile:
    """Build ``<out_folder>/<model stem>.<target>.<library>.plan``, or return the one that is there.

    Args:
        onnx_path: A self-contained ONNX file (no external data).
        out_folder: Made if absent; in a bundle ``engines/<target>``.
        target: ``"sm75"``, ``"sm80"``, ``"sm86"``, ``"sm89"``, ``"sm120"`` ahead of time with TensorRT-RTX;
            the device's own compute capability, or ``"device"`` for whatever that is, with full TensorRT.
        library: None takes full TensorRT where it is installed and the target is this machine's GPU, else
            RTX.
        batch: Smallest, best and largest batch, for inputs whose first axis is dynamic.
        workspace_bytes: Scratch memory that a layer may use; None leaves it to the library.
        optimization_level: 0 to 5, how long the builder searches; None leaves it to the library.
        progress: Called with (phase, steps done, steps in all) while building.

    Returns:
        The engine; ``cached`` says whether it had been built before.

    Raises:
        EngineError: The file is not a usable network, an operator is missing, the profile or target does not
            fit, or the build failed; the message holds what the library logged.
        RuntimeUnavailableError: No library that could build this.
    """
    onnx_path, out_folder = Path(onnx_path), Path(out_folder)
    if optimization_level is not None and not 0 <= optimization_level <= 5:
        raise EngineError(f"optimization level {optimization_level} is outside 0 to 5", where=onnx_path)
    if len(batch) != 3 or min(batch) < 1:
        raise EngineError(f"batch sizes {tuple(batch)} must be three, each at least 1", where=onnx_path)
    try:
        data = onnx_path.read_bytes()
    except OSError as error:
        raise EngineError(f"cannot be read ({error.strerror})", where=onnx_path) from error
    if target == "device":
        target = _device_target()
    chosen = load_library(library or _choose_library(target))
    device = _check_target(chosen, target)
    settings = {"workspace_bytes": workspace_bytes, "optimization_level": optimization_level}
    onnx_sha256 = hashlib.sha256(data).hexdigest()
    key = engine_key(onnx_sha256, chosen, target, device, settings, batch)
    plan_path = out_folder / f"{onnx_path.stem}.{target}.{chosen.name}.plan"
    _make_folder(out_folder)
    with _folder_lock(out_folder):
        cached = _cached(plan_path, key)
        if cached is not None:
            return cached
        with chosen.logger.collect() as messages:
            build = _Build(chosen, onnx_path, messages)
            build.parse(data)
            profile = build.configure(target, batch, workspace_bytes, optimization_level)
            plan = build.run(progress)
        engine = EngineFile(
            path=plan_path,
            library=chosen.name,
            version=chosen.version,
            target=target,
            device=device,
            precision=build.precision(),
            bytes=len(plan),
            sha256=hashlib.sha256(plan).hexdigest(),
            key=key,
            onnx_sha256=onnx_sha256,
            profile=profile,
            flags={**settings, "builder_flags": build.builder_flags()},
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        )
        # Plan first: killed in between, the old sidecar does not match the new plan and the next call builds
        # again.
        write_atomically(plan_path, plan)
        write_atomically(sidecar_path(plan_path), _sidecar_text(engine).encode())
    return engine


def engine_key(
    onnx_sha256: str,
    library: TensorRTLibrary,
    target: str,
    device: str | None,
    settings: dict[str, Any],
    batch: Batch,
) -> str:
    """Sha256 of everything that decides what a plan computes and where it runs."""
    parts = [
        SCHEMA_VERSION,
        onnx_sha256,
        library.name,
        library.version,
        target,
        device,
        settings,
        list(batch),
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def sidecar_path(plan_path: Path) -> Path:
    """``<plan>.json``."""
    return plan_path.with_name(plan_path.name + ".json")


def read_engine_file(plan_path: str | Path, *, verify: bool = True) -> EngineFile:
    """Read a plan's sidecar.

    Args:
        plan_path: The plan.
        verify: Also compare the plan's size and sha256 with it.

    Raises:
        EngineError: Plan or sidecar is missing or unreadable, or the plan is not the one that was built.
    """
    plan_path = Path(plan_path)
    sidecar, rebuild = sidecar_path(plan_path), "build it again with `prunedeploy engine`"
    if not plan_path.is_file():
        raise EngineError(
            "there is no such engine", where=plan_path, fix="build it with `prunedeploy engine`"
        )
    try:
        content = json.loads(sidecar.read_text(encoding="utf-8"))
        if content["schema_version"] != SCHEMA_VERSION:
            raise EngineError(f"sidecar has schema {content['schema_version']}", where=sidecar, fix=rebuild)
        fields = {
            name: content[name] for name in EngineFile.__annotations__ if name not in ("path", "cached")
        }
        if not isinstance(fields["profile"], dict) or not isinstance(fields["bytes"], int):
            raise TypeError("profile or bytes is of another type")
        engine = EngineFile(path=plan_path, **fields)
    except FileNotFoundError as error:
        raise EngineError("has no sidecar that says what it is", where=plan_path, fix=rebuild) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EngineError(f"sidecar cannot be read ({error!r})", where=sidecar, fix=rebuild) from error
    if verify:
        size = plan_path.stat().st_size
        if size != engine.bytes:
            raise EngineError(
                f"has {size} bytes, was built with {engine.bytes}", where=plan_path, fix=rebuild
            )
        if file_sha256(plan_path) != engine.sha256:
            raise EngineError("was changed after it was built (sha256 differs)", where=plan_path, fix=rebuild)
    return engine


def _device_target() -> str:
    device = cuda_device()
    if device is None:
        raise EngineError("target 'device' needs a GPU and there is none", fix="name one, e.g. sm86")
    return device.target


def _choose_library(target: str) -> LibraryName:
    device = cuda_device()
    if device is not None and device.target == target and installed_version("tensorrt") is not None:
        return "tensorrt"
    return "tensorrt_rtx"


def _check_target(library: TensorRTLibrary, target: str) -> str | None:
    """Name of the device that the build is bound to; None ahead of time."""
    if library.name == "tensorrt_rtx":
        targets = rtx_targets()
        if target not in targets:
            raise EngineError(
                f"tensorrt_rtx {library.version} cannot build for {target!r}, only for {', '.join(targets)}",
                fix=ON_DEVICE,
            )
        return None
    device = cuda_device()
    if device is None or device.target != target:
        here = "no GPU" if device is None else f"{device.name} ({device.target})"
        raise EngineError(
            f"tensorrt builds for the GPU it runs on, here {here}, not for {target!r}", fix=ON_DEVICE
        )
    return device.name


def _cached(plan_path: Path, key: str) -> EngineFile | None:
    try:
        engine = read_engine_file(plan_path)
    except EngineError:
        return None
    return replace(engine, cached=True) if engine.key == key else None


class _Build:
    """The library's objects of one build, which must live together, and the errors they log."""

    def __init__(self, library: TensorRTLibrary, onnx_path: Path, messages: list[str]) -> None:
        self._trt, self._library, self._where, self._messages = library.trt, library, onnx_path, messages
        self._builder = self._trt.Builder(library.logger)
        # TensorRT 10 ignores EXPLICIT_BATCH, 11 no longer has it. STRONGLY_TYPED makes 10 behave like 11.
        known = self._trt.NetworkDefinitionCreationFlag.__members__
        flags = sum(1 << int(known[name]) for name in ("EXPLICIT_BATCH", "STRONGLY_TYPED") if name in known)
        self._network = self._builder.create_network(flags)
        self._config = self._builder.create_builder_config()

    def parse(self, data: bytes) -> None:
        """Fill the network; garbage may parse to an empty one without an error, so that is one too."""
        parser = self._trt.OnnxParser(self._network, self._library.logger)
        if not parser.parse(data) or parser.num_errors:
            errors = [parser.get_error(i) for i in range(parser.num_errors)]
            what = " | ".join(self._parser_error(error) for error in errors) or summarise(self._messages)
            unopened = [message for message in self._messages if "Failed to open file" in message]
            if unopened:
                raise self._error(
                    f"its weights are in another file: {unopened[0]}", "save it with its weights inside"
                )
            raise self._error(f"{self._named} cannot parse it: {what}")
        if self._network.num_layers == 0 or self._network.num_outputs == 0:
            counts = f"{self._network.num_layers} layers, {self._network.num_outputs} outputs"
            raise self._error(f"is not an ONNX network ({counts})", "export it again")

    def configure(
        self, target: str, batch: Batch, workspace_bytes: int | None, optimization_level: int | None
    ) -> Profile:
        """Set target, limits and the one optimisation profile; returns the profile."""
        if self._library.name == "tensorrt_rtx":
            self._config.num_compute_capabilities = 1
            capability = self._trt.ComputeCapability.__members__[target.upper()]
            if not self._config.set_compute_capability(capability, 0):
                raise self._error(f"{self._named} refuses target {target}: {summarise(self._messages)}")
        if workspace_bytes is not None:
            self._config.set_memory_pool_limit(self._trt.MemoryPoolType.WORKSPACE, workspace_bytes)
        if optimization_level is not None:
            self._config.builder_optimization_level = optimization_level
        inputs = [self._network.get_input(i) for i in range(self._network.num_inputs)]
        shapes = {
            tensor.name: self._profile_shapes(tensor.name, tuple(tensor.shape), batch) for tensor in inputs
        }
        if any(-1 in tuple(tensor.shape) for tensor in inputs):
            profile = self._builder.create_optimization_profile()
            for tensor in inputs:
                profile.set_shape(tensor.name, *(tuple(shape) for shape in shapes[tensor.name]))
            if self._config.add_optimization_profile(profile) < 0:
                raise self._error(f"batch sizes {tuple(batch)} are refused: {summarise(self._messages)}")
        return shapes

    def run(self, progress: Progress | None) -> bytes:
        """Build; the plan."""
        monitor = progress_monitor(self._trt, progress) if progress is not None else None
        if monitor is not None:
            self._config.progress_monitor = monitor
        plan = self._builder.build_serialized_network(self._network, self._config)
        if monitor is not None and monitor.failure is not None:
            raise monitor.failure
        if plan is None:
            raise self._error(f"{self._named} cannot build it: {summarise(self._messages)}")
        data = bytes(plan)
        if self._library.name == "tensorrt_rtx" and not data.startswith(RTX_MAGIC):
            raise self._error(f"{self._named} gave a plan that starts with {data[:4]!r}, not {RTX_MAGIC!r}")
        return data

    def precision(self) -> str:
        """What the network's convolutions compute in, from its quantisation layers or their input type."""
        trt, kinds = self._trt, set()
        multiplying = (trt.LayerType.CONVOLUTION, trt.LayerType.DECONVOLUTION, trt.LayerType.MATRIX_MULTIPLY)
        for layer in (self._network.get_layer(i) for i in range(self._network.num_layers)):
            if layer.type in (trt.LayerType.QUANTIZE, trt.LayerType.DEQUANTIZE):
                tensor = layer.get_output(0) if layer.type == trt.LayerType.QUANTIZE else layer.get_input(0)
                kinds.add(tensor.dtype)
            elif layer.type in multiplying:
                kinds.add(layer.get_input(0).dtype)
        for name, dtype in (("fp8", "FP8"), ("int8", "INT8"), ("bf16", "BF16"), ("fp16", "HALF")):
            if trt.DataType.__members__.get(dtype) in kinds:
                return name
        return "fp32"

    def builder_flags(self) -> list[str]:
        """Names of the library's builder flags that are on; its defaults, since we set none."""
        members = self._trt.BuilderFlag.__members__
        return sorted(name for name, flag in members.items() if self._config.get_flag(flag))

    @property
    def _named(self) -> str:
        return f"{self._library.name} {self._library.version}"

    def _parser_error(self, error: Any) -> str:
        if error.node() < 0:
            return str(error.desc())
        node = f"node {error.node()}" + (f" {error.node_name()!r}" if error.node_name() else "")
        if "Plugin not found" in error.desc():
            return f"operator {error.node_operator()} ({node}) is not supported"
        return f"operator {error.node_operator()} ({node}): {error.desc()}"

    def _profile_shapes(self, name: str, shape: tuple[int, ...], batch: Batch) -> list[list[int]]:
        if -1 in shape[1:]:
            raise self._error(
                f"input {name} {shape} has a dynamic axis other than the batch", "export a fixed size"
            )
        if not shape or shape[0] != -1:
            if shape and not batch[0] <= shape[0] <= batch[2]:
                raise self._error(
                    f"input {name} has fixed batch {shape[0]}, outside {batch[0]} to {batch[2]}"
                )
            return [list(shape)] * 3
        return [[size, *shape[1:]] for size in batch]

    def _error(self, what: str, fix: str | None = None) -> EngineError:
        return EngineError(what, where=self._where, fix=fix)


def _sidecar_text(engine: EngineFile) -> str:
    content = {name: value for name, value in asdict(engine).items() if name not in ("path", "cached")}
    return (
        json.dumps({"schema_version": SCHEMA_VERSION, "plan": engine.path.name, **content}, indent=2) + "\n"
    )


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EngineError(f"the folder cannot be made ({error.strerror})", where=folder) from error


@contextlib.contextmanager
def _folder_lock(folder: Path) -> Iterator[None]:
    """Two builds into one folder follow each other, so that plan and sidecar always belong together."""
    try:
        import fcntl
    except ImportError:  # Windows: a race costs a rebuild, never a wrong engine
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
