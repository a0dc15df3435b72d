"""A bundle as a model repository of Triton Inference Server.

Four models, see `triton_config`: the detector as it is, and an ensemble that takes encoded images and gives
detections. Its Python models run copies of this project's own letterbox and suppression, see `copied_sources`.
"""

from __future__ import annotations

import math
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from prunedeploy_engines.bundle import Bundle
from prunedeploy_engines.errors import ConfigError
from prunedeploy_engines.files import is_leftover, write_whole_folder
from prunedeploy_export.cluster.copied_sources import copied_sources
from prunedeploy_export.cluster.triton_config import TritonSettings, model_filename, triton_configs
from prunedeploy_export.cluster.triton_detector import TritonDetector, triton_detector

NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,98}[A-Za-z0-9])?")
CONFIG = "config.pbtxt"
_PYTHON_MODELS = ("preprocess", "postprocess")

_MODEL_TEXT = '''"""What Triton's Python backend loads. The modules beside this file come before installed ones."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from {module} import TritonPythonModel  # noqa: E402

__all__ = ["TritonPythonModel"]
'''

_NO_FILE = """An ensemble has no model file, but Triton wants this folder, and object stores keep no empty ones.
"""


@dataclass(frozen=True)
class TritonRepository:
    """What was written.

    Attributes:
        path: The repository.
        detector: The detector's file in the bundle, and what it takes and gives.
        models: Names of the models: detector, pre- and post-processing, ensemble.
        version: Version of each model.
    """

    path: Path
    detector: TritonDetector
    models: tuple[str, ...]
    version: int


def write_triton_repository(
    bundle: Bundle,
    folder: str | Path,
    *,
    name: str,
    target: str = "cpu",
    precision: str = "fp32",
    version: int = 1,
    settings: TritonSettings | None = None,
    overwrite: bool = False,
) -> TritonRepository:
    """Write a bundle's detector as a Triton model repository: whole, or not at all.

    Args:
        bundle: From `load_bundle`, verified.
        folder: Where; must not exist, be empty, or be a repository to ``overwrite``.
        name: Name of the detector.
        target: See `triton_detector`.
        precision: ``"fp32"``, ``"fp16"`` or ``"int8"``.
        version: Number of the models' version, >= 1.
        settings: How Triton is to run it; None is the defaults.
        overwrite: Replace the repository that is there.

    Raises:
        ConfigError: A name or a number is not possible.
        BundleError: The bundle has no such model, or one that Triton cannot load.
        EngineError: The model's file is not a detector.
        StoreError: The folder holds something else, or the file system refuses.
    """
    folder = Path(folder)
    settings = settings or TritonSettings()
    if not NAME.fullmatch(name):
        raise ConfigError(f"{name!r} is not a name for a Triton model", "name", "use letters, digits, '-', '_' and '.'")
    if version < 1:
        raise ConfigError(f"{version} is not a version", "version", "count from 1")
    _check_not_foreign(folder)
    detector = triton_detector(bundle, target, precision)
    _check_settings(settings, detector)
    configs = triton_configs(name, bundle, detector, settings, version)

    def fill(temporary: Path) -> None:
        for model, config in configs.items():
            (temporary / model / str(version)).mkdir(parents=True)
            (temporary / model / CONFIG).write_text(config, encoding="utf-8")
        shutil.copyfile(detector.path, temporary / name / str(version) / model_filename(detector))
        (temporary / f"{name}-detect" / str(version) / "README.txt").write_text(_NO_FILE, encoding="utf-8")
        for kind in _PYTHON_MODELS:
            module = f"prunedeploy_export.cluster.triton_{kind}"
            _write_python_model(temporary / f"{name}-{kind}" / str(version), module)

    write_whole_folder(folder, fill, overwrite=overwrite)
    return TritonRepository(folder, detector, tuple(configs), version)


def _write_python_model(folder: Path, module: str) -> None:
    (folder / "model.py").write_text(_MODEL_TEXT.format(module=module), encoding="utf-8")
    for path, content in copied_sources(module).items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)


def _check_not_foreign(folder: Path) -> None:
    """Refuse to replace anything but a model repository: a slip of the hand must not cost a home folder."""
    if not folder.is_dir():
        return
    for entry in sorted(folder.iterdir()):
        if not (entry / CONFIG).is_file() and not is_leftover(entry.name):
            raise ConfigError(f"holds {entry.name}, so it is not a Triton repository", folder, "choose another folder")


def _check_settings(settings: TritonSettings, detector: TritonDetector) -> None:
    if not (settings.max_delay_ms >= 0 and settings.timeout_s > 0 and math.isfinite(settings.timeout_s)):
        times = f"a delay of {settings.max_delay_ms} ms and a timeout of {settings.timeout_s} s"
        raise ConfigError(f"{times} are not possible", "settings", "give numbers above zero")
    limit = detector.max_batch
    if limit is not None and settings.max_batch > limit:
        fix = f"ask for at most {limit}, or build the plan with a larger one (`prunedeploy engine --batch`)"
        raise ConfigError(f"the plan takes batches of up to {limit}, not {settings.max_batch}", detector.path.name, fix)
    if settings.preferred[0] < 1 or settings.preferred[-1] > settings.max_batch:
        wrong = [size for size in settings.preferred if not 1 <= size <= settings.max_batch]
        raise ConfigError(
            f"{wrong[0]} is not between 1 and the largest batch, {settings.max_batch}", "preferred batch size"
        )
