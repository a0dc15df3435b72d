"""``report.html``: what a build did, in one file that needs nothing else.

Every number comes from ``results.json``; this only says it in words, tables and charts. Charts are inline
SVG, pictures are embedded, there are no scripts, and nothing is loaded from anywhere.

- `words`: the headline, and what the numbers do not say.
- `models`, `tables`, `engine_figures`, `delivery`, `figures`, `pruning`, `search`, `robustness`, `corruptions`,
  `training`, `gallery`: what is shown.
- `format`, `prunedeploy_engines.markup`: how.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from prunedeploy.report.corruptions import corruptions_section
from prunedeploy.report.delivery import left_out_list, operating_points_table
from prunedeploy.report.engine_figures import engine_figures_table
from prunedeploy.report.figures import latency_chart, map_chart
from prunedeploy.report.format import look_up, mapping, number, three_digits, without_nan
from prunedeploy.report.gallery import gallery_figure
from prunedeploy.report.models import models_table
from prunedeploy.report.pruning import pruning_section
from prunedeploy.report.robustness import robustness_section
from prunedeploy.report.search import search_section
from prunedeploy.report.tables import engines_table, gates_table, stages_table, values_list
from prunedeploy.report.training import curves
from prunedeploy.report.words import (
    Results,
    between,
    caveats,
    headline,
    is_noisy,
    map_kept,
    method_name,
    model_named,
    quotient,
    runtime_name,
)
from prunedeploy_engines.files import write_atomically
from prunedeploy_engines.markup.html import Html, Node, join, tag
from prunedeploy_engines.markup.page import bullets, details, document, note, sections, tiles

ATTACK_NAMES = {
    "eps": "radius (L-inf, pixels in [0, 1])",
    "step_size": "step size",
    "random_start": "random start",
    "iterate": "iterate reported of each image",
}
ENVIRONMENT_KEYS = "cpu memory_bytes gpus os python prunedeploy libraries training_device training_threads".split()


def write_report(results: dict[str, Any], log_rows: list[dict[str, Any]], gallery: Path | None, path: Path) -> None:
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
    search, attacks = search_section(results), robustness_section(results)
    corruptions = corruptions_section(results)
    parts: list[tuple[str, str, Node]] = [
        ("rows", "Original, robust, pruned", _comparison(results)),
        *([] if search is None else [("search", "How the ratio was found", search)]),
        *([] if attacks is None else [("attacks", "Under other attacks", attacks)]),
        *([] if corruptions is None else [("corruptions", "Under bad weather", corruptions)]),
        ("limits", "What these numbers do not say", _limits(results)),
        ("engines", "Engines", _engines(results)),
        ("pruning", "What was cut", pruning_section(results)),
        ("training", "Training", curves(log_rows)),
        ("pictures", "Test images, clean and attacked", gallery_figure(gallery)),
        ("method", "How it was measured", _method(results)),
        ("all", "Everything", _everything(results)),
    ]
    title, most = f"prunedeploy: {name}", list(_tiles(results))
    return document(
        title,
        tag("header", tag("h1", title), *_origin(results)),
        tag("p", headline(results), cls="headline"),
        tiles(most) if most else None,
        sections(parts),
    )


def _origin(results: Results) -> list[Html]:
    """What was built, from what, when, and how."""
    ratio, network = number(results.get("ratio_requested")), mapping(look_up(results, "configuration", "model"))
    made = [
        "" if ratio is None else f"ratio {ratio:g}",
        method_name(results) if results.get("method") else "",
        _if_known("scores ", results.get("scores")),
        _if_known("seed ", results.get("seed")),
        _if_known("from ", network.get("cfg")) + _if_known(" with weights ", network.get("weights")),
        _if_known("on data ", look_up(results, "data", "path")),
    ]
    about = ", ".join(filter(None, made))
    written = f"Written {results['created']}" if results.get("created") else "Written at an unknown time"
    by = _if_known(" by prunedeploy ", look_up(results, "environment", "prunedeploy"))
    said = [tag("p", str(line), cls="about") for line in look_up(results, "network", "said") or ()]
    command = [" with ", tag("code", str(results["command"]))] if results.get("command") else None
    return [*([tag("p", about, cls="about")] if about else []), *said, tag("p", written, by, command, cls="about")]


def _if_known(words: str, value: object) -> str:
    return "" if value is None else f"{words}{value}"


def _tiles(results: Results) -> Iterator[tuple[str, str, str]]:
    """The four figures that matter most, as far as they are known."""
    robust, pruned = model_named(results, "robust"), model_named(results, "pruned")
    kept, ends = map_kept(results)
    if kept is not None:
        interval = between(ends, "interval") or "no interval"
        yield "robust mAP kept", f"{100 * kept:.0f} %", f"pruned : robust, under PGD; {interval}"
    for key, name in (("params", "fewer parameters"), ("macs", "fewer MACs")):
        factor = quotient(robust.get(key), pruned.get(key))
        if factor is not None:
            yield name, f"{three_digits(factor)} ×", f"{robust[key]:,.0f} to {pruned[key]:,.0f}"
    for runtime, value in mapping(results.get("speedup")).items():
        factor = number(value)
        if factor is not None:
            noisy = "; noisy" if is_noisy(results, runtime) else ""
            yield "speed-up", f"{three_digits(factor)} ×", f"{runtime_name(runtime)}, median latency{noisy}"


def _comparison(results: Results) -> Html:
    charts = [chart for chart in (map_chart(results), latency_chart(results)) if chart is not None]
    original = look_up(results, "network", "original") or "the network as given"
    explained = note(
        f"Original is {original}, robust the same after adversarial training, pruned what comes "
        "out. PGD images are made with the gradients of that very network; for an ONNX file they "
        "come from its PyTorch parent (transfer)."
    )
    return join(tag("div", *charts, cls="grid") if charts else None, models_table(results), explained)


def _limits(results: Results) -> Html:
    found = caveats(results)
    return bullets(found) if found else note("Nothing was recorded by which they could be judged.")


def _engines(results: Results) -> Html:
    gates = note(
        "What an exported file has to pass before it is written into the bundle: its outputs, its detections "
        "after NMS and its mAP, against those of the PyTorch network."
    )
    some = bool(results.get("gates"))
    return join(
        engines_table(results),
        engine_figures_table(results),
        left_out_list(results),
        operating_points_table(results),
        tag("h3", "Gates"),
        gates if some else None,
        gates_table(results),
    )


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
    noisy = note(
        "Latency rows whose coefficient of variation (CV) is above 0.1 are marked noisy; no sample is left "
        "out. GFLOP/s are at the median, with two FLOPs per MAC; the peak is what the same runtime reaches on a "
        "large MatMul. Intervals are percentile bootstraps over test images, for pruned : robust over the "
        "same resamples of both."
    )
    return join(tag("div", *shown, cls="cards"), noisy)


def _everything(results: Results) -> Html:
    rest = {key: value for key, value in results.items() if key != "configuration"}
    return join(
        details("Stages", stages_table(results)),
        details("The full configuration", _json(results.get("configuration"))),
        details("results.json, without the configuration", _json(rest)),
    )


def _json(document: object) -> Html:
    return tag("pre", json.dumps(document, indent=2, ensure_ascii=False))
