"""The stage that attacks a network with everything that ``robustness`` asks for, and looks into what that does."""

from __future__ import annotations

from prunedeploy.attacks.suite import check_references
from prunedeploy.config import BuildConfig, as_dict
from prunedeploy.evaluation import TorchRunner, evaluate, figure_name, write_detections
from prunedeploy.pipeline.attacking import Attacked
from prunedeploy.pipeline.context import BuildContext, StageResult, load_stage_model
from prunedeploy_engines.errors import ConfigError

FILE = "robustness.json"


def check_robustness(config: BuildConfig) -> None:
    """Refuse attacks and objectives that do not exist, and balls of no size, before anything is read.

    Raises:
        ConfigError: Names the key, and of names the nearest.
    """
    block = config.robustness
    check_references(block.attacks, "robustness.attacks", of_runners=True)
    if (block.is_wanted or block.adaptive or block.asks_files or config.latency.flood) and config.attack.eps == 0:
        raise ConfigError("a ball of radius 0 leaves no room for an attack", "attack.eps", "give a radius, e.g. 0.05")
    if "cw" in block.attacks and not 0 < config.evaluation.score_threshold < 1:
        what = "cw needs a threshold between 0 and 1, from which an object counts as found"
        raise ConfigError(what, "evaluation.score_threshold", "take 0.5")


def check_attacked_images(context: BuildContext) -> None:
    """Refuse attacks that the data or the network have no room for, before anything is trained.

    Raises:
        ConfigError: More images are asked for than there are, or a network of one class is to mislabel.
    """
    block, images = context.config.robustness, len(context.test.images)
    if block.images is not None and block.images > images:
        what = f"asks for {block.images} images, but only {images} are measured"
        raise ConfigError(what, "robustness.images", f"give at most {images}, or leave it out")
    if context.network.cfg.classes == 1 and (wrong := [one for one in block.attacks if "mislabel" in one]):
        raise ConfigError(f"{wrong[0]}: a network of one class cannot mislabel", "robustness.attacks", "leave it out")


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
    config, block = context.config, context.config.robustness.of_attacks
    settings = {
        "attack": config.attack.model_dump(),
        "robustness": as_dict(block),
        **context.measuring_settings(),
    }
    inputs = {"model": model.digest, "data": context.test_key}
    if block.checks and parent is not None:
        inputs["parent"] = parent.digest
    with context.stage("robustness", 1, settings, inputs) as result:
        if result.work:
            network = load_stage_model(model.folder).to(context.device)
            dataset = context.attacked
            attacked = Attacked(
                network,
                dataset,
                lambda some: context.evaluation_loader(some, network, config.evaluation.batch_size),
                config.attack,
                block,
                config.evaluation,
                config.seed,
                context.progress,
                parent=None if parent is None else load_stage_model(parent.folder).to(context.device),
            )
            with TorchRunner(network) as runner, context.progress.task(f"attack {row}", len(dataset.images)) as advance:
                found = evaluate(
                    runner,
                    attacked.loader_of(dataset),
                    dataset,
                    attack=attacked.suite.attacks,
                    ensembles=attacked.suite.ensembles,
                    attacked_model=network,
                    iou_threshold=config.evaluation.iou_threshold,
                    score_threshold=config.evaluation.map_score_threshold,
                    resamples=config.evaluation.bootstrap,
                    seed=config.seed,
                    progress=advance,
                )[runner.runtime]
            for reference in attacked.references:
                name = f"torch-{figure_name(reference)}.csv"
                write_detections(result.work / name, found.attacked[reference].detections, dataset)
            document = {
                "images": found.n_images,
                "attacks": attacked.described,
                "figures": found.metrics(),
                "intervals": {
                    of: None if one is None else [one.low, one.high] for of, one in found.intervals().items()
                },
                **attacked.looked_into(found),
                **attacked.beyond(row),
            }
            for check in document.get("checks", ()):
                if not check["passed"]:
                    message = f"attacks on {row}: warning: {check['name']}: {check['says']}"
                    context.progress.message(message)
            result.write(FILE, document)
    return result
