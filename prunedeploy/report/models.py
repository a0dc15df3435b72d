"""The table that matters most: original, robust and pruned side by side."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from prunedeploy.report.format import (
    count,
    dash,
    fixed,
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
from prunedeploy.report.tables import Model, cell, noisy_flag, table
from prunedeploy.report.words import (
    Results,
    kept_interval,
    model_named,
    quotient,
    runtime_name,
    runtimes_of,
    why_not_measured,
)
from prunedeploy_engines.bench.latency import achieved_gflops
from prunedeploy_engines.markup.html import Html, Node, join, tag

MAPS = (
    ("map_clean", "mAP clean", True),
    ("map_pgd", "mAP under PGD", True),
    ("map50_clean", "mAP at IoU .50, clean", False),
    ("map50_pgd", "mAP at IoU .50, under PGD", False),
    ("map_clean_conf50", "mAP above score .5, clean", False),
    ("map_pgd_conf50", "mAP above score .5, under PGD", False),
)


def models_table(results: Results) -> Html:
    """The rows of the study side by side: one column per network."""
    models = rows_of(results.get("models"))
    if not models:
        return tag("p", "No network was measured.", cls="note")
    both = bool(model_named(results, "robust")) and bool(model_named(results, "pruned"))
    head = ["", *(str(model.get("name") or "unnamed") for model in models)]
    if both:
        head.append("pruned : robust")
    width = len(head)
    rows = [*_size_rows(results, models, both), *_map_rows(results, models, both, width)]
    for runtime in runtimes_of(results):
        rows += _latency_rows(results, models, runtime, both, width)
    return table(head, rows, numbers=range(1, width))


def _row(name: Node, cells: Iterable[Node], *, main: bool = False) -> Html:
    return tag(
        "tr", tag("th", name, scope="row"), *(cell(one) for one in cells), cls="main" if main else None
    )


def _group(name: Node, width: int) -> Html:
    return tag("tr", tag("th", name, colspan=width, scope="colgroup"), cls="group")


def _share(results: Results, both: bool, key: str) -> list[Node]:
    """Last column: pruned over robust, of a size."""
    if not both:
        return []
    return [
        percent(quotient(model_named(results, "pruned").get(key), model_named(results, "robust").get(key)))
    ]


def _size_rows(results: Results, models: Sequence[Model], both: bool) -> list[Html]:
    rows = [_row("Parameters", [*(count(m.get("params")) for m in models), *_share(results, both, "params")])]
    if any(number(model.get("zero_weights")) for model in models):
        rows.append(
            _row("of them zero", [*(count(m.get("zero_weights")) for m in models), *([""] if both else [])])
        )
    rows.append(
        _row("MACs per image", [*(scaled(m.get("macs")) for m in models), *_share(results, both, "macs")])
    )
    onnx = [scaled(model.get("onnx_bytes"), "B") for model in models]
    rows.append(_row("ONNX file", [*onnx, *_share(results, both, "onnx_bytes")]))
    return rows


def _map_rows(results: Results, models: Sequence[Model], both: bool, width: int) -> list[Html]:
    images = sorted({int(n) for model in models if (n := number(model.get("n_images"))) is not None})
    on = f" on {' or '.join(f'{n:,}' for n in images)} test images" if images else ""
    rows = [
        _group(
            join("Accuracy", tag("small", f"{on}, with bootstrap intervals; IoU .50 to .95 unless stated")),
            width,
        )
    ]
    for key, name, main in MAPS:
        cells: list[Node] = [map_cell(m.get(key), look_up(m, "intervals", key)) for m in models]
        if both:
            cells.append(_kept(results, key))
        rows.append(_row(name, cells, main=main))
    engine = (("map_clean_onnxruntime", "clean"), ("map_pgd_transfer_onnxruntime", "PGD, transfer"))
    for key, name in engine:
        if any(number(model.get(key)) is not None for model in models):
            cells = [*(map_cell(model.get(key)) for model in models), *([""] if both else [])]
            rows.append(_row(f"mAP of the ONNX file, {name}", cells))
    return rows


def _kept(results: Results, key: str) -> Node:
    """Last column: the share of the robust network's mAP, with its paired interval where there is one."""
    names = {"map_pgd": ("robust_map_kept", "map_pgd_kept"), "map_clean": ("map_clean_kept",)}.get(key, ())
    for name in names:
        value = number(look_up(results, "comparisons", name, "value"))
        if value is None:
            continue
        ends = kept_interval(results) if key == "map_pgd" else None
        if ends is None:
            low, high = (number(look_up(results, "comparisons", name, end)) for end in ("low", "high"))
            ends = None if low is None or high is None else (low, high)
        between = None if ends is None else f"{100 * ends[0]:.1f} to {100 * ends[1]:.1f} %"
        return join(percent(value), None if between is None else tag("small", between, cls="interval"))
    share = quotient(model_named(results, "pruned").get(key), model_named(results, "robust").get(key))
    return percent(share, why="not known: one of the two is missing, or the robust network's is 0")


