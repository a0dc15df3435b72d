"""The stage that measures what convolutions cost at other widths, for allocation by latency."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from statistics import median

import numpy as np
from numpy.typing import NDArray

from prunedeploy.models.darknet_cfg import DarknetCfg, read_cfg
from prunedeploy.pipeline.context import BuildContext, StageResult
from prunedeploy.pipeline.store.key import machine_id
from prunedeploy.pruning.convolution_times import (
    ConvolutionShape,
    ConvolutionTimes,
    Grid,
    measuring_grid,
    times_as_json,
    times_from_json,
)
from prunedeploy_engines.locks import measuring_lock
from prunedeploy_engines.machine.environment import machine_info
from prunedeploy_engines.runtimes.onnxruntime.profile import profiled_events
from prunedeploy_engines.runtimes.onnxruntime.session import CPU, SessionSpec
from prunedeploy_export.graph.convolution_probe import convolution_model

FILE = "convolution_times.json"
RUNTIME = "onnxruntime"
SWEEPS = 2
"""Over all grids. Of every point the smaller median counts: a neighbour that wakes up for some seconds spoils one."""
FEWEST_CALLS, MOST_CALLS, WARM_CALLS = 3, 15, 2
CALLS_MACS = 2e8
"""Small convolutions are timed more often than large ones: this many MACs in all, within the limits."""


def convolution_times_stage(context: BuildContext, robust: StageResult) -> StageResult:
    """Time single convolutions with their activations in ONNX Runtime on this machine's CPU.

    ``convolution_times.json`` has for every shape a grid over filters and input channels and the milliseconds of each
    point. The network's weights do not matter to it, so all networks of one cfg share it.

    Args:
        context: The build's context.
        robust: The network that is pruned.

    Raises:
        ConfigError: As `measuring_grid`.
    """
    grids = measuring_grid(read_cfg(robust.folder / "model.cfg"))
    threads = context.config.latency.threads or context.threads
    points = sum(len(grid.filters) * len(grid.inputs) for grid in grids.values())
    settings = {
        "grids": [{"shape": asdict(shape), **asdict(grid)} for shape, grid in grids.items()],
        "threads": threads,
        "runtime": RUNTIME,
    }
    with context.stage("convolution-times", 1, json.loads(json.dumps(settings)), {}, machine=machine_id()) as result:
        if result.work:
            with context.progress.task("measure convolutions", SWEEPS * points) as advance, measuring_lock():
                measured = measure_convolutions(grids, threads, advance)
            document = {"times": times_as_json(measured), "threads": threads, "machine": machine_info()}
            (result.work / FILE).write_text(json.dumps(document))
    return result


def load_convolution_times(cfg: DarknetCfg, result: StageResult) -> ConvolutionTimes:
    """The table that the stage has written, for a network."""
    return ConvolutionTimes(cfg, times_from_json(result.read(FILE)["times"]))


def measure_convolutions(
    grids: Mapping[ConvolutionShape, Grid], threads: int | None, advance: Callable[[int], None] = lambda done: None
) -> dict[ConvolutionShape, tuple[Grid, NDArray[np.float64]]]:
    """Time every point of every grid, in `SWEEPS` sweeps over all of them.

    Args:
        grids: By shape, from `measuring_grid`.
        threads: As `convolution_ms`.
        advance: Called with 1 after each measurement.

    Returns:
        By shape the grid and ``(filters, inputs)`` milliseconds.
    """
    sweeps = [{shape: _sweep(shape, grid, threads, advance) for shape, grid in grids.items()} for _ in range(SWEEPS)]
    return {shape: (grid, np.minimum.reduce([sweep[shape] for sweep in sweeps])) for shape, grid in grids.items()}


def _sweep(
    shape: ConvolutionShape, grid: Grid, threads: int | None, advance: Callable[[int], None]
) -> NDArray[np.float64]:
    """Measure every point of a grid once: ``(filters, inputs)`` milliseconds."""
    times = np.empty((len(grid.filters), len(grid.inputs)))
    for row, filters in enumerate(grid.filters):
        for column, inputs in enumerate(grid.inputs):
            times[row, column] = convolution_ms(shape, filters, inputs, threads)
            advance(1)
    return times


def convolution_ms(shape: ConvolutionShape, filters: int, inputs: int, threads: int | None) -> float:
    """Median milliseconds of one convolution, as ONNX Runtime's own profiler measures its nodes.

    ONNX Runtime computes convolutions in a layout of its own. In a network tensors stay in it from one convolution to
    the next; here they are brought into it and back, which is left out.

    Args:
        shape: Shape of the convolution.
        filters: Output channels.
        inputs: Input channels.
        threads: Threads of one operator; None is one per physical core.
    """
    macs = filters * inputs * shape.size**2 * shape.height * shape.width / shape.stride**2
    calls = min(max(FEWEST_CALLS, round(CALLS_MACS / macs)), MOST_CALLS)
    model = convolution_model(filters, inputs, **asdict(shape))
    image = np.random.default_rng(0).random((1, inputs, shape.height, shape.width), dtype=np.float32)
    with tempfile.TemporaryDirectory(prefix="prunedeploy-convolution-") as folder:
        path = Path(folder, "convolution.onnx")
        path.write_bytes(model)
        events = profiled_events(SessionSpec(path, threads, (CPU,)), image, WARM_CALLS + calls)
    runs = sorted(event["ts"] for event in events if event.get("name") == "model_run")
    spent = dict.fromkeys(runs, 0.0)
    for event in events:
        kernel = event.get("cat") == "Node" and event["name"].endswith("_kernel_time")
        if kernel and not event["args"]["op_name"].startswith("Reorder"):
            spent[max(start for start in runs if start <= event["ts"])] += event["dur"] / 1000
    return median(spent[start] for start in runs[WARM_CALLS:])
