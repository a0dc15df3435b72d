"""The configuration of a build.

`blocks` has the keys, their defaults and what makes no sense, `reading` brings them from YAML and options,
`ratio_target` is what a ratio may be searched for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prunedeploy.config.blocks import (
        BUNDLED,
        AllocationName,
        AtLeastOne,
        AttackConfig,
        AugmentConfig,
        BelowOne,
        Block,
        BuildConfig,
        EvaluationConfig,
        GatesConfig,
        Method,
        ScoreName,
        ScoresConfig,
        TrainingConfig,
        as_tuple,
    )
    from prunedeploy.config.reading import (
        OPTIONS,
        KeyPath,
        as_dict,
        config_hash,
        default_out,
        for_method,
        known_keys,
        load_config,
        read_yaml,
        result_settings,
        validated,
    )

__all__ = [
    "BUNDLED",
    "OPTIONS",
    "AllocationName",
    "AtLeastOne",
    "AttackConfig",
    "AugmentConfig",
    "BelowOne",
    "Block",
    "BuildConfig",
    "EvaluationConfig",
    "GatesConfig",
    "KeyPath",
    "Method",
    "ScoreName",
    "ScoresConfig",
    "TrainingConfig",
    "as_dict",
    "as_tuple",
    "config_hash",
    "default_out",
    "for_method",
    "known_keys",
    "load_config",
    "read_yaml",
    "result_settings",
    "validated",
]


def __getattr__(name: str) -> Any:
    """At first use, so that the command line's ``--help`` loads neither pydantic nor YAML."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from prunedeploy.config import blocks, reading

    return getattr(blocks, name) if hasattr(blocks, name) else getattr(reading, name)
