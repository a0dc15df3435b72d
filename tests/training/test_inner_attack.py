"""Which attacked images are trained on: the stronger one of each image, some left clean, at what cost."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from prunedeploy.attacks import AttackWarning, Pgd, ThreatModel
from prunedeploy.attacks.objectives import OBJECTIVES
from prunedeploy.attacks.threat_model import start_noise
from prunedeploy.config import TrainingConfig, as_dict, config_hash, load_config, result_settings
from prunedeploy.config.blocks import ATTACK_OBJECTIVES, PretrainConfig
from prunedeploy.data.loader import Batch
from prunedeploy.models import Darknet, FoldedDarknet, yolo_loss
from prunedeploy.training.adversarial import robust_objective
from prunedeploy.training.inner_attack import attacked_batch, passes_per_step, strongest
from prunedeploy_engines.errors import ConfigError
from pruning.darknets import network, random_network
from training.small import SECTIONS, batch_of, loop_settings, small_model

CPU = torch.device("cpu")
ATTACK = ThreatModel(eps=0.1, step_size=0.04, steps=3, random_start=True)
TERMS = {
    "mtd": (("objectness", "classes"), ("box",)),
    "objectness-aware": (("objectness",), ("classes",), ("box",)),
}


def settings_of(**more: Any) -> TrainingConfig:
    return loop_settings(steps=1, lr=0.1, **more)


def attack_of(batch: Batch, model: Darknet, settings: TrainingConfig, step: int = 3, seed: int = 4) -> Tensor:
    return attacked_batch(model, settings, ATTACK, seed, batch.images, batch.targets, batch.image_ids, step)


def of_image(batch: Batch, image: int) -> Tensor:
    own = batch.targets[batch.targets[:, 0] == image].clone()
    own[:, 0] = 0
    return own


def reference_ascent(model: Darknet, image: Tensor, start: Tensor, target: Tensor, terms: tuple[str, ...]) -> Tensor:
    """PGD of one image on the sum of some terms, in float64, one step after the other."""
    model = model.double().eval()
    image, attacked, target = image.double()[None], start.double()[None], target.double()
    for _ in range(ATTACK.steps):
        leaf = attacked.clone().requires_grad_(True)
        loss = yolo_loss(model(leaf), target, model.cfg)
        (gradient,) = torch.autograd.grad(sum(getattr(loss, term) for term in terms), leaf)
        moved = attacked + ATTACK.step_size * gradient.sign()
        attacked = torch.min(torch.max(moved, image - ATTACK.eps), image + ATTACK.eps).clamp(0, 1)
    return attacked[0]


def model_with(box_weight: int, seed: int) -> Darknet:
    """The small network, whose box term counts so many times."""
    return random_network(network(*SECTIONS[:-1], f"{SECTIONS[-1]} iou_normalizer={box_weight}"), seed)


@pytest.mark.parametrize("method", TERMS)
def test_each_image_is_the_stronger_of_its_attacks(method: str) -> None:
    chosen = set()
    for seed, box_weight in enumerate((1, 30)):
        batch, model = batch_of(seed, images=4), model_with(box_weight, seed)
        found = attack_of(batch, model, settings_of(adversarial=method))
        noise = start_noise((4, 3, 16, 16), ATTACK.eps, [(4, 3, image_id, 0) for image_id in batch.image_ids])
        reference = model_with(box_weight, seed).double().eval()
        for image in range(4):
            target, start = of_image(batch, image), (batch.images[image] + noise[image]).clamp(0, 1)
            candidates = [
                reference_ascent(reference, batch.images[image], start, target, terms) for terms in TERMS[method]
            ]
            losses = [
                float(yolo_loss(reference(one[None]), target.double(), model.cfg).total.detach()) for one in candidates
            ]
            best = losses.index(max(losses))
            chosen.add(best)
            # In fp32 a gradient that is next to nothing may have the other sign.
            same = [float(((found[image] - one).abs() < 1e-6).double().mean()) for one in candidates]
            assert same[best] > 0.99
            assert all(share < 0.9 for number, share in enumerate(same) if number != best), "candidates must differ"
    assert len(chosen) > 1, "one attack was always the stronger: the choice was not tested"


@pytest.mark.parametrize(
    "more",
    [{"adversarial": "mtd"}, {"adversarial": "objectness-aware"}, {"attack_objective": "class-wise + objectness"}],
)
def test_an_image_does_not_depend_on_its_batch(more: dict[str, Any]) -> None:
    batch, model = batch_of(0, images=4), small_model()
    together = attack_of(batch, model, settings_of(**more))
    for image in range(4):
        alone = attacked_batch(
            model, settings_of(**more), ATTACK, 4,
            batch.images[image : image + 1], of_image(batch, image), batch.image_ids[image : image + 1], 3,
        )  # fmt: skip
        torch.testing.assert_close(alone[0], together[image], rtol=0, atol=1e-6)


@pytest.mark.parametrize("objective", ATTACK_OBJECTIVES)
def test_pgd_drives_up_the_objective_that_is_chosen(objective: str) -> None:
    batch, model = batch_of(1), small_model()
    expected = Pgd.against(model, ATTACK, seed=4, objective=objective)
    found = attack_of(batch, model, settings_of(attack_objective=objective))
    assert torch.equal(found, expected(batch.images, batch.targets, batch.image_ids, 3))


def test_a_background_image_is_attacked_where_objects_have_no_say() -> None:
    batch, model = batch_of(0, images=2), small_model()
    batch = dataclasses.replace(batch, targets=batch.targets[batch.targets[:, 0] == 0])
    with warnings.catch_warnings():
        warnings.simplefilter("error", AttackWarning)
        found = attack_of(batch, model, settings_of(adversarial="mtd"))
    expected = Pgd.against(model, ATTACK, seed=4, objective="objectness")
    wanted = expected(batch.images, batch.targets, batch.image_ids, 3)
    torch.testing.assert_close(found[1], wanted[1], rtol=0, atol=1e-6)


def test_of_equals_the_first_is_taken() -> None:
    batch, model = batch_of(0), small_model()
    attack = Pgd.against(model, ATTACK, seed=4)
    alone = attack(batch.images, batch.targets, batch.image_ids, 3)
    assert torch.equal(strongest([alone, alone.clone()], batch.targets, attack.network), alone)


def test_a_share_of_the_batch_stays_clean_and_counts_as_much() -> None:
    batch, model = batch_of(0, images=5), small_model()
    settings = settings_of(adversarial="mtd", clean_share=0.5)
    found = attack_of(batch, model, settings)
    assert torch.equal(found[:2], batch.images[:2])
    everything = attack_of(batch, model, settings_of(adversarial="mtd"))
    torch.testing.assert_close(found[2:], everything[2:], rtol=0, atol=1e-6)
    loss = robust_objective(small_model(), settings, ATTACK, 4, CPU)(batch, 3)["loss"]
    expected = yolo_loss(small_model().train()(found), batch.targets, model.cfg).total
    torch.testing.assert_close(loss, expected)


def test_clean_steps_of_a_block_stay_clean_whatever_it_attacks_with() -> None:
    batch = batch_of(0)
    clean = robust_objective(small_model(), settings_of(), None, 0, CPU)(batch, 0)["loss"]
    free = PretrainConfig(steps=1, adversarial="free", attack=ThreatModel(steps=1))
    for settings in (settings_of(adversarial="mtd"), settings_of(attack_objective="rank"), free):
        objective = robust_objective(small_model(), settings, None, 0, CPU)
        assert not hasattr(objective, "replays")
        assert torch.equal(objective(batch, 0)["loss"], clean)


# --- what a step costs ---


class Counted(FoldedDarknet):
    """Counts images through the network whose pass goes back as well."""

    images = 0

    def forward(self, images: Tensor) -> list[Tensor]:
        if images.requires_grad:
            Counted.images += len(images)
        return super().forward(images)


@pytest.mark.parametrize(
    ("more", "passes"),
    [
        ({}, 1 + 3),
        ({"adversarial": "mtd"}, 1 + 2 * 3),
        ({"adversarial": "objectness-aware"}, 1 + 3 * 3),
        ({"adversarial": "objectness-aware", "clean_share": 0.6}, 1 + 0.5 * 3 * 3),
    ],
)
def test_passes_are_those_that_a_step_takes(
    more: dict[str, Any], passes: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_of(batch_size=4, attack=ATTACK, **more)
    monkeypatch.setattr("prunedeploy.models.darknet.FoldedDarknet", Counted)
    Counted.images = 0
    attack_of(batch_of(0, images=4), small_model(), settings)
    assert passes_per_step(settings) == 1 + Counted.images / 4 == passes


def test_free_training_takes_one_pass_a_step() -> None:
    attack = ThreatModel(steps=1)
    assert passes_per_step(settings_of(adversarial="free", attack=attack)) == 1
    assert passes_per_step(settings_of(attack=ATTACK.model_copy(update={"restarts": 2}))) == 7


# --- configuration ---


def test_objectives_of_the_configuration_are_those_of_the_attacks() -> None:
    assert tuple(OBJECTIVES) == ATTACK_OBJECTIVES


def test_younger_training_keys_are_in_no_hash_unless_they_are_chosen() -> None:
    """What was stored before these keys were there is found again."""
    plain = load_config("demo")
    keys = {"adversarial": "pgd", "attack_objective": "total", "replays": 4, "clean_share": 0.0}
    for block in ("pretrain", "score_optimization", "finetune"):
        assert keys.keys().isdisjoint(as_dict(plain)[block])
        assert keys.keys().isdisjoint(result_settings(getattr(plain, block)))
    said = load_config("demo", [f"finetune.{key}={value}" for key, value in keys.items()])
    assert config_hash(said) == config_hash(plain)
    for key, value in {"adversarial": "mtd", "attack_objective": "rank", "clean_share": 0.5}.items():
        chosen = load_config("demo", [f"finetune.{key}={value}"])
        assert as_dict(chosen)["finetune"] == {**as_dict(plain)["finetune"], key: value}
        assert type(plain).model_validate(as_dict(chosen)) == chosen
        assert config_hash(chosen) != config_hash(plain)


FREE = ("finetune.adversarial=free", "finetune.attack.steps=1", "finetune.attack.random_start=false")


@pytest.mark.parametrize(
    ("sets", "said"),
    [
        (["finetune.adversarial=free"], r"one attack step per training step.*attack\.steps=1"),
        ([*FREE, "finetune.attack.steps=2"], r"attack\.steps=1"),
        ([*FREE, "finetune.attack.random_start=true"], r"random_start=false"),
        ([*FREE, "finetune.attack.iterate=best"], r"iterate=last"),
        ([*FREE, "finetune.clean_share=0.5"], r"leave clean_share out"),
        ([*FREE, "finetune.attack_objective=rank"], r"free attacks its own objectives.*adversarial=pgd"),
        (["finetune.adversarial=mtd", "finetune.attack_objective=box"], r"mtd attacks its own objectives"),
        (["finetune.replays=2"], r"only read by adversarial free, but adversarial is pgd"),
        (["finetune.adversarial=mtt"], r"finetune\.adversarial.*mtd"),
        (["finetune.attack_objective=boxes"], r"finetune\.attack_objective.*nearest to 'boxes': box"),
        (["finetune.clean_share=1.0"], r"finetune\.clean_share"),
        (["finetune.adversarial=mtd", "finetune.steps=0"], r"steps is 0; set steps"),
        (["pretrain.adversarial=mtd"], r"from bundled trains nothing.*from=given"),
        (["score_optimization.adversarial=mtd", "score_optimization.steps=5"], r"whole loss; leave adversarial"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(sets: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as error:
        load_config("demo", sets)
    assert "\n" not in str(error.value)


def test_free_training_may_be_configured() -> None:
    block = load_config("demo", [*FREE, "finetune.replays=8"]).finetune
    assert (block.adversarial, block.replays, block.attack.steps) == ("free", 8, 1)
    assert result_settings(block)["replays"] == 8
