"""The stage that measures a network and its files under weather, noise, blur and compression, if asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from prunedeploy.evaluation import TorchRunner
from prunedeploy.evaluation.corruption import evaluate_corrupted
from prunedeploy.pipeline.context import BuildContext, StageResult, load_stage_model
from prunedeploy.pipeline.stages.export import ENGINE, Artefact, runner_key
from prunedeploy_engines.runtimes.opening import open_runner
from prunedeploy_engines.runtimes.runner import Runner

FILE = "corruptions.json"


def corruptions_stage(
    context: BuildContext, row: str, model: StageResult, artefacts: Sequence[Artefact] = ()
) -> StageResult:
    """MAP of a network in PyTorch, and of its files on ONNX Runtime, under every corruption that is asked for.

    Args:
        context: The build.
        row: ``original``, ``robust`` or ``pruned``.
        model: Stage that made the network.
        artefacts: Its files.
    """
    config, block = context.config, context.config.robustness
    settings = {
        "corruptions": block.corruptions,
        "severities": block.severities,
        "images": block.images,
        **context.measuring_settings(),
    }
    inputs = {"model": model.digest, "data": context.test_key}
    inputs |= {artefact.name: artefact.stage.digest for artefact in artefacts}
    with context.stage("corruptions", 1, settings, inputs) as result:
        if result.work:
            network = load_stage_model(model.folder).to(context.device)
            dataset = context.attacked
            loader = context.evaluation_loader(dataset, network, config.evaluation.batch_size)
            passes = 1 + len(block.corruptions) * len(block.severities)
            with ExitStack() as stack:
                runners: dict[str, Runner] = {"torch": stack.enter_context(TorchRunner(network))}
                for artefact in artefacts:
                    opened = open_runner(artefact.file, ENGINE, threads=context.threads, allow_spinning=False)
                    runners[runner_key(ENGINE, artefact)] = stack.enter_context(opened)
                task = context.progress.task(f"corrupt the images of {row}", passes * len(dataset.images))
                found = evaluate_corrupted(
                    runners,
                    loader,
                    dataset,
                    block.corruptions,
                    block.severities,
                    greyscale=loader.greyscale,
                    iou_threshold=config.evaluation.iou_threshold,
                    score_threshold=config.evaluation.map_score_threshold,
                    resamples=config.evaluation.bootstrap,
                    seed=config.seed,
                    progress=stack.enter_context(task),
                )
            result.write(
                FILE,
                {
                    "images": len(dataset.images) - len(loader.skipped),
                    "runners": {name: one.as_dict() for name, one in found.items()},
                },
            )
    return result


def mean_figures(document: Mapping[str, Any] | None, runner: str, images: int | None) -> dict[str, float | None]:
    """``mpc`` and ``rpc`` of one runner for the row it has in ``results.json``.

    Nothing if they were not measured, or on other images than the row's figures.
    """
    found = None if document is None or document["images"] != images else document["runners"].get(runner)
    return {} if found is None else {key: found[key] for key in ("mpc", "rpc")}
