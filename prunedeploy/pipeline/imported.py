"""An exported ONNX detector: where a cfg is given imported once, beside the store; and its normalisation put back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from prunedeploy.config import BUNDLED, BuildConfig
from prunedeploy_engines.errors import ConfigError
from prunedeploy_engines.files import file_sha256

if TYPE_CHECKING:
    from prunedeploy.importing import ImportedDetector


def with_imported_network(config: BuildConfig, store: Path) -> BuildConfig:
    """The configuration with cfg, weights and class names of the ONNX file that its ``model.cfg`` names.

    Args:
        config: What to build; unchanged where ``model.cfg`` is a cfg.
        store: Folder of the stage store; beside it what was imported is kept, by the file's digest.

    Raises:
        ConfigError: Weights are given beside the file, which has its own.
        OnnxImportError: The file cannot be imported.
    """
    model, path = config.model, Path(config.model.cfg)
    if path.suffix.lower() != ".onnx":
        return config
    if model.weights not in (None, BUNDLED):
        raise ConfigError(f"{path.name} has its own weights", "model.weights", "leave --weights out")
    from prunedeploy.importing import CFG, NAMES, WEIGHTS, import_onnx, write_imported

    size = None
    if model.input_size is not None:
        width, height = map(int, model.input_size.split("x"))
        size = height, width
    digest = file_sha256(path)[:32] if path.is_file() else ""
    folder = store.parent / f"{store.name}-imported" / f"{digest}-{model.input_size or 'own'}"
    if not digest or not (folder / CFG).is_file():
        write_imported(import_onnx(path, size), folder, overwrite=True)
    names = folder / NAMES
    changed: dict[str, str | bool] = {"cfg": str(folder / CFG), "weights": str(folder / WEIGHTS)}
    if model.normalisation is None:
        changed["normalisation"] = True
    if model.names is None and names.is_file():
        changed["names"] = str(names)
    return config.model_copy(update={"model": model.model_copy(update=changed)})


def with_normalisation_of(found: ImportedDetector, folder: Path, images: int) -> ImportedDetector:
    """The detector with batch normalisation where its file has it folded away; what it computes stays the same.

    Args:
        found: The detector.
        folder: A data set of any format that is read.
        images: Statistics are those of so many of its training images, or of all if there are fewer.

    Raises:
        DataError: The data set cannot be read.
    """
    from prunedeploy.data.coco import load_splits, measured_subset
    from prunedeploy.data.loader import EvaluationLoader
    from prunedeploy.models.normalisation import lacking_normalisation, with_normalisation

    cfg = found.model.cfg
    lacking = len(lacking_normalisation(cfg))
    training, _ = load_splits(folder)
    if images < len(training.images):
        training = measured_subset(training, images)
    loader = EvaluationLoader(
        training, cfg.input_size, 8, allow_bad_images=True, channels=cfg.input_shape[0], stretch=not cfg.letterbox
    )
    model = with_normalisation(found.model, (batch.images for batch in loader))
    used = len(training.images) - len(loader.skipped)
    line = f"batch normalisation put back into {lacking} convolutions, with statistics of {used} training images"
    return replace(found, model=model, said=(*found.said, line))
