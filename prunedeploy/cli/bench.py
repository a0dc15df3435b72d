"""``prunedeploy bench``: needs the base install and the runtimes that are measured."""

from __future__ import annotations

import importlib.util
import itertools
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from prunedeploy.cli.group import command_with_examples
from prunedeploy.cli.options import PATH, POSITIVE, count_option
from prunedeploy.cli.output import comma_list, print_json, quiet_stdout, whole_numbers
from prunedeploy_engines.bench.rows import IMAGES, KINDS, PRECISIONS, PROVIDERS, RUNTIMES, Choice
from prunedeploy_engines.bench.run import Effort

if TYPE_CHECKING:
    from prunedeploy_engines.bench.models import Subject

SCENARIOS = ("single-stream", "offline", "server")


@command_with_examples(
    "bench",
    "prunedeploy bench dense/bundle pruned/bundle",
    "prunedeploy bench runs/demo-structured-bn-scale-0.75-s0 --runtime onnxruntime,openvino --precision fp32,int8",
    "prunedeploy bench model.onnx --threads 1,2 --batch 1,8 --images photos/ --out measured",
    "prunedeploy bench pruned/bundle --scenario server --latency-bound 50",
    "prunedeploy bench pruned/bundle --flood",
    "prunedeploy bench --compare monday/bench.json tuesday/bench.json",
    "prunedeploy bench --merge server.json jetson.json pi.json --out devices",
)
@click.argument("bundles", metavar="BUNDLE...", nargs=-1, required=True, type=PATH)
@click.option(
    "--runtime",
    default="onnxruntime",
    metavar="R,...",
    help=f"What to run them on: {', '.join(RUNTIMES)}. torch needs a build's output folder.",
)
@click.option(
    "--precision",
    default="fp32",
    metavar="P,...",
    help=f"Which of a bundle's models: {', '.join(PRECISIONS)}. A single file has the one it has.",
)
@click.option("--batch", default="1", metavar="N,...", help="Images per call.")
@click.option("--threads", metavar="N,...", help="Threads of a CPU runtime; default: one per physical core.")
@click.option(
    "--kind",
    metavar="K,...",
    help="compute: the model alone; host (unless given): tensors in and out; end-to-end: image in memory to detections "
    "(bundles).",
)
@click.option(
    "--providers",
    default="cpu",
    metavar="P,...",
    help=f"ONNX Runtime's providers: {', '.join(PROVIDERS)}. A row each; a missing one is never replaced.",
)
@click.option(
    "--inference-precision",
    type=click.Choice(["f32", "bf16", "f16", "auto"]),
    default="f32",
    help="What OpenVINO computes float layers in; auto: bf16 where the CPU has it.",
)
@click.option(
    "--images",
    type=PATH,
    metavar="DIR|FILE.npy",
    help="Real images to feed, (K, H, W, 3) uint8 in a .npy file; default: random pixels.",
)
@click.option(
    "--flood",
    is_flag=True,
    help="Beside each row, from image to detections: with heads in which suppression has the most to do, and, of a "
    "build's output folder where PyTorch is installed, on images attacked to that end (see docs/flood.md).",
)
@click.option(
    "--flood-images",
    type=PATH,
    metavar="DIR|FILE.npy",
    help="For --flood: these as the attacked images, of every BUNDLE.",
)
@click.option(
    "--scenario",
    type=click.Choice(SCENARIOS),
    default="single-stream",
    help="Whose figure counts: p90 of single queries; images a second of the best --batch; or the highest rate of "
    "random queries that keeps p99 within --latency-bound, answering up to --batch waiting ones at a time.",
)
@click.option(
    "--latency-bound",
    type=POSITIVE,
    metavar="MS",
    help="For --scenario server: bound on the 99th percentile, from when a query is due to its answer.",
)
@click.option(
    "--seconds",
    type=POSITIVE,
    default=10.0,
    metavar="S",
    help="Timed seconds per row, at least; for a server: per trial, and ten times the bound.",
)
@count_option("--min-calls", "Timed calls per row, at least; for a server: queries per trial.", default=200)
@click.option(
    "--warmup",
    "warmup_s",
    type=click.FloatRange(0),
    default=0.5,
    metavar="S",
    help="Untimed seconds per row beforehand, at least, and at least 10 calls.",
)
@click.option("--seed", type=int, default=0, help="Seed of random pixels and random arrivals.")
@click.option("--profile", is_flag=True, help="Also show the ten layers of each row that take the most time.")
@click.option("--compare", is_flag=True, help="Compare the files of two earlier runs: is the difference real?")
@click.option("--merge", is_flag=True, help="Put the files of several devices into one table and picture.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Write bench.json (every sample), bench.html and the pictures there.",
)
def command(
    bundles: tuple[Path, ...],
    runtime: str,
    precision: str,
    batch: str,
    threads: str | None,
    kind: str | None,
    providers: str,
    inference_precision: str,
    images: Path | None,
    flood: bool,
    flood_images: Path | None,
    scenario: str,
    latency_bound: float | None,
    seed: int,
    compare: bool,
    merge: bool,
    out: Path | None,
    as_json: bool,
    **effort: Any,
) -> None:
    """Measure the latency of models against each other.

    BUNDLE is a bundle, a build's output folder, a .onnx file or a TensorRT .plan file. Every combination of the
    lists below is a row, measured in a process of its own, all of them interleaved in rounds; every sample is kept.
    "of peak" compares with the rate that the same runtime reaches on a 1024 x 1024 MatMul in the same run, float32 or,
    for an int8 row, int8.

    A row that cannot run here is empty, and the reason is below the table; if no row can run, that is an error.
    """
    from prunedeploy.cli.bench_files import print_comparison, read_merged, write_folder
    from prunedeploy.cli.bench_output import print_document

    if compare and merge:
        raise click.UsageError("--compare and --merge exclude each other")
    if compare:
        print_comparison(bundles, seed=seed, as_json=as_json)
        return
    if merge:
        document = read_merged(bundles)
    else:
        from prunedeploy_engines.bench.flood import CASES

        kind = _checked_kind(kind, flood, flood_images, scenario)
        choice = Choice(
            runtimes=comma_list(runtime, "--runtime", RUNTIMES),
            precisions=comma_list(precision, "--precision", PRECISIONS),
            batches=whole_numbers(batch, "--batch"),
            threads=[None] if threads is None else whole_numbers(threads, "--threads"),
            kinds=[KINDS[word] for word in comma_list(kind, "--kind", tuple(KINDS))],
            providers=comma_list(providers, "--providers", PROVIDERS),
            inference_precision=None if inference_precision == "auto" else inference_precision,
            images=images,
            scenario=scenario,
            floods=(None, *CASES, IMAGES) if flood else (None,),
            seed=seed,
        )
        bound = _checked_bound(scenario, latency_bound, effort["min_calls"])
        document = _run(bundles, choice, Effort(latency_bound_ms=bound, **effort), flood_images)
    if out is not None:
        write_folder(document, out)
    if as_json:
        print_json(document)
    else:
        print_document(document, out)


