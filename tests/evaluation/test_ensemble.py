"""The ensemble on demo scenes, with attacks that hide half of them: choices against pycocotools, image by image."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from prunedeploy.attacks import ThreatModel
from prunedeploy.attacks.objectives import OBJECTIVES
from prunedeploy.attacks.suite import ENSEMBLE, STEPS, attack_suite
from prunedeploy.data.coco import load_test_split
from prunedeploy.data.demo import DemoSettings, write_demo
from prunedeploy.data.loader import EvaluationLoader
from prunedeploy.data.records import CocoDataset
from prunedeploy.evaluation import DetectionTable, Evaluation, TorchRunner, coco_map, evaluate
from prunedeploy.evaluation.detecting import Thresholds, detect_batch
from prunedeploy.evaluation.ensemble import WORST, Ensemble
from prunedeploy.models import Darknet, load_darknet
from prunedeploy.resources import asset_path, darknet_cfg_path
from prunedeploy_engines.errors import ConfigError

Attack = Callable[[Darknet, Tensor, Tensor], Tensor]


def hide(columns: slice) -> Attack:
    """An attack that blackens a part of every image."""

    def attack(model: Darknet, images: Tensor, targets: Tensor) -> Tensor:
        hidden = images.clone()
        hidden[..., columns] = 0.0
        return hidden

    return attack


ATTACKS: dict[str, Attack] = {
    "none": lambda model, images, targets: images,
    "left": hide(slice(0, 80)),
    "right": hide(slice(80, 160)),
}


@pytest.fixture(scope="module")
def model() -> Darknet:
    return load_darknet(darknet_cfg_path("yolov3-slim"), asset_path("demo-robust.weights")).eval()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> CocoDataset:
    folder: Path = tmp_path_factory.mktemp("demo") / "demo"
    write_demo(folder, DemoSettings(train_scenes=1, test_scenes=8))
    return load_test_split(folder)


def loader(dataset: CocoDataset) -> EvaluationLoader:
    return EvaluationLoader(dataset, (160, 160), batch_size=3)


def attacked(model: Darknet, dataset: CocoDataset, *members: str) -> Evaluation:
    return evaluate(
        TorchRunner(model),
        loader(dataset),
        dataset,
        attack={name: ATTACKS[name] for name in members},
        ensembles={"ensemble": members},
        attacked_model=model,
        resamples=0,
    )["torch"]


@pytest.fixture(scope="module")
def evaluation(model: Darknet, dataset: CocoDataset) -> Evaluation:
    return attacked(model, dataset, *ATTACKS)


@pytest.fixture(scope="module")
def found(evaluation: Evaluation) -> Ensemble:
    return evaluation.ensembles["ensemble"]


def tables(model: Darknet, dataset: CocoDataset) -> dict[str, dict[int, DetectionTable]]:
    """What is detected in each image after each attack, one image at a time."""
    result: dict[str, dict[int, DetectionTable]] = {name: {} for name in ATTACKS}
    with TorchRunner(model) as runner:
        for batch in EvaluationLoader(dataset, (160, 160), batch_size=1):
            for name, attack in ATTACKS.items():
                images = attack(model, batch.images, batch.targets)
                result[name][batch.image_ids[0]] = detect_batch(runner, images, batch, dataset, Thresholds())
    return result


def test_every_image_is_as_its_worst_attack_leaves_it(model, dataset, found):
    detected = tables(model, dataset)
    counts = dict.fromkeys(ATTACKS, 0)
    chosen = []
    for image in dataset.images:
        alone = {
            name: coco_map(dataset, detected[name][image.image_id], [image.image_id]).map_50_95 for name in ATTACKS
        }
        worst = min(alone, key=alone.__getitem__)
        counts[worst] += 1
        chosen.append(detected[worst][image.image_id])
    assert found.chosen == counts
    assert min(counts["left"], counts["right"]) > 0, "the case decides nothing"
    expected = coco_map(dataset, DetectionTable.concatenate(chosen)).map_50_95
    assert found.worst.usual.result.map_50_95 == pytest.approx(expected, abs=1e-9)


def test_the_lowest_is_reported(found):
    maps = {name: one.usual.result.map_50_95 for name, one in found.attacks.items()}
    maps[WORST] = found.worst.usual.result.map_50_95
    assert found.lowest == min(maps, key=maps.__getitem__)
    assert found.reported.usual.result.map_50_95 == min(maps.values())
    assert maps[WORST] < min(maps["left"], maps["right"]) < maps["none"]


def test_the_evaluation_reports_the_ensemble_beside_its_attacks(evaluation, found):
    metrics = evaluation.metrics()
    assert metrics["map_ensemble"] == found.reported.usual.result.map_50_95
    assert metrics["map_left"] == found.attacks["left"].usual.result.map_50_95
    assert "map_pgd" not in metrics
    assert list(evaluation.attacked) == [*ATTACKS, "ensemble"]


def test_one_attack_is_that_attack(model, dataset):
    found = attacked(model, dataset, "left").ensembles["ensemble"]
    assert found.chosen == {"left": len(dataset.images)}
    assert found.reported.usual.result == found.attacks["left"].usual.result


def test_the_suite_has_an_attack_per_objective_and_counts_its_passes(model):
    suite = attack_suite(model, ["noise", "fgsm", "pgd:box", "ensemble"], ThreatModel(eps=8 / 255), "quick")
    assert suite.ensembles == {"ensemble": tuple(f"apgd:{objective}" for objective in ENSEMBLE)}
    assert list(suite.attacks) == ["noise", "fgsm", "pgd:box", *suite.ensembles["ensemble"]]
    assert set(ENSEMBLE) <= set(OBJECTIVES)
    assert {name: suite.passes[name] for name in ("noise", "fgsm", "pgd:box", "apgd:box", "ensemble")} == {
        "noise": 0,
        "fgsm": 1,
        "pgd:box": 5,
        "apgd:box": 11,
        "ensemble": 66,
    }
    assert STEPS == {"quick": 10, "standard": 30, "full": 100}
    images = torch.rand(1, 3, 160, 160, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([[0, 0, 0.5, 0.5, 0.3, 0.3]])
    for name in ("noise", "fgsm", "pgd:box", "apgd:box"):
        moved = (suite.attacks[name](model, images, targets) - images).abs()
        assert 0 < float(moved.max()) <= 8 / 255 + 2.4e-7
        # FGSM is at the edge of the ball wherever the image allows it; 8 / 255 of either end it may not.
        inside = ((images > 8 / 255) & (images < 1 - 8 / 255)).expand_as(moved)
        if name == "fgsm":
            assert moved[inside].min() >= 8 / 255 - 2.4e-7


def test_a_member_that_is_asked_for_by_name_too_is_made_once(model):
    suite = attack_suite(model, ["apgd:box", "ensemble"], ThreatModel(), "quick")
    assert list(suite.attacks) == ["apgd:box", *(f"apgd:{one}" for one in ENSEMBLE if one != "box")]


@pytest.mark.parametrize(
    ("references", "settings", "says"),
    [
        (["pgd"], {"budget": "standart"}, r"no budget 'standart'.*standard"),
        (["pdg"], {}, r"no attack 'pdg'; the nearest is pgd"),
        (["pgd:boxx"], {}, r"no objective 'boxx'; the nearest is box"),
        (["ensemble:box"], {}, r"ensemble has no objective"),
        (["noise", "noise"], {}, r"noise is given twice"),
        (["pgd"], {"norm": "l2"}, r"pgd searches an L-inf ball.*apgd"),
    ],
)
def test_what_cannot_be_is_refused_with_the_nearest(model, references, settings, says):
    with pytest.raises(ConfigError, match=says):
        attack_suite(model, references, ThreatModel(), **settings)
