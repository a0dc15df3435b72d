"""An exported ONNX detector given where a cfg is: imported once, into a folder beside the store."""

from __future__ import annotations

from pathlib import Path

from prunedeploy.config import BUNDLED, BuildConfig
from prunedeploy_engines.errors import ConfigError
from prunedeploy_engines.files import file_sha256


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
    changed = {"cfg": str(folder / CFG), "weights": str(folder / WEIGHTS)}
    if model.names is None and names.is_file():
        changed["names"] = str(names)
    return config.model_copy(update={"model": model.model_copy(update=changed)})
