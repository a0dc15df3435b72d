"""ONNX to a TensorRT plan, with a sidecar that says what the plan is.

Precision is a property of the ONNX file: networks are strongly typed and no precision flag is ever set. What
was ordered is compared with the layers that came out. Plans are not reproducible, so the cache compares what
went in.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from prunedeploy_engines.builder.build import SIGNED_FILE, UNSIGNED, BuildSettings, EngineBuild
from prunedeploy_engines.builder.precision import (
    PRECISIONS,
    built_problem,
    counted,
    layers_of_network,
    network_precision,
    precision_problem,
    types_of_network,
)
from prunedeploy_engines.builder.timing_cache import TimingCache
from prunedeploy_engines.errors import EngineError
from prunedeploy_engines.locks import locked
from prunedeploy_engines.runtimes.onnx_file import OnnxHeader, read_onnx_header
from prunedeploy_engines.runtimes.tensorrt.engine_file import (
    SCHEMA_VERSION,
    Batch,
    EngineFile,
    read_engine_file,
    sidecar_path,
    write_engine_file,
)
from prunedeploy_engines.runtimes.tensorrt.library import (
    LibraryName,
    TensorRTLibrary,
    cuda_device,
    installed_version,
    load_library,
    rtx_targets,
)
from prunedeploy_engines.runtimes.tensorrt.log import Progress

__all__ = ["EngineFile", "engine_from_onnx", "engine_key", "read_engine_file", "sidecar_path"]

OLDEST_OPSET = 13
"""Before it, per-channel quantisation does not exist and Squeeze, Split and ReduceSum read otherwise; the parsers
promise less for it than for what we export."""
ON_DEVICE = "build the engine on the device itself with `prunedeploy engine`"


def engine_from_onnx(
    onnx_path: str | Path,
    out_folder: str | Path,
    *,
    target: str,
    library: LibraryName | None = None,
    precision: str | None = None,
    batch: Batch = (1, 1, 8),
    workspace_bytes: int | None = None,
    optimization_level: int | None = None,
    sparse: bool = False,
    tf32: bool = False,
    timing_cache: str | Path | None = None,
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
        precision: What the engine must be, one of `builder.precision.PRECISIONS`. None takes what the file says
            it is; of a file that says nothing, whatever its layers are.
        batch: Smallest, best and largest batch, for inputs whose first axis is dynamic.
        workspace_bytes: Scratch memory that a layer may use; None leaves it to the library.
        optimization_level: 0 to 5, how long the builder searches; None leaves it to the library.
        sparse: Ask for 2:4 sparse kernels. The library never says whether it used one.
        tf32: Let float32 convolutions round their factors to 10 bits. Both libraries would by themselves;
            here fp32 is fp32 unless this is asked for.
        timing_cache: File to take measured times from and to add to; full TensorRT only.
        progress: Called with (phase, steps done, steps in all) while building.

    Returns:
        The engine; ``cached`` says whether it had been built before.

    Raises:
        EngineError: The file is not a usable network, an operator is missing, the profile or target does not
            fit, the build failed, or what was built is not what was ordered; the message holds what the library logged.
        RuntimeUnavailableError: No library that could build this.
    """
    onnx_path, out_folder = Path(onnx_path), Path(out_folder)
    settings = BuildSettings(workspace_bytes, optimization_level, sparse, tf32)
    _check_options(onnx_path, settings, batch, precision)
    try:
        data = onnx_path.read_bytes()
    except OSError as error:
        raise EngineError(f"cannot be read ({error.strerror})", where=onnx_path) from error
    header = _checked_header(onnx_path)
    if target == "device":
        target = _device_target()
    chosen = load_library(library or _choose_library(target))
    device = _check_target(chosen, target)
    cache = None if timing_cache is None else _timing_cache(timing_cache, chosen, device)
    ordered = precision or header.metadata.get("precision")
    onnx_sha256 = hashlib.sha256(data).hexdigest()
    key = engine_key(onnx_sha256, chosen, target, device, {**asdict(settings), "precision": ordered}, batch)
    plan_path = out_folder / f"{onnx_path.stem}.{target}.{chosen.name}.plan"
    try:
        out_folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EngineError(f"the folder cannot be made ({error.strerror})", where=out_folder) from error
    # Two builds into one folder follow each other, so that plan and sidecar always belong together.
    with locked(out_folder):
        cached = _cached(plan_path, key)
        if cached is not None:
            return cached
        with chosen.logger.collect() as messages:
            build = EngineBuild(chosen, onnx_path, messages)
            build.parse(data)
            layers, found = _checked_network(build, chosen, header, ordered)
            profile = build.configure(target, batch, settings)
            plan = build.run(progress, cache)
            built = _checked_engine(build, chosen, plan, found)
        engine = EngineFile(
            path=plan_path,
            library=chosen.name,
            version=chosen.version,
            target=target,
            device=device,
            precision=found,
            layers=counted(built or layers),
            layers_from="engine" if built else "network",
            uint8_input=build.takes_uint8(),
            nms=None if header.nms is None else asdict(header.nms),
            class_names=list(header.class_names),
            sparsity="2:4 asked for" if sparse else None,
            bytes=len(plan),
            sha256=hashlib.sha256(plan).hexdigest(),
            key=key,
            onnx_sha256=onnx_sha256,
            profile=profile,
            flags={**asdict(settings), "builder_flags": build.builder_flags()},
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        )
        write_engine_file(engine, plan)
    return engine


