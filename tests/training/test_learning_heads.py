"""Heads without anchors learn what is in an image, and an attack makes them forget it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from models.sections.test_anchor_free import KINDS, anchor_free_cfg
from prunedeploy.attacks import Pgd
from prunedeploy.attacks.threat_model import ThreatModel
from prunedeploy.data.coco import load_test_split
from prunedeploy.data.demo import DemoSettings, write_demo
from prunedeploy.data.loader import EvaluationLoader
from prunedeploy.evaluation import TorchRunner, evaluate
from prunedeploy.models import load_darknet, yolo_loss
from prunedeploy.models.cfg_rewriting import with_classes, with_input_size


@pytest.mark.parametrize("kind", KINDS)
def test_a_network_learns_an_image_and_pgd_makes_it_forget(kind: str, tmp_path: Path) -> None:
    folder = write_demo(tmp_path / "scene", DemoSettings(train_scenes=1, test_scenes=1, size=64, object_size=(16, 30)))
    dataset = load_test_split(folder)
    (batch,) = EvaluationLoader(dataset, (64, 64), batch_size=1)
    model = load_darknet(with_input_size(with_classes(anchor_free_cfg(kind), 10), (64, 64)), seed=0)
    before = evaluate(TorchRunner(model), [batch], dataset, resamples=0)["torch"].metrics()["map50_clean"]
    optimiser = torch.optim.Adam(model.parameters(), lr=5e-3)
    slower = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.0, total_iters=120)
    losses = []
    for _ in range(120):
        loss = yolo_loss(model.train()(batch.images), batch.targets, model.cfg).total
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        slower.step()
        losses.append(float(loss.detach()))
    attack = Pgd.against(model.eval(), ThreatModel())
    after = evaluate(TorchRunner(model), [batch], dataset, attack=attack.of_model, attacked_model=model, resamples=0)
    found = after["torch"].metrics()
    assert losses[-1] < 0.3 * losses[0]
    assert before < 0.1
    assert found["map50_clean"] > 0.9
    assert found["map50_pgd"] < 0.1