def _latency_rows(
    results: Results, models: Sequence[Model], runtime: str, both: bool, width: int
) -> list[Html]:
    summaries = [mapping(look_up(model, "latency_ms", runtime)) for model in models]
    head = _group(f"Latency with {runtime_name(runtime)}", width)
    why = why_not_measured(results, runtime)
    if not any(summaries):
        return [head, tag("tr", tag("td", why, colspan=width, cls="wide"))]
    robust, pruned = (
        mapping(look_up(model_named(results, name), "latency_ms", runtime)) for name in ("robust", "pruned")
    )
    rows = [head]
    for key, name in (("p50", "median"), ("p90", "p90"), ("p99", "p99")):
        cells: list[Node] = [join(milliseconds(one.get(key), why), noisy_flag(one)) for one in summaries]
        if both:
            cells.append(percent(quotient(pruned.get(key), robust.get(key))))
        rows.append(_row(name, cells, main=key == "p50"))
    empty: list[Node] = [""] if both else []
    faster = number(look_up(results, "speedup", runtime))
    if faster is not None:
        flag = next((noisy_flag(one) for one in summaries if one.get("noisy") is True), None)
        speed = join(f"{three_digits(faster)} ×", flag)
        shown: list[Node] = [speed if m.get("name") == "pruned" else "" for m in models]
        rows.append(_row("speed-up, original : pruned", [*shown, *empty], main=True))
    rows.append(_row("images/s", [*(_three(summary.get("images_per_s")) for summary in summaries), *empty]))
    rows.append(_row("GFLOP/s, share of the peak", [*_gflops(_peak(results, runtime), models, summaries), *empty]))
    rows.append(_row("calls, spread", [*(_spread(summary) for summary in summaries), *empty]))
    return rows


def _three(value: object) -> Html:
    found = number(value)
    return dash() if found is None else join(three_digits(found))


def _peak(results: Results, runtime: str) -> float | None:
    """GFLOP/s of this very runtime on a large MatMul; of another one it would say nothing."""
    own = number(look_up(results, "latency_method", "peaks_matmul_gflops", runtime))
    if own is None and runtime == "onnxruntime":
        return number(look_up(results, "latency_method", "peak_matmul_gflops"))
    return own


def _gflops(peak: float | None, models: Sequence[Model], summaries: Sequence[Model]) -> list[Node]:
    """Achieved at the median; two FLOPs per MAC."""
    shown: list[Node] = []
    for model, summary in zip(models, summaries, strict=True):
        macs, median, batch = (
            number(model.get("macs")),
            number(summary.get("p50")),
            number(summary.get("batch")) or 1,
        )
        if macs is None or not median:
            shown.append(dash())
            continue
        reached = achieved_gflops(macs * batch, median)
        share = f", {100 * reached / peak:.0f} %" if peak else ", peak unknown"
        shown.append(f"{three_digits(reached)}{share}")
    return shown


def _spread(summary: Model) -> Node:
    """Number of calls and coefficient of variation."""
    if not summary:
        return dash()
    return join(count(summary.get("n")), ", CV ", fixed(summary.get("cv"), 2))
