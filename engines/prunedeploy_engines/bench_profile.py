"""The layers of a row that cost most, from the profiler of its runtime."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any

from prunedeploy_engines.bench_calls import batches, load_spec_images, open_spec_bundle, open_spec_runner, prepare
from prunedeploy_engines.bench_process import Worker
from prunedeploy_engines.errors import EngineError
from prunedeploy_engines.process_bench import complete_spec

TOP = 10


def profile_models(models: Mapping[str, Mapping[str, Any]]) -> dict[str, list[dict[str, Any]] | str]:
    """Profile models one after the other, a process each.

    Args:
        models: Specifications as in `process_bench.bench_models`.

    Returns:
        Per name its most expensive layers (see `layer_times.LayerTime`), or why there are none.
    """
    profiles: dict[str, list[dict[str, Any]] | str] = {}
    for name, spec in models.items():
        with ExitStack() as stack:
            worker = stack.enter_context(Worker(name))
            try:
                profiles[name] = worker.ask("profile", spec=complete_spec(name, spec))["layers"]
            except EngineError as error:
                profiles[name] = str(error)
    return profiles


def profile_spec(spec: dict[str, Any]) -> list[dict[str, Any]]:
    """Profile the model of a complete specification; inside the measuring process.

    Raises:
        EngineError: Its runtime has no profiler, or the model does not run.
    """
    runtime = spec["runtime"]
    if spec["factory"] is not None or runtime not in ("onnxruntime", "openvino", "tensorrt"):
        raise EngineError(f"there is no profiler of single layers for {runtime}")
    bundle = open_spec_bundle(spec)
    with open_spec_runner(spec) as runner:
        prepared = prepare(load_spec_images(spec, runner.input_size), runner, bundle)
        images = batches(prepared, spec["batch"])[0]
        # Each runtime has a function of the same form in a module of its own.
        profiler = importlib.import_module(f"prunedeploy_engines.{runtime}_profile")
        return [asdict(layer) for layer in profiler.profile(runner, images, top=TOP)]
