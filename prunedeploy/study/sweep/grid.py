"""The configuration of a sweep, and the cells of its grid: configurations x ratios x seeds.

A sweep is a build's configuration (``base``), common ``settings`` on top of it, and for each of its ``configurations``
the settings that make it different. What belongs to the grid itself (ratio, seed) is not a setting.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import product
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, StringConstraints, model_validator

from prunedeploy.config import (
    AtLeastOne,
    BelowOne,
    Block,
    BuildConfig,
    KeyPath,
    as_tuple,
    for_method,
    read_yaml,
    result_settings,
    validated,
)
from prunedeploy.pipeline.store.key import canonical_json
from prunedeploy.study.rows.rows import CellKey
from prunedeploy.study.statistics.design import GREY_SUFFIX, ORIGINAL, ORIGINAL_GREY, PAPER_CONFIGURATIONS, REFERENCES
from prunedeploy_engines.errors import ConfigError
from prunedeploy_engines.files import file_sha256

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9.-]*$")]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Ratios = Annotated[tuple[BelowOne, ...], BeforeValidator(as_tuple), Field(min_length=1)]
Seeds = Annotated[tuple[Seed, ...], BeforeValidator(as_tuple), Field(min_length=1)]
Settings = dict[str, Any]
Given = tuple[Settings, dict[KeyPath, str]]
"""Settings, and where each key was given."""
OF_THE_GRID = {
    "ratio": "give it under ratios",
    "seed": "give it under seeds",
    "threads": "give it at the top",
    "name": "give it at the top",
}


class SweepConfig(Block):
    """What a sweep's YAML file says.

    Attributes:
        name: Name of the sweep; part of the default output folder's name.
        base: Configuration of a build: a path, or the name of one that ships.
        threads: Threads of PyTorch in every cell. Results depend on it, and so must not depend on how many workers
            share the cores: it is fixed here, and cores are divided by it.
        settings: Keys of a build's configuration that differ from ``base`` in every cell.
        configurations: Name, ``<method>-<scores>`` with ``-grey`` behind it for greyscale images, to the keys that
            make it what it is.
        ratios: Pruning ratios.
        seeds: One run each.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    base: Annotated[str, Field(min_length=1)]
    threads: AtLeastOne = 1
    settings: Settings = Field(default_factory=dict)
    configurations: Annotated[dict[Name, Settings], Field(min_length=1)]
    ratios: Ratios
    seeds: Seeds

    @model_validator(mode="after")
    def _nothing_twice(self) -> SweepConfig:
        for what, values in (("ratios", self.ratios), ("seeds", self.seeds)):
            twice = sorted({value for value in values if values.count(value) > 1})
            if twice:
                raise ValueError(f"{what} has {twice[0]:g} twice")
        reserved = sorted(set(REFERENCES) & set(self.configurations))
        if reserved:
            raise ValueError(f"{reserved[0]} is the network as given, not a configuration's name")
        return self


@dataclass(frozen=True)
class Cell:
    """One model of the grid.

    Attributes:
        key: Configuration, ratio, run.
        config: What is built.
    """

    key: CellKey
    config: BuildConfig

    @property
    def is_reference(self) -> bool:
        """It is the network as given, which is measured only."""
        return self.key.configuration in REFERENCES

    @property
    def label(self) -> str:
        """For people, e.g. ``structured-scaled at 0.75, run 0``."""
        name, ratio, run = self.key
        return name if self.is_reference else f"{name} at {ratio:g}, run {run}"


@dataclass(frozen=True)
class Sweep:
    """A sweep's configuration, read.

    Attributes:
        config: As in the file.
        cells: The networks as given first, then run by run: a sweep that is broken off has whole runs.
    """

    config: SweepConfig
    cells: tuple[Cell, ...]

    @cached_property
    def configuration_hash(self) -> str:
        """SHA-256 of what the results depend on beside ratio and run; 64 hexadecimal digits.

        Ratios and seeds do not count, so a sweep can be widened later and keeps its rows.
        """
        settings = {}
        digest = cache(file_sha256)
        for cell in self.cells:
            plain = result_settings(cell.config)
            del plain["ratio"], plain["seed"], plain["name"]
            # A file counts by what is in it: another one in its place makes other rows.
            for key in ("file", "reference"):
                if plain["scores"][key] is not None and Path(plain["scores"][key]).is_file():
                    plain["scores"][key] = digest(Path(plain["scores"][key]))
            settings[cell.key.configuration] = plain
        return hashlib.sha256(canonical_json(settings).encode()).hexdigest()


def load_sweep(source: str | Path) -> Sweep:
    """Read a sweep's configuration.

    Args:
        source: Path of a YAML file, or the name of one that ships, e.g. ``study-demo``.

    Raises:
        ConfigError: Names the key, the file and the line, and what to write instead.
    """
    data, origins = read_yaml(source)
    if "configurations" not in data and "base" not in data:
        fix = "give it to `prunedeploy build`, or write base, configurations, ratios and seeds"
        raise ConfigError("is not the configuration of a sweep", source, fix)
    config = validated(SweepConfig, data, origins, str(source))
    base = read_yaml(config.base)
    common = {"name": config.name, "threads": config.threads}
    cells: list[Cell] = []
    for run, ratio, name in product(config.seeds, config.ratios, config.configurations):
        data, places = _settings(config, base, name, origins)
        built = validated(BuildConfig, {**data, **common, "ratio": ratio, "seed": run}, places, str(source))
        _check_name(name, built, origins)
        cells.append(Cell(CellKey(name, ratio, run), built))
    return Sweep(config, (*_references(cells, config.seeds[0]), *cells))


def _settings(config: SweepConfig, base: Given, name: str, origins: Mapping[KeyPath, str]) -> Given:
    """What a configuration's cells are built with, and where it was given."""
    # A study says itself what each configuration takes: what the base says of single methods does not count.
    data, places = for_method(*base, method="")
    layers = {("settings",): config.settings, ("configurations", name): config.configurations[name]}
    for below, settings in layers.items():
        for key in OF_THE_GRID.keys() & settings.keys():
            raise ConfigError(f"{key} is not a setting of a sweep", origins[(*below, key)], OF_THE_GRID[key])
        data = _merged(data, settings)
        given = {path[len(below) :]: place for path, place in origins.items() if path[: len(below)] == below}
        places |= {path: place for path, place in given.items() if path}
    return data, places


def _merged(values: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """``values`` with ``more`` on top, block by block; neither is changed (YAML aliases share their blocks)."""
    merged = dict(values)
    for key, value in more.items():
        before = merged.get(key)
        merged[key] = _merged(before, value) if isinstance(before, dict) and isinstance(value, dict) else value
    return merged


def _check_name(name: str, config: BuildConfig, origins: Mapping[KeyPath, str]) -> None:
    """A report calls a configuration by its name: one of the paper's names must be what it says."""
    meant = f"{config.method}-{config.scores.name}{GREY_SUFFIX if config.data.greyscale else ''}"
    if name in PAPER_CONFIGURATIONS and name != meant:
        where = origins.get(("configurations", name))
        raise ConfigError(f"configuration {name} has the settings of {meant}", where, "rename it, or correct them")


def _references(cells: list[Cell], run: int) -> list[Cell]:
    """The network as given, on colour and on grey images where there is a configuration for either."""
    found: dict[str, Cell] = {}
    for cell in cells:
        name = ORIGINAL_GREY if cell.config.data.greyscale else ORIGINAL
        found.setdefault(name, Cell(CellKey(name, 0.0, run), cell.config.model_copy(update={"ratio": 0.0})))
    return [found[name] for name in REFERENCES if name in found]
