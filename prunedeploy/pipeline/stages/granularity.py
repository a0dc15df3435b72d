"""What a configuration says about the cut: its granularity, what of it belongs in keys, and what makes no sense."""

from __future__ import annotations

from typing import Any

from prunedeploy.config import BuildConfig
from prunedeploy.models.darknet_cfg import DarknetCfg
from prunedeploy.pruning.convolution_times import measuring_grid
from prunedeploy.pruning.granularity import Filters, FiltersThenWeights, Granularity, Kernels, Pattern, Weights
from prunedeploy.pruning.ratio import check_ratio
from prunedeploy.pruning.semi_structured import NmPattern
from prunedeploy_engines.errors import ConfigError


def granularity_of(config: BuildConfig) -> Granularity:
    """What the configured method removes, and how much of it."""
    return _granularity(config, config.allocation)


def _granularity(config: BuildConfig, allocation: str) -> Granularity:
    shared, channels = (config.ratio, allocation), (config.channels.minimum, config.channels.multiple)
    if config.method == "structured":
        return Filters(*shared, *channels)
    if config.method == "hybrid":
        return FiltersThenWeights(*shared, *channels, config.hybrid.filter_share)
    if config.method == "nm":
        return Pattern(*shared, nm_pattern(config))
    return {"unstructured": Weights, "kernel": Kernels}[config.method](*shared)


def nm_pattern(config: BuildConfig) -> NmPattern:
    """The pattern that a configuration asks for."""
    return NmPattern(config.nm.n, config.nm.m)


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


def check_cut(config: BuildConfig, cfg: DarknetCfg) -> None:
    """Refuse what cannot be cut, before anything is read or trained.

    Args:
        config: Says what.
        cfg: The network.

    Raises:
        ConfigError: The allocation makes no sense for the method or cannot be measured, or as `check_nm_ratio`.
        PruningError: The ratio cannot be reached; the message says what can.
    """
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
    _granularity(config, known).allocate(cfg)
