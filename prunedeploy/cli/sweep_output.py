"""What ``prunedeploy sweep`` prints: what there is to do, and what was done."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from prunedeploy.cli.output import MISSING, print_table, size
from prunedeploy.pipeline.progress import duration

if TYPE_CHECKING:
    from prunedeploy.study.rows.rows import CellKey
    from prunedeploy.study.sweep.driver import Standing
    from prunedeploy.study.sweep.grid import Sweep
    from prunedeploy.study.sweep.plan import Plan

LATENCY = "file-latency"
"""The stage that is never run beside another one."""


def plan_document(
    sweep: Sweep, there: Mapping[CellKey, Standing], plan: Plan, left: Plan, workers: int, store: Path
) -> dict[str, Any]:
    """What ``--dry-run`` says.

    Args:
        sweep: The configuration.
        there: What the rows say.
        plan: The plan of all cells that are asked for.
        left: The plan of those that something is left to do for.
        workers: That train at once.
        store: Where disk is needed.
    """
    keys = [planned.cell.key for planned in plan.cells]
    standings = [there[key] for key in keys if key in there]
    counts = {count.name: count for count in left.counts(measured_in=plan)}
    seconds = {name: count.seconds_left or 0 for name, count in counts.items()}
    alone = seconds.pop(LATENCY, 0)
    needed = {name: count.total - count.done for name, count in counts.items()}
    return {
        "name": sweep.config.name,
        "configuration_hash": sweep.configuration_hash,
        "models": len(keys),
        "trained": sum(standing.trained for standing in standings),
        "timed": sum(standing.timed for standing in standings),
        "failed": sum(standing.error is not None for standing in standings),
        "impossible": [
            {"model": planned.cell.label, "error": planned.error} for planned in plan.cells if planned.error is not None
        ],
        "workers": workers,
        "threads": sweep.config.threads,
        "stages": {
            "total": len(plan.stages),
            "done": plan.done,
            "to_do": sum(needed.values()),
            "by_name": [
                {
                    "name": count.name,
                    "total": count.total,
                    "done": count.done,
                    "to_do": needed.get(count.name, 0),
                    "seconds_left": counts[count.name].seconds_left if count.name in counts else 0.0,
                }
                for count in plan.counts()
            ],
        },
        "seconds_left": sum(seconds.values()) / workers + alone,
        "bytes_done": plan.bytes_done,
        "bytes_left": sum(count.bytes_left or 0 for count in counts.values()),
        "bytes_free": shutil.disk_usage(store).free,
        "not_measured": [name for name, count in counts.items() if count.seconds_left is None],
    }


def print_plan(document: Mapping[str, Any]) -> None:
    """Print a `plan_document`."""
    stages, unknown = document["stages"], document["not_measured"]
    click.echo(
        f"{document['name']}: {document['models']} models, of which {document['trained']} are trained and "
        f"{document['timed']} timed, {document['failed']} failed"
    )
    click.echo(f"{stages['total']} different stages, {stages['done']} in the store, {stages['to_do']} to do\n")
    rows = [
        [
            stage["name"],
            *(str(stage[key]) for key in ("total", "done", "to_do")),
            MISSING if stage["seconds_left"] is None else duration(stage["seconds_left"]),
        ]
        for stage in stages["by_name"]
    ]
    print_table(["stage", "in all", "in store", "to do", "time left, one worker"], rows)
    for planned in document["impossible"]:
        click.echo(f"cannot be done: {planned['model']}: {planned['error']}")
    workers = counted(document["workers"], "worker")
    threads = counted(document["threads"], "thread")
    click.echo(f"\ntime left: {_estimate(document, 'seconds_left', duration)} with {workers} of {threads}")
    click.echo(
        f"disk: {_estimate(document, 'bytes_left', size)} more beside {size(document['bytes_done'])}; "
        f"{size(document['bytes_free'])} are free"
    )
    if unknown:
        click.echo(f"not measured yet: {', '.join(unknown)}; finish one model first, e.g. with --only")


def _estimate(document: Mapping[str, Any], key: str, show: Callable[[float], str]) -> str:
    """What is left as far as it is known."""
    if not document["not_measured"]:
        return f"about {show(document[key])}"
    return f"at least {show(document[key])}" if document[key] else "unknown"


def counted(count: int, what: str) -> str:
    """A number of things, e.g. ``2 workers``."""
    return f"{count} {what}{'s' if count > 1 else ''}"


def print_outcome(document: Mapping[str, Any]) -> None:
    """Print what a sweep has come to."""
    click.echo(
        f"{document['models']} models: {document['trained']} trained and evaluated, {document['timed']} timed, "
        f"{len(document['failed'])} failed"
    )
    for failed in document["failed"]:
        name = f"{failed['configuration']} at {failed['ratio']:g}, run {failed['run']}"
        click.echo(f"failed: {name}: {failed['error']}")
    counts = ", ".join(f"{count} x {name}" for name, count in document["computed"].items())
    click.echo(f"computed: {counts}" if counts else "nothing had to be computed")
    click.echo(f"`prunedeploy report {document['out']}` writes tables and figures")
