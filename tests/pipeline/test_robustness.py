"""A build that is attacked with more than its own PGD: what it leaves, and what it does not touch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from prunedeploy.config import as_dict, config_hash, load_config
from prunedeploy.pipeline.build import BuildOutcome
from prunedeploy_engines.errors import ConfigError

ATTACKED = (
    "attack=[{steps: 2}, noise, ensemble]",
    "robustness={attacks: [fgsm], budget: quick, images: 6, curve: [0.02, 0.05], checks: true}",
)


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory, tiny_case: Any, finished: Any) -> tuple[Path, BuildOutcome]:
    store, _, _ = finished
    out = tmp_path_factory.mktemp("attacked") / "out"
    return out, tiny_case.build(store, out, *ATTACKED)


def test_only_attacks_are_computed_anew(attacked: Any) -> None:
    _, outcome = attacked
    assert set(outcome.computed) == {"robustness", "gallery"}


def test_every_network_has_what_was_asked_for(attacked: Any) -> None:
    out, outcome = attacked
    stored = json.loads((out / "results.json").read_text())
    assert stored == outcome.results
    assert list(stored["robustness"]) == ["original", "robust", "pruned"]
    for row, one in stored["robustness"].items():
        assert [attack["name"] for attack in one["attacks"]] == ["noise", "ensemble", "fgsm"]
        assert [attack["passes"] for attack in one["attacks"]] == [0, 66, 1]
        assert one["images"] == 6
        members = one["ensembles"]["ensemble"]["map"].values()
        assert one["figures"]["map_ensemble"] <= min(members)
        assert [point["eps"] for point in one["curve"]["rows"]] == [0.02, 0.05]
        assert one["curve"]["attack"] == "fgsm"
        assert one["curve"]["rows"][1]["map"] == pytest.approx(one["figures"]["map_fgsm"], abs=1e-12)
        assert ("transfer" in [check["name"] for check in one["checks"]]) == (row == "pruned")
        for name in ("noise", "ensemble", "fgsm"):
            assert (out / "detections" / f"{row}-{name}.csv").is_file()
    # Six of eight images: not comparable with the figures beside which they would stand.
    assert not any("ensemble" in key for key in stored["models"][0])


def test_the_report_says_it(attacked: Any) -> None:
    out, _ = attacked
    page = (out / "report.html").read_text()
    for words in ("Under other attacks", "Inside the ensemble", "What breaks", "Can these attacks be believed?"):
        assert words in page
    assert "robust, strongest" in page  # a picture's description


def test_nothing_else_changes_by_the_key(finished: Any, tiny_case: Any) -> None:
    plain = load_config("smoke", tiny_case.arguments())
    listed = load_config("smoke", tiny_case.arguments("attack=[{steps: 2}]"))
    assert config_hash(plain) == config_hash(listed)
    assert config_hash(plain) != config_hash(load_config("smoke", tiny_case.arguments("attack=[{steps: 2}, noise]")))
    assert "robustness" not in as_dict(plain)


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("attack=[{steps: 2}, ensembel]", "no attack 'ensembel'; the nearest is ensemble"),
        ("robustness.attacks=apgd:boxx", "no objective 'boxx'; the nearest is box"),
        ("attack=[{eps: 2}]", "attack.eps"),
        ("attack=[pgd, {eps: 0.1}]", "robustness.attacks"),
        ("robustness.budget=huge", "robustness.budget"),
        ("attack=[{eps: 0}, noise]", "attack.eps: a ball of radius 0"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_read(
    tiny_case: Any, tmp_path: Path, setting: str, says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        tiny_case.build(tmp_path / "store", tmp_path / "out", setting, "data.path=nowhere")
    assert not (tmp_path / "out").exists()


def test_more_images_than_there_are_is_refused_before_anything_is_trained(tiny_case: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"robustness\.images: asks for 9 images, but only 8 are measured"):
        tiny_case.build(tmp_path / "store", tmp_path / "out", "robustness={attacks: [noise], images: 9}")
    assert not list((tmp_path / "store" / "results").glob("pretrain-*"))


def test_checks_alone_are_something_to_measure() -> None:
    assert load_config("smoke", ["robustness.checks=true"]).robustness.is_wanted
    assert not load_config("smoke").robustness.is_wanted


@pytest.mark.slow
def test_a_ratio_is_found_for_map_under_the_ensemble(tiny_case: Any, finished: Any, tmp_path: Path) -> None:
    from prunedeploy.config.ratio_target import parse_map

    store, _, _ = finished
    found = tiny_case.build(
        store, tmp_path / "out", "robustness.budget=quick", target=parse_map("ensemble:0.00001")
    ).results
    final = found["search"]["final"]
    assert final["value"] == pytest.approx(found["models"][2]["map_ensemble"], abs=1e-12)
