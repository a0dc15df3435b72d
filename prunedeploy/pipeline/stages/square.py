"""The stage that attacks a file by its answers alone, on one runtime; only if it is asked for."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from prunedeploy.attacks.norms import on_lattice
from prunedeploy.attacks.square import Square
from prunedeploy.attacks.suite import ENSEMBLE, attack_suite
from prunedeploy.config import BuildConfig
from prunedeploy.evaluation import evaluate
from prunedeploy.evaluation.black_box import BLIND, SQUARE
from prunedeploy.pipeline.black_box import black_box, black_box_checks, queries_row
from prunedeploy.pipeline.context import BuildContext, StageResult, load_stage_model
from prunedeploy.pipeline.engine_figures import named_figures
from prunedeploy.pipeline.stages.deployment import Deployment
from prunedeploy.pipeline.stages.export import Artefact, runner_key
from prunedeploy_engines.errors import ConfigError
from prunedeploy_engines.runtimes.onnx_file import read_onnx_header
from prunedeploy_engines.runtimes.opening import open_runner

FILE = "square.json"


def check_square(config: BuildConfig) -> None:
    """Refuse what no file can answer, before anything is read.

    Raises:
        ConfigError: The ball has no room for it, files with suppression are to give scores, or the budget does not
            reach the images that it starts from.
    """
    block, square = config.robustness, config.robustness.square
    if not block.asks_files:
        return
    try:
        Square(config.attack.eps, lattice=config.export.uint8_input)
    except ValueError as error:
        raise ConfigError(str(error), "attack.eps", "give a larger one") from None
    if config.export.nms and square.feedback == "scores":
        what = "files with suppression in their graph (export.nms) give no scores of candidates"
        raise ConfigError(what, "robustness.square.feedback", "use detections, or leave it out")
    starts = {
        single
        for one in block.on_files
        if one not in BLIND
        for single in ([f"apgd:{objective}" for objective in ENSEMBLE] if one == "ensemble" else [one])
    }
    if square.start == "white-box" and len(starts) > square.queries:
        what = f"{square.queries} queries do not reach the {len(starts)} white-box images that it starts from"
        raise ConfigError(what, "robustness.square.queries", "give more")


def square_stage(
    context: BuildContext, model: StageResult, artefact: Artefact, runtime: str, deployed: Deployment
) -> StageResult:
    """MAP of a file on a runtime under Square, and beside it under the other attacks by transfer from the network.

    ``square.json`` has the ``figures`` of these images and their ``intervals``, ``images``, ``attack``, what it was,
    ``queries`` of an image, and ``checks``.

    Args:
        context: The build.
        model: Stage that made the pruned network, its parent.
        artefact: The file.
        runtime: Who runs it.
        deployed: At which score detections are served, if it sees no more than them.
    """
    config, block = context.config, context.config.robustness
    sees_detections = block.square.feedback == "detections" or artefact.has_nms
    served = {"score_threshold": deployed.score_threshold(artefact.precision)} if sees_detections else {}
    settings = {
        "attack": config.attack.model_dump(),
        "attacks": block.on_files,
        "budget": block.budget,
        "square": {**block.square.model_dump(), **served},
        "images": block.images,
        "runtime": runtime,
        **context.measuring_settings(),
    }
    inputs = {"model": model.digest, "data": context.test_key, "file": artefact.stage.digest}
    with context.stage("square", 1, settings, inputs) as result:
        if result.work:
            name, network = runner_key(runtime, artefact), load_stage_model(model.folder).to(context.device)
            dataset = context.attacked
            suite = attack_suite(network, block.on_files, config.attack, block.budget, seed=config.seed)
            with open_runner(artefact.file, runtime, threads=context.threads, allow_spinning=False) as runner:
                box = black_box(
                    [runner],
                    config.attack,
                    **block.square.model_dump(),
                    norm="linf",
                    seed=config.seed,
                    score_threshold=deployed.score_threshold(artefact.precision),
                    iou_threshold=config.evaluation.iou_threshold,
                    nms=read_onnx_header(artefact.file).nms,
                )
                queries = box.square.queries * len(dataset.images)
                with context.progress.task(f"square on {artefact.name}, {runtime}, queries", queries) as advance:
                    found = evaluate(
                        {name: runner},
                        context.evaluation_loader(dataset, network, config.evaluation.batch_size),
                        dataset,
                        attack=suite.attacks,
                        ensembles=suite.ensembles,
                        attacked_model=network,
                        own_attacks={SQUARE: replace(box, progress=advance)},
                        lattice=partial(on_lattice, eps=config.attack.eps, norm="linf"),
                        iou_threshold=config.evaluation.iou_threshold,
                        score_threshold=config.evaluation.map_score_threshold,
                        resamples=config.evaluation.bootstrap,
                        seed=config.seed,
                    )
            figures, intervals = named_figures(found[name])
            checks = black_box_checks(found, block.on_files, box)
            for check in checks:
                if not check["passed"]:
                    what = f"attacks on {artefact.name}: warning: {check['name']}: {check['says']}"
                    context.progress.message(what)
            document = {
                "images": found[name].n_images,
                "attack": box.described(),
                "queries": queries_row(found[name])["queries"][SQUARE],
                "checks": checks,
                "figures": figures,
                "intervals": intervals,
            }
            result.write(FILE, document)
    return result
