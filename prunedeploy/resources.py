"""Where the files that ship with the package are: configurations, Darknet cfgs, demo assets.

A wheel carries ``configs/`` inside the package; a checkout (and an editable install of it)
keeps the folder at its top. Both are ordinary folders, so callers get plain paths.
"""

from __future__ import annotations

from pathlib import Path

from prunedeploy_engines.errors import ConfigError

_PACKAGE = Path(__file__).resolve().parent


def configs_folder() -> Path:
    """Folder with the YAML configurations and, below ``darknet/``, the network files."""
    packaged = _PACKAGE / "configs"
    return packaged if packaged.is_dir() else _PACKAGE.parent / "configs"


def config_path(name: str) -> Path:
    """Path of a shipped configuration, e.g. ``demo`` or ``demo.yaml``.

    Raises:
        ConfigError: No configuration of that name ships; the known names are listed.
    """
    return _shipped(configs_folder(), name, ".yaml", "configuration")


def darknet_cfg_path(name: str) -> Path:
    """Path of a shipped Darknet cfg, e.g. ``yolov3-tiny`` or ``yolov3-tiny.cfg``.

    Raises:
        ConfigError: No cfg of that name ships; the known names are listed.
    """
    return _shipped(configs_folder() / "darknet", name, ".cfg", "network cfg")


def asset_path(name: str) -> Path:
    """Path of a bundled file below ``prunedeploy/assets``, e.g. the demo's sprites.

    Raises:
        ConfigError: The file is not there, so the installation is incomplete.
    """
    path = _PACKAGE / "assets" / name
    if not path.is_file():
        raise ConfigError("this file should have come with prunedeploy", where=path, fix="install prunedeploy again")
    return path


def _shipped(folder: Path, name: str, suffix: str, kind: str) -> Path:
    known = sorted(path.stem for path in folder.glob(f"*{suffix}"))
    stem = name.removesuffix(suffix)
    if stem not in known:
        raise ConfigError(
            f"no {kind} called {name!r} ships with prunedeploy",
            where=folder,
            fix=f"use one of: {', '.join(known)}" if known else "install prunedeploy again",
        )
    return folder / f"{stem}{suffix}"
