"""Running an exported ONNX file with ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from prunedeploy_engines.errors import EngineError, RuntimeUnavailableError
from prunedeploy_engines.runner import Float32Array, Runner

_SEVERITY_FATAL = 4  # errors come as exceptions; ONNX Runtime would also print them


class OnnxRuntimeRunner(Runner):
    """A `Runner` on ONNX Runtime, with exactly the providers that were asked for.

    Args:
        path: ONNX file: input ``images`` (N, 3, H, W) float32, outputs ``boxes`` and ``scores``.
        threads: Threads of one operator; None is one per physical core.
        providers: Execution providers in order of preference. ONNX Runtime replaces a missing one by the CPU
            with no more than a message; here that is an error.
        allow_spinning: Let waiting threads spin. Faster alone; with several sessions in one process they
            steal each other's cores.

    Raises:
        RuntimeUnavailableError: ONNX Runtime or a provider is not there.
        EngineError: The file is missing, is no ONNX model, or not one with this input and these outputs.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        threads: int | None = None,
        providers: Sequence[str] = ("CPUExecutionProvider",),
        allow_spinning: bool = True,
    ) -> None:
        if threads is not None and threads < 1:
            raise ValueError(f"threads must be at least 1, got {threads}")
        self._path = Path(path)
        self._threads = threads
        self._ort = import_onnxruntime()
        self._session = open_session(
            self._path, threads=threads, providers=providers, allow_spinning=allow_spinning
        )
        self._providers: list[str] = self._session.get_providers()
        self._input_size = self._checked_input_size()
        self._precision = _precision(self._session)

    @property
    def runtime(self) -> str:
        """``"onnxruntime"``."""
        return "onnxruntime"

    @property
    def input_size(self) -> tuple[int, int]:
        """(height, width), from the file."""
        return self._input_size

    def describe(self) -> dict[str, Any]:
        """What runs: library and version, providers, threads, file."""
        providers = self._providers
        return {
            "runtime": self.runtime,
            "version": self._ort.__version__,
            "precision": self._precision,
            "device": "cpu" if providers[0] == "CPUExecutionProvider" else "gpu",
            "providers": providers,
            "threads": self._threads,
            "file": self._path.name,
        }

    def _infer(self, images: Float32Array) -> tuple[Float32Array, Float32Array]:
        try:
            boxes, scores = self._session.run(["boxes", "scores"], {"images": np.ascontiguousarray(images)})
        except Exception as error:  # ONNX Runtime's exceptions share no base class
            raise EngineError(f"ONNX Runtime failed: {_first_line(error)}", where=self._path) from error
        return boxes, scores

    def _release(self) -> None:
        del self._session

    def _checked_input_size(self) -> tuple[int, int]:
        inputs = {value.name: value for value in self._session.get_inputs()}
        outputs = {value.name for value in self._session.get_outputs()}
        if set(inputs) != {"images"} or not {"boxes", "scores"} <= outputs:
            raise EngineError(
                f"not a detector: it has inputs {sorted(inputs)} and outputs {sorted(outputs)}, "
                "not 'images' and 'boxes', 'scores'",
                where=self._path,
                fix="export it with prunedeploy",
            )
        shape, kind = inputs["images"].shape, inputs["images"].type
        fixed = len(shape) == 4 and shape[1] == 3 and all(isinstance(side, int) for side in shape[2:])
        if not fixed or kind != "tensor(float)":
            raise EngineError(
                f"the input must be float (N, 3, H, W) with fixed H and W, not {kind} {shape}",
                where=self._path,
            )
        return int(shape[2]), int(shape[3])


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


def open_session(
    model: Path | bytes, *, threads: int | None, providers: Sequence[str], allow_spinning: bool
) -> Any:
    """Open an ``onnxruntime.InferenceSession`` of a file or its content.

    All graph optimisations are on; providers are strict.

    Raises:
        RuntimeUnavailableError: ONNX Runtime or a provider is not there.
        EngineError: The file is missing or not an ONNX model.
    """
    ort = import_onnxruntime()
    missing = [name for name in providers if name not in ort.get_available_providers()]
    if missing:
        raise _unavailable(missing, ort.get_available_providers())
    path = model if isinstance(model, Path) else None
    if path is not None and not path.is_file():
        raise EngineError("there is no such ONNX file", where=path)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = _SEVERITY_FATAL
    if threads is not None:
        options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1  # one operator after the other: a detector is a chain
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(allow_spinning)))
    try:
        session = ort.InferenceSession(model, sess_options=options, providers=list(providers))
    except Exception as error:  # ONNX Runtime's exceptions share no base class
        raise EngineError(
            f"ONNX Runtime cannot load this model: {_first_line(error)}", where=path, fix="export it again"
        ) from error
    # A provider that fails while loading is dropped without an exception.
    dropped = [name for name in providers if name not in session.get_providers()]
    if dropped:
        raise _unavailable(dropped, session.get_providers())
    return session


def _unavailable(missing: Sequence[str], there: Sequence[str]) -> RuntimeUnavailableError:
    return RuntimeUnavailableError(
        f"ONNX Runtime has no {', '.join(missing)} here, only {', '.join(there)}",
        fix="ask for one of those, or install the driver and libraries it needs",
    )


def _precision(session: Any) -> str:
    """The precision the exporter wrote into the file's metadata; ``"fp32"`` where it wrote none."""
    return str(session.get_modelmeta().custom_metadata_map.get("precision", "fp32"))


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
