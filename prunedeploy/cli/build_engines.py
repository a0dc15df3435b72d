"""How the terminal shows what attacks, floods and corruptions do to the engines of a build."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import click

from prunedeploy.cli.output import MISSING, number, print_table

Engine = Mapping[str, Any]
_MAPS = {
    "map_pgd_adaptive": ("adaptive", "adaptive"),
    "map_square": ("square", "square"),
    "mpc": ("mPC", "corruptions"),
}
"""Titles of figures, and the block that each stands in if it is of fewer images than the clean one."""


def print_engine_figures(engines: Sequence[Engine]) -> list[list[str]]:
    """Print a row for each engine that was measured beyond transfer; nothing if none was.

    Returns:
        The rows' cells; a ``*`` marks what is noisy.
    """
    asked = ("adaptive", "square", "flood", "mpc", "corruptions")
    engines = [engine for engine in engines if any(engine.get(key) is not None for key in asked)]
    if not engines:
        return []
    maps = {key: title for key, (title, _) in _MAPS.items() if any(_figure(one, key) is not None for one in engines)}
    attacked = any("adaptive" in engine or "square" in engine for engine in engines)
    flooded = any("flood" in engine for engine in engines)
    rows = [
        [
            str(engine.get("file")).removeprefix("bundle/"),
            str(engine.get("runtime")),
            *(number(engine.get(key)) for key in ("map_clean", "map_pgd_transfer")),
            *(number(_figure(engine, key)) for key in maps),
            *([_lowest(engine)] if attacked else []),
            *(_p99s(engine) if flooded else []),
        ]
        for engine in engines
    ]
    head = ["file", "runtime", "mAP clean", "PGD, transfer", *maps.values()]
    head += ["lowest"] if attacked else []
    head += ["p99 ms", "flooded"] if flooded else []
    click.echo()
    print_table(head, rows, left=2)
    fewer = _of_fewer(engines)
    if fewer:
        lowest = ["lowest"] if set(fewer) - {"mPC"} else []
        click.echo(f"of {max(fewer.values())} images: {', '.join([*fewer, *lowest])}")
    if flooded:
        click.echo(
            "p99: from an image in memory to its detections, and of the flood that takes longest (docs/flood.md)"
        )
    return rows


def _figure(engine: Engine, key: str) -> float | None:
    within = engine.get(_MAPS[key][1]) or {}
    value: float | None = engine.get(key, within.get(key))
    return value


def _of_fewer(engines: Sequence[Engine]) -> dict[str, int]:
    """Which figures are of fewer images than the clean one, and of how many; ``robustness.images`` says it of all."""
    return {
        title: engine[block]["images"]
        for key, (title, block) in _MAPS.items()
        for engine in engines
        if key not in engine and key in (engine.get(block) or {})
    }


def _lowest(engine: Engine) -> str:
    lowest = engine.get("lowest")
    return MISSING if not lowest else f"{number(lowest['map'])} {lowest['attack'].replace('_', ' ')}"


def _p99s(engine: Engine) -> list[str]:
    flood = engine.get("flood")
    if not flood:
        return [MISSING, MISSING]
    clean, worst = flood["clean"], flood["flooded"][flood["worst"]]
    ratio = f" ({worst['ratio']:.2f} x by {flood['worst']})"
    return [number(row["p99"], 2) + "*" * row["noisy"] + more for row, more in ((clean, ""), (worst, ratio))]
