"""What ``prunedeploy build`` prints of a search for the ratio."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from prunedeploy.cli.output import MISSING, print_table


def print_search(search: Mapping[str, Any] | None) -> None:
    """Print the ratios that were tried, in their order of size, and how the finished network stands.

    Args:
        search: ``search`` of a ``results.json``; None prints nothing.
    """
    if search is None:
        return
    from prunedeploy.config.ratio_target import NAMES, RatioTarget

    target = RatioTarget(search["target"]["measure"], search["target"]["value"])
    rows = []
    for trial in sorted(search["tried"], key=lambda trial: float(trial["ratio"])):
        value = trial.get("reason", MISSING) if trial["value"] is None else target.show_number(trial["value"])
        value += "*" if trial.get("noisy") else ""
        mark = "<- chosen" if trial["ratio"] == search["chosen"] else ""
        rows.append([f"{trial['ratio']:g}", value, "yes" if trial["meets"] else "no", mark])
    click.echo(f"\n{target.option}: {target.aim}")
    print_table(["ratio", NAMES[target.measure], "meets", ""], rows)
    final = search["final"]
    if final is not None and not final["meets"]:
        noise = "*" if final.get("noisy") else ""
        click.echo(f"the finished network misses the target: {target.show(final['value'])}{noise}")
    if any(row.get("noisy") for row in (*search["tried"], final or {})):
        click.echo("* noisy: the coefficient of variation is above 0.1; what else runs here disturbs the search")
