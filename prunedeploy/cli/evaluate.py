"""``prunedeploy evaluate``: what is measured, said and written. The measuring is `prunedeploy.pipeline.evaluation`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from prunedeploy.cli.evaluate_output import print_evaluation
from prunedeploy.cli.group import command_with_examples
from prunedeploy.cli.options import PATH, count_option, store_option
from prunedeploy.cli.output import comma_list, print_json, quiet_stdout
from prunedeploy.process_setup import keep_freed_memory

RUNTIMES = ("torch", "onnxruntime", "openvino", "tensorrt")
WITH_OBJECTIVE = ("fgsm", "pgd", "apgd")


@command_with_examples(
    "evaluate",
    "prunedeploy evaluate runs/demo-structured-bn-scale-0.75-s0 --attack pgd",
    "prunedeploy evaluate runs/demo-structured-bn-scale-0.75-s0 --attack pgd --runtime torch,onnxruntime",
    "prunedeploy evaluate runs/demo-structured-bn-scale-0.75-s0 --attack noise,fgsm,pgd,ensemble --error-kinds",
    "prunedeploy evaluate bundle/ --data coco/ --limit 100 --precision int8 --attack square --queries 5000",
    "prunedeploy evaluate yolov3-tiny.cfg --data coco/ --limit 500 --csv detections",
    "prunedeploy evaluate yolov3-tiny.cfg --data coco/ --limit 100 --corruptions snow,fog --severities 1-3",
    "prunedeploy evaluate bundle/ --data coco/ --attack pgd --parent-cfg model.cfg --steps 20",
)
@click.argument("model", type=PATH)
@click.option("--weights", type=PATH, metavar="F", help="Weights of a .cfg; default: the .weights beside it.")
@click.option(
    "--data",
    metavar="DIR",
    help="Data set, its test split; demo: the demo set. Default: what the model's build used.",
)
@click.option(
    "--names",
    type=PATH,
    metavar="F",
    help="Class names of a .cfg or .onnx, one per line; default: a .names file beside it.",
)
@click.option(
    "--attack",
    "attacks",
    metavar="NAME,...",
    default="none",
    help="none, noise, fgsm, pgd (the paper's), apgd, ensemble (the strongest), cw (smallest distortion that loses an "
    "object), square (black box: asks the model that is measured); fgsm, pgd and apgd with an objective: apgd:box.",
)
@click.option(
    "--objective",
    metavar="O",
    help="What fgsm, pgd and apgd increase: total (the training loss), box, objectness, classes, class-wise, rank, "
    "untargeted, vanish, fabricate, mislabel-most, mislabel-least, flood, flood-low; A+B sums.",
)
@click.option(
    "--budget",
    type=click.Choice(["quick", "standard", "full"]),
    help="Steps of apgd and of each attack of the ensemble: 10, 30, 100.  [default: the build's, or standard]",
)
@click.option(
    "--adaptive",
    is_flag=True,
    help="Attack the engine itself too, by gradients of a twin of its file with all its roundings.",
)
@click.option(
    "--norm",
    type=click.Choice(["linf", "l2"]),
    default="linf",
    help="Norm of the ball of noise, apgd, ensemble and square.",
)
@count_option("--queries", "Queries that square may ask about each image; usual are 1000 and 5000.  [default: 1000]")
@click.option(
    "--start",
    type=click.Choice(["clean", "white-box"]),
    help="Where square starts: at stripes on the clean image, or at what the attacks beside it left.  [default: clean]",
)
@click.option(
    "--feedback",
    type=click.Choice(["scores", "detections"]),
    help="What square sees: boxes and scores of all candidates, or only what would be served: detections above the "
    "score threshold.  [default: scores, or detections of a file with suppression in its graph]",
)
@click.option(
    "--curve",
    is_flag=True,
    help="The last attack again at eps 1, 2, 4, 8 and 12.75 / 255.",
)
@click.option(
    "--error-kinds", is_flag=True, help="Which kinds of errors (TIDE) each attack causes, and what it breaks."
)
@click.option("--check", "checks", is_flag=True, help="Check whether the attacks can be believed, on 32 images.")
@click.option(
    "--corruptions",
    metavar="all|NAME,...",
    default="none",
    help="Weather, noise, blur and compression (docs/corruptions.md): mAP under each, their mean (mPC), and the share "
    "of the clean mAP that it is (rPC).",
)
@click.option("--severities", metavar="S", help="Of --corruptions, e.g. 3, 1-3 or 1,3,5.  [default: 1-5]")
@click.option(
    "--eps",
    type=click.FloatRange(0, min_open=True),
    metavar="E",
    help="Radius of the ball, pixels in [0, 1]; of l2, of a whole image. This and the next: the build's, or the "
    "paper's 0.05.",
)
@count_option("--steps", "Gradient steps of pgd; the paper: 5.")
@click.option(
    "--step-size", type=click.FloatRange(0, 1, min_open=True), metavar="S", help="Length of a step; the paper: 0.02."
)
@click.option("--random-start/--no-random-start", default=None, help="Start at a random point of the ball.")
@count_option("--restarts", "Random starts; the worst counts, per image.")
@click.option(
    "--iterate",
    type=click.Choice(["last", "best"]),
    help="Report where the last step ended, or the best of all: for each image the one with the highest loss.",
)
@click.option("--parent-cfg", type=PATH, metavar="F", help="PyTorch parent of a bundle or .onnx, for its gradients.")
@click.option("--parent-weights", type=PATH, metavar="F", help="Its weights; default: the .weights beside the cfg.")
@click.option(
    "--runtime",
    metavar="R,...",
    help="torch, onnxruntime, openvino, tensorrt; default: torch for a .cfg or a build, else onnxruntime.",
)
@click.option("--precision", default="fp32", help="Which of a bundle's models.")
@count_option("--threads", "Threads of the runtime; default: the build's or its own.")
@count_option("--batch", "Images per call; default: the build's, or 32.")
@count_option("--limit", "Measure on N images, drawn with the seed.")
@count_option("--seed", "Seed of that draw, of random starts and of the bootstrap.", least=0)
@count_option("--bootstrap", "Resamplings for the 95 % interval of every mAP; 0: none.", default=1000, least=0)
@click.option("--allow-bad-images", is_flag=True, help="Leave out images that cannot be read; they are named.")
@click.option("--allow-bad-boxes", is_flag=True, help="Leave out boxes that cannot be used; they are counted.")
@click.option("--only-known-classes", is_flag=True, help="Leave out boxes of classes that the network does not have.")
@click.option(
    "--csv",
    "csv_folder",
    type=PATH,
    metavar="DIR",
    help="Write every detection in clean and attacked images as CSV into DIR.",
)
@store_option("The demo set is composed beside it.")
def command(runtime: str | None, as_json: bool, csv_folder: Path | None, **options: Any) -> None:
    """Measure mAP of a model, on clean and on attacked images.

    MODEL is a build's output folder, a bundle, a .onnx file, or a .cfg file with its .weights. mAP is
    COCO's, by pycocotools, at the score thresholds 0.001 and 0.5.

    For the ensemble the lowest mAP counts: of its attacks, and of the set in which each image is as left by
    the attack that costs it most. docs/attacks.md says what each attack and objective is.

    Attacked images are made with the gradients of the very model that is measured (in fp32). An engine has
    none: its attacked images are made with its PyTorch parent, and that number is called transfer. A
    build's output folder has the parent; for a bundle or an .onnx file it is given with --parent-cfg.
    Only square needs no gradients: it asks the engine itself.
    With --adaptive they are also made with a twin of its int8 or fp16 file, which rounds as the file does.

    What is not given is taken from the build: its attack, seed, batch size and threads repeat its figures.
    """
    keep_freed_memory()
    from prunedeploy_engines.bundle.source import find_model

    source = find_model(options.pop("model"), options.pop("weights"))
    default = "torch" if source.kind in ("darknet", "build") else "onnxruntime"
    runtimes = comma_list(runtime or default, "--runtime", RUNTIMES)
    attacks = _attacks(options.pop("attacks"), options.pop("objective"))
    _refuse_idle_options(attacks, options)
    options |= _corruptions(options["corruptions"], options["severities"])
    if options["adaptive"] and runtimes == ["torch"]:
        what = "--adaptive is for engines, and torch runs the very network that is attacked"
        raise click.UsageError(f"{what}: add an engine, e.g. --runtime onnxruntime")
    with quiet_stdout():
        from prunedeploy.pipeline.evaluation import Request, run

        request = Request(source=source, runtimes=tuple(runtimes), csv_folder=csv_folder, attacks=attacks, **options)
        document = run(request)
    for warning in document["warnings"]:
        click.echo(f"prunedeploy: warning: {warning}", err=True)
    for row in document["data"]["left_out"]:
        click.echo(f"{row['becomes']}: {row['count']} x {row['kind']}; the first: {row['named'][0]}", err=True)
    for path, reason in document["data"]["skipped"].items():
        click.echo(f"left out: {path}: {reason}", err=True)
    if as_json:
        print_json(document)
    else:
        print_evaluation(document)
        if request.csv_folder is not None:
            click.echo(f"\ndetections: {request.csv_folder}/")


def _attacks(text: str, objective: str | None) -> tuple[str, ...]:
    """References to attacks, with the objective where one is left open."""
    attacks = tuple(name.strip() for name in text.split(",") if name.strip())
    if attacks in {(), ("none",)}:
        return ()
    if "none" in attacks:
        raise click.UsageError("--attack none excludes other attacks")
    if objective is None:
        return attacks
    if not any(one in WITH_OBJECTIVE for one in attacks):
        raise click.UsageError("--objective is for fgsm, pgd and apgd, but none of them is given without one")
    return tuple(f"{one}:{objective}" if one in WITH_OBJECTIVE else one for one in attacks)


def _corruptions(names: str, severities: str | None) -> dict[str, tuple[Any, ...]]:
    """Both options, read and checked."""
    from prunedeploy.config.corruptions import SEVERITIES, corruption_names, severities_of

    try:
        chosen = corruption_names(comma_list(names, "--corruptions"))
    except ValueError as error:
        raise click.UsageError(f"--corruptions: {error}") from None
    if severities is not None and not chosen:
        raise click.UsageError("--severities has no effect without --corruptions")
    try:
        return {"corruptions": chosen, "severities": SEVERITIES if severities is None else severities_of(severities)}
    except ValueError as error:
        raise click.UsageError(f"--severities: {error}") from None


def _refuse_idle_options(attacks: tuple[str, ...], options: dict[str, Any]) -> None:
    def given(*names: str) -> str | None:
        return next((f"--{name.replace('_', '-')}" for name in names if options[name] not in {None, False}), None)

    of_pgd = given("steps", "step_size", "random_start", "restarts", "iterate")
    if of_pgd and not any(one.startswith("pgd") for one in attacks):
        raise click.UsageError(f"{of_pgd} has no effect without --attack pgd")
    if (of_square := given("queries", "start", "feedback")) and "square" not in attacks:
        raise click.UsageError(f"{of_square} has no effect without --attack square")
    if options["start"] == "white-box" and set(attacks) <= {"noise", "cw", "square"}:
        raise click.UsageError("--start white-box needs an attack with gradients beside square, as in pgd,square")
    if options["curve"] and attacks and set(attacks) <= {"cw", "square"}:
        raise click.UsageError(
            f"--curve needs an attack that searches a ball by gradients, which {attacks[0]} does not"
        )
    if options["checks"] and set(attacks) == {"square"}:
        raise click.UsageError("--check needs an attack with gradients beside square")
    if (idle := given("eps", "budget", "curve", "error_kinds", "checks", "adaptive")) and not attacks:
        raise click.UsageError(f"{idle.replace('--checks', '--check')} has no effect without --attack")
    if options["adaptive"] and (of_torch := given("curve", "checks")):
        what = f"{of_torch.replace('--checks', '--check')} is of the network in PyTorch"
        raise click.UsageError(f"{what}: leave it or --adaptive out")
