"""The stage that attacks a network with everything that ``robustness`` asks for, and looks into what that does."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import asdict, replace
from typing import Any

from prunedeploy.attacks.suite import attack_suite, check_references
from prunedeploy.config import BuildConfig, as_dict, result_settings
from prunedeploy.data.coco import measured_subset
from prunedeploy.evaluation import TorchRunner, evaluate, figure_name, write_detections
from prunedeploy.evaluation.attack_checks import CHECKED_IMAGES, check_attacks, measurements
from prunedeploy.evaluation.robustness import curve, described, distortion, looked_into
from prunedeploy.pipeline.context import BuildContext, StageResult, load_stage_model

FILE = "robustness.json"


def check_robustness(config: BuildConfig) -> None:
    """Refuse attacks and objectives that do not exist, before anything is read.

    Raises:
        ConfigError: Names the nearest one.
    """
    check_references(config.robustness.attacks, "robustness.attacks")


def strongest_attack(stage: StageResult) -> str | None:
    """The single attack that leaves a network least; None if none has an mAP."""
    document = stage.read(FILE)
    names = [one for attack in document["attacks"] for one in attack.get("attacks", [attack["name"]])]
    maps = {name: document["figures"][f"map_{figure_name(name)}"] for name in names}
    return min((name for name in maps if maps[name] is not None), key=lambda name: float(maps[name]), default=None)


def robustness_stage(context: BuildContext, row: str, model: StageResult, parent: StageResult | None) -> StageResult:
    """Attack a network in PyTorch with what the configuration asks for beside its ``attack``.

    Args:
        context: The build.
        row: ``original``, ``robust`` or ``pruned``.
        model: Stage that made the network.
        parent: Stage that made the network it was cut from, for the check whether that one's images hurt more.
    """
    config, block = context.config, context.config.robustness
    settings = {
        "attack": config.attack.model_dump(),
        "robustness": as_dict(block),
        "evaluation": result_settings(config.evaluation),
        "seed": config.seed,
        "device": context.device.type,
        "greyscale": config.data.greyscale,
        "allow_bad_images": config.data.allow_bad_images,
    }
    inputs = {"model": model.digest, "data": context.test_key}
    if block.checks and parent is not None:
        inputs["parent"] = parent.digest
    with context.stage("robustness", 1, settings, inputs) as result:
        if result.work:
            network = load_stage_model(model.folder).to(context.device)
            dataset = context.test
            if block.images is not None and block.images < len(dataset.images):
                dataset = measured_subset(dataset, block.images)
            loader = context.evaluation_loader(dataset, network, config.evaluation.batch_size)
            thresholds: dict[str, Any] = {
                "iou_threshold": config.evaluation.iou_threshold,
                "score_threshold": config.evaluation.map_score_threshold,
            }
            bootstrap: dict[str, Any] = {"resamples": config.evaluation.bootstrap, "seed": config.seed}
            suite = attack_suite(network, block.attacks, config.attack, block.budget, seed=config.seed)
            document: dict[str, object] = {"images": len(dataset.images)}
            with ExitStack() as stack:
                runner = stack.enter_context(TorchRunner(network))
                task = context.progress.task(f"attack {row}", len(dataset.images))
                found = evaluate(
                    runner,
                    loader,
                    dataset,
                    attack=suite.attacks,
                    ensembles=suite.ensembles,
                    attacked_model=network,
                    **thresholds,
                    **bootstrap,
                    progress=stack.enter_context(task),
                )[runner.runtime]
            bounds = {of: None if each is None else [each.low, each.high] for of, each in found.intervals().items()}
            references = [one for one in block.attacks if one in suite.passes]
            document |= {
                "attacks": described(suite, references, config.attack, block.budget, "linf", config.seed),
                "figures": found.metrics(),
                "intervals": bounds,
                **looked_into(
                    found,
                    dataset,
                    references,
                    error_kinds=block.error_kinds,
                    score_threshold=config.evaluation.score_threshold,
                    **bootstrap,
                ),
            }
            for reference in references:
                name = f"torch-{figure_name(reference)}.csv"
                write_detections(result.work / name, found.attacked[reference].detections, dataset)
            if "cw" in block.attacks:
                with context.progress.task(f"cw on {row}", len(dataset.images)) as advance:
                    document["distortion"] = distortion(
                        network,
                        loader,
                        block.budget,
                        score_threshold=config.evaluation.score_threshold,
                        iou_threshold=config.evaluation.iou_threshold,
                        **bootstrap,
                        progress=advance,
                    )
            if block.curve:
                strongest = references[-1] if references else "pgd"
                with context.progress.task(
                    f"{strongest} over the radius", len(block.curve) * len(dataset.images)
                ) as advance:
                    document["curve"] = {
                        "attack": strongest,
                        "rows": curve(
                            network, loader, dataset, strongest, config.attack, block.curve,
                            budget=block.budget, **thresholds, **bootstrap, progress=advance,
                        ),
                    }  # fmt: skip
            if block.checks:
                few = replace(dataset, images=dataset.images[:CHECKED_IMAGES])
                origin = None if parent is None else load_stage_model(parent.folder).to(context.device)
                with context.progress.task(
                    f"check the attacks on {row}", measurements(origin) * len(few.images)
                ) as advance:
                    checks = check_attacks(
                        network,
                        context.evaluation_loader(few, network, config.evaluation.batch_size),
                        few,
                        config.attack,
                        block.budget,
                        parent=origin,
                        **thresholds,
                        seed=config.seed,
                        progress=advance,
                    )
                document["checks"] = [asdict(one) for one in checks]
                for one in checks:
                    if not one.passed:
                        context.progress.message(f"attack check of {row}: warning: {one.name}: {one.says}")
            result.write(FILE, document)
    return result
