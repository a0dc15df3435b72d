"""Opening an ONNX Runtime session with exactly the providers that were asked for, and its errors in one line."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from prunedeploy_engines.errors import EngineError, RuntimeUnavailableError

CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
SHORT_NAMES = {"cpu": CPU, "cuda": CUDA, "tensorrt": TENSORRT}
GPU_PROVIDERS = (CUDA, TENSORRT)

_SEVERITY_FATAL = 4  # errors come as exceptions; ONNX Runtime would also print them
# Convolutions of a float32 file are computed in TF32 (10 bits of mantissa) by default on newer GPUs; here a
# float32 row is float32.
PROVIDER_OPTIONS: dict[str, dict[str, str]] = {CUDA: {"use_tf32": "0"}}
_MEMORY = re.compile(r"bad_alloc|out of memory|[Ff]ailed to allocate|OUT_OF_MEMORY", re.IGNORECASE)
_DEVICE = re.compile(r"CUDA (failure|error)|CUDNN|CUBLAS|device.{0,20}(lost|removed|reset)", re.IGNORECASE)
# What ONNX Runtime says, what that means ({0} is its name and version), and what to do about it.
_LOAD_PROBLEMS = {
    r"No Op registered for (\S+) with domain_version of (\d+)": (
        "{0} has no operator {1} in opset {2}",
        "export it again without this operator",
    ),
    r"Fatal error: (\S+?):?([^\s:]+)\(-?\d+\) is not a registered function/op": (
        "{0} has no operator {2} of the domain {1}",
        "export it again without this operator",
    ),
    r"Could not find an implementation for (\S+?)\((\d+)\)": (
        "{0} has no kernel for operator {1} as of opset {2} with these types",
        "export it again with a newer opset or without this operator",
    ),
    r"Opset (\d+) is under development": (
        "opset {1} is too new for {0}",
        "export it again with an older opset, or install a newer onnxruntime",
    ),
    r"Unsupported model IR version: (\d+), max supported IR version: (\d+)": (
        "its ONNX format version (IR {1}) is too new for {0}, which reads up to {2}",
        "export it again with an older one, or install a newer onnxruntime",
    ),
    r"[Ee]xternal data path does not exist: \"?([^\"]+)": (
        "the file {1} with its weights is missing",
        "copy it beside the model",
    ),
    r"Protobuf parsing failed|No graph was found": (
        "ONNX Runtime cannot load it: not an ONNX file, or cut short",
        "copy or export it again",
    ),
}


def import_onnxruntime() -> ModuleType:
    """Import ONNX Runtime, silenced.

    Raises:
        RuntimeUnavailableError: It is not installed, or does not load.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise RuntimeUnavailableError(
            f"ONNX Runtime is not installed ({error})",
            fix="pip install 'prunedeploy[cpu]', or 'prunedeploy[gpu]' on a machine with a GPU, not both",
        ) from error
    onnxruntime.set_default_logger_severity(_SEVERITY_FATAL)
    return onnxruntime


def provider_names(providers: Sequence[str]) -> tuple[str, ...]:
    """ONNX Runtime's names of execution providers.

    Args:
        providers: ``"cpu"``, ``"cuda"``, ``"tensorrt"`` or ONNX Runtime's own names.

    Raises:
        ValueError: None is given, or one twice.
    """
    names = tuple(SHORT_NAMES.get(name.lower(), name) for name in providers)
    if not names or len(set(names)) != len(names):
        raise ValueError(f"providers must be at least one, and each once, got {list(providers)}")
    return names