def _checked_bound(scenario: str, bound: float | None, queries: int) -> float | None:
    from prunedeploy_engines.bench.server import MIN_QUERIES

    if scenario != "server" and bound is not None:
        raise click.UsageError("--latency-bound belongs to --scenario server")
    if scenario == "server" and bound is None:
        raise click.UsageError("--scenario server needs --latency-bound MS, the bound on the 99th percentile")
    if scenario == "server" and queries < MIN_QUERIES:
        raise click.UsageError(f"--min-calls must be at least {MIN_QUERIES} here: fewer queries have no p99")
    return bound


def _checked_kind(kind: str | None, flood: bool, flood_images: Path | None, scenario: str) -> str:
    """What is measured; a flood is one of what comes after the network."""
    if not flood:
        if flood_images is not None:
            raise click.UsageError("--flood-images belongs to --flood")
        return kind or "host"
    if kind not in (None, "end-to-end"):
        raise click.UsageError("--flood measures from image to detections: leave --kind out")
    if scenario != "single-stream":
        raise click.UsageError("--flood is for --scenario single-stream")
    return "end-to-end"


def _run(bundles: tuple[Path, ...], choice: Choice, effort: Effort, flood_images: Path | None) -> dict[str, Any]:
    from prunedeploy_engines.bench.images import load_images
    from prunedeploy_engines.bench.models import find_subjects
    from prunedeploy_engines.bench.rows import plan_rows
    from prunedeploy_engines.bench.run import run_plan, steps

    with quiet_stdout():
        if choice.images is not None:
            load_images(choice.images)  # a mistake is told before the first process starts
        if flood_images is not None:
            load_images(flood_images)
        subjects = find_subjects(bundles)
        _warn_of_thresholds(subjects, choice)
        with tempfile.TemporaryDirectory() as folder:
            if IMAGES in choice.floods:
                flooding = _flooding_images(subjects, choice, flood_images, Path(folder))
                choice = replace(choice, flood_images=flooding)
            planned = plan_rows(subjects, choice)
            label = f"measuring, {len(planned.specs)} processes"
            with click.progressbar(length=steps(planned, choice, effort), label=label, file=sys.stderr) as bar:
                return run_plan(planned, choice, effort, lambda _: bar.update(1))


def _flooding_images(subjects: Sequence[Subject], choice: Choice, given: Path | None, folder: Path) -> dict[str, Path]:
    """Images that flood each model, by its name: those given, or made by attacking its network in PyTorch."""
    if given is not None:
        return {subject.name: given for subject in subjects}
    if importlib.util.find_spec("torch") is None:
        return {}
    found = {}
    for number, subject in enumerate(subjects):
        cfg, weights = subject.source.cfg, subject.source.weights
        if cfg is not None and weights is not None:
            from prunedeploy.pipeline.flooding import write_flooding_images

            found[subject.name] = folder / f"{number}.npy"
            write_flooding_images(cfg, weights, choice.images, found[subject.name], choice.seed)
    return found


def _warn_of_thresholds(subjects: Sequence[Subject], choice: Choice) -> None:
    """Say it of bundles whose threshold is below that of the suppression in a graph: fewer detections are handled."""
    bundles = [(subject.name, subject.bundle) for subject in subjects if subject.bundle is not None]
    for (name, bundle), precision in itertools.product(bundles, choice.precisions):
        nms = bundle.nms_in_graph(precision)
        limit = None if nms is None else nms.limit_on(bundle.score_threshold(precision))
        if limit is not None:
            click.echo(f"prunedeploy: warning: {name} ({precision}): {limit}", err=True)
