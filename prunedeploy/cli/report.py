"""``prunedeploy report``: write a build's page again, or that of a sweep."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from prunedeploy.cli.group import command_with_examples
from prunedeploy.cli.options import PATH, store_option
from prunedeploy.cli.output import print_json, quiet_stdout
from prunedeploy_engines.errors import ConfigError

SWEEP_ROWS = "rows.jsonl"


@command_with_examples(
    "report",
    "prunedeploy report runs/demo-structured-bn-scale-0.75-s0",
    "prunedeploy report runs/study-demo --compare-paper",
)
@click.argument("folder", metavar="DIR", type=PATH)
@store_option("Where the build's stages are: the test images with boxes come from there.")
@click.option(
    "--compare-paper",
    is_flag=True,
    help="For a sweep: also draw the paper's means, and answer its claims from its numbers.",
)
@click.option(
    "--machine",
    metavar="ID",
    help="For a sweep: the machine whose times to show, as rows.jsonl names it; default: the one with the most rows.",
)
def command(folder: Path, store: Path, compare_paper: bool, machine: str | None, as_json: bool) -> None:
    """Write report.html of a build's or a sweep's output folder.

    For a sweep, which has a rows.jsonl: from its rows only, with every table as CSV and LaTeX and every figure as PNG
    and SVG beside it. For a build: again, from its results.json and log.jsonl; the grid of test images is taken from
    the store, and if it is no longer there, the page is written without it.
    """
    if (folder / SWEEP_ROWS).is_file():
        report_sweep(folder, compare_paper, machine, as_json)
        return
    if compare_paper or machine is not None:
        option = "--compare-paper" if compare_paper else "--machine"
        raise ConfigError("is for the folder of a sweep", option, f"{folder} has no {SWEEP_ROWS}; leave it out")
    results = _read(folder / "results.json")
    if not results.get("models") or not results.get("configuration"):
        raise ConfigError("is not what a build writes", folder / "results.json", "run the build again")
    rows = read_log(folder / "log.jsonl")
    gallery = find_gallery(results, store)
    path = folder / "report.html"
    from prunedeploy.report.page import write_report

    with quiet_stdout():
        try:
            write_report(results, rows, gallery, path)
        except (KeyError, TypeError) as error:
            what = f"is not what a build writes ({type(error).__name__}: {error})"
            raise ConfigError(what, folder / "results.json", "run the build again") from error
    if as_json:
        print_json({"report": path, "gallery": gallery})
        return
    click.echo(path)
    if gallery is None:
        click.echo(f"without test images: {store} does not hold them (give --store)", err=True)


def report_sweep(folder: Path, compare_paper: bool, machine: str | None, as_json: bool) -> None:
    """Write the report of a study into its folder, from its rows."""
    from prunedeploy.study.report.page import write_report
    from prunedeploy.study.report.samples import samples_of
    from prunedeploy.study.rows.file import read_rows

    with quiet_stdout():
        found = read_rows(folder / SWEEP_ROWS)
        samples, doubts = samples_of(folder, found.rows)
        notes = (*found.notes, *doubts)
        written = write_report(
            found.rows,
            folder,
            title=_sweep_name(folder),
            machine=machine,
            compare_paper=compare_paper,
            notes=notes,
            samples=samples,
        )
    for note in notes:
        click.echo(note, err=True)
    if as_json:
        print_json(
            {"report": written.page, "tables": written.tables, "figures": written.figures, "rows": len(found.rows)}
        )
    else:
        click.echo(written.page)


def _sweep_name(folder: Path) -> str:
    """As the sweep has noted it beside its rows; rows that came without it go by their folder."""
    try:
        return str(json.loads((folder / "sweep.json").read_text(encoding="utf-8"))["name"])
    except (OSError, ValueError, TypeError, KeyError):
        return folder.resolve().name


def find_gallery(results: dict[str, Any], store: Path) -> Path | None:
    """Return the folder with the build's pictures; None if the store does not have it."""
    stage = (results.get("stages") or {}).get("gallery") or {}
    digest = stage.get("digest")
    folder = store / "results" / f"gallery-{digest}"
    return folder if digest and (folder / "gallery.json").is_file() else None


def read_log(path: Path) -> list[dict[str, Any]]:
    """Read a log of one JSON object per line; a missing one is empty.

    Raises:
        ConfigError: A line is something else.
    """
    if not path.is_file():
        return []
    return [_json_object(line, f"{path}:{number}") for number, line in enumerate(path.read_bytes().splitlines(), 1)]


def _read(path: Path) -> dict[str, Any]:
    try:
        return _json_object(path.read_bytes(), path)
    except OSError as error:
        fix = "give the output folder of a build that has ended"
        raise ConfigError(f"cannot be read ({error.strerror})", path, fix) from None


def _json_object(text: bytes, where: object) -> dict[str, Any]:
    try:
        document = json.loads(text)
    except ValueError:
        document = None
    if not isinstance(document, dict):
        raise ConfigError("is not a JSON object", where, "run the build again")
    return document
