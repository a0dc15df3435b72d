"""The page of a benchmark: the pictures, every figure in a table, and what it ran on; one file, to look at."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from prunedeploy_engines.bench.document import Document, Row, measured_rows, varying
from prunedeploy_engines.bench.pictures.front import front_picture
from prunedeploy_engines.bench.pictures.latency import latency_picture
from prunedeploy_engines.bench.pictures.row_names import precision_in_words
from prunedeploy_engines.markup.svg import escaped, number_text

LATENCY, FRONT = "latency.svg", "robust-map.svg"

_STYLE = """
body { margin: 2rem auto; padding: 0 1rem; max-width: 84rem; color: #1b1f24; background: #fff;
  font: 15px/1.5 system-ui, "Segoe UI", Roboto, Helvetica, Arial, sans-serif; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.5rem; }
svg { width: 100%; height: auto; } figure { margin: 1.5rem 0; max-width: 66rem; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: .88rem; }
th, td { padding: .3rem .6rem; text-align: left; border-bottom: 1px solid #e3e7ec; white-space: nowrap; }
td.number { text-align: right; font-variant-numeric: tabular-nums; } .soft { color: #5a6472; }
"""
_SETTINGS = ("device", "runtime", "provider", "precision", "batch", "threads", "kind")
_LATENCY = (("p50", "median ms"), ("mean", "mean"), ("p90", "p90"), ("p95", "p95"), ("p99", "p99"), ("max", "max"))


def pictures(document: Document) -> dict[str, str]:
    """SVG files by their name: of latencies, and of latency against robust mAP where that is known."""
    rows = measured_rows(document)
    scenario = (document.get("scenario") or {}).get("name")
    title = "Latency of a server at its highest rate, queueing included" if scenario == "server" else "Latency per call"
    front = front_picture(rows)
    return {LATENCY: latency_picture(rows, title), **({} if front is None else {FRONT: front})}


def page(document: Document) -> str:
    """The HTML file's text."""
    figures = "".join(f"<figure>{svg}</figure>" for svg in pictures(document).values())
    parts = [
        "<h1>Benchmark</h1>",
        _lines(document.get("notes") or []),
        figures,
        "<h2>All rows</h2>",
        _table(document["rows"]),
        *(_layers(row) for row in document["rows"] if row.get("layers")),
        _machines(document),
        '<p class="soft">Every sample is in bench.json.</p>',
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>prunedeploy bench</title>'
        f"<style>{_STYLE}</style></head><body>\n{''.join(parts)}\n</body></html>\n"
    )


def _table(rows: Sequence[Row]) -> str:
    columns: list[tuple[str, Callable[[Row], Any]]] = [("model", lambda row: row["model"])]
    columns += [(key, _setting(key)) for key in _SETTINGS if key == "runtime" or varying(rows, (key,))]
    columns += [(title, _latency(key)) for key, title in _LATENCY]
    columns += [("images/s", _latency("images_per_s")), ("cv", _latency("cv")), ("n", _latency("n"))]
    for key, title in (
        ("gflops", "GFLOP/s"),
        ("fraction_of_peak", "of peak"),
        ("map_clean", "mAP"),
        ("map_pgd", "robust mAP"),
        ("energy_j_per_image", "J/image"),
    ):
        if any(row.get(key) is not None for row in rows):
            columns.append((title, _value(key)))
    if any(row.get("reason") for row in rows):
        columns.append(("not measured, since", _value("reason")))
    if any(row.get("notes") for row in rows):
        columns.append(("note", lambda row: "; ".join(row.get("notes") or [])))
    return _html_table([title for title, _ in columns], [[show(row) for _, show in columns] for row in rows])


def _setting(key: str) -> Callable[[Row], Any]:
    return precision_in_words if key == "precision" else _value(key)


def _value(key: str) -> Callable[[Row], Any]:
    return lambda row: row.get(key)


def _latency(key: str) -> Callable[[Row], Any]:
    return lambda row: (row.get("latency_ms") or {}).get(key)


def _layers(row: Row) -> str:
    title = ", ".join(filter(None, (row["model"], row.get("runtime"), precision_in_words(row))))
    cells = [[one["name"], one["kind"], one["precision"], one["mean_ms"], one["share"]] for one in row["layers"]]
    table = _html_table(["layer", "operator", "computes in", "mean ms", "share"], cells)
    return f"<h2>Layers that cost most: {escaped(title)}</h2>{table}"


def _machines(document: Document) -> str:
    machines: Mapping[str, Any] = document.get("machines") or {"": document.get("machine") or {}}
    lines = []
    for name, machine in machines.items():
        cpu = machine.get("cpu") or {}
        gpus = [gpu.get("name") for gpu in machine.get("gpus") or []]
        libraries = [f"{library} {version}" for library, version in (machine.get("libraries") or {}).items()]
        words = [cpu.get("name"), f"{cpu.get('usable_cpus')} CPUs", *gpus, machine.get("os"), *libraries]
        lines.append(f"{f'{name}: ' if name else ''}{', '.join(str(word) for word in words if word)}")
    return f"<h2>Machine{'s' * (len(lines) > 1)}</h2>{_lines(lines)}"


def _lines(lines: Iterable[str]) -> str:
    return "".join(f"<p>{escaped(line)}</p>" for line in lines)


def _html_table(titles: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    head = "".join(f"<th>{escaped(title)}</th>" for title in titles)
    body = "".join(f"<tr>{''.join(_cell(value) for value in row)}</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _cell(value: Any) -> str:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return f'<td class="number">{value if isinstance(value, int) else number_text(value)}</td>'
    return f"<td>{'' if value is None else escaped(str(value))}</td>"
