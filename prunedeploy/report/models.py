"""The table that matters most: original, robust and pruned side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from prunedeploy.report.format import (
    count,
    dash,
    fixed,
    known,
    look_up,
    map_cell,
    mapping,
    milliseconds,
    number,
    percent,
    rows_of,
    scaled,
    three_digits,
)
from prunedeploy.report.tables import Model, noisy_flag
from prunedeploy.report.words import (
    Results,
    map_kept,
    model_named,
    quotient,
    runtime_name,
    runtimes_of,
    why_not_measured,
)
from prunedeploy_engines.bench.latency import achieved_gflops
from prunedeploy_engines.markup.html import Html, Node, join, tag
from prunedeploy_engines.markup.page import note, number_cell, table

MAPS = (
    ("map_clean", "mAP clean", True),
    ("map_pgd", "mAP under PGD", True),
    ("map50_clean", "mAP at IoU .50, clean", False),
    ("map50_pgd", "mAP at IoU .50, under PGD", False),
    ("map_clean_conf50", "mAP above score .5, clean", False),
    ("map_pgd_conf50", "mAP above score .5, under PGD", False),
)
MAPS_OF_FILES = (("map_clean_onnxruntime", "clean"), ("map_pgd_transfer_onnxruntime", "PGD, transfer"))


def models_table(results: Results) -> Html:
    """The rows of the study side by side: one column per network."""
    columns = _Columns(results)
    if not columns.models:
        return note("No network was measured.")
    names = [str(model.get("name") or "unnamed") for model in columns.models]
    head = ["", *names, *(["pruned : robust"] if columns.both else [])]
    rows = [*_size_rows(columns), *_map_rows(columns)]
    for runtime in runtimes_of(results):
        rows += _latency_rows(columns, runtime)
    return table(head, rows, numbers=range(1, len(head)))


class _Columns:
    """The table's columns: one per network, and where there are both one for pruned over robust."""

    def __init__(self, results: Results) -> None:
        self.results = results
        self.models = rows_of(results.get("models"))
        self.robust, self.pruned = model_named(results, "robust"), model_named(results, "pruned")
        self.both = bool(self.robust) and bool(self.pruned)
        self.width = 1 + len(self.models) + self.both

    def row(self, name: str, cells: Iterable[Node], share: Node = "", *, main: bool = False) -> Html:
        """A value of each network; in bold if it is one of the main ones."""
        shown = map(number_cell, [*cells, *([share] if self.both else [])])
        return tag("tr", tag("th", name, scope="row"), *shown, cls="main" if main else None)

    def values(self, key: str, show: Callable[[object], Node]) -> list[Node]:
        """One of the values in ``results.json``, as cells."""
        return [show(model.get(key)) for model in self.models]

    def size(self, name: str, key: str, show: Callable[[object], Node]) -> Html:
        """A row of which a share is left."""
        return self.row(name, self.values(key, show), percent(quotient(self.pruned.get(key), self.robust.get(key))))

    def group(self, name: Node) -> Html:
        """A heading of rows."""
        return tag("tr", tag("th", name, colspan=self.width, scope="colgroup"), cls="group")


def _size_rows(columns: _Columns) -> Iterator[Html]:
    yield columns.size("Parameters", "params", count)
    if any(number(model.get("zero_weights")) for model in columns.models):
        yield columns.row("of them zero", columns.values("zero_weights", count))
    yield columns.size("MACs per image", "macs", scaled)
    yield columns.size("ONNX file", "onnx_bytes", lambda value: scaled(value, "B"))


def _map_rows(columns: _Columns) -> Iterator[Html]:
    images = sorted({int(n) for model in columns.models if (n := number(model.get("n_images"))) is not None})
    on = f" on {' or '.join(f'{n:,}' for n in images)} test images" if images else ""
    more = f"{on}, with bootstrap intervals; IoU .50 to .95 unless stated"
    yield columns.group(join("Accuracy", tag("small", more)))
    for key, name, main in MAPS:
        cells = [map_cell(model.get(key), look_up(model, "intervals", key)) for model in columns.models]
        yield columns.row(name, cells, _kept(columns.results, key), main=main)
    for key, name in MAPS_OF_FILES:
        if any(number(model.get(key)) is not None for model in columns.models):
            yield columns.row(f"mAP of the ONNX file, {name}", columns.values(key, map_cell))


def _kept(results: Results, key: str) -> Node:
    """Last column: the share of the robust network's mAP, with its paired interval where there is one."""
    share, ends = map_kept(results, key)
    shown = percent(share, why="not known: one of the two is missing, or the robust network's is 0")
    if ends is None:
        return shown
    return join(shown, tag("small", f"{100 * ends[0]:.1f} to {100 * ends[1]:.1f} %", cls="interval"))


def _latency_rows(columns: _Columns, runtime: str) -> Iterator[Html]:
    results, models = columns.results, columns.models
    summaries = [mapping(look_up(model, "latency_ms", runtime)) for model in models]
    yield columns.group(f"Latency with {runtime_name(runtime)}")
    why = why_not_measured(results, runtime)
    if not any(summaries):
        yield tag("tr", tag("td", why, colspan=columns.width, cls="wide"))
        return
    robust, pruned = (mapping(look_up(model, "latency_ms", runtime)) for model in (columns.robust, columns.pruned))
    for key, name in (("p50", "median"), ("p90", "p90"), ("p99", "p99")):
        cells = [join(milliseconds(one.get(key), why), noisy_flag(one)) for one in summaries]
        yield columns.row(name, cells, percent(quotient(pruned.get(key), robust.get(key))), main=key == "p50")
    faster = number(look_up(results, "speedup", runtime))
    if faster is not None:
        flag = next((noisy_flag(one) for one in summaries if one.get("noisy") is True), None)
        speed = join(f"{three_digits(faster)} ×", flag)
        shown = [speed if model.get("name") == "pruned" else "" for model in models]
        yield columns.row("speed-up, original : pruned", shown, main=True)
    yield columns.row("images/s", [known(one.get("images_per_s"), three_digits) for one in summaries])
    yield columns.row("GFLOP/s, share of the peak", _gflops(_peak(results, runtime), models, summaries))
    yield columns.row("calls, spread", map(_spread, summaries))


def _peak(results: Results, runtime: str) -> float | None:
    """GFLOP/s of this very runtime on a large MatMul; of another one it would say nothing."""
    own = number(look_up(results, "latency_method", "peaks_matmul_gflops", runtime))
    if own is None and runtime == "onnxruntime":
        return number(look_up(results, "latency_method", "peak_matmul_gflops"))
    return own


def _gflops(peak: float | None, models: Sequence[Model], summaries: Sequence[Model]) -> Iterator[Node]:
    """Achieved at the median; two FLOPs per MAC."""
    for model, summary in zip(models, summaries, strict=True):
        macs, median = number(model.get("macs")), number(summary.get("p50"))
        if macs is None or not median:
            yield dash()
            continue
        reached = achieved_gflops(macs * (number(summary.get("batch")) or 1), median)
        share = f"{100 * reached / peak:.0f} %" if peak else "peak unknown"
        yield f"{three_digits(reached)}, {share}"


def _spread(summary: Model) -> Node:
    """Number of calls and coefficient of variation."""
    return join(count(summary.get("n")), ", CV ", fixed(summary.get("cv"), 2)) if summary else dash()