def open_session(
    model: Path | bytes,
    *,
    threads: int | None,
    providers: Sequence[str],
    allow_spinning: bool,
    optimise: bool = True,
    profile_prefix: Path | None = None,
) -> Any:
    """Open an ``onnxruntime.InferenceSession`` of a file or its content; providers are strict.

    Args:
        model: ONNX file, or its content.
        threads: Threads of one operator; None is one per physical core.
        providers: Short or full names, in order of preference. The CPU always stands behind them for operators
            that they have no kernel for.
        allow_spinning: Let waiting threads spin.
        optimise: Optimise the graph as far as ONNX Runtime can.
        profile_prefix: Where to write the profile, with a time and ``.json`` added to the name.

    Raises:
        RuntimeUnavailableError: ONNX Runtime or a provider is not there.
        EngineError: The file is missing or cannot be loaded.
    """
    ort = import_onnxruntime()
    names = provider_names(providers)
    missing = [name for name in names if name not in ort.get_available_providers()]
    if missing:
        raise _unavailable(missing, ort.get_available_providers())
    path = model if isinstance(model, Path) else None
    if path is not None and not path.is_file():
        raise EngineError("there is no such ONNX file", where=path)
    options = ort.SessionOptions()
    levels = ort.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimise else levels.ORT_DISABLE_ALL
    options.log_severity_level = _SEVERITY_FATAL
    if threads is not None:
        options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1  # one operator after the other: a detector is a chain
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(allow_spinning)))
    # Without it int8 sums saturate where AVX2 adds pairs of products in 16 bits; elsewhere it does nothing.
    options.add_session_config_entry("session.x64quantprecision", "1")
    if names[0] != CPU:
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    if profile_prefix is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(profile_prefix)
    try:
        session = ort.InferenceSession(
            model,
            sess_options=options,
            providers=list(names),
            provider_options=[PROVIDER_OPTIONS.get(name, {}) for name in names],
            # Without this a provider that fails, while loading or in a later run, is replaced by the CPU.
            enable_fallback=0,
        )
    except Exception as error:  # ONNX Runtime's exceptions share no base class
        raise load_error(error, path, ort.__version__) from error
    check_providers(names, session.get_providers())
    return session


def check_providers(asked: Sequence[str], got: Sequence[str]) -> None:
    """Compare the providers of a session with those that were asked for.

    ONNX Runtime drops a provider that does not start with no more than a message. It puts the CPU at the end
    if it was not asked for.

    Args:
        asked: Full names, in order.
        got: What ``session.get_providers()`` says.

    Raises:
        RuntimeUnavailableError: They differ.
    """
    expected = [*asked] if CPU in asked else [*asked, CPU]
    if list(got) != expected:
        raise _unavailable([name for name in asked if name not in got] or asked, got)


def load_error(error: Exception, where: Path | None, version: str) -> EngineError:
    """ONNX Runtime's exception while loading a model, as one line that names what is wrong.

    Args:
        error: What it raised.
        where: The file.
        version: ONNX Runtime's.
    """
    text = str(error)
    library = f"ONNX Runtime {version}"
    for pattern, (what, fix) in _LOAD_PROBLEMS.items():
        match = re.search(pattern, text)
        if match:
            return EngineError(what.format(library, *match.groups()), where=where, fix=fix)
    if _MEMORY.search(text):
        return _out_of_memory("while loading", where)
    return EngineError(f"ONNX Runtime cannot load this model: {clean(error)}", where=where, fix="export it again")


def run_error(error: Exception, where: Path) -> EngineError:
    """ONNX Runtime's exception during a run, as one line.

    Args:
        error: What it raised.
        where: The model's file.
    """
    text = str(error)
    if isinstance(error, MemoryError) or _MEMORY.search(text):
        return _out_of_memory("during a run", where)
    if _DEVICE.search(text):
        return EngineError(
            f"the GPU failed or was lost during a run: {clean(error)}",
            where=where,
            fix="look at the driver's log (dmesg), and start again",
        )
    return EngineError(f"ONNX Runtime failed: {clean(error)}", where=where)


def clean(error: BaseException) -> str:
    """First line of a message of ONNX Runtime without its own prefixes."""
    line = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    line = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", line.strip())
    line = re.sub(r"^Load model from .*? failed:", "", line)
    return line.strip()[:300]


def _out_of_memory(when: str, where: Path | None) -> EngineError:
    return EngineError(f"out of memory {when}", where=where, fix="use a smaller batch or model, or free memory")


def _unavailable(missing: Sequence[str], there: Sequence[str]) -> RuntimeUnavailableError:
    return RuntimeUnavailableError(
        f"ONNX Runtime has no {', '.join(missing)} here, only {', '.join(there)}",
        fix="ask for one of those, or install the driver and libraries it needs",
    )


@dataclass(frozen=True)
class SessionSpec:
    """Everything that decides how a session computes.

    Attributes:
        path: ONNX file.
        threads: Threads of one operator; None is one per physical core.
        providers: Full names.
        allow_spinning: Let waiting threads spin.
    """

    path: Path
    threads: int | None
    providers: tuple[str, ...]
    allow_spinning: bool = True

    def open(self, *, profile_prefix: Path | None = None) -> Any:
        """Open a session; see `open_session`."""
        return open_session(
            self.path,
            threads=self.threads,
            providers=self.providers,
            allow_spinning=self.allow_spinning,
            profile_prefix=profile_prefix,
        )
