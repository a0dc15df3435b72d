"""What the MODEL or BUNDLE of a command line is, and the files that belong to it.

Nothing is loaded here but JSON, so that every command can ask, on the device too.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from prunedeploy_engines.errors import ConfigError

if TYPE_CHECKING:
    from prunedeploy_engines.bundle.bundle import Bundle

Kind = Literal["build", "bundle", "onnx", "darknet"]
KINDS = "a build's output folder, a bundle, a .onnx file, or a .cfg file with its .weights"
SHIPPED = Path(__file__).with_name("shipped")
"""Trained bundles that come with the package; each is known by its folder's name."""


@dataclass(frozen=True)
class ModelSource:
    """A model that was named.

    Attributes:
        given: As it was named.
        kind: What it is.
        bundle: Its bundle folder; for an ONNX file, the bundle that it lies in.
        onnx: The ONNX file, if that was named.
        cfg: Darknet cfg; ``weights`` its weights. Of a build: the pruned network.
        results: Content of the build's ``results.json``; empty if there is none.
    """

    given: Path
    kind: Kind
    bundle: Path | None = None
    onnx: Path | None = None
    cfg: Path | None = None
    weights: Path | None = None
    results: dict[str, Any] | None = None

    @property
    def name(self) -> str:
        """A short name for tables."""
        path = self.given.absolute()
        return f"{path.parent.name}/{path.name}" if path.name in ("bundle", "model.onnx", "model.cfg") else path.name

    def load_bundle(self) -> Bundle:
        """Open the bundle, verified.

        Raises:
            ConfigError: It has none.
            BundleError: It is incomplete or altered.
        """
        from prunedeploy_engines.bundle.bundle import load_bundle

        if self.bundle is None:
            raise ConfigError(
                "is not a bundle and contains none", self.given, "give a bundle or a build's output folder"
            )
        return load_bundle(self.bundle)

    def configuration(self) -> dict[str, Any]:
        """Return the configuration of the build that made it; empty if that is not known."""
        if self.results:
            return dict(self.results.get("configuration") or {})
        if self.bundle is not None:
            document = _read_object(self.bundle / "bundle.json")
            return dict((document.get("provenance") or {}).get("configuration") or {})
        return {}

    def macs(self) -> int | None:
        """Return the multiply-accumulates for one image, if the bundle or the build says so."""
        rows = [row for row in (self.results or {}).get("models", []) if row.get("name") == "pruned"]
        if self.bundle is not None:
            rows.append(_read_object(self.bundle / "bundle.json").get("metrics") or {})
        return next((int(row["macs"]) for row in rows if isinstance(row.get("macs"), (int, float))), None)


def find_model(path: Path, weights: Path | None = None) -> ModelSource:
    """Find out what a path is.

    Args:
        path: See `KINDS`; ``bundle.json`` stands for its folder. Where there is nothing of this name, the name of a
            bundle in `SHIPPED`.
        weights: Weights of a cfg if they are not beside it under the same name.

    Raises:
        ConfigError: There is nothing, or something else.
    """
    if not path.exists():
        shipped = SHIPPED / path
        if len(path.parts) != 1 or not (shipped / "bundle.json").is_file():
            raise ConfigError("there is no such model", path, f"give {KINDS}")
        path = shipped
    if path.name == "bundle.json":
        path = path.parent
    if path.is_dir():
        return _folder(path)
    if path.suffix == ".onnx":
        inside = path.parent if (path.parent / "bundle.json").is_file() else None
        return ModelSource(path, "onnx", bundle=inside, onnx=path)
    if path.suffix == ".cfg":
        weights = path.with_suffix(".weights") if weights is None else weights
        if not weights.is_file():
            raise ConfigError("there are no such weights", weights, "give them with --weights")
        return ModelSource(path, "darknet", cfg=path, weights=weights)
    if path.suffix == ".weights":
        raise ConfigError("are weights without a network", path, "give the .cfg file, and these with --weights")
    raise ConfigError("is not a model that prunedeploy knows", path, f"give {KINDS}")


def _folder(path: Path) -> ModelSource:
    if (path / "bundle.json").is_file():
        return ModelSource(path, "bundle", bundle=path)
    if not (path / "build.json").is_file() and not (path / "bundle" / "bundle.json").is_file():
        raise ConfigError("is neither a bundle nor a build's output folder", path, f"give {KINDS}")
    if not (path / "results.json").is_file() or not (path / "bundle" / "bundle.json").is_file():
        raise ConfigError("this build has not ended", path, "run its `prunedeploy build` again: it resumes")
    cfg, weights = path / "model.cfg", path / "model.weights"
    whole = cfg.is_file() and weights.is_file()
    return ModelSource(
        path,
        "build",
        bundle=path / "bundle",
        cfg=cfg if whole else None,
        weights=weights if whole else None,
        results=_read_object(path / "results.json"),
    )


def _read_object(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not JSON"
        raise ConfigError(f"cannot be read ({reason})", path, "build it again") from None
    if not isinstance(document, dict):
        raise ConfigError("is not a JSON object", path, "build it again")
    return document
