"""A build whose int8 and fp16 files are attacked themselves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.conftest import EVERY_PRECISION
from prunedeploy.config import as_dict, config_hash, load_config
from prunedeploy.pipeline.build import BuildOutcome
from prunedeploy_engines import load_bundle
from prunedeploy_engines.errors import ConfigError

ADAPTIVE = (*EVERY_PRECISION, "attack=[{steps: 2}, apgd:box]", "robustness={budget: quick, adaptive: true}")


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory, tiny_case: Any, finished: Any) -> tuple[Path, BuildOutcome]:
    out = tmp_path_factory.mktemp("adaptive") / "out"
    return out, tiny_case.build(finished[0], out, *ADAPTIVE)


def test_rows_of_engines_have_both_figures(attacked: Any) -> None:
    out, outcome = attacked
    assert "adaptive" in outcome.computed
    engines = json.loads((out / "results.json").read_text())["engines"]
    rows = {row["precision"]: row for row in engines if row["runtime"] == "onnxruntime"}
    assert set(rows) == {"fp32", "fp16", "int8"}
    assert not [key for key in rows["fp32"] if "adaptive" in key]
    for precision in ("fp16", "int8"):
        row = rows[precision]
        for name in ("map_pgd_adaptive", "map50_pgd_adaptive", "map_apgd_box_adaptive"):
            assert name in row
            assert name in row["intervals"]
        assert row["adaptive"]["images"] == 8
        assert (row["adaptive"]["twin"]["tensors"]["values"] > 0) == (precision == "int8")
    stored = load_bundle(out / "bundle").manifest.metrics["engines"]
    assert ["map_pgd_adaptive" in row for row in stored] == [False, True, True]
    assert "mAP PGD, adaptive" in (out / "report.html").read_text()


def test_fewer_images_are_kept_apart(attacked: Any, tiny_case: Any, finished: Any, tmp_path: Path) -> None:
    square = "robustness={images: 3, adaptive: true, attacks: [square], square: {queries: 3}}"
    outcome = tiny_case.build(finished[0], tmp_path / "out", *EVERY_PRECISION, square)
    assert [name for name in outcome.computed if name in ("adaptive", "square")] == ["adaptive", *["square"] * 3]
    row = next(row for row in outcome.results["engines"] if row["precision"] == "int8")
    assert "map_pgd_adaptive" not in row
    assert row["adaptive"]["images"] == 3
    assert "map_pgd_adaptive" in row["adaptive"]
    of_three = {name: row["adaptive"][f"map_{name}"] for name in ("pgd_adaptive",)}
    of_three |= {name: row["square"][f"map_{name}"] for name in ("pgd_transfer", "square")}
    assert row["lowest"]["map"] == min(of_three.values()) == of_three[row["lowest"]["attack"]]
    assert row["lowest"]["images"] == row["square"]["images"] == 3


def test_nothing_else_changes_by_the_key(tiny_case: Any) -> None:
    plain = load_config("smoke", tiny_case.arguments("attack=[{steps: 2}, noise]"))
    off = load_config("smoke", tiny_case.arguments("attack=[{steps: 2}, noise]", "robustness.adaptive=false"))
    assert config_hash(plain) == config_hash(off)
    assert "adaptive" not in as_dict(plain)["robustness"]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (("export.precisions=fp32",), r"robustness\.adaptive: attacks fp16 and int8 files, and export\.precisions has"),
        (("export.precisions=fp32,fp16", "attack.eps=0"), r"attack\.eps: a ball of radius 0"),
    ],
)
def test_nothing_to_attack_is_refused_before_anything_is_read(
    tiny_case: Any, tmp_path: Path, settings: Any, says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        tiny_case.build(
            tmp_path / "store", tmp_path / "out", *settings, "robustness.adaptive=true", "data.path=nowhere"
        )
    assert not (tmp_path / "out").exists()
