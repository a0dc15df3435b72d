"""``report.html``: what a build did, in one file that needs nothing else.

Every number comes from ``results.json``; this only says it in words, tables and charts. Charts are inline
SVG, pictures are embedded, there are no scripts, and nothing is loaded from anywhere.

- `words`: the headline, and what the numbers do not say.
- `models`, `tables`, `figures`, `pruning`: what is shown.
- `charts`, `format`, `prunedeploy_engines.markup.html`, `style`: how.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prunedeploy.report.figures import (
    curves,
    gallery_figure,
    latency_chart,
    map_chart,
)
from prunedeploy.report.format import look_up, mapping, number, three_digits, without_nan
from prunedeploy.report.models import models_table
from prunedeploy.report.pruning import pruning_section
from prunedeploy.report.search import search_section
from prunedeploy.report.style import STYLE
from prunedeploy.report.tables import (
    engines_table,
    gates_table,
    stages_table,
    values_list,
)
from prunedeploy.report.words import (
    Results,
    caveats,
    headline,
    is_noisy,
    kept_interval,
    method_name,
    model_named,
    quotient,
    runtime_name,
)
from prunedeploy_engines.files import write_atomically
from prunedeploy_engines.markup.html import Html, Node, join, tag

ATTACK_NAMES = {
    "eps": "radius (L-inf, pixels in [0, 1])",
    "step_size": "step size",
    "random_start": "random start",
    "iterate": "iterate reported of each image",
}
ENVIRONMENT_KEYS = (
    "cpu",
    "memory_bytes",
    "gpus",
    "os",
    "python",
    "prunedeploy",
    "libraries",
    "training_device",
    "training_threads",
)


def write_report(
    results: dict[str, Any], log_rows: list[dict[str, Any]], gallery: Path | None, path: Path
) -> None:
    """Write the report of a build.

    Args:
        results: The document of ``results.json``. Any key may be missing and any value null: what is not
            known is shown as not known.
        log_rows: Rows of ``log.jsonl``: ``stage``, ``step``, ``lr``, ``loss`` and its terms.
        gallery: Folder with ``gallery.json`` and PNG files with boxes drawn; None: no pictures.
        path: The HTML file, written atomically.

    Raises:
        StoreError: The file cannot be written.
    """
    write_atomically(path, report_html(results, log_rows, gallery).encode("utf-8"))


def report_html(results: Results, log_rows: Sequence[Mapping[str, Any]], gallery: Path | None = None) -> str:
    """Return the report as text; arguments as for `write_report`."""
    results = mapping(without_nan(results))
    name = str(results.get("name") or "a build")
    search = search_section(results)
    sections = [
        ("rows", "Original, robust, pruned", _comparison(results)),
        *([] if search is None else [("search", "How the ratio was found", search)]),
        ("limits", "What these numbers do not say", _limits(results)),
        ("engines", "Engines", _engines(results)),
        ("pruning", "What was cut", pruning_section(results)),
        ("training", "Training", curves(log_rows)),
        ("pictures", "Test images, clean and attacked", gallery_figure(gallery)),
        ("method", "How it was measured", _method(results)),
        ("all", "Everything", _everything(results)),
    ]
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", f"prunedeploy: {name}"),
        tag("style", Html(STYLE)),
    )
    body = tag(
        "body",
        tag("header", tag("h1", f"prunedeploy: {name}"), *_origin(results)),
        tag("p", headline(results), cls="headline"),
        _tiles(results),
        tag("nav", *(join(tag("a", title, href=f"#{anchor}"), " ") for anchor, title, _ in sections)),
        tag(
            "main",
            *(tag("section", tag("h2", title), content, id=anchor) for anchor, title, content in sections),
        ),
    )
    return f"<!DOCTYPE html>\n{tag('html', head, body, lang='en')}\n"


def _origin(results: Results) -> list[Html]:
    """What was built, from what, when, and how."""
    made = []
    ratio, method, scores = (results.get(key) for key in ("ratio_requested", "method", "scores"))
    if number(ratio) is not None:
        made.append(f"ratio {ratio:g}")
    made += [method_name(results)] if method else []
    made += [f"scores {scores}"] if scores else []
    made += [f"seed {results['seed']}"] if results.get("seed") is not None else []
    network, weights = (look_up(results, "configuration", "model", key) for key in ("cfg", "weights"))
    if network:
        made.append(f"from {network}" + (f" with weights {weights}" if weights else ""))
    if data := look_up(results, "data", "path"):
        made.append(f"on data {data}")
    version = look_up(results, "environment", "prunedeploy")
    written = f"Written {results['created']}" if results.get("created") else "Written at an unknown time"
    by = f" by prunedeploy {version}" if version else ""
    lines = [tag("p", ", ".join(made), cls="about")] if made else []
    command: Node = None
    if results.get("command"):
        command = join(" with ", tag("code", str(results["command"])))
    return [*lines, tag("p", written, by, command, cls="about")]


def _tiles(results: Results) -> Html | None:
    """The four figures that matter most, as far as they are known."""
    robust, pruned = model_named(results, "robust"), model_named(results, "pruned")
    tiles = []
    kept = number(look_up(results, "comparisons", "robust_map_kept", "value"))
    if kept is None:
        kept = number(look_up(results, "comparisons", "map_pgd_kept", "value"))
    if kept is None:
        kept = quotient(pruned.get("map_pgd"), robust.get("map_pgd"))
    if kept is not None:
        ends = kept_interval(results)
        between = "no interval" if ends is None else f"interval {100 * ends[0]:.0f} to {100 * ends[1]:.0f} %"
        tiles.append(("robust mAP kept", f"{100 * kept:.0f} %", f"pruned : robust, under PGD; {between}"))
    for key, name in (("params", "fewer parameters"), ("macs", "fewer MACs")):
        factor = quotient(robust.get(key), pruned.get(key))
        if factor is not None:
            numbers = (f"{number(model.get(key)):,.0f}" for model in (robust, pruned))
            tiles.append((name, f"{three_digits(factor)} ×", " to ".join(numbers)))
    for runtime, value in mapping(results.get("speedup")).items():
        factor = number(value)
        if factor is not None:
            noisy = "; noisy" if is_noisy(results, runtime) else ""
            tiles.append(
                ("speed-up", f"{three_digits(factor)} ×", f"{runtime_name(runtime)}, median latency{noisy}")
            )
    if not tiles:
        return None
    shown = (
        tag("div", tag("span", name, cls="name"), tag("b", big), tag("span", more), cls="tile")
        for name, big, more in tiles
    )
    return tag("div", *shown, cls="tiles")


def _comparison(results: Results) -> Html:
    charts = [chart for chart in (map_chart(results), latency_chart(results)) if chart is not None]
    explained = tag(
        "p",
        "Original is the network as given, robust the same after adversarial training, pruned what comes "
        "out. PGD images are made with the gradients of the very network under test; for an ONNX file they "
        "come from its PyTorch parent (transfer).",
        cls="note",
    )
    return join(tag("div", *charts, cls="grid") if charts else None, models_table(results), explained)


def _limits(results: Results) -> Html:
    found = caveats(results)
    if not found:
        return tag("p", "Nothing was recorded that they could be judged by.", cls="note")
    return tag("ul", *(tag("li", one) for one in found), cls="plain")


def _engines(results: Results) -> Html:
    gates = tag(
        "p",
        "What an exported file has to pass before it is written into the bundle: its outputs, its detections "
        "after NMS and its mAP, against those of the PyTorch network.",
        cls="note",
    )
    some = bool(results.get("gates"))
    return join(engines_table(results), tag("h3", "Gates"), gates if some else None, gates_table(results))


def _method(results: Results) -> Html:
    environment = mapping(results.get("environment"))
    machine = {key: environment[key] for key in ENVIRONMENT_KEYS if key in environment}
    seeds = {"seed": results.get("seed"), **mapping(look_up(results, "configuration", "evaluation"))}
    cards: list[tuple[str, Html]] = [
        ("Attack", values_list(results.get("attack"), ATTACK_NAMES)),
        ("Data", values_list(results.get("data"))),
        ("Evaluation and seed", values_list(seeds)),
        ("Latency", values_list(results.get("latency_method"), leave_out=("machine",))),
        ("Machine", values_list(machine)),
    ]
    shown = (tag("div", tag("h3", title), content, cls="card") for title, content in cards)
    noisy = tag(
        "p",
        "Latency rows whose coefficient of variation (CV) is above 0.1 are marked noisy; no sample is left "
        "out. GFLOP/s are at the median, with two FLOPs per MAC; the peak is what the same runtime reaches on a "
        "large MatMul. Intervals are percentile bootstraps over test images, for pruned : robust over the "
        "same resamples of both.",
        cls="note",
    )
    return join(tag("div", *shown, cls="cards"), noisy)


def _everything(results: Results) -> Html:
    rest = {key: value for key, value in results.items() if key != "configuration"}
    return join(
        tag("details", tag("summary", "Stages"), stages_table(results)),
        tag("details", tag("summary", "The full configuration"), _json(results.get("configuration"))),
        tag("details", tag("summary", "results.json, without the configuration"), _json(rest)),
    )


def _json(document: object) -> Html:
    return tag("pre", json.dumps(document, indent=2, ensure_ascii=False))
