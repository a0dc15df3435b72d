"""The report's tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from prunedeploy.report.format import (
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
    plain,
    rows_of,
    scaled,
)
from prunedeploy.report.words import (
    Results,
    runtime_name,
)
from prunedeploy_engines.markup.html import Html, Node, join, tag

Model = Mapping[str, Any]

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


def noisy_flag(summary: Model) -> Html | None:
    """The flag of a row whose samples vary too much."""
    return tag("small", " noisy", cls="warn") if summary.get("noisy") is True else None


def engines_table(results: Results) -> Html:
    """What was built for which device, and how it did."""
    rows = []
    for engine in rows_of(results.get("engines")):
        about: list[Node] = [
            runtime_name(engine.get("runtime")),
            plain(engine.get("target")),
            join(plain(engine.get("precision")), _left_in_fp32(engine)),
            _computed_in(engine),
        ]
        cells = [
            *(tag("td", one) for one in about),
            tag("td", _file(engine)),
            cell(scaled(engine.get("bytes"), "B")),
        ]
        latency = mapping(engine.get("latency_ms"))
        measured = [engine.get("map_clean"), engine.get("map_pgd_transfer"), latency.get("p50")]
        note = engine.get("note")
        if all(number(value) is None for value in measured):
            why = f"not measured here: {note}" if note else "not measured here: no reason was recorded"
            cells.append(tag("td", why, colspan=3, cls="wide"))
        else:
            why = f"not measured here: {note or 'no reason was recorded'}"
            cells += [cell(map_cell(value, why=why)) for value in measured[:2]]
            extra = tag("small", " p99 ", milliseconds(latency.get("p99")), cls="interval") if latency else None
            remark = tag("small", str(note), cls="remark") if note else None
            cells.append(cell(join(milliseconds(measured[2], why), noisy_flag(latency), extra, remark)))
        rows.append(tag("tr", *cells))
    if not rows:
        return tag("p", "No engine was built.", cls="note")
    head = [
        "Runtime",
        "Target",
        "Precision",
        "Computed in",
        "File",
        "Size",
        "mAP clean",
        "mAP PGD, transfer",
        "Latency, median",
    ]
    return table(head, rows, numbers=(5, 6, 7, 8))


def _computed_in(engine: Model) -> Node:
    """What the convolutions are really computed in, which is not always what the file says."""
    shares = mapping(engine.get("computes_in"))
    if not shares:
        return dash("not known: it was not run here")
    return ", ".join(f"{100 * (number(share) or 0):.0f} % {name}" for name, share in shares.items())


def _left_in_fp32(engine: Model) -> Html | None:
    """How many convolutions an int8 file leaves in fp32."""
    made = mapping(engine.get("quantisation"))
    counts = number(made.get("convolutions")), number(made.get("convolutions_in_all"))
    if counts[0] is None or counts[1] is None:
        return None
    return tag("small", f"{counts[0]:.0f} of {counts[1]:.0f} convolutions", cls="interval")


def _file(engine: Model) -> Node:
    """Its name; where it lies is said on hovering, since the figures beside it are what is read."""
    file = str(engine.get("file") or "")
    return tag("code", file.rpartition("/")[2], title=file, cls="file") if file else dash("no file was written")


def gates_table(results: Results) -> Html:
    """What each gate measured and what it allows."""
    rows = []
    for gate in rows_of(results.get("gates")):
        measured, allowed, on, passed = _GATES.get(str(gate.get("gate")), _other_gate)(gate)
        verdict = {True: ("passed", "good"), False: ("failed", "bad"), None: ("proves nothing", "warn")}[
            passed
        ]
        cells = [
            join(plain(gate.get("model")), _gate_artefact(gate)),
            plain(gate.get("gate")),
            measured,
            allowed,
            on,
            tag("span", verdict[0], cls=verdict[1]),
        ]
        rows.append(tag("tr", *(tag("td", one) for one in cells)))
    if not rows:
        return tag("p", "No gates were recorded.", cls="note")
    return table(["Network", "Gate", "Measured", "Allowed", "On", ""], rows)


def _gate_artefact(gate: Model) -> Node:
    """The file that a gate was for, and what ran it; nothing where that is the plain fp32 file."""
    parts = [str(gate[key]) for key in ("artefact", "runtime", "suppression") if gate.get(key)]
    return tag("small", ", ".join(parts), cls="interval") if parts else None


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
    return (
        join("mAP differs by ", _small(deviation), both),
        join("± ", plain(allowed)),
        "all test images",
        passed,
    )


def _pattern_gate(gate: Model) -> _Judged:
    broken, blocks = number(gate.get("broken")), number(gate.get("blocks"))
    measured = join(count(broken), " of ", count(blocks), " blocks have more")
    on = join(plain(gate.get("artefact")), ", ", count(gate.get("convolutions")), " convolutions")
    return measured, plain(gate.get("pattern")), on, None if broken is None or not blocks else broken == 0


def _other_gate(gate: Model) -> _Judged:
    return plain({key: value for key, value in gate.items() if key not in ("model", "gate")}), "", "", None


_GATES: dict[str, Callable[[Model], _Judged]] = {
    "tensor": _tensor_gate,
    "detections": _detections_gate,
    "map": _map_gate,
    "pattern": _pattern_gate,
}


def _small(value: float | None) -> Node:
    if value is None:
        return dash()
    return tag("span", "0" if value == 0 else f"{value:.1e}", cls="whole")


def _images(gate: Model) -> Node:
    return join(count(gate.get("images")), " images")


def stages_table(results: Results) -> Html:
    """Which stages made this, how long each took, and the digest of its result."""
    rows = []
    for name, stage in mapping(results.get("stages")).items():
        seconds, digest = number(look_up(stage, "seconds")), look_up(stage, "digest")
        shown: Node = dash("not known") if not digest else tag("code", str(digest)[:16], title=str(digest))
        rows.append(
            tag(
                "tr",
                tag("td", str(name)),
                cell(dash("not known") if seconds is None else f"{seconds:,.1f} s"),
                tag("td", shown),
            )
        )
    if not rows:
        return tag("p", "No stages were recorded.", cls="note")
    return table(["Stage", "Time when it was computed", "Digest of the result"], rows, numbers=(1,))


def values_list(
    document: object, names: Mapping[str, str] | None = None, leave_out: Sequence[str] = ()
) -> Html:
    """Keys and values of a mapping, nested ones with dotted keys.

    Args:
        document: The mapping.
        names: Keys that are named otherwise for people.
        leave_out: First keys not shown.
    """
    shown = []
    for key, value in flattened({k: v for k, v in mapping(document).items() if k not in leave_out}):
        label = (names or {}).get(key, key.replace("_", " "))
        shown.append(
            join(
                tag("dt", label),
                tag("dd", scaled(value, "B", "not known") if key.endswith("bytes") else plain(value)),
            )
        )
    return tag("dl", *shown) if shown else tag("p", "Nothing was recorded.", cls="note")
