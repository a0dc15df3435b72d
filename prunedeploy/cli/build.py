"""``prunedeploy build``: the main job."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import click

from prunedeploy.cli.build_engines import print_engine_figures
from prunedeploy.cli.build_search import print_search
from prunedeploy.cli.failures import INCOMPLETE
from prunedeploy.cli.group import Session, command_with_examples
from prunedeploy.cli.options import PATH, RESUMED_FROM, store_option
from prunedeploy.cli.output import MISSING, amount, number, print_json, print_table, quiet_stdout, size
from prunedeploy.process_setup import keep_freed_memory

# As in prunedeploy.config, which `--help` does not load.
METHODS = ("structured", "unstructured", "kernel", "nm", "hybrid", "filter", "weight")
SCORES = ("scaled", "deeplift", "magnitude", "random", "snip", "taylor", "bn-scale", "gradient-x-input", "file")
ALLOCATIONS = ("uniform", "global", "erk", "latency")


@command_with_examples(
    "build",
    "prunedeploy build --ratio 0.75",
    "prunedeploy build --target-map 0.30",
    "prunedeploy build --ratio 0.9 --cfg yolov3-tiny --weights yolov3-tiny.weights --data coco/",
    "prunedeploy build --cfg yolov3-tiny --weights yolov3-tiny.weights --data cells/ --input-size 320x256",
    "prunedeploy build --model best.onnx --data cells/ --ratio 0.5",
    "prunedeploy build --config yolov3-coco --target cpu,sm86 --set finetune.steps=20000",
    "prunedeploy build --ratio 0.75 --precision fp32,int8 --qat 400",
)
@click.option(
    "--config",
    "source",
    default="demo",
    metavar="F",
    help="YAML file, or the name of one that ships: demo, smoke, blood-cells, yolov8n, yolov3-coco, yolov3-tiny-coco.",
)
@click.option(
    "--ratio",
    type=float,
    metavar="R",
    help="Fraction of the weights of all prunable convolutions to remove, in [0, 1).",
)
@click.option(
    "--target-map",
    metavar="M",
    help="Instead of --ratio: search for the highest ratio whose pruned network still has this mAP under attack, e.g. "
    "0.30; or without attack: clean:0.5. Every trial is a training.",
)
@click.option(
    "--target-latency",
    metavar="T",
    help="Instead of --ratio: search for the lowest ratio whose ONNX file has at most this median latency here, e.g. "
    "20ms (us, ms, s), on the first CPU runtime of latency.runtimes that there is. No trial trains.",
)
@click.option(
    "--target-size",
    metavar="S",
    help="Instead of --ratio: search for the lowest ratio whose smallest ONNX file has at most this size, e.g. 5MB "
    "(KB, MB, GB, KiB, MiB, GiB). No trial trains.",
)
@click.option(
    "--method",
    type=click.Choice(METHODS),
    metavar="METHOD",
    help="What is removed: structured (or filter): whole filters, the network is rebuilt smaller; unstructured (or "
    "weight): single weights, which become zeros; kernel: k x k slices, zeros too; hybrid: filters first, then "
    "weights; nm: 2 of every 4 weights, the pattern that sparse tensor cores compute (it gives the ratio itself, "
    "another one: --set nm.n=1).",
)
@click.option(
    "--scores",
    type=click.Choice(SCORES),
    metavar="SCORE",
    help=f"How weights are ranked: {', '.join(SCORES)}. scaled is HYDRA's, deeplift the contribution to "
    "the detections (by Captum: --set scores.backend=captum), file reads them (--set scores.file=F); the others are "
    "for comparison.",
)
@click.option(
    "--allocation",
    type=click.Choice(ALLOCATIONS),
    metavar="HOW",
    help="How layers share the ratio: uniform; global: the lowest scores of the network go; erk: wide layers give "
    "more; latency: filters go where they cost the most measured time per importance.",
)
@click.option(
    "--cfg",
    "--model",
    "cfg",
    metavar="F",
    help="Your network: a Darknet cfg, a path or the name of one that ships; or the .onnx file of a detector that "
    "another program exported.",
)
@click.option("--weights", metavar="F", help="A cfg's Darknet weights, or the first layers of them.")
@click.option(
    "--input-size",
    metavar="W[xH]",
    help="Size of the network's input in pixels: one side, or width x height, e.g. 320 or 416x256; default: the cfg's.",
)
@click.option(
    "--anchors", type=click.Choice(("auto",)), metavar="auto", help="Anchors by k-means on the training boxes."
)
@click.option(
    "--letterbox/--stretch",
    default=None,
    help="Images keep their aspect and are padded, or are stretched to the input; default: as the cfg's letter_box= "
    "says, letterboxed without it.",
)
@click.option("--data", metavar="DIR", help="Data set; `prunedeploy data check DIR` checks one.")
@click.option("--precision", metavar="P,...", help="ONNX files to write: fp32, fp16, int8; default: fp32.")
@click.option(
    "--qat",
    type=int,
    metavar="STEPS",
    help="Train the int8 file's weights for so many steps with its roundings (quantisation-aware training), against "
    "the attack of fine-tuning; default: 0, it has those of the fp32 file. Needs int8 in --precision.",
)
@click.option(
    "--uint8-input",
    is_flag=True,
    default=None,
    help="ONNX files take (N, H, W, 3) uint8 images, normalised in the graph.",
)
@click.option("--nms", is_flag=True, default=None, help="ONNX files give detections: suppression is in the graph.")
@click.option("--target", metavar="T,...", help="What to build engines for: cpu, sm75, sm86, ...")
@click.option(
    "--operating-point",
    metavar="RULE",
    help="The score threshold that files are deployed with, chosen on held-out training images: f1, the best F1 (the "
    "default), or precision=P, the highest recall with at least this precision, e.g. precision=0.9.",
)
@click.option(
    "--out", type=PATH, metavar="DIR", help="Folder to write; default: runs/<config>-<method>-<scores>-<ratio>-s<seed>."
)
@store_option("Where the results of stages are kept and shared between builds.")
@click.option("--seed", type=int, metavar="N", help="Seed of every random draw.")
@click.option(
    "--set",
    "sets",
    multiple=True,
    metavar="KEY=VALUE",
    help="Change any key of the configuration, e.g. --set finetune.steps=1000; may be repeated.",
)
@click.option("--overwrite", is_flag=True, help="Replace what another build has written into --out.")
@click.pass_context
def command(
    ctx: click.Context,
    /,
    source: str,
    out: Path | None,
    store: Path,
    sets: tuple[str, ...],
    overwrite: bool,
    as_json: bool,
    target_map: str | None,
    target_latency: str | None,
    target_size: str | None,
    **options: Any,
) -> None:
    """Make a detector robust, prune it, export it and measure it.

    Trains against PGD, optimises importance scores, prunes, fine-tunes, shrinks, exports ONNX, builds
    engines, and measures mAP (clean and attacked) and latency before and after. Without options it does so
    with the demo: a bundled network and a small data set, about 7 minutes on two cores.

    If it is killed or interrupted, the same command resumes; a second identical build computes nothing.
    Values come from the defaults, --config, --set and the other options; a later one of these wins.

    A file that fails its gates, or an engine that cannot be built, is left out and named, and the rest is delivered:
    exit code 3. If nothing is left to deliver, it is 2.
    """
    keep_freed_memory()
    from prunedeploy.config import load_config
    from prunedeploy.config.ratio_target import target_from_options
    from prunedeploy.pipeline.progress import Progress

    main_process = os.environ.get("RANK", "0") == "0"  # set by launchers of several processes
    set_ratio = next((text for text in sets if text.partition("=")[0].strip() == "ratio"), options["ratio"])
    target = target_from_options(set_ratio, {"map": target_map, "latency": target_latency, "size": target_size})
    config = load_config(source, sets, options)  # before torch is loaded: a typing error is told at once
    from prunedeploy.pipeline.build import build

    session = ctx.ensure_object(Session)
    session.resumes_from(store, *RESUMED_FROM)
    with quiet_stdout():
        outcome = build(
            config,
            store=store,
            out=out,
            overwrite=overwrite,
            command=session.command,
            progress=Progress(quiet=not main_process),
            target=target,
        )
    if not main_process:
        return
    if as_json:
        print_json({"out": outcome.out, "computed": outcome.computed, **outcome.results})
    else:
        print_results(outcome.results)
        print_operating_points(outcome.results)
        print_search(outcome.results.get("search"))
        print_places(outcome.out, outcome.computed)
    left_out = outcome.results.get("left_out") or []
    for one in left_out:
        click.echo(f"prunedeploy: warning: {one['line']}", err=True)
    if left_out:
        ctx.exit(INCOMPLETE)


def print_results(results: Mapping[str, Any]) -> None:
    """Print the rows of a ``results.json`` side by side."""
    models = results["models"]
    known = ("torch", "onnxruntime", "openvino", "tensorrt")
    runtimes = [name for name in known if any(model["latency_ms"][name] for model in models)]
    rows = [
        [
            str(model["name"]),
            amount(model.get("params")),
            amount(model.get("macs")),
            *(number(model.get(key)) for key in ("map_clean", "map_pgd", "map50_clean", "map50_pgd")),
            *(_median(model["latency_ms"][runtime]) for runtime in runtimes),
        ]
        for model in models
    ]
    headings = ["network", "weights", "MACs", "mAP clean", "mAP PGD", "mAP50 clean", "mAP50 PGD"]
    print_table([*headings, *(f"{runtime} ms" for runtime in runtimes)], rows)
    ratio = f"ratio {number(results.get('ratio_achieved'), 4)} (asked for {results.get('ratio_requested')})"
    speedup = ", ".join(f"{value:.2f} x on {runtime}" for runtime, value in results["speedup"].items())
    method = (results.get("pruning") or {}).get("pattern") or results.get("method")
    click.echo(f"\n{method} pruning by {results.get('scores')} scores, {ratio}")
    dead = results.get("dead_channels") or {}
    if dead.get("filters_removed"):
        saved = f"MACs {amount(dead.get('macs_before'))} to {amount(dead.get('macs_after'))}"
        click.echo(f"{dead['filters_removed']} filters were dead and removed exactly: {saved}")
    if speedup:
        click.echo(f"speed against the original: {speedup} (median latency)")
    maps = {"map_clean": "mAP clean", "map_pgd_transfer": "mAP PGD, transfer"}
    engines = [_engine_cells(engine, maps) for engine in results.get("engines") or ()]
    if len(engines) > 1:
        click.echo()
        print_table(["file", "runtime", "precision", "computes in", "size", *maps.values(), "ms"], engines, left=4)
        rows += engines
    rows += print_engine_figures(results.get("engines") or ())
    if any("*" in cell for row in rows for cell in row):
        click.echo("* noisy: the coefficient of variation is above 0.1")


def print_operating_points(results: Mapping[str, Any]) -> None:
    """Say at which score threshold each file is deployed, and what it does there."""
    points = [point for point in results.get("operating_points") or () if point["file"]]
    if points:
        click.echo(f"\noperating point ({points[0]['chosen']}, on {points[0]['images']} held-out training images):")
    for point in points:
        at = f"  {point['file']}: score threshold {number(point['score_threshold'])}"
        if point["why_not"]:
            click.echo(f"{at}, not chosen: {point['why_not']}")
        else:
            is_graphs = point["score_threshold"] == point["graph_threshold"]
            own = " (the graph's own, see export.nms_score_threshold)" if is_graphs else ""
            click.echo(f"{at}{own}, precision {number(point['precision'])}, recall {number(point['recall'])}")


def _engine_cells(engine: Mapping[str, Any], maps: Iterable[str]) -> list[str]:
    shares = (engine.get("computes_in") or {}).items()
    return [
        str(engine.get("file") or "not delivered").removeprefix("bundle/"),
        f"{engine.get('runtime')} {engine.get('target')}",
        str(engine.get("precision")),
        ", ".join(f"{100 * share:.0f} % {name}" for name, share in shares) or MISSING,
        size(engine["bytes"]) if engine.get("bytes") else MISSING,
        *(number(engine.get(name)) for name in maps),
        _median(engine.get("latency_ms")),
    ]


def _median(latency: Mapping[str, Any] | None) -> str:
    return MISSING if not latency else number(latency.get("p50"), 2) + "*" * bool(latency.get("noisy"))


PLACES = {
    "report.html": "to look at",
    "results.json": "the same for programs",
    "bundle": "to copy to the device",
    "model.cfg": "the pruned network, with model.weights",
    "detections": "every detection, as CSV",
}


def print_places(out: Path, computed: tuple[str, ...]) -> None:
    """Say where things are, and what had to be computed."""
    here = Path.cwd()
    shown = out.relative_to(here) if out.is_relative_to(here) else out
    places = [(f"{shown / name}{'/' * (out / name).is_dir()}", what) for name, what in PLACES.items()]
    click.echo()
    for place, what in places:
        click.echo(f"  {place:<{max(len(place) for place, _ in places)}}  {what}")
    counts = [stage if count == 1 else f"{count} x {stage}" for stage, count in Counter(computed).items()]
    click.echo(f"\ncomputed: {', '.join(counts)}" if counts else "\nnothing had to be computed")
