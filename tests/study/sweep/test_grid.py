"""Configuration of a sweep: what the grid's cells are built with, and what is refused, with file and line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from prunedeploy.config import config_hash, load_config
from prunedeploy.study.statistics.design import PAPER_CONFIGURATIONS
from prunedeploy.study.sweep.grid import Sweep, load_sweep
from prunedeploy_engines.errors import ConfigError

SMALL = """\
name: small
base: smoke
threads: 2
settings:
  finetune:
    steps: 7
configurations:
  structured-scaled:
    method: structured
  unstructured-deeplift-grey:
    method: unstructured
    scores:
      name: deeplift
    data:
      greyscale: true
ratios: [0, 0.5]
seeds: [3, 1]
"""
Load = Callable[[str], Sweep]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Read a sweep from text, written to ``my.yaml`` in the current folder."""
    monkeypatch.chdir(tmp_path)

    def from_text(text: str) -> Sweep:
        Path("my.yaml").write_text(text, encoding="utf-8")
        return load_sweep("my.yaml")

    return from_text


def test_cells_are_the_grid_run_by_run_after_the_networks_as_given(load: Load) -> None:
    names = ("structured-scaled", "unstructured-deeplift-grey")
    assert [cell.key for cell in load(SMALL).cells] == [
        ("original", 0.0, 3),
        ("original-grey", 0.0, 3),
        *((name, ratio, run) for run in (3, 1) for ratio in (0.0, 0.5) for name in names),
    ]


def test_cell_is_built_as_the_same_options_on_the_command_line_would_be(load: Load) -> None:
    sets = ["name=small", "threads=2", "finetune.steps=7", "method=unstructured", "scores.name=deeplift"]
    options = {"ratio": 0.5, "seed": 1}
    expected = load_config("smoke", [*sets, "data.greyscale=true"], options)
    cell = next(cell for cell in load(SMALL).cells if cell.key == ("unstructured-deeplift-grey", 0.5, 1))
    assert config_hash(cell.config) == config_hash(expected)


def test_settings_of_one_training_leave_those_that_share_its_yaml_alias_alone(load: Load) -> None:
    # In demo.yaml all three trainings have the same augmentation by alias.
    text = SMALL.replace("base: smoke", "base: demo").replace("    steps: 7", "    augment:\n      hue: 0.4")
    config = load(text).cells[-1].config
    assert config.finetune.augment is not None
    assert config.pretrain.augment is not None
    assert (config.finetune.augment.hue, config.pretrain.augment.hue) == (0.4, 0.02)
    assert config.finetune.augment.saturation == 1.3, "what is not set stays"


def test_hash_stays_when_the_grid_is_widened_and_changes_with_a_setting(load: Load) -> None:
    first = load(SMALL).configuration_hash
    assert load(SMALL.replace("[3, 1]", "[1, 2, 3]").replace("[0, 0.5]", "[0.25]")).configuration_hash == first
    assert load(SMALL.replace("name: small", "name: other")).configuration_hash == first
    assert load(SMALL + "  # a comment\n").configuration_hash == first
    for text in (
        SMALL.replace("steps: 7", "steps: 8"),
        SMALL.replace("threads: 2", "threads: 1"),
        SMALL.replace("  structured-scaled", "  structured-others"),
    ):
        assert load(text).configuration_hash != first


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("steps: 7", "stepz: 7", "my.yaml:6: unknown key finetune.stepz; did you mean finetune.steps?"),
        ("greyscale: true", "greyscale: 1", "my.yaml:15: data.greyscale"),
        ("ratios:", "ratio:", "my.yaml:16: unknown key ratio"),
        ("ratios:", "ratioz:", "did you mean ratios?"),
        ("seeds: [3, 1]", "", "seeds Field required"),
        ("[0, 0.5]", "[0, 1.0]", "my.yaml:16: ratios.1"),
        ("[0, 0.5]", "[0.5, 0.5]", "ratios has 0.5 twice"),
        ("[3, 1]", "[]", "my.yaml:17: seeds"),
        (
            "    method: structured",
            "    ratio: 0.5",
            "my.yaml:9: ratio is not a setting of a sweep; give it under ratios",
        ),
        ("steps: 7", "steps: 7\n  seed: 4", "my.yaml:7: seed is not a setting of a sweep; give it under seeds"),
        (
            "method: structured",
            "method: kernel",
            "my.yaml:8: configuration structured-scaled has the settings of kernel",
        ),
        ("  structured-scaled:", "  original:", "original is the network as given"),
        ("base: smoke", "base: smoky", "no configuration called 'smoky' ships"),
        ("    method: structured\n", "", "my.yaml:8: configurations.structured-scaled"),
    ],
)
def test_mistake_is_one_line_with_its_place(load: Load, old: str, new: str, line: str) -> None:
    assert SMALL.count(old) == 1
    with pytest.raises(ConfigError) as error:
        load(SMALL.replace(old, new))
    assert line in str(error.value)


def test_builds_configuration_is_no_sweeps_and_the_other_way_round() -> None:
    with pytest.raises(ConfigError, match="not the configuration of a sweep; give it to `prunedeploy build`"):
        load_sweep("demo")
    with pytest.raises(ConfigError, match="is the configuration of a sweep; give it to `prunedeploy sweep"):
        load_config("study-demo")


@pytest.mark.parametrize(("name", "models"), [("paper", 450), ("study-demo", 135), ("study-smoke", 8)])
def test_shipped_study_has_as_many_models_as_it_says(name: str, models: int) -> None:
    sweep = load_sweep(name)
    assert sweep.config.name == name
    assert sum(not cell.is_reference for cell in sweep.cells) == models


@pytest.mark.parametrize("name", ["paper", "study-demo"])
def test_shipped_study_has_the_papers_design(name: str) -> None:
    sweep = load_sweep(name)
    assert tuple(sweep.config.configurations) == PAPER_CONFIGURATIONS
    assert sweep.config.ratios == (0, 0.25, 0.5, 0.65, 0.75, 0.85, 0.9, 0.95, 0.99)
    attacks = {(cell.config.attack.eps, cell.config.attack.step_size, cell.config.attack.steps) for cell in sweep.cells}
    assert attacks == {(0.05, 0.02, 5)}
