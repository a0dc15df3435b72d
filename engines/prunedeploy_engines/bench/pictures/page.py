"""The page of a benchmark: the pictures, every figure in a table, and what it ran on; one file, to look at."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from prunedeploy_engines.bench.document import Document, Row, measured_rows, varying
from prunedeploy_engines.bench.pictures.front import front_picture
from prunedeploy_engines.bench.pictures.latency import latency_picture
from prunedeploy_engines.bench.pictures.row_names import precision_in_words
from prunedeploy_engines.markup import page as kit
from prunedeploy_engines.markup.html import Html, Node, join, tag
from prunedeploy_engines.markup.scales import number_text

LATENCY, FRONT = "latency.svg", "robust-map.svg"

_STYLE = """
body { max-width: 84rem; } figure { margin: 1.5rem 0; max-width: 66rem; }
table { width: auto; font-size: .88rem; } th, td { white-space: nowrap; }
"""
_SETTINGS = ("device", "runtime", "provider", "precision", "batch", "threads", "kind", "flood")
_LATENCY = {
    "p50": "median ms", "mean": "mean", "p90": "p90", "p95": "p95", "p99": "p99", "max": "max",
    "images_per_s": "images/s", "cv": "cv", "n": "n",
}  # fmt: skip
_MORE = {
    "gflops": "GFLOP/s",
    "fraction_of_peak": "of peak",
    "map_clean": "mAP",
    "map_pgd": "robust mAP",
    "energy_j_per_image": "J/image",
    "reason": "not measured, since",
}


def pictures(document: Document) -> dict[str, str]:
    """SVG files by their name: of latencies, and of latency against robust mAP where that is known."""
    rows = measured_rows(document)
    scenario = (document.get("scenario") or {}).get("name")
    title = "Latency of a server at its highest rate, queueing included" if scenario == "server" else "Latency per call"
    front = front_picture(rows)
    return {LATENCY: latency_picture(rows, title), **({} if front is None else {FRONT: front})}


def page(document: Document) -> str:
    """The HTML file's text."""
    return kit.document(
        "prunedeploy bench",
        tag("h1", "Benchmark"),
        _lines(document.get("notes") or []),
        (tag("figure", Html(svg)) for svg in pictures(document).values()),
        tag("h2", "All rows"),
        _table(document["rows"]),
        (_layers(row) for row in document["rows"] if row.get("layers")),
        _machines(document),
        kit.note("Every sample is in bench.json."),
        style=_STYLE,
    )


def _table(rows: Sequence[Row]) -> Html:
    columns: dict[str, list[Any]] = {"model": [row["model"] for row in rows]}
    for key in _SETTINGS:
        if key == "runtime" or varying(rows, (key,)):
            columns[key] = [precision_in_words(row) if key == "precision" else row.get(key) for row in rows]
    for key, title in _LATENCY.items():
        columns[title] = [(row.get("latency_ms") or {}).get(key) for row in rows]
    for key, title in _MORE.items():
        if any(row.get(key) is not None for row in rows):
            columns[title] = [row.get(key) for row in rows]
    if any(row.get("notes") for row in rows):
        columns["note"] = ["; ".join(row.get("notes") or []) for row in rows]
    return _table_of(columns)


def _table_of(columns: Mapping[str, Sequence[Any]]) -> Html:
    """Values by the headings of their columns; those of numbers are flush right."""
    numbers = [i for i, values in enumerate(columns.values()) if any(isinstance(one, (int, float)) for one in values)]
    rows = [[_shown(value) for value in row] for row in zip(*columns.values(), strict=True)]
    return kit.table(list(columns), rows, numbers=numbers)


def _shown(value: Any) -> Node:
    if isinstance(value, float):
        return number_text(value)
    return None if value is None else str(value)


def _layers(row: Row) -> Html:
    title = ", ".join(filter(None, (row["model"], row.get("runtime"), precision_in_words(row))))
    names = {
        "layer": "name", "operator": "kind", "computes in": "precision", "mean ms": "mean_ms", "share": "share",
    }  # fmt: skip
    table = _table_of({heading: [layer[key] for layer in row["layers"]] for heading, key in names.items()})
    return join(tag("h2", f"Layers that cost most: {title}"), table)


def _machines(document: Document) -> Html:
    machines: Mapping[str, Any] = document.get("machines") or {"": document.get("machine") or {}}
    lines = []
    for name, machine in machines.items():
        cpu = machine.get("cpu") or {}
        gpus = [gpu.get("name") for gpu in machine.get("gpus") or []]
        libraries = [f"{library} {version}" for library, version in (machine.get("libraries") or {}).items()]
        words = [cpu.get("name"), f"{cpu.get('usable_cpus')} CPUs", *gpus, machine.get("os"), *libraries]
        lines.append(f"{f'{name}: ' if name else ''}{', '.join(str(word) for word in words if word)}")
    return join(tag("h2", f"Machine{'s' * (len(lines) > 1)}"), _lines(lines))


def _lines(lines: Iterable[str]) -> list[Html]:
    return [tag("p", line) for line in lines]
