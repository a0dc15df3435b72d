"""The report's tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from prunedeploy.report.format import (
    count,
    dash,
    fixed,
    flattened,
    known,
    look_up,
    map_text,
    mapping,
    number,
    plain,
    rows_of,
    scaled,
    small,
)
from prunedeploy.report.words import Results, runtime_name
from prunedeploy_engines.markup.html import Html, Node, join, tag, text
from prunedeploy_engines.markup.page import note, table

Model = Mapping[str, Any]


def noisy_flag(summary: Model) -> Html | None:
    """The flag of a row whose samples vary too much."""
    return tag("small", " noisy", cls="warn") if summary.get("noisy") is True else None


def engines_table(results: Results) -> Html:
    """What was built for which device."""
    rows: list[list[Node]] = [
        [
            runtime_name(engine.get("runtime")),
            plain(engine.get("target")),
            join(plain(engine.get("precision")), _left_in_fp32(engine)),
            _computed_in(engine),
            _file(engine),
            scaled(engine.get("bytes"), "B"),
        ]
        for engine in rows_of(results.get("engines"))
    ]
    if not rows:
        return note("No engine was built.")
    return table(["Runtime", "Target", "Precision", "Computed in", "File", "Size"], rows, numbers=(5,))


def _computed_in(engine: Model) -> Node:
    """What the convolutions are really computed in, which is not always what the file says."""
    shares = mapping(engine.get("computes_in"))
    if not shares:
        return dash("not known: it was not run here")
    return ", ".join(f"{100 * (number(share) or 0):.0f} % {name}" for name, share in shares.items())


def _left_in_fp32(engine: Model) -> Html | None:
    """How many convolutions of an int8 file are so, and for how long its weights were trained apart from the others."""
    made = mapping(engine.get("quantisation"))
    kept, convolutions = number(made.get("convolutions")), number(made.get("convolutions_in_all"))
    if kept is None or convolutions is None:
        return None
    steps = number(made.get("trained_steps"))
    own = f", its own weights, trained for {steps:,.0f} steps" if steps else ""
    return tag("small", f"{kept:.0f} of {convolutions:.0f} convolutions{own}", cls="interval")


def _file(engine: Model) -> Node:
    """Its name; where it lies is said on hovering, since the figures beside it are what is read."""
    file = str(engine.get("file") or "")
    return tag("code", file.rpartition("/")[2], title=file, cls="file") if file else dash("no file was written")


def gates_table(results: Results) -> Html:
    """What each gate measured and what it allows."""
    rows = []
    for gate in rows_of(results.get("gates")):
        judge = _failed_gate if gate.get("passed") is False else _GATES.get(str(gate.get("gate")), _other_gate)
        measured, allowed, on, passed = judge(gate)
        verdict, kind = {True: ("passed", "good"), False: ("failed", "bad"), None: ("proves nothing", "warn")}[passed]
        network = join(plain(gate.get("model")), _gate_artefact(gate))
        rows.append([network, plain(gate.get("gate")), measured, allowed, on, tag("span", verdict, cls=kind)])
    if not rows:
        return note("No gates were recorded.")
    return table(["Network", "Gate", "Measured", "Allowed", "On", ""], rows)


def _gate_artefact(gate: Model) -> Node:
    """The file that a gate was for, and what ran it; nothing where that is the plain fp32 file."""
    parts = [str(gate[key]) for key in ("artefact", "runtime", "suppression") if gate.get(key)]
    parts += ["against its own weights in fp32"] if gate.get("parent") == "qat" else []
    return tag("small", ", ".join(parts), cls="interval") if parts else None


_Judged = tuple[Node, Node, Node, "bool | None"]


def _tensor_gate(gate: Model) -> _Judged:
    found = [number(gate.get(name)) for name in ("boxes", "scores")]
    allowed = number(gate.get("tolerance"))
    measured = join("boxes ", small(found[0]), ", scores ", small(found[1]))
    measurements = [value for value in found if value is not None]
    share = _share(gate, "within", " of the predictions within that")
    passed = None if allowed is None or len(measurements) < 2 else max(measurements) <= allowed or share is not None
    return join(measured, share), join(small(allowed), " of the largest value"), _images(gate), passed


def _detections_gate(gate: Model) -> _Judged:
    iou, difference = number(gate.get("min_iou")), number(gate.get("max_score_difference"))
    least, most = number(gate.get("allowed_iou")), number(gate.get("allowed_score_difference"))
    measured = join(
        "lowest IoU ", fixed(iou, 5, why="nothing was detected"),
        ", largest score difference ", small(difference),
        f", {flips:.0f} coin flips of NMS" if (flips := number(gate.get("coin_flips"))) else None,
        _share(gate, "matched_share", " matched"),
    )  # fmt: skip
    allowed = join("IoU ≥ ", plain(least), ", score ± ", plain(most))
    passed = None
    if iou is not None and difference is not None and least is not None and most is not None:
        passed = iou >= least and difference <= most
    return measured, allowed, join(count(gate.get("detections")), " detections, ", _images(gate)), passed


def _share(gate: Model, key: str, words: str) -> Html | None:
    """How many fit, for a gate that asks for a share of what it compares; nothing if it was all of them."""
    share, least = number(gate.get(key)), number(gate.get("allowed_share"))
    if share is None or least is None or share == 1:
        return None
    return text(f", {100 * share:.1f} %{words} (at least {100 * least:g} %)")


def _map_gate(gate: Model) -> _Judged:
    deviation, allowed = number(gate.get("deviation")), number(gate.get("tolerance"))
    reference, candidate = number(gate.get("reference")), number(gate.get("candidate"))
    both = None
    if reference is not None and candidate is not None:
        both = f" ({map_text(reference)} to {map_text(candidate)})"
    one_sided = gate.get("may_gain") is True
    passed = None
    if deviation is not None and allowed is not None and reference is not None:
        passed = (-deviation if one_sided else abs(deviation)) <= allowed
    limit = join("≥ −" if one_sided else "± ", plain(allowed))
    return join("mAP differs by ", small(deviation), both), limit, "all test images", passed


def _pattern_gate(gate: Model) -> _Judged:
    broken, blocks = number(gate.get("broken")), number(gate.get("blocks"))
    measured = join(count(broken), " of ", count(blocks), " blocks have more")
    on = join(plain(gate.get("artefact")), ", ", count(gate.get("convolutions")), " convolutions")
    return measured, plain(gate.get("pattern")), on, None if broken is None or not blocks else broken == 0


def _twin_gate(gate: Model) -> _Judged:
    values, apart, heads, allowed = (
        number(gate.get(name)) for name in ("values", "a_step_apart", "heads", "tolerance")
    )
    measured = join(count(apart), " of ", count(values), " values a step apart, heads ", small(heads))
    passed = None if heads is None or allowed is None else heads <= allowed
    return measured, join("0.1 %, heads ", small(allowed), " of the largest value"), _images(gate), passed


def _other_gate(gate: Model) -> _Judged:
    return plain({key: value for key, value in gate.items() if key not in ("model", "gate")}), "", "", None


def _failed_gate(gate: Model) -> _Judged:
    return plain(gate.get("reason")), "", "", False


_GATES: dict[str, Callable[[Model], _Judged]] = {
    "tensor": _tensor_gate,
    "detections": _detections_gate,
    "map": _map_gate,
    "pattern": _pattern_gate,
    "twin": _twin_gate,
}


def _images(gate: Model) -> Node:
    return join(count(gate.get("images")), " images")


def stages_table(results: Results) -> Html:
    """Which stages made this, how long each took, and the digest of its result."""
    rows: list[list[Node]] = []
    for name, stage in mapping(results.get("stages")).items():
        seconds, digest = known(look_up(stage, "seconds"), "{:,.1f} s".format, "not known"), look_up(stage, "digest")
        shown = tag("code", str(digest)[:16], title=str(digest)) if digest else dash("not known")
        rows.append([str(name), seconds, shown])
    if not rows:
        return note("No stages were recorded.")
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
        said = scaled(value, "B", "not known") if key.endswith("bytes") else plain(value)
        shown += [tag("dt", label), tag("dd", said)]
    return tag("dl", *shown) if shown else note("Nothing was recorded.")
