"""Files of `prunedeploy bench`: written, compared and merged."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from prunedeploy.cli.output import number, print_json, print_table


def write_folder(document: dict[str, Any], folder: Path) -> None:
    """Write ``bench.json``, ``bench.html`` and the pictures.

    Raises:
        StoreError: The disk refuses.
    """
    from prunedeploy_engines.bench.pictures.page import page, pictures
    from prunedeploy_engines.files import write_atomically

    content = json.dumps(document, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    write_atomically(folder / "bench.json", f"{content}\n".encode())
    for name, svg in pictures(document).items():
        write_atomically(folder / name, svg.encode())
    write_atomically(folder / "bench.html", page(document).encode())


def read_merged(paths: Sequence[Path]) -> dict[str, Any]:
    """Read files of several devices into one document.

    Raises:
        DataError: A file is not one of ours.
    """
    from prunedeploy_engines.bench.document import merge_documents, read_document

    paths = list(dict.fromkeys(paths))
    if len(paths) < 2:
        raise click.UsageError("--merge needs two files or more")
    return merge_documents({name: read_document(path) for name, path in zip(short_names(paths), paths, strict=True)})


def short_names(paths: Sequence[Path]) -> list[str]:
    """File names without their ending; the folder's for ``bench.json``; whole paths where those are the same."""
    short = [path.absolute().parent.name if path.name == "bench.json" else path.stem for path in paths]
    return [name if short.count(name) == 1 else str(path) for name, path in zip(short, paths, strict=True)]


def print_comparison(paths: Sequence[Path], *, seed: int, as_json: bool) -> None:
    """Say for each row that two files have in common whether their difference is real.

    Raises:
        DataError: A file is not one of ours, or they have no row in common.
    """
    from prunedeploy_engines.bench.document import read_document
    from prunedeploy_engines.bench.pairs import compare_documents

    if len(paths) != 2:
        raise click.UsageError(f"--compare needs two files, not {len(paths)}")
    a, b = (read_document(path) for path in paths)
    compared = compare_documents(a, b, seed=seed, where=f"{paths[0]} and {paths[1]}")
    if as_json:
        print_json(compared)
        return
    rows = compared["rows"]
    cells = [
        [
            row["name"],
            number(row["a_ms"], 2),
            number(row["b_ms"], 2),
            number(row["ratio"]),
            f"{row['interval'][0]:.3f} to {row['interval'][1]:.3f}",
            row["verdict"],
        ]
        for row in rows
    ]
    print_table(["row", "A median ms", "B median ms", "B / A", "95 % interval", "B is"], cells)
    click.echo(f"\nA: {paths[0]}\nB: {paths[1]}")
    click.echo("interval: bootstrap over the rounds of each run. What changed between the runs, such as the machine's")
    click.echo("temperature, is not in it: to compare two models, measure them in one run.")
    for note in compared["notes"]:
        click.echo(note)
