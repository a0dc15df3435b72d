"""The layers of an engine that cost most, as TensorRT's own profiler measures them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from prunedeploy_engines.engine_inspection import described_layers
from prunedeploy_engines.layer_times import LayerTime, ranked_layers

if TYPE_CHECKING:
    from prunedeploy_engines.runner import Images
    from prunedeploy_engines.tensorrt_runner import TensorRTRunner


def profile(runner: TensorRTRunner, images: Images, *, top: int | None = 10, runs: int = 10) -> list[LayerTime]:
    """Measure the layers, in an execution context of their own.

    The profiler waits after every layer, so the sum is more than a run takes; the shares are what to look at.

    Args:
        runner: The open engine.
        images: As for `Runner.infer`.
        top: How many rows to return; None is all.
        runs: How often to run; one run before is not counted.

    Returns:
        The layers that cost most, in descending order.

    Raises:
        EngineError: No memory for another execution context, or the GPU failed.
    """
    return ranked_layers(runner.layer_times(images, runs), runs, top)


def measured_layers(
    trt: Any, engine: Any, context: Any, run: Callable[[], None], runs: int
) -> list[tuple[str, str, str | None, float]]:
    """Run with the profiler on.

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
