"""The stage that scores weights, and the file that it leaves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from safetensors.torch import load_file, save_file

from prunedeploy.models import Darknet
from prunedeploy.pipeline.context import BuildContext, StageResult, load_stage_model
from prunedeploy.scores import Scores, magnitude_scores, random_scores, scaled_scores


def score_stage(context: BuildContext, robust: StageResult) -> StageResult:
    """Step 2: one importance score per weight."""
    name, seed = context.config.scores.name, context.config.seed

    def compute(work: Path, _: Path) -> None:
        model = load_stage_model(robust.folder)
        functions: dict[str, Callable[[Darknet], Scores]] = {
            "scaled": scaled_scores,
            "magnitude": magnitude_scores,
            "random": lambda network: random_scores(network, seed),
        }
        save_scores(work / "scores.safetensors", functions[name](model))

    settings = {"name": name, **({"seed": seed} if name == "random" else {})}
    return context.run("score", 1, settings, {"robust": robust.digest}, compute)


def load_scores(folder: Path) -> Scores:
    """The scores that a stage has written."""
    return {int(name): value for name, value in load_file(folder / "scores.safetensors").items()}


def save_scores(path: Path, scores: Scores) -> None:
    """Write scores as safetensors, one tensor per convolution under its layer index."""
    save_file({str(index): value.cpu().contiguous() for index, value in scores.items()}, path)
