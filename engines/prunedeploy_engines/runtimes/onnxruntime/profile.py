"""What ONNX Runtime really executes: its own profiler, read back.

A session optimises the graph while it opens, and only the profile of a run tells what came of it: which
convolutions became integer ones, where casts were put in, what fell to the CPU.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from prunedeploy_engines.detection.letterbox import unit_pixels
from prunedeploy_engines.runtimes.layer_times import LayerExecution, convolution_shares
from prunedeploy_engines.runtimes.onnxruntime.session import SessionSpec, run_error
from prunedeploy_engines.runtimes.signature import INPUT

_PRECISIONS = {
    "float": "fp32",
    "float16": "fp16",
    "bfloat16": "bf16",
    "double": "fp64",
    "int8": "int8",
    "uint8": "int8",
}
_KERNEL = "_kernel_time"


@dataclass(frozen=True)
class ExecutedGraph:
    """What one run executed.

    Attributes:
        computes_in: Share of the convolutions by precision; None if there is none to be seen, e.g. inside an
            engine of TensorRT's provider.
        threads: Threads of the pool that runs one operator.
        operators: Number of executed nodes by provider and operator.
    """

    computes_in: dict[str, float] | None
    threads: int | None
    operators: dict[str, dict[str, int]]


def layer_times(spec: SessionSpec, model_input: npt.NDArray[Any], runs: int) -> Iterator[LayerExecution]:
    """Every execution of every layer, in a session of its own.

    Args:
        spec: The session.
        model_input: One batch, of the model's own shape and type.
        runs: How often to run; one run before is not counted.

    Raises:
        EngineError: The model does not load or run.
    """
    events = profiled_events(spec, model_input, runs + 1)
    starts = [event["ts"] for event in events if event.get("name") == "model_run"]
    # Of the first run everything is left out: kernels and memory are set up in it.
    second = min(start for start in starts if start > min(starts)) if len(starts) > 1 else 0
    for event in _kernels(events):
        if event["ts"] >= second:
            name, kind = event["name"].removesuffix(_KERNEL), event["args"]["op_name"]
            yield name, kind, _precision(event), event["dur"] / 1000


def executed_graph(spec: SessionSpec, model_input: npt.NDArray[Any]) -> ExecutedGraph:
    """Run the model once in a session of its own, and say what was executed.

    Args:
        spec: The session.
        model_input: One batch, of the model's own shape and type.

    Raises:
        EngineError: The model does not load or run.
    """
    kernels = list(_kernels(profiled_events(spec, model_input, 1)))
    operators: dict[str, Counter[str]] = defaultdict(Counter)
    for event in kernels:
        operators[event["args"]["provider"]][event["args"]["op_name"]] += 1
    return ExecutedGraph(
        computes_in=convolution_shares(_precision(event) for event in kernels if _is_convolution(event)),
        threads=_pool_size(kernels),
        operators={provider: dict(counts) for provider, counts in operators.items()},
    )


def profiled_events(spec: SessionSpec, model_input: npt.NDArray[Any], runs: int) -> list[dict[str, Any]]:
    """Open a session with the profiler on, run it, and return the profile's events.

    Raises:
        EngineError: The model does not load or run.
    """
    with tempfile.TemporaryDirectory(prefix="prunedeploy-profile-") as folder:
        session = spec.open(profile_prefix=Path(folder, "ort"))
        try:
            for _ in range(runs):
                session.run(None, {INPUT: model_input})
        except Exception as error:  # ONNX Runtime's exceptions share no base class
            raise run_error(error, spec.path) from error
        finally:
            file = session.end_profiling()
        events: list[dict[str, Any]] = json.loads(Path(file).read_text(encoding="utf-8"))
    return events


def probe_input(shape: Sequence[int], uint8: bool) -> npt.NDArray[Any]:
    """Random pixels of this shape, as an input of the model."""
    pixels = np.random.default_rng(0).integers(0, 256, tuple(shape), dtype=np.uint8)
    return pixels if uint8 else unit_pixels(pixels)


def _kernels(events: Iterable[dict[str, Any]]) -> Iterable[dict[str, Any]]:
    return (event for event in events if event.get("cat") == "Node" and event["name"].endswith(_KERNEL))


def _is_convolution(event: dict[str, Any]) -> bool:
    return "Conv" in event["args"]["op_name"]  # Conv, FusedConv, NhwcFusedConv, QLinearConv, ConvInteger


def _precision(event: dict[str, Any]) -> str | None:
    """From the type of a kernel's first input, the data; the second, weights, has the same but for int8."""
    types = [next(iter(value)) for value in event["args"].get("input_type_shape", []) if value]
    return _PRECISIONS.get(types[0]) if types else None


def _pool_size(kernels: Sequence[dict[str, Any]]) -> int | None:
    pools = [pool for event in kernels if (pool := event["args"].get("thread_scheduling_stats"))]
    return 1 + max(len(pool.get("sub_threads", {})) for pool in pools) if pools else None
