"""What a configuration says about the cut: its granularity, what of it belongs in keys, and what makes no sense."""

from __future__ import annotations

from typing import Any

from prunedeploy.config import BuildConfig
from prunedeploy.pipeline.starting_network import given_cfg
from prunedeploy.pruning.convolution_times import measuring_grid
from prunedeploy.pruning.granularity import Filters, FiltersThenWeights, Granularity, Kernels, Pattern, Weights
from prunedeploy.pruning.ratio import check_ratio
from prunedeploy.pruning.semi_structured import NmPattern
from prunedeploy_engines.errors import ConfigError


def granularity_of(config: BuildConfig, allocation: str | None = None) -> Granularity:
    """What the configured method removes, and how much of it; ``allocation`` in the place of the configured one."""
    shared = (config.ratio, allocation or config.allocation)
    channels = (config.channels.minimum, config.channels.multiple)
    if config.method == "structured":
        return Filters(*shared, *channels)
    if config.method == "hybrid":
        return FiltersThenWeights(*shared, *channels, config.hybrid.filter_share)
    if config.method == "nm":
        return Pattern(*shared, NmPattern(config.nm.n, config.nm.m))
    return {"unstructured": Weights, "kernel": Kernels}[config.method](*shared)


def cut_settings(config: BuildConfig) -> dict[str, Any]:
    """What decides which weights go, for the keys of stages."""
    settings: dict[str, Any] = {"method": config.method, "ratio": config.ratio}
    # Single weights do not read the channels; they are in their key since a time when every method's had them.
    if config.method != "kernel":
        settings["channels"] = config.channels.model_dump()
    if config.method in ("nm", "hybrid"):
        settings[config.method] = getattr(config, config.method).model_dump()
    if config.allocation != "uniform":
        settings["allocation"] = config.allocation
    return settings


def check_reachable(config: BuildConfig) -> None:
    """Refuse an unreachable ratio, or an allocation that makes no sense, before anything is read or trained.

    Raises:
        ConfigError: The allocation makes no sense for the method, or cannot be measured.
        PruningError: The ratio cannot be reached; the message says what can.
    """
    cfg = given_cfg(config)
    check_ratio(config.ratio)
    granularity = granularity_of(config)
    if config.allocation not in granularity.allocations:
        why_not = "the pattern says what every layer keeps" if config.method == "nm" else "zeros save no measured time"
        what = f"{config.allocation} makes no sense with method {config.method}: {why_not}"
        raise ConfigError(what, "allocation", f"use {' or '.join(granularity.allocations)}")
    if config.allocation == "latency":
        measuring_grid(cfg)
    # What is known only from scores or times is shared out evenly here: the extremes are the same.
    known = config.allocation if config.allocation in ("uniform", "erk") else "uniform"
    granularity_of(config, known).allocate(cfg)
