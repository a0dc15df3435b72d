"""The stage that scores weights, and the files that it leaves."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from prunedeploy.attacks import Pgd
from prunedeploy.config import BuildConfig, ScoresConfig, result_settings
from prunedeploy.data import train_test_subset
from prunedeploy.data.batches import Batch
from prunedeploy.models import Darknet
from prunedeploy.models.darknet_cfg import DarknetCfg
from prunedeploy.models.loss import yolo_loss
from prunedeploy.pipeline.context import BuildContext, StageResult, load_stage_model
from prunedeploy.scores import (
    GivenScores,
    ScoreFunction,
    Scores,
    SummationToDelta,
    bn_scale_scores,
    deeplift,
    gradient_x_input_scores,
    magnitude_scores,
    normalised_scores,
    random_scores,
    read_given_scores,
    scaled_scores,
    snip_scores,
    taylor_scores,
)
from prunedeploy.scores.captum_deeplift import captum_deeplift, check_captum_is_right
from prunedeploy.scores.deeplift import DeepLift
from prunedeploy.scores.deeplift_rules import check_rules
from prunedeploy.scores.reference import (
    ReferenceFunction,
    blurred_reference,
    image_reference,
    mean_image,
    zeros_reference,
)
from prunedeploy_engines.files import file_sha256

WITHOUT_IMAGES = frozenset({"scaled", "magnitude", "random", "bn-scale", "file"})
"""Scores that follow from the weights alone, or from a file."""
READ_BY = {
    "file": {"file"},
    "backend": {"deeplift"},
    "reference": {"deeplift"},
    "blur_sigma": {"deeplift"},
    "deeplift_rule": {"deeplift"},
    "predictions": {"deeplift", "gradient-x-input"},
}
"""Settings that only some scores read."""


def score_stage(context: BuildContext, robust: StageResult) -> StageResult:
    """Step 2: one importance score per weight.

    Leaves ``scores.safetensors`` and ``score.json``: the settings, the seconds it took, the number of images, and for
    DeepLIFT how exactly contributions add up.

    Raises:
        PruningError: The score cannot be taken of this network or with this reference, or its file cannot be used.
        DataError: The reference image cannot be used.
    """
    settings = context.config.scores
    inputs = {"robust": robust.digest}
    if settings.name not in WITHOUT_IMAGES:
        inputs["data"] = context.training_key
    # Before the store hashes anything: says what is wrong with a file.
    given = check_scores(context.config, context.network.cfg)
    if _reads_an_image(settings):
        inputs["reference"] = file_sha256(Path(settings.reference))
    if given is not None:
        inputs["file"] = given.sha256

    with context.stage("score", 2, score_settings(context), inputs) as result:
        if result.work:
            model = load_stage_model(robust.folder).to(context.device)
            images = _ScoringImages(context, model)
            started = time.perf_counter()
            scores, summation = _scored(context.config, model, images, given)
            seconds = time.perf_counter() - started
            save_scores(result.work / "scores.safetensors", normalised_scores(scores, settings.normalise))
            document = {
                **score_settings(context),
                "images": None if settings.name in WITHOUT_IMAGES else len(images.records.images),
                "skipped": {str(path): reason for path, reason in images.skipped.items()},
                "seconds": seconds,
                "summation_to_delta": summation and {"worst_layer": summation.worst_layer, "target": summation.target},
            }
            result.write("score.json", document)
    return result


def check_scores(config: BuildConfig, cfg: DarknetCfg) -> GivenScores | None:
    """Refuse what does not fit the network: DeepLIFT, a reference image, a file of scores, Captum.

    Args:
        config: The build's configuration.
        cfg: The network that is scored.

    Returns:
        The scores of the file, if that is where they come from.

    Raises:
        PruningError: The file of scores cannot be used, or DeepLIFT has no rule for a layer, or Captum a wrong one.
        DataError: The reference image cannot be used.
    """
    settings = config.scores
    if settings.name == "deeplift":
        check_rules(cfg)  # here and not after a training
    if settings.backend == "captum":
        version("captum")  # likewise, if it is not installed
        check_captum_is_right(cfg)
    if _reads_an_image(settings):
        image_reference(Path(settings.reference), cfg.input_size, cfg.input_shape[0])
    if settings.file is None:
        return None
    return read_given_scores(Path(settings.file), cfg)


def load_scores(folder: Path) -> Scores:
    """The scores that a stage has written."""
    return {int(name): value for name, value in load_file(folder / "scores.safetensors").items()}


def save_scores(path: Path, scores: Scores) -> None:
    """Write scores as safetensors, one tensor per convolution under its layer index."""
    save_file({str(index): value.cpu().contiguous() for index, value in scores.items()}, path)


def score_settings(context: BuildContext) -> dict[str, Any]:
    """What the score depends on: the settings that it reads."""
    config, name = context.config, context.config.scores.name
    block = result_settings(config.scores)
    kept = {key: value for key, value in block.items() if name in READ_BY.get(key, {name})}
    if config.scores.reference != "blur":
        kept.pop("blur_sigma", None)
    if config.scores.backend == "own":
        kept.pop("backend", None)  # scores that were stored before there was a choice stay good
    else:
        kept["captum"] = version("captum")
    if name in WITHOUT_IMAGES:
        kept = {key: kept[key] for key in ("name", "normalise")}
        return {**kept, "seed": config.seed} if name == "random" else kept
    kept |= {"seed": config.seed, "threads": context.threads, "device": context.device.type}
    if config.scores.attacked:
        kept["attack"] = config.attack.model_dump()
    return {**kept, "greyscale": config.data.greyscale}


def _reads_an_image(settings: ScoresConfig) -> bool:
    return settings.name == "deeplift" and settings.reference not in ("zeros", "mean", "blur")


class _ScoringImages:
    """The batches that a score is taken on; every iteration gives the same.

    Attributes:
        context: The build's context.
        model: The network.
        records: The images, drawn with the seed.
        skipped: Path and reason of every image that could not be used.
    """

    def __init__(self, context: BuildContext, model: Darknet) -> None:
        self.context, self.model, self.records = context, model, context.training
        self.skipped: dict[Path, str] = {}
        if context.config.scores.images < len(context.training.images):
            drawn, _ = train_test_subset(context.training, context.config.scores.images, context.config.seed)
            self.records = drawn

    def clean(self) -> Iterator[Batch]:
        """Letterboxed images, not augmented."""
        config = self.context.config
        batch_size, device = config.scores.batch_size, self.context.device
        loader = self.context.evaluation_loader(self.records, self.model, batch_size, allow_bad_images=True)
        for batch in loader:
            yield replace(batch, images=batch.images.to(device), targets=batch.targets.to(device))
        self.skipped |= loader.skipped

    def scored(self) -> Iterator[Batch]:
        """What is scored: the same, attacked if that is asked for."""
        config = self.context.config
        if not config.scores.attacked:
            yield from self.clean()
            return
        attack = Pgd.against(self.model, config.attack, "fp32", config.seed)
        for batch in self.clean():
            yield replace(batch, images=attack(batch.images, batch.targets, batch.image_ids))

    def __iter__(self) -> Iterator[Batch]:
        with self.context.progress.task("score", len(self.records.images)) as advance:
            for batch in self.scored():
                yield batch
                advance(len(batch.images))


def _scored(
    config: BuildConfig, model: Darknet, images: _ScoringImages, given: GivenScores | None
) -> tuple[Scores, SummationToDelta | None]:
    """The configured score, by the one interface; of DeepLIFT also how exactly contributions add up."""
    settings = config.scores
    if settings.name == "deeplift":
        found = _deeplift(settings, model, images)
        return found.scores, found.summation
    functions: dict[str, ScoreFunction] = {
        "scaled": scaled_scores,
        "magnitude": magnitude_scores,
        "random": partial(random_scores, seed=config.seed),
        "bn-scale": bn_scale_scores,
        "snip": snip_scores,
        "taylor": taylor_scores,
        "gradient-x-input": partial(gradient_x_input_scores, predictions=settings.predictions),
    }
    function = given or functions[settings.name]
    batches = () if settings.name in WITHOUT_IMAGES else images
    return function(model, batches, lambda heads, targets: yolo_loss(heads, targets, model.cfg).total), None


def _deeplift(settings: ScoresConfig, model: Darknet, images: _ScoringImages) -> DeepLift:
    reference, predictions = _reference(settings, model, images), settings.predictions
    if settings.backend == "own":
        return deeplift(model, images, reference=reference, rule=settings.deeplift_rule, predictions=predictions)
    passes = len(images.records.images) * len(model.cfg.convolutions)
    with images.context.progress.task("score, layer by layer", passes) as advance:
        return captum_deeplift(model, images.scored(), reference=reference, predictions=predictions, layer_done=advance)


def _reference(settings: ScoresConfig, model: Darknet, images: _ScoringImages) -> ReferenceFunction:
    if settings.reference == "zeros":
        return zeros_reference
    if settings.reference == "blur":
        return partial(blurred_reference, sigma=settings.blur_sigma)
    if settings.reference == "mean":
        fixed = mean_image(images.clean())
    else:
        fixed = image_reference(Path(settings.reference), model.cfg.input_size, model.cfg.input_shape[0])
    return lambda batch: fixed.to(batch)
