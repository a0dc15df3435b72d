"""The library's objects of one engine build, and the errors they log, as one line each."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunedeploy_engines.builder.timing_cache import TimingCache
from prunedeploy_engines.errors import EngineError
from prunedeploy_engines.runtimes.tensorrt.engine_file import Batch, Profile
from prunedeploy_engines.runtimes.tensorrt.inspection import layers_of_engine
from prunedeploy_engines.runtimes.tensorrt.library import TensorRTLibrary
from prunedeploy_engines.runtimes.tensorrt.log import LogMessages, Progress, progress_monitor, summarise

RTX_MAGIC = b"vtrt"
SIGNED_FILE = "use the file with signed activations, model.int8.gpu.onnx"
UNSIGNED = "is quantised with unsigned activations, which are for CPUs; TensorRT takes signed ones, zero point 0"


@dataclass(frozen=True)
class BuildSettings:
    """What a builder can be told.

    Attributes:
        workspace_bytes: Scratch memory that a layer may use; None leaves it to the library.
        optimization_level: 0 to 5, how long the builder searches; None leaves it to the library.
        sparse: Let it use 2:4 sparse kernels where the weights have the pattern.
        tf32: Let float32 multiplications round their factors to 10 bits.
    """

    workspace_bytes: int | None = None
    optimization_level: int | None = None
    sparse: bool = False
    tf32: bool = False


class EngineBuild:
    """Builder, network and configuration, which must live together.

    Args:
        library: The library that builds.
        onnx_path: The file, for errors.
        messages: Where the library's errors arrive.
    """

    def __init__(self, library: TensorRTLibrary, onnx_path: Path, messages: LogMessages) -> None:
        self._trt, self._library, self._where, self._messages = library.trt, library, onnx_path, messages
        self._builder = self._trt.Builder(library.logger)
        # TensorRT 10 ignores EXPLICIT_BATCH, 11 no longer has it. STRONGLY_TYPED makes 10 behave like 11.
        known = self._trt.NetworkDefinitionCreationFlag.__members__
        flags = sum(1 << int(known[name]) for name in ("EXPLICIT_BATCH", "STRONGLY_TYPED") if name in known)
        self.network = self._builder.create_network(flags)
        self._config = self._builder.create_builder_config()

    def parse(self, data: bytes) -> None:
        """Fill the network; garbage may parse to an empty one without an error, so that is one too."""
        parser = self._trt.OnnxParser(self.network, self._library.logger)
        if not parser.parse(data) or parser.num_errors:
            errors = [parser.get_error(i) for i in range(parser.num_errors)]
            what = " | ".join(_parser_error(error) for error in errors) or summarise(self._messages)
            unopened = [message for message in self._messages if "Failed to open file" in message]
            if unopened:
                raise self.error(f"its weights are in another file: {unopened[0]}", "save it with its weights inside")
            if "zero point is not supported" in what:
                raise self.error(UNSIGNED, SIGNED_FILE)
            raise self.error(f"{self._named} cannot parse it: {what}")
        # With a zero point of 0 unsigned activations are taken for signed ones, and all above 127 is cut off.
        if any("UINT8 zero_point" in warning for warning in self._messages.warnings):
            raise self.error(UNSIGNED, SIGNED_FILE)
        if self.network.num_layers == 0 or self.network.num_outputs == 0:
            counts = f"{self.network.num_layers} layers, {self.network.num_outputs} outputs"
            raise self.error(f"is not an ONNX network ({counts})", "export it again")

    def configure(self, target: str, batch: Batch, settings: BuildSettings) -> Profile:
        """Set target, limits, flags and the one optimisation profile; returns the profile."""
        config, trt = self._config, self._trt
        if self._library.name == "tensorrt_rtx":
            config.num_compute_capabilities = 1
            capability = trt.ComputeCapability.__members__[target.upper()]
            if not config.set_compute_capability(capability, 0):
                raise self.error(f"{self._named} refuses target {target}: {summarise(self._messages)}")
        if settings.workspace_bytes is not None:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, settings.workspace_bytes)
        if settings.optimization_level is not None:
            config.builder_optimization_level = settings.optimization_level
        if settings.sparse:
            config.set_flag(trt.BuilderFlag.SPARSE_WEIGHTS)
        if not settings.tf32:  # on by default in both libraries
            config.clear_flag(trt.BuilderFlag.TF32)
        # Without it the inspector tells names only, and neither precisions nor a layer's kind.
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
        return self._add_profile(batch)

    def run(self, progress: Progress | None, timing_cache: TimingCache | None = None) -> bytes:
        """Build; the plan."""
        monitor = progress_monitor(self._trt, progress) if progress is not None else None
        if monitor is not None:
            self._config.progress_monitor = monitor
        if timing_cache is not None:
            timing_cache.attach(self._config)
        plan = self._builder.build_serialized_network(self.network, self._config)
        if monitor is not None and monitor.failure is not None:
            raise monitor.failure
        if plan is None:
            raise self.error(self._build_error(summarise(self._messages)))
        if timing_cache is not None:
            timing_cache.save(self._config)
        data = bytes(plan)
        if self._library.name == "tensorrt_rtx" and not data.startswith(RTX_MAGIC):
            raise self.error(f"{self._named} gave a plan that starts with {data[:4]!r}, not {RTX_MAGIC!r}")
        return data

    def built_layers(self, plan: bytes) -> dict[str, str]:
        """Precision of every convolution of the built engine, as its inspector tells it.

        Needs a GPU: without one no plan is loaded. TensorRT-RTX chooses its kernels only when the engine
        runs, so its plan knows no more than the network.
        """
        runtime = self._trt.Runtime(self._library.logger)
        engine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise self.error(f"{self._named} cannot load what it built: {summarise(self._messages)}")
        inspector = engine.create_engine_inspector()
        return layers_of_engine(inspector.get_engine_information(self._trt.LayerInformationFormat.JSON))

    def builder_flags(self) -> list[str]:
        """Names of the library's builder flags that are on."""
        members = self._trt.BuilderFlag.__members__
        return sorted(name for name, flag in members.items() if self._config.get_flag(flag))

    def takes_uint8(self) -> bool:
        """Whether an input is uint8."""
        uint8 = self._trt.DataType.UINT8
        return any(tensor.dtype == uint8 for tensor in self._inputs())

    def error(self, what: str, fix: str | None = None) -> EngineError:
        """An error of this file."""
        return EngineError(what, where=self._where, fix=fix)

    @property
    def _named(self) -> str:
        return f"{self._library.name} {self._library.version}"

    def _inputs(self) -> list[Any]:
        return [self.network.get_input(i) for i in range(self.network.num_inputs)]

    def _build_error(self, said: str) -> str:
        without = re.search(r"(\S+) has no runners that implement it", said)
        if without is None:
            return f"{self._named} cannot build it: {said}"
        layers = (self.network.get_layer(i) for i in range(self.network.num_layers))
        kinds = [layer.type.name for layer in layers if layer.name == without[1]]
        kind = f" ({kinds[0]})" if kinds else ""
        return f"operator {without[1]}{kind} is not supported: {self._named} can read but not build it"

    def _add_profile(self, batch: Batch) -> Profile:
        inputs = self._inputs()
        shapes = {tensor.name: self._profile_shapes(tensor.name, tuple(tensor.shape), batch) for tensor in inputs}
        if any(-1 in tuple(tensor.shape) for tensor in inputs):
            profile = self._builder.create_optimization_profile()
            for tensor in inputs:
                profile.set_shape(tensor.name, *(tuple(shape) for shape in shapes[tensor.name]))
            if self._config.add_optimization_profile(profile) < 0:
                raise self.error(f"batch sizes {tuple(batch)} are refused: {summarise(self._messages)}")
        return shapes

    def _profile_shapes(self, name: str, shape: tuple[int, ...], batch: Batch) -> list[list[int]]:
        if -1 in shape[1:]:
            raise self.error(f"input {name} {shape} has a dynamic axis other than the batch", "export a fixed size")
        if not shape or shape[0] != -1:
            if shape and not batch[0] <= shape[0] <= batch[2]:
                raise self.error(f"input {name} has fixed batch {shape[0]}, outside {batch[0]} to {batch[2]}")
            return [list(shape)] * 3
        return [[size, *shape[1:]] for size in batch]


def _parser_error(error: Any) -> str:
    if error.node() < 0:
        return str(error.desc())
    node = f"node {error.node()}" + (f" {error.node_name()!r}" if error.node_name() else "")
    if "Plugin not found" in error.desc():
        return f"operator {error.node_operator()} ({node}) is not supported"
    return f"operator {error.node_operator()} ({node}): {error.desc()}"
