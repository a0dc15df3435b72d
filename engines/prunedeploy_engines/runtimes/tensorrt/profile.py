"""The layers of an engine that cost most, as TensorRT's own profiler measures them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from prunedeploy_engines.runtimes.layer_times import LayerExecution
from prunedeploy_engines.runtimes.tensorrt.inspection import described_layers


def measured_layers(trt: Any, engine: Any, context: Any, run: Callable[[], None], runs: int) -> list[LayerExecution]:
    """Run with the profiler on, which waits after every layer: the sum is more than a run takes, the shares count.

    Args:
        trt: The library's module.
        engine: ``ICudaEngine``, asked what its layers are.
        context: ``IExecutionContext`` that ``run`` uses.
        run: Runs the engine once and waits for it.
        runs: How often; once more before, which is not counted.

    Returns:
        Layer, kind, precision and milliseconds of every execution of every layer.
    """
    profiler = _layer_profiler(trt)
    context.profiler = profiler
    run()
    profiler.times.clear()
    for _ in range(runs):
        run()
    inspector = engine.create_engine_inspector()
    known = described_layers(inspector.get_engine_information(trt.LayerInformationFormat.JSON))
    return [(name, *known.get(name, ("", None)), milliseconds) for name, milliseconds in profiler.times]


def _layer_profiler(trt: Any) -> Any:
    class Profiler(trt.IProfiler):  # type: ignore[misc, name-defined]
        """Keeps what the library reports: a layer's name and its milliseconds, layer by layer, run by run."""

        def __init__(self) -> None:
            trt.IProfiler.__init__(self)
            self.times: list[tuple[str, float]] = []

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            self.times.append((layer_name, ms))

    return Profiler()
