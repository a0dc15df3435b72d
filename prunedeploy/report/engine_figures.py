"""The report's table of what every engine leaves of mAP, clean and under attack, and how long it takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prunedeploy.report.format import (
    dash,
    interval,
    known,
    look_up,
    map_text,
    mapping,
    milliseconds,
    number,
    rows_of,
)
from prunedeploy.report.tables import noisy_flag
from prunedeploy.report.words import Results, runtime_name
from prunedeploy_engines.markup.html import Html, Node, join, tag
from prunedeploy_engines.markup.page import note, number_cell, table

Engine = Mapping[str, Any]


@dataclass(frozen=True)
class _Column:
    """A column, shown if an engine has its figure.

    Attributes:
        title: Its heading.
        figure: The figure that decides whether the column and, where it is the only one, a row has something to show.
        cell: What the cell shows; its second argument is the reason if nothing of the engine was measured.
        always: Shown in any case.
        says: What the heading means, for the note below.
    """

    title: str
    figure: Callable[[Engine], float | None]
    cell: Callable[[Engine, str], Node]
    always: bool = False
    says: str | None = None


_FEWER = "Where a figure is of fewer images than the clean one, their number stands below it."


def engine_figures_table(results: Results) -> Html | None:
    """A row for each engine, with the columns that have figures; None if no engine was built."""
    engines = rows_of(results.get("engines"))
    if not engines:
        return None
    columns = [one for one in _COLUMNS if one.always or any(one.figure(engine) is not None for engine in engines)]
    rows = []
    for engine in engines:
        target = "" if engine.get("target") in (None, "cpu") else f", {engine['target']}"
        name = join(runtime_name(engine.get("runtime")), f" {engine.get('precision') or '–'}{target}")
        why = f"not measured here: {engine.get('note') or 'no reason was recorded'}"
        if all(one.figure(engine) is None for one in columns):
            cells = [tag("td", why, colspan=len(columns), cls="wide")]
        else:
            cells = [number_cell(one.cell(engine, why)) for one in columns]
        rows.append(tag("tr", tag("td", name), *cells))
    said = " ".join([*(one.says for one in columns if one.says), *([_FEWER] if _is_of_fewer(engines) else [])])
    head = ["Engine", *(one.title for one in columns)]
    return join(table(head, rows, numbers=range(1, len(head))), note(said) if said else None)


def _within(engine: Engine, key: str) -> tuple[object, object]:
    """A figure, and of how many images it is if of fewer than ``map_clean``: then it is within a block of its own."""
    block = _IN_BLOCKS.get(key, "")
    if number(engine.get(key)) is not None or number(look_up(engine, block, key)) is None:
        return engine.get(key), None
    return look_up(engine, block, key), look_up(engine, block, "images")


def _is_of_fewer(engines: Sequence[Engine]) -> bool:
    return any(_within(engine, key)[1] is not None for engine in engines for key in _IN_BLOCKS)


def _map(title: str, key: str, always: bool = False, says: str | None = None) -> _Column:
    def cell(engine: Engine, why: str) -> Node:
        value, images = _within(engine, key)
        return join(known(value, map_text, _no_figure(engine, key, why)), _of_images(images))

    return _Column(title, lambda engine: number(_within(engine, key)[0]), cell, always, says)


def _of_images(images: object) -> Html | None:
    found = number(images)
    return None if found is None else tag("small", f"{found:,.0f} images", cls="interval")


def _no_figure(engine: Engine, key: str, why: str) -> str:
    """Why a file has no such figure; an adaptive one of fp32 is its parent's, and a twin may have failed its gates."""
    if not key.endswith("_adaptive"):
        return why
    if engine.get("precision") == "fp32":
        return "of an fp32 file it is the network's own"
    return str(look_up(engine, "adaptive", "why_not") or "not attacked")


def _lowest(engine: Engine) -> float | None:
    """Shown where more than transfer is known, of which it would be the same again."""
    return number(look_up(engine, "lowest", "map")) if {"adaptive", "square"} & set(engine) else None


def _lowest_cell(engine: Engine, why: str) -> Node:
    lowest = mapping(engine.get("lowest"))
    if number(lowest.get("map")) is None:
        return dash(why)
    ends, attack = interval(lowest.get("interval")), str(lowest.get("attack")).replace("_", " ")
    between = None if ends is None else tag("small", f"{map_text(ends[0])} to {map_text(ends[1])}", cls="interval")
    of = number(lowest.get("images"))
    by = attack if of is None else f"{attack}, {of:,.0f} images"
    return join(known(lowest["map"], map_text), between, tag("small", by, cls="interval"))


def _latency_cell(engine: Engine, why: str) -> Node:
    latency, remark = mapping(engine.get("latency_ms")), engine.get("note")
    late = tag("small", " p99 ", milliseconds(latency.get("p99")), cls="interval") if latency else None
    more = tag("small", str(remark), cls="remark") if remark else None
    return join(milliseconds(latency.get("p50"), why), noisy_flag(latency), late, more)


def _worst(engine: Engine) -> tuple[str, Mapping[str, Any]]:
    """What flooded an engine most, and that row."""
    name = str(look_up(engine, "flood", "worst"))
    return name, mapping(look_up(engine, "flood", "flooded", name))


def _flooded_cell(engine: Engine, why: str) -> Node:
    name, row = _worst(engine)
    if not row:
        return dash("not flooded")
    ratio, candidates = number(row.get("ratio")), number(look_up(row, "candidates", "mean"))
    by = join(
        "" if ratio is None else f"{ratio:.2f} × by {name}",
        "" if candidates is None else f", {candidates:,.0f} candidates",
    )
    return join(milliseconds(row.get("p99"), why), noisy_flag(row), tag("small", by, cls="interval"))


def _unflooded_cell(engine: Engine, why: str) -> Node:
    row = mapping(look_up(engine, "flood", "clean"))
    candidates = number(look_up(row, "candidates", "mean"))
    said = None if candidates is None else tag("small", f"{candidates:,.0f} candidates", cls="interval")
    return join(milliseconds(row.get("p99"), why if not row else "not flooded"), noisy_flag(row), said)


_IN_BLOCKS = {"map_pgd_adaptive": "adaptive", "map_square": "square", "mpc": "corruptions"}
"""Figures that are of fewer images if they stand within a block."""

_COLUMNS = (
    _map("mAP clean", "map_clean", always=True),
    _map("mAP PGD, transfer", "map_pgd_transfer", always=True),
    _map("mAP PGD, adaptive", "map_pgd_adaptive", says="Adaptive: made with a twin of the file, which has gradients."),
    _map("mAP Square", "map_square", says="Square: made by asking the engine itself, as a black box."),
    _Column(
        "mAP lowest",
        _lowest,
        _lowest_cell,
        says="Lowest: of all that was tried on the same images of this engine, with the name of what left it. Engines "
        "compare where the same was tried on them.",
    ),
    _map("mPC", "mpc", says="mPC: the mean of mAP under corruptions."),
    _Column(
        "Latency, median",
        lambda engine: number(look_up(engine, "latency_ms", "p50")),
        _latency_cell,
        always=True,
    ),
    _Column("p99 clean", lambda engine: number(look_up(engine, "flood", "clean", "p99")), _unflooded_cell),
    _Column(
        "p99 flooded",
        lambda engine: number(_worst(engine)[1].get("p99")),
        _flooded_cell,
        says="p99 clean and flooded: from an image in memory to its detections, in the same rounds; flooded is the "
        "largest of what was tried. Candidates: pairs of box and class above the file's score threshold, per image and "
        "before the bound on them.",
    ),
)
