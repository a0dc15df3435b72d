"""The stage that attacks the engines of a build themselves, by their twins; only if it is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from prunedeploy.config import BuildConfig
from prunedeploy.pipeline.adaptive import AdaptiveAttack, adaptive_figures
from prunedeploy.pipeline.attacking import Attacked
from prunedeploy.pipeline.context import BuildContext, StageResult, load_stage_model
from prunedeploy.pipeline.stages.export import ENGINE, Artefact, cpu_runtimes, runner_key
from prunedeploy_engines.errors import ConfigError, GateError
from prunedeploy_engines.runtimes.opening import open_runner

FILE = "adaptive.json"


def check_adaptive(config: BuildConfig) -> None:
    """Refuse adaptive attacks where there will be nothing to attack, before anything is read.

    Raises:
        ConfigError: All files are fp32, whose adaptive attack is their parent's.
    """
    if config.robustness.adaptive and set(config.export.precisions) == {"fp32"}:
        what = "attacks fp16 and int8 files, and export.precisions has none"
        raise ConfigError(what, "robustness.adaptive", "add one, e.g. --precision fp32,int8")


def adaptive_stage(context: BuildContext, model: StageResult, artefacts: Sequence[Artefact]) -> StageResult:
    """MAP of the fp16 and int8 files under attacks on their twins: the build's PGD and what ``robustness`` adds to it.

    A file whose twin does not pass its gates on a runtime has the reason in the place of figures.

    Args:
        context: The build.
        model: Stage that made the pruned network, their parent.
        artefacts: All files.
    """
    config, block = context.config, context.config.robustness
    files = [one for one in artefacts if one.precision != "fp32"]
    settings = {
        "attack": config.attack.model_dump(),
        "attacks": block.on_files,
        "budget": block.budget,
        "images": block.images,
        "runtimes": cpu_runtimes(context),
        **context.measuring_settings(),
    }
    inputs = {"model": model.digest, "data": context.test_key, **{one.name: one.stage.digest for one in files}}
    with context.stage("adaptive", 1, settings, inputs) as result:
        if result.work:
            network = load_stage_model(model.folder).to(context.device)
            dataset = context.attacked
            attacked = Attacked(
                network,
                dataset,
                lambda some: context.evaluation_loader(some, network, config.evaluation.batch_size),
                config.attack,
                block.model_copy(update={"attacks": block.on_files, "error_kinds": False}),
                config.evaluation,
                config.seed,
                context.progress,
            )
            document = {
                runner_key(runtime, one): _row(context, attacked, runtime, one)
                for one in files
                for runtime in (cpu_runtimes(context) if one.target != "gpu" else (ENGINE,))
            }
            result.write(FILE, document)
    return result


def _row(context: BuildContext, attacked: Attacked, runtime: str, artefact: Artefact) -> dict[str, Any]:
    """Figures of one file on one runtime by their names, ``intervals``, ``images`` and ``adaptive``."""
    with open_runner(artefact.file, runtime, threads=context.threads, allow_spinning=False) as runner:
        try:
            attack = AdaptiveAttack.on(artefact.file, runner, attacked, context.threads)
        except GateError as error:
            context.progress.message(f"{artefact.name} on {runtime} is not attacked: {error.what}")
            return {"why_not": error.what}
        found, said = attack.measure(f"{artefact.name} on {runtime}")
    figures, intervals = adaptive_figures(found)
    return {**figures, "intervals": intervals, "images": found.n_images, "adaptive": said}