def engine_key(
    onnx_sha256: str, library: TensorRTLibrary, target: str, device: str | None, settings: dict[str, Any], batch: Batch
) -> str:
    """Sha256 of everything that decides what a plan computes and where it runs."""
    parts = [SCHEMA_VERSION, onnx_sha256, library.name, library.version, target, device, settings, list(batch)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _check_options(onnx_path: Path, settings: BuildSettings, batch: Batch, precision: str | None) -> None:
    level = settings.optimization_level
    if level is not None and not 0 <= level <= 5:
        raise EngineError(f"optimization level {level} is outside 0 to 5", where=onnx_path)
    if settings.workspace_bytes is not None and settings.workspace_bytes < 1:
        raise EngineError(f"workspace of {settings.workspace_bytes} bytes is not possible", where=onnx_path)
    if len(batch) != 3 or min(batch) < 1:
        raise EngineError(f"batch sizes {tuple(batch)} must be three, each at least 1", where=onnx_path)
    if precision is not None and precision not in PRECISIONS:
        raise EngineError(f"precision {precision!r} is none of {', '.join(PRECISIONS)}", where=onnx_path)


def _checked_header(onnx_path: Path) -> OnnxHeader:
    header = read_onnx_header(onnx_path)
    if header.opset is not None and header.opset < OLDEST_OPSET:
        problem = f"opset {header.opset} is too old: {OLDEST_OPSET} or later is needed"
        raise EngineError(problem, where=onnx_path, fix="export it again")
    if (header.quantisation or {}).get("activations") == "uint8":
        raise EngineError(UNSIGNED, where=onnx_path, fix=SIGNED_FILE)
    return header


def _checked_network(
    build: EngineBuild, library: TensorRTLibrary, header: OnnxHeader, ordered: str | None
) -> tuple[dict[str, str], str]:
    """Precision of the parsed network's convolutions, and the one word for it, compared with the order."""
    layers = layers_of_network(library.trt, build.network)
    types = types_of_network(build.network)
    if ordered is None:
        return layers, network_precision(layers, types)
    skipped = (header.quantisation or {}).get("skipped")
    problem = precision_problem(ordered, layers, types, None if skipped is None else [str(name) for name in skipped])
    if problem is not None:
        raise build.error(f"{ordered} was ordered, but {problem}", f"give an ONNX file that is {ordered}")
    return layers, ordered


def _checked_engine(build: EngineBuild, library: TensorRTLibrary, plan: bytes, precision: str) -> dict[str, str] | None:
    """The same of the built engine, where it can be asked: with full TensorRT, which builds on the GPU."""
    if library.name != "tensorrt":
        return None
    layers = build.built_layers(plan)
    problem = built_problem(precision, layers)
    if problem is not None:
        raise build.error(f"{precision} was ordered, but in the engine that {library.name} made {problem}")
    return layers


def _timing_cache(path: str | Path, library: TensorRTLibrary, device: str | None) -> TimingCache:
    if library.name != "tensorrt" or device is None:
        raise EngineError(
            f"{library.name} measures nothing while it builds and has no timing cache",
            where=path,
            fix="leave it out, or build with full TensorRT",
        )
    return TimingCache(path, library, device)


def _device_target() -> str:
    device = cuda_device()
    if device is None:
        raise EngineError("target 'device' needs a GPU, but there is none", fix="name one, e.g. sm86")
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
        raise EngineError(f"tensorrt builds for the GPU it runs on, here {here}, not for {target!r}", fix=ON_DEVICE)
    return device.name


def _cached(plan_path: Path, key: str) -> EngineFile | None:
    try:
        engine = read_engine_file(plan_path)
    except EngineError:
        return None
    return replace(engine, cached=True) if engine.key == key else None
