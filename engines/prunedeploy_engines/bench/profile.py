"""The layers of a row that cost most, from the profiler of its runtime."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

from prunedeploy_engines.bench.spec import complete_spec
from prunedeploy_engines.bench.worker_process import Worker
from prunedeploy_engines.errors import EngineError


def profile_models(models: Mapping[str, Mapping[str, Any]]) -> dict[str, list[dict[str, Any]] | str]:
    """Profile models one after the other, a process each.

    Args:
        models: Specifications, see `bench.spec`.

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
