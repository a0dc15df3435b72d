"""What `prunedeploy bench` shows on the terminal."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from prunedeploy.cli.output import MISSING, number, print_table

Row = Mapping[str, Any]

_SETTINGS = ("device", "runtime", "provider", "precision", "batch", "threads", "kind", "flood", "scenario")
_ALWAYS = ("runtime",)
_NOISY = "*"
_NOTED = "o"


def print_document(document: Mapping[str, Any], out: Path | None) -> None:
    """Print the table, what holds for all rows, and what there is to say about single ones."""
    from prunedeploy_engines.bench.document import varying
    from prunedeploy_engines.bench.pictures.row_names import row_labels, setting_words

    rows = document["rows"]
    shown = [key for key in _SETTINGS if key in _ALWAYS or key in varying(rows, _SETTINGS)]
    figures = _figures(rows)
    table = [[_name(row), *(setting(row, key) for key in shown), *(show(row) for _, show in figures)] for row in rows]
    print_table(["model", *shown, *(title for title, _ in figures)], table, left=1 + len(shown))
    click.echo()
    settings = [key for key in _SETTINGS if key not in shown and (key != "provider" or rows[0].get(key) != "cpu")]
    click.echo(f"all rows: {', '.join([*setting_words(rows[0], settings), *_images(rows)])}")
    for line in [*_scenarios(rows), *_peaks(document), *_marks(rows), *document.get("notes", [])]:
        click.echo(line)
    for row, label in zip(rows, row_labels(rows), strict=True):
        if row.get("layers"):
            _print_layers(row, label)
    _print_reasons(rows)
    if out is not None:
        click.echo(f"\n  {out / 'bench.html'}  to look at\n  {out / 'bench.json'}  every sample, for programs")


def _figures(rows: Sequence[Row]) -> list[tuple[str, Callable[[Row], str]]]:
    """Columns of figures: the heading and how to show a row's; those that no row has are left out."""
    scenarios = {row.get("scenario") for row in rows}
    latency: list[tuple[str, Callable[[Row], str]]] = [
        ("median ms", lambda row: _latency(row, "p50")),
        ("mean", lambda row: _latency(row, "mean")),
        ("p90", lambda row: _latency(row, "p90")),
        ("p99", lambda row: _latency(row, "p99")),
        ("queries/s" if "server" in scenarios else "images/s", lambda row: _latency(row, "images_per_s", 1)),
    ]
    optional: list[tuple[str, str, Callable[[Row], str]]] = [
        ("flood_ratio", "p99 / clean", lambda row: number(row.get("flood_ratio"), 2)),
        ("gflops", "GFLOP/s", lambda row: number(row.get("gflops"), 1)),
        ("fraction_of_peak", "of peak", lambda row: _percent(row.get("fraction_of_peak"))),
        ("map_clean", "mAP", lambda row: number(row.get("map_clean"))),
        ("map_pgd", "robust mAP", lambda row: number(row.get("map_pgd"))),
        ("energy_j_per_image", "J/image", lambda row: number(row.get("energy_j_per_image"), 3)),
    ]
    there = {key for row in rows for key in row if row.get(key) is not None}
    return [*latency, *((title, show) for key, title, show in optional if key in there)]


def setting(row: Row, key: str) -> str:
    """A cell: what was asked for; a precision with what it is really computed in, where that differs."""
    from prunedeploy_engines.bench.pictures.row_names import precision_in_words

    value = row.get(key)
    if key == "precision":
        return precision_in_words(row)
    if key == "flood":
        return str(value or "clean")
    if key == "kind":
        return str(value).replace("_", "-")
    return MISSING if value is None else str(value)


def _images(rows: Sequence[Row]) -> list[str]:
    images = next((row["images"] for row in rows if row.get("images")), None)
    if images is None:
        return []
    return ["random pixels" if images["source"] != "images" else f"{images['count']} images of {images['path']}"]


def _name(row: Row) -> str:
    latency = row.get("latency_ms") or {}
    marks = _NOISY * bool(latency.get("noisy")) + _NOTED * bool(row.get("notes"))
    best = " (best)" if row.get("scenario") == "offline" and row.get("best_batch") else ""
    return f"{row['model']}{best}{f' {marks}' if marks else ''}"


def _latency(row: Row, key: str, digits: int = 2) -> str:
    return number((row.get("latency_ms") or {}).get(key), digits)


def _percent(value: Any) -> str:
    return MISSING if value is None else f"{100 * value:.0f} %"


def _scenarios(rows: Sequence[Row]) -> list[str]:
    """What the figure of a scenario is, where it is not simply a latency."""
    lines = []
    if any(row.get("scenario") == "offline" for row in rows):
        lines.append("offline: the figure is images/s; (best) is the batch that gives most of them")
    bounds = {row["server"]["latency_bound_ms"] for row in rows if row.get("server")}
    return lines + [
        f"server: the highest rate of random queries at which at most 1 % are answered later than {bound:g} ms "
        "after they were due; the latencies are those at that rate, waiting included"
        for bound in sorted(bounds)
    ]


def _peaks(document: Mapping[str, Any]) -> list[str]:
    """What the runtimes reach on a MatMul, one line per precision and number of threads."""
    titles = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}
    peaks: dict[tuple[str, Any], list[str]] = {}
    for peak in document.get("peaks") or []:
        words = f"{peak['gflops']:.0f} with {titles.get(peak['runtime'], peak['runtime'])}"
        peaks.setdefault((peak["precision"], peak["threads"]), []).append(words)
    several = len({threads for _, threads in peaks}) > 1
    return [
        f"peak, GFLOP/s on a MatMul in the same run, {precision}{f', threads {threads}' * several}: {', '.join(words)}"
        for (precision, threads), words in peaks.items()
    ]


def _marks(rows: Sequence[Row]) -> list[str]:
    lines = []
    if any((row.get("latency_ms") or {}).get("noisy") for row in rows):
        advice = "close other programs, or measure longer"
        lines.append(f"{_NOISY} noisy: the coefficient of variation is above 0.1; {advice}")
    models: dict[str, dict[str, None]] = {}
    for row in rows:
        for note in row.get("notes") or []:
            models.setdefault(note, {})[row["model"]] = None
    lines += [f"{_NOTED} {', '.join(names)}: {note}" for note, names in models.items()]
    if any(row.get("latency_ms") and row.get("map_pgd") is not None for row in rows):
        lines.append("mAP and robust mAP (under PGD) are those that the bundle records")
    return lines


def _print_layers(row: Row, label: str) -> None:
    title = ", ".join(filter(None, (row["model"], label)))
    words = ("name", "kind", "precision")
    cells = [
        [*(one[key] or MISSING for key in words), number(one["mean_ms"]), _percent(one["share"])]
        for one in row["layers"]
    ]
    click.echo(f"\n{title}")
    print_table(["layer", "operator", "computes in", "mean ms", "share"], cells, left=3)


def _print_reasons(rows: Sequence[Row]) -> None:
    for reason in dict.fromkeys(row["reason"] for row in rows if row.get("reason")):
        click.echo(f"not measured: {reason}")
