"""The report's tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from prunedeploy.pipeline.report_format import (
    count,
    dash,
    fixed,
    flattened,
    look_up,
    map_cell,
    map_text,
    mapping,
    milliseconds,
    number,
    percent,
    plain,
    rows_of,
    scaled,
    three_digits,
)
from prunedeploy.pipeline.report_html import Html, Node, join, tag
from prunedeploy.pipeline.report_words import (
    Results,
    kept_interval,
    model_named,
    quotient,
    runtime_name,
    runtimes_of,
    why_not_measured,
)
from prunedeploy_engines.latency import achieved_gflops

Model = Mapping[str, Any]

MAPS = (
    ("map_clean", "mAP clean", True),
    ("map_pgd", "mAP under PGD", True),
    ("map50_clean", "mAP at IoU .50, clean", False),
    ("map50_pgd", "mAP at IoU .50, under PGD", False),
    ("map_clean_conf50", "mAP above score .5, clean", False),
    ("map_pgd_conf50", "mAP above score .5, under PGD", False),
)
NUMBER = "number"


def table(head: Sequence[Node], rows: Iterable[Html], *, numbers: Iterable[int] = ()) -> Html:
    """A table that scrolls sideways where the page is narrow; ``numbers`` are the columns set flush right."""
    right = set(numbers)
    cells = [tag("th", one, scope="col", cls=NUMBER if i in right else None) for i, one in enumerate(head)]
    return tag(
        "div", tag("table", tag("thead", tag("tr", *cells)), tag("tbody", *rows)), cls="scroll", tabindex="0"
    )


def cell(content: Node) -> Html:
    """A cell of numbers."""
    return tag("td", content, cls=NUMBER)


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
    return tag("tr", tag("th", name, scope="row"), *(cell(one) for one in cells), cls="main" if main else None)


def _group(name: Node, width: int) -> Html:
    return tag("tr", tag("th", name, colspan=width, scope="colgroup"), cls="group")


def _share(results: Results, both: bool, key: str) -> list[Node]:
    """Last column: pruned over robust, of a size."""
    if not both:
        return []
    return [percent(quotient(model_named(results, "pruned").get(key), model_named(results, "robust").get(key)))]


def _size_rows(results: Results, models: Sequence[Model], both: bool) -> list[Html]:
    rows = [_row("Parameters", [*(count(m.get("params")) for m in models), *_share(results, both, "params")])]
    if any(number(model.get("zero_weights")) for model in models):
        rows.append(
            _row("of them zero", [*(count(m.get("zero_weights")) for m in models), *([""] if both else [])])
        )
    rows.append(_row("MACs per image", [*(scaled(m.get("macs")) for m in models), *_share(results, both, "macs")]))
    onnx = [scaled(model.get("onnx_bytes"), "B") for model in models]
    rows.append(_row("ONNX file", [*onnx, *_share(results, both, "onnx_bytes")]))
    return rows


def _map_rows(results: Results, models: Sequence[Model], both: bool, width: int) -> list[Html]:
    images = sorted({int(n) for model in models if (n := number(model.get("n_images"))) is not None})
    on = f" on {' or '.join(f'{n:,}' for n in images)} test images" if images else ""
    rows = [_group(join("Accuracy", tag("small", f"{on}, with bootstrap intervals; IoU .50 to .95 unless stated")), width)]
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


def _latency_rows(results: Results, models: Sequence[Model], runtime: str, both: bool, width: int) -> list[Html]:
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
        cells: list[Node] = [milliseconds(summary.get(key), why) for summary in summaries]
        if both:
            cells.append(percent(quotient(pruned.get(key), robust.get(key))))
        rows.append(_row(name, cells, main=key == "p50"))
    empty: list[Node] = [""] if both else []
    faster = number(look_up(results, "speedup", runtime))
    if faster is not None:
        shown: list[Node] = [f"{three_digits(faster)} ×" if m.get("name") == "pruned" else "" for m in models]
        rows.append(_row("speed-up, original : pruned", [*shown, *empty], main=True))
    rows.append(_row("images/s", [*(_three(summary.get("images_per_s")) for summary in summaries), *empty]))
    rows.append(_row("GFLOP/s, share of the peak", [*_gflops(results, models, summaries), *empty]))
    rows.append(_row("calls, spread", [*(_spread(summary) for summary in summaries), *empty]))
    return rows


def _three(value: object) -> Html:
    found = number(value)
    return dash() if found is None else join(three_digits(found))


def _gflops(results: Results, models: Sequence[Model], summaries: Sequence[Model]) -> list[Node]:
    """Achieved at the median; two FLOPs per MAC."""
    peak = number(look_up(results, "latency_method", "peak_matmul_gflops"))
    shown: list[Node] = []
    for model, summary in zip(models, summaries, strict=True):
        macs, median, batch = number(model.get("macs")), number(summary.get("p50")), number(summary.get("batch")) or 1
        if macs is None or not median:
            shown.append(dash())
            continue
        reached = achieved_gflops(macs * batch, median)
        share = f", {100 * reached / peak:.0f} %" if peak else ", peak unknown"
        shown.append(f"{three_digits(reached)}{share}")
    return shown


def _spread(summary: Model) -> Node:
    """Number of calls and coefficient of variation, with a flag if it is noisy."""
    if not summary:
        return dash()
    flag = tag("span", " noisy", cls="warn") if summary.get("noisy") is True else None
    return join(count(summary.get("n")), ", CV ", fixed(summary.get("cv"), 2), flag)


def engines_table(results: Results) -> Html:
    """What was built for which device, and how it did."""
    rows = []
    for engine in rows_of(results.get("engines")):
        about: list[Node] = [runtime_name(engine.get("runtime")), plain(engine.get("target")), plain(engine.get("precision"))]
        cells = [*(tag("td", one) for one in about), tag("td", _file(engine)), cell(scaled(engine.get("bytes"), "B"))]
        latency = mapping(engine.get("latency_ms"))
        measured = [engine.get("map_clean"), engine.get("map_pgd_transfer"), latency.get("p50")]
        note = engine.get("note")
        if all(number(value) is None for value in measured):
            why = f"not measured here: {note}" if note else "not measured here: no reason was recorded"
            cells.append(tag("td", why, colspan=3, cls="wide"))
        else:
            why = f"not measured here: {note or 'no reason was recorded'}"
            cells += [cell(map_cell(value, why=why)) for value in measured[:2]]
            extra = tag("small", " p99 ", milliseconds(latency.get("p99"))) if latency else None
            noisy = tag("span", " noisy", cls="warn") if latency.get("noisy") is True else None
            remark = tag("small", str(note), cls="interval") if note else None
            cells.append(cell(join(milliseconds(measured[2], why), extra, noisy, remark)))
        rows.append(tag("tr", *cells))
    if not rows:
        return tag("p", "No engine was built.", cls="note")
    head = ["Runtime", "Target", "Precision", "File", "Size", "mAP clean", "mAP PGD, transfer", "Latency, median"]
    return table(head, rows, numbers=(4, 5, 6, 7))


def _file(engine: Model) -> Node:
    return tag("code", str(engine["file"])) if engine.get("file") else dash("no file was written")


def gates_table(results: Results) -> Html:
    """What each gate measured and what it allows."""
    rows = []
    for gate in rows_of(results.get("gates")):
        measured, allowed, on, passed = _GATES.get(str(gate.get("gate")), _other_gate)(gate)
        verdict = {True: ("passed", "good"), False: ("failed", "bad"), None: ("proves nothing", "warn")}[passed]
        cells = [plain(gate.get("model")), plain(gate.get("gate")), measured, allowed, on, tag("span", verdict[0], cls=verdict[1])]
        rows.append(tag("tr", *(tag("td", one) for one in cells)))
    if not rows:
        return tag("p", "No gates were recorded.", cls="note")
    return table(["Network", "Gate", "Measured", "Allowed", "On", ""], rows)


_Judged = tuple[Node, Node, Node, "bool | None"]


def _tensor_gate(gate: Model) -> _Judged:
    found = [number(gate.get(name)) for name in ("boxes", "scores")]
    allowed = number(gate.get("tolerance"))
    measured = join("boxes ", _small(found[0]), ", scores ", _small(found[1]))
    known = [value for value in found if value is not None]
    passed = None if allowed is None or len(known) < 2 else max(known) <= allowed
    return measured, join(_small(allowed), " of the largest value"), _images(gate), passed


def _detections_gate(gate: Model) -> _Judged:
    iou, difference = number(gate.get("min_iou")), number(gate.get("max_score_difference"))
    least, most = number(gate.get("allowed_iou")), number(gate.get("allowed_score_difference"))
    measured = join(
        "lowest IoU ", fixed(iou, 5, why="nothing was detected"),
        ", largest score difference ", _small(difference),
        f", {flips:.0f} coin flips of NMS" if (flips := number(gate.get("coin_flips"))) else None,
    )  # fmt: skip
    allowed = join("IoU ≥ ", plain(least), ", score ± ", plain(most))
    passed = None
    if None not in (iou, difference, least, most):
        passed = float(iou or 0) >= float(least or 0) and float(difference or 0) <= float(most or 0)
    return measured, allowed, join(count(gate.get("detections")), " detections, ", _images(gate)), passed


def _map_gate(gate: Model) -> _Judged:
    deviation, allowed = number(gate.get("deviation")), number(gate.get("tolerance"))
    reference, candidate = number(gate.get("reference")), number(gate.get("candidate"))
    both: Node = None
    if reference is not None and candidate is not None:
        both = f" ({map_text(reference)} to {map_text(candidate)})"
    passed = None if deviation is None or allowed is None or reference is None else abs(deviation) <= allowed
    return join("mAP differs by ", _small(deviation), both), join("± ", plain(allowed)), "all test images", passed


def _other_gate(gate: Model) -> _Judged:
    return plain({key: value for key, value in gate.items() if key not in ("model", "gate")}), "", "", None


_GATES: dict[str, Callable[[Model], _Judged]] = {
    "tensor": _tensor_gate,
    "detections": _detections_gate,
    "map": _map_gate,
}


def _small(value: float | None) -> Node:
    return dash() if value is None else ("0" if value == 0 else f"{value:.1e}")


def _images(gate: Model) -> Node:
    return join(count(gate.get("images")), " images")


def stages_table(results: Results) -> Html:
    """Which stages made this, how long each took, and the digest of its result."""
    rows = []
    for name, stage in mapping(results.get("stages")).items():
        seconds, digest = number(look_up(stage, "seconds")), look_up(stage, "digest")
        shown: Node = dash("not known") if not digest else tag("code", str(digest)[:16], title=str(digest))
        rows.append(
            tag("tr", tag("td", str(name)), cell(dash("not known") if seconds is None else f"{seconds:,.1f} s"), tag("td", shown))
        )
    if not rows:
        return tag("p", "No stages were recorded.", cls="note")
    return table(["Stage", "Time when it was computed", "Digest of the result"], rows, numbers=(1,))


def values_list(document: object, names: Mapping[str, str] | None = None, leave_out: Sequence[str] = ()) -> Html:
    """Keys and values of a mapping, nested ones with dotted keys.

    Args:
        document: The mapping.
        names: Keys that are named otherwise for people.
        leave_out: First keys not shown.
    """
    shown = []
    for key, value in flattened({k: v for k, v in mapping(document).items() if k not in leave_out}):
        label = (names or {}).get(key, key.replace("_", " "))
        shown.append(join(tag("dt", label), tag("dd", plain(value))))
    return tag("dl", *shown) if shown else tag("p", "Nothing was recorded.", cls="note")
