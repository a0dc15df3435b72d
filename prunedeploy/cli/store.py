"""``prunedeploy store``: what builds share, and tidying it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from prunedeploy.cli.group import Group, examples
from prunedeploy.cli.options import store_option
from prunedeploy.cli.output import print_json, print_table, size
from prunedeploy_engines.errors import StoreError

if TYPE_CHECKING:
    from prunedeploy.pipeline.store.store import Store, StoreRow


@click.group("store", cls=Group)
def command() -> None:
    """Show or tidy the results that builds share.

    Every stage of a build leaves its result in a store, under a key made of its configuration and inputs,
    so that no build computes what another has computed.
    """


@command.command("ls", epilog=examples("prunedeploy store ls"))
@store_option("The store.", "root")
def ls(root: Path, as_json: bool) -> None:
    """List what is in the store: results, those in the making, checkpoints."""
    with _open(root) as store:
        rows = store.ls()
    if as_json:
        print_json([asdict(row) for row in rows])
        return
    _print(rows)
    click.echo(f"{root}: {_count(rows)}")


@command.command("gc", epilog=examples("prunedeploy store gc", "prunedeploy store gc --older-than 30 --dry-run"))
@store_option("The store.", "root")
@click.option(
    "--older-than",
    "days",
    type=click.FloatRange(0),
    metavar="DAYS",
    help="Also remove results and checkpoints not used for this long; 0: all that are not in use.",
)
@click.option("--keep", multiple=True, metavar="DIGEST", help="Results that stay, by the first digits of their key.")
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
def gc(root: Path, days: float | None, keep: tuple[str, ...], dry_run: bool, as_json: bool) -> None:
    """Remove what no build needs.

    Always removed: what killed processes left, damaged results, checkpoints of stages that have ended. With
    --older-than also results. What a running build uses stays.
    """
    with _open(root) as store:
        rows = store.gc(keep, days, dry_run)
    if as_json:
        print_json({"removed": [asdict(row) for row in rows], "dry_run": dry_run})
        return
    _print(rows)
    click.echo(f"{root}: {'would remove' if dry_run else 'removed'} {_count(rows)}")


def _open(root: Path) -> Store:
    """Open a store that is there: looking at one must not make one."""
    from prunedeploy.pipeline.store.store import Store

    if not root.is_dir():
        raise StoreError("there is no such store", root, "give the --store of your builds")
    return Store(root, lambda line: click.echo(line, err=True))


def _count(rows: Sequence[StoreRow]) -> str:
    return f"{len(rows)} folder{'s' * (len(rows) != 1)}, {size(sum(row.bytes for row in rows))}"


def _print(rows: Sequence[StoreRow]) -> None:
    if not rows:
        return
    cells = [
        [
            row.kind,
            row.name,
            row.digest[:12],
            size(row.bytes),
            "-" if row.seconds is None else f"{row.seconds:.1f} s",
            "in use" if row.in_use else _age(time.time() - row.last_used),
        ]
        for row in rows
    ]
    print_table(["kind", "stage", "key", "size", "took", "last used"], cells, left=3)


def _age(seconds: float) -> str:
    for unit, name in ((86400, "day"), (3600, "hour"), (60, "minute")):
        if seconds >= unit:
            count = int(seconds // unit)
            return f"{count} {name}{'s' * (count > 1)} ago"
    return "just now"
