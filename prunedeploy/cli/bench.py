"""``prunedeploy bench``: needs the base install and the runtimes that are measured."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from prunedeploy.cli.group import Command, examples
from prunedeploy.cli.output import (
    MISSING,
    comma_list,
    json_option,
    number,
    print_json,
    print_table,
    quiet_stdout,
    whole_numbers,
)

if TYPE_CHECKING:
    from prunedeploy.cli.model_source import ModelSource

RUNTIMES = ("onnxruntime", "torch", "tensorrt")
PEAK = "MatMul peak"


@click.command(
    "bench",
    cls=Command,
    epilog=examples(
        "prunedeploy bench dense/bundle pruned/bundle",
        "prunedeploy bench runs/demo-structured-scaled-0.75-s0 --runtime onnxruntime,torch --batch 1,8",
        "prunedeploy bench model.onnx --threads 1 --seconds 3 --json",
    ),
)
@click.argument("bundles", metavar="BUNDLE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--runtime",
    default="onnxruntime",
    show_default=True,
    metavar="R,...",
    help=f"What to run them on: {', '.join(RUNTIMES)}. torch needs a build's output folder.",
)
@click.option("--batch", default="1", show_default=True, metavar="N,...", help="Images per call.")
@click.option(
    "--threads",
    type=click.IntRange(1),
    metavar="N",
    help="Threads of the runtime; default: one per physical core.",
)
@click.option(
    "--seconds",
    type=click.FloatRange(0, min_open=True),
    default=10.0,
    show_default=True,
    metavar="S",
    help="Timed seconds per row, at least.",
)
@click.option(
    "--min-calls",
    type=click.IntRange(1),
    default=200,
    show_default=True,
    metavar="N",
    help="Timed calls per row, at least.",
)
@click.option("--precision", default="fp32", show_default=True, help="Which of a bundle's models.")
@json_option
def command(
    bundles: tuple[Path, ...],
    runtime: str,
    batch: str,
    threads: int | None,
    seconds: float,
    min_calls: int,
    precision: str,
    as_json: bool,
) -> None:
    """Measure the latency of models against each other.

    BUNDLE is a bundle, a build's output folder or a .onnx file. Every row is measured in a process of its
    own, all of them interleaved in rounds; every sample is kept. Latency is that of the call with tensors
    in and out, on random images. The last column compares with what ONNX Runtime reaches on a 1024 x 1024
    MatMul in the same run.

    A runtime that cannot run here gives an empty row with the reason; it is an error if it is the only one.
    """
    from prunedeploy.cli.model_source import find_model
    from prunedeploy_engines.environment import machine_info
    from prunedeploy_engines.process_bench import bench_models

    runtimes = comma_list(runtime, "--runtime", RUNTIMES)
    batches = whole_numbers(batch, "--batch")
    with quiet_stdout():
        sources = [find_model(path) for path in dict.fromkeys(bundles)]
        specs, rows = _plan(sources, runtimes, batches, threads, precision)
        # One turn of each of ten rounds, per row.
        with click.progressbar(length=10 * len(specs), label=f"measuring, {len(specs)} rows", file=sys.stderr) as bar:
            measured = bench_models(specs, seconds=seconds, min_calls=min_calls, progress=lambda _: bar.update(1))
    peak = None
    if PEAK in measured:
        probe = measured[PEAK]
        peak = _gflops(int(probe.describe["macs"]), probe.latency.summary()["p50"])
    for row in rows:
        if row["key"] in measured:
            row.update(_figures(measured[row["key"]].summary(), row, peak))
    for row in rows:
        del row["key"]
    if as_json:
        print_json({"rows": rows, "peak_matmul_gflops": peak, "machine": machine_info()})
    else:
        _print(rows, peak)


def _plan(
    sources: Sequence[ModelSource],
    runtimes: Sequence[str],
    batches: Sequence[int],
    threads: int | None,
    precision: str,
) -> tuple[dict[str, dict[str, Any]], list[dict[str, Any]]]:
    """Say what to measure and what to report.

    Returns:
        Specifications for `bench_models`, and rows, those that cannot run here included.
    """
    from prunedeploy_engines.errors import PrunedeployError, RuntimeUnavailableError

    names = _names(sources)
    specs: dict[str, dict[str, Any]] = {}
    rows: list[dict[str, Any]] = []
    problems: list[PrunedeployError] = []
    for source, name in zip(sources, names, strict=True):
        for runtime in runtimes:
            try:
                what, problem = _spec(source, runtime, precision, threads), None
            except RuntimeUnavailableError as error:
                what, problem = {}, error
                problems.append(error)
            for batch in batches:
                key = f"{name} | {runtime} | {batch}"
                rows.append(
                    {
                        "key": key,
                        "model": name,
                        "path": str(source.given),
                        "runtime": runtime,
                        "batch": batch,
                        "macs": source.macs(),
                        "latency_ms": None,
                        "reason": None if problem is None else str(problem),
                    }
                )
                if problem is None:
                    specs[key] = {**what, "batch": batch}
    if not specs:
        raise problems[0]
    if any(spec.get("runtime") == "onnxruntime" for spec in specs.values()):
        specs[PEAK] = {"runtime": "matmul", "threads": threads}
    return specs, rows


def _spec(source: ModelSource, runtime: str, precision: str, threads: int | None) -> dict[str, Any]:
    from prunedeploy_engines.errors import ConfigError, RuntimeUnavailableError

    if runtime == "onnxruntime":
        path = source.onnx or source.load_bundle().model_path(precision)
        return {"runtime": runtime, "path": path, "threads": threads}
    if runtime == "tensorrt":
        from prunedeploy_engines.tensorrt_library import cuda_device
        from prunedeploy_engines.tensorrt_runner import tensorrt_unavailable_reason

        bundle = source.load_bundle()
        if (reason := tensorrt_unavailable_reason()) is not None:
            fix = "measure on a machine with a GPU; `prunedeploy doctor` says more"
            raise RuntimeUnavailableError(f"TensorRT cannot run here: {reason}", fix=fix)
        device = cuda_device()
        return {
            "runtime": runtime,
            "path": bundle.engine_path(precision, None if device is None else device.target),
        }
    if source.cfg is None or source.weights is None:
        fix = "give a build's output folder, or leave torch out of --runtime"
        raise ConfigError("has no PyTorch network to measure", source.given, fix)
    if importlib.util.find_spec("torch") is None:
        raise RuntimeUnavailableError("torch is not installed", fix="pip install 'prunedeploy[train]'")
    arguments = {
        "cfg": str(source.cfg.absolute()),
        "weights": str(source.weights.absolute()),
        "threads": threads,
    }
    return {
        "runtime": runtime,
        "factory": "prunedeploy.evaluation.torch_runner:open_torch_runner",
        "arguments": arguments,
    }


def _names(sources: Sequence[ModelSource]) -> list[str]:
    """Name the rows: short names, or whole paths where those are the same."""
    short = [source.name for source in sources]
    return [name if short.count(name) == 1 else str(source.given) for name, source in zip(short, sources, strict=True)]


def _figures(summary: dict[str, Any], row: dict[str, Any], peak: float | None) -> dict[str, Any]:
    gflops = None if row["macs"] is None else _gflops(row["macs"] * row["batch"], summary["p50"])
    comparable = peak is not None and gflops is not None and row["runtime"] == "onnxruntime"
    return {
        "engine": summary.pop("engine"),
        "latency_ms": summary,
        "gflops": gflops,
        "fraction_of_peak": gflops / peak if comparable and peak and gflops is not None else None,
    }


def _gflops(macs: int, latency_ms: float) -> float:
    from prunedeploy_engines.latency import achieved_gflops

    return achieved_gflops(macs, latency_ms)


def _print(rows: list[dict[str, Any]], peak: float | None) -> None:
    cells = []
    for row in rows:
        latency = row["latency_ms"]
        if latency is None:
            cells.append([row["model"], row["runtime"], str(row["batch"]), *[MISSING] * 7])
            continue
        fraction = row["fraction_of_peak"]
        cells.append(
            [
                row["model"] + (" *" if latency["noisy"] else ""),
                row["runtime"],
                str(row["batch"]),
                *(number(latency[key], 2) for key in ("p50", "mean", "p90", "p99")),
                number(latency["images_per_s"], 1),
                number(row["gflops"], 1),
                MISSING if fraction is None else f"{100 * fraction:.0f} %",
            ]
        )
    headings = [
        "model",
        "runtime",
        "batch",
        "median ms",
        "mean",
        "p90",
        "p99",
        "images/s",
        "GFLOP/s",
        "of peak",
    ]
    print_table(headings, cells, left=2)
    if peak is not None:
        click.echo(f"\npeak: {peak:.0f} GFLOP/s, ONNX Runtime on a MatMul in the same run; GFLOP/s are of the median")
    if any(row["latency_ms"] is not None and row["latency_ms"]["noisy"] for row in rows):
        click.echo("* noisy: the coefficient of variation is above 0.1; close other programs, or measure longer")
    for reason in dict.fromkeys(row["reason"] for row in rows if row["reason"]):
        click.echo(f"not measured: {reason}")
