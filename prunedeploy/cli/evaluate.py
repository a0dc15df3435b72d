"""``prunedeploy evaluate``: what is measured, said and written. The measuring is `prunedeploy.pipeline.evaluation`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from prunedeploy.cli.group import command_with_examples
from prunedeploy.cli.options import FRACTION, PATH, count_option, store_option
from prunedeploy.cli.output import comma_list, number, print_json, print_table, quiet_stdout
from prunedeploy.process_setup import keep_freed_memory

if TYPE_CHECKING:
    from prunedeploy.pipeline.evaluation import Request

RUNTIMES = ("torch", "onnxruntime", "openvino", "tensorrt")


@command_with_examples(
    "evaluate",
    "prunedeploy evaluate runs/demo-structured-bn-scale-0.75-s0 --attack pgd",
    "prunedeploy evaluate runs/demo-structured-bn-scale-0.75-s0 --attack pgd --runtime torch,onnxruntime",
    "prunedeploy evaluate yolov3-tiny.cfg --data coco/ --limit 500 --csv detections",
    "prunedeploy evaluate bundle/ --data coco/ --attack pgd --parent-cfg model.cfg --steps 20",
)
@click.argument("model", type=PATH)
@click.option("--weights", type=PATH, metavar="F", help="Weights of a .cfg; default: the .weights beside it.")
@click.option(
    "--data",
    metavar="DIR",
    help="COCO folder, its test split; demo: the demo set. Default: what the model's build used.",
)
@click.option("--names", type=PATH, metavar="F", help="Class names of a .cfg or .onnx, one per line.")
@click.option("--attack", type=click.Choice(["none", "pgd"]), default="none")
@click.option(
    "--eps",
    type=FRACTION,
    metavar="E",
    help="Radius of the L-inf ball, pixels in [0, 1]. This and the next: the build's, or the paper's 0.05.",
)
@count_option("--steps", "Gradient steps; the paper: 5.")
@click.option("--step-size", type=click.FloatRange(0, 1, min_open=True), metavar="S", help="The paper: 0.02.")
@click.option("--random-start/--no-random-start", default=None, help="Start at a random point of the ball.")
@count_option("--restarts", "Random starts; the worst counts, per image.")
@click.option(
    "--iterate",
    type=click.Choice(["last", "best"]),
    help="Report where the last step ended, or the best of all: of each image the one with the highest loss.",
)
@click.option("--parent-cfg", type=PATH, metavar="F", help="PyTorch parent of a bundle or .onnx, for its gradients.")
@click.option("--parent-weights", type=PATH, metavar="F", help="Its weights; default: the .weights beside the cfg.")
@click.option(
    "--runtime",
    metavar="R,...",
    help="torch, onnxruntime, openvino, tensorrt; default: torch for a .cfg or a build, else onnxruntime.",
)
@click.option("--precision", default="fp32", help="Which of a bundle's models.")
@count_option("--threads", "Of the runtime; default: the build's or its own.")
@count_option("--batch", "Images per call; default: the build's, or 32.")
@count_option("--limit", "Measure on N images, drawn with the seed.")
@count_option("--seed", "Of that draw, random starts and the bootstrap.", least=0)
@count_option("--bootstrap", "Resamplings for the 95 % interval of every mAP; 0: none.", default=1000, least=0)
@click.option("--allow-bad-images", is_flag=True, help="Leave out images that cannot be read; they are named.")
@click.option("--csv", "csv_folder", type=PATH, metavar="DIR", help="Write every detection as CSV into DIR.")
@store_option("The demo set is composed beside it.")
def command(runtime: str | None, as_json: bool, csv_folder: Path | None, **options: Any) -> None:
    """Measure mAP of a model, on clean and on attacked images.

    MODEL is a build's output folder, a bundle, a .onnx file, or a .cfg file with its .weights. mAP is
    COCO's, by pycocotools, at the score thresholds 0.001 and 0.5.

    Attacked images are made with the gradients of the very model that is measured (in fp32). An engine has
    none: its attacked images are made with its PyTorch parent, and that number is called transfer. A
    build's output folder has the parent; of a bundle or an .onnx file it is given with --parent-cfg.

    What is not given is the build's own: its attack, seed, batch size and threads repeat its figures.
    """
    keep_freed_memory()
    from prunedeploy_engines.bundle.source import find_model

    source = find_model(options.pop("model"), options.pop("weights"))
    default = "torch" if source.kind in ("darknet", "build") else "onnxruntime"
    runtimes = comma_list(runtime or default, "--runtime", RUNTIMES)
    if options["attack"] == "none":
        _refuse_idle_options(options)
    with quiet_stdout():
        from prunedeploy.pipeline.evaluation import Request, run

        request = Request(source=source, runtimes=tuple(runtimes), csv_folder=csv_folder, **options)
        document = run(request)
    for path, reason in document["data"]["skipped"].items():
        click.echo(f"left out: {path}: {reason}", err=True)
    for limit in document["warnings"]:
        click.echo(f"prunedeploy: warning: {limit}", err=True)
    if as_json:
        print_json(document)
    else:
        _print(document, request)


def _refuse_idle_options(options: dict[str, Any]) -> None:
    names = ("eps", "steps", "step_size", "random_start", "restarts", "iterate")
    idle = [name for name in names if options[name] is not None]
    if idle:
        raise click.UsageError(f"--{idle[0].replace('_', '-')} does nothing without --attack pgd")


def _print(document: dict[str, Any], request: Request) -> None:
    attack, data = document["attack"], document["data"]
    click.echo(f"{document['model']} on {data['images']} test images of {data['path']}")
    if attack is not None:
        starts = f", {attack['restarts']} random start(s)" if attack["random_start"] else ""
        steps = f"{attack['steps']} step{'s' * (attack['steps'] > 1)}"
        best = ", the best iterate of each image" if attack["iterate"] == "best" else ""
        click.echo(f"PGD in fp32: {steps} of {attack['step_size']:g} within {attack['eps']:g}{starts}{best}")
    rows = []
    for result in document["results"]:
        kinds = [("clean", "", "clean")]
        if attack is not None:
            kinds.append(("pgd", "_transfer", "PGD (transfer)") if result["transfer"] else ("pgd", "", "PGD"))
        for kind, ending, label in kinds:
            interval = result["intervals"].get(f"map_{kind}{ending}")
            rows.append(
                [
                    result["runtime"],
                    label,
                    number(result[f"map_{kind}{ending}"]),
                    "-" if interval is None else f"{interval[0]:.3f} to {interval[1]:.3f}",
                    number(result[f"map50_{kind}{ending}"]),
                    number(result[f"map_{kind}_conf50{ending}"]),
                ]
            )
    click.echo()
    print_table(["runtime", "images", "mAP", "95 % interval", "mAP50", "mAP at score 0.5"], rows, left=2)
    if any(result["transfer"] for result in document["results"]):
        click.echo(
            "\ntransfer: an engine has no gradients, so its attacked images were made with its parent, "
            f"{attack['parent']}; its own robustness may be lower"
        )
    if request.csv_folder is not None:
        click.echo(f"\ndetections: {request.csv_folder}/")
