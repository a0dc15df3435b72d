"""PGD against a plain reference loop, and its promises."""

from __future__ import annotations

import copy
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from prunedeploy.attacks import AttackInvariantError, AttackWarning, Pgd, ThreatModel
from prunedeploy.attacks.checks import check_invariants
from prunedeploy.attacks.threat_model import start_noise
from prunedeploy.models import Darknet, FoldedDarknet, load_darknet, yolo_loss, yolo_losses
from prunedeploy.resources import asset_path, darknet_cfg_path
from pruning.darknets import conv, network, random_network

SECTIONS = (
    conv(8, size=3),
    conv(12, size=3) + " stride=2",
    conv(12, size=3, activation="mish"),
    "shortcut from=-2 activation=linear",
    "maxpool size=2 stride=2",
    conv(14, norm=False, activation="linear"),
    "yolo mask=0,1 anchors=5,6,9,8 classes=2 iou_loss=ciou",
)


@pytest.fixture
def model() -> Darknet:
    return random_network(network(*SECTIONS), seed=1)


@pytest.fixture
def images() -> Tensor:
    return torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))


TARGETS = torch.tensor(
    [[0, 0, 0.3, 0.4, 0.3, 0.3], [0, 1, 0.7, 0.6, 0.5, 0.4], [1, 1, 0.5, 0.5, 0.6, 0.5], [3, 0, 0.2, 0.8, 0.3, 0.2]]
)


def reference_pgd(
    model: Darknet, images: Tensor, start: Tensor, targets: Tensor, eps: float, step: float, steps: int
) -> Tensor:
    """A plain loop: trainable parameters, evaluation mode, loss.backward(), sign step, clip."""
    model = copy.deepcopy(model).eval()
    x = start.clone()
    for _ in range(steps):
        x = x.detach().requires_grad_(True)
        yolo_loss(model(x), targets, model.cfg).total.backward()
        with torch.no_grad():
            x = x + step * x.grad.sign()
            x = torch.max(torch.min(x, images + eps), images - eps).clamp(0, 1)
    return x.detach()


def per_image_loss(network: FoldedDarknet, images: Tensor, targets: Tensor) -> Tensor:
    with torch.no_grad():
        return yolo_losses(network(images), targets, network.cfg)


def loss_of(model: Darknet, images: Tensor, targets: Tensor) -> float:
    with torch.no_grad():
        return float(yolo_loss(copy.deepcopy(model).eval()(images), targets, model.cfg).total)


@pytest.mark.parametrize("steps", [1, 5, 20])
def test_the_attack_equals_a_plain_loop(model: Darknet, images: Tensor, steps: int) -> None:
    threat_model = ThreatModel(steps=steps)
    ours = Pgd.against(model, threat_model)(images, TARGETS)
    expected = reference_pgd(model, images, images, TARGETS, 0.05, 0.02, steps)
    # Rounding may flip the sign of a gradient that is all but zero, at single pixels.
    different = (ours - expected).abs() > 1e-6
    assert float(different.float().mean()) < 0.002
    assert loss_of(model, ours, TARGETS) == pytest.approx(loss_of(model, expected, TARGETS), rel=1e-4)
    assert ours.is_contiguous()
    assert ours.dtype == torch.float32


def test_the_attack_equals_a_plain_loop_from_a_random_start(model: Darknet, images: Tensor) -> None:
    attack = Pgd.against(model, ThreatModel(random_start=True), seed=3)
    ours = attack(images, TARGETS, image_ids=[11, 12, 13, 14], epoch=5)
    noise = start_noise((4, 3, 16, 16), 0.05, [(3, 5, image_id, 0) for image_id in (11, 12, 13, 14)])
    start = (images + noise).clamp(0, 1)
    expected = reference_pgd(model, images, start, TARGETS, 0.05, 0.02, 5)
    assert float(((ours - expected).abs() > 1e-6).float().mean()) < 0.002


def test_a_model_in_training_mode_is_attacked_in_evaluation_mode_and_left_as_it_was(
    model: Darknet, images: Tensor
) -> None:
    expected = Pgd.against(model, ThreatModel())(images, TARGETS)
    model.train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    ours = Pgd.against(model, ThreatModel(random_start=False))(images, TARGETS)
    assert torch.equal(ours, expected)
    assert model.training
    # Weights, and the running statistics, bit for bit; and no gradient was left behind.
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_the_clean_images_are_not_modified(model: Darknet, images: Tensor) -> None:
    before = images.clone()
    Pgd.against(model, ThreatModel(random_start=True, restarts=2))(images, TARGETS)
    assert torch.equal(images, before)


@settings(max_examples=25)
@given(
    eps=st.sampled_from([0.0, 1e-6, 2 / 255, 0.05, 0.3, 1.0]),
    step_size=st.floats(1e-4, 1),
    steps=st.integers(1, 3),
    random_start=st.booleans(),
    seed=st.integers(0, 1000),
    extreme=st.booleans(),
)
def test_every_result_is_in_the_ball_and_in_the_pixel_range(
    eps: float, step_size: float, steps: int, random_start: bool, seed: int, extreme: bool
) -> None:
    model = random_network(network(*SECTIONS), seed=1)
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(seed))
    if extreme:
        images = images.round()
    threat_model = ThreatModel(eps=eps, step_size=step_size, steps=steps, random_start=random_start)
    attack = Pgd.against(model, threat_model, seed=seed)
    attacked = attack(images, TARGETS[TARGETS[:, 0] < 2]).double().numpy()
    assert np.abs(attacked - images.double().numpy()).max() <= eps + 2.4e-7
    assert attacked.min() >= 0
    assert attacked.max() <= 1


def test_the_attack_raises_the_loss_and_more_steps_raise_it_more(model: Darknet, images: Tensor) -> None:
    clean = loss_of(model, images, TARGETS)
    one = loss_of(model, Pgd.against(model, ThreatModel(steps=1))(images, TARGETS), TARGETS)
    five = loss_of(model, Pgd.against(model, ThreatModel(steps=5))(images, TARGETS), TARGETS)
    signs = torch.randn(images.shape, generator=torch.Generator().manual_seed(1)).sign()
    assert clean < one < five
    assert loss_of(model, (images + 0.05 * signs).clamp(0, 1), TARGETS) < five


def test_an_images_attack_does_not_depend_on_its_batch(model: Darknet, images: Tensor) -> None:
    attack = Pgd.against(model, ThreatModel(random_start=True), seed=9)
    together = attack(images, TARGETS, image_ids=[5, 6, 7, 8], epoch=2)
    own = TARGETS[TARGETS[:, 0] == 1].clone()
    own[:, 0] = 0
    alone = attack(images[1:2], own, image_ids=[6], epoch=2)
    assert float(((alone[0] - together[1]).abs() > 1e-6).float().mean()) < 0.005
    # Another image id, epoch or seed is another start.
    for other in (
        attack(images[1:2], own, image_ids=[7], epoch=2),
        attack(images[1:2], own, image_ids=[6], epoch=3),
        Pgd.against(model, ThreatModel(random_start=True), seed=8)(images[1:2], own, image_ids=[6], epoch=2),
    ):
        assert float(((alone - other).abs() > 1e-4).float().mean()) > 0.02


def test_the_size_of_its_batch_does_not_round_an_images_gradient() -> None:
    """A mean over three images would: a third is not a binary fraction, and signs of small gradients would flip."""
    model = load_darknet(darknet_cfg_path("yolov3-slim"), asset_path("demo-clean.weights"))
    images = torch.rand(4, 3, 160, 160, generator=torch.Generator().manual_seed(4))
    attack = Pgd.against(model, ThreatModel(eps=0.4, step_size=0.01))
    of_three = attack(images[:3], TARGETS[TARGETS[:, 0] < 3])
    assert torch.equal(of_three, attack(images, TARGETS)[:3])


def test_without_ids_a_start_follows_from_the_pixels(model: Darknet, images: Tensor) -> None:
    attack = Pgd.against(model, ThreatModel(random_start=True))
    own = TARGETS[TARGETS[:, 0] == 3].clone()
    own[:, 0] = 0
    together, alone = attack(images, TARGETS), attack(images[3:], own)
    assert float(((alone[0] - together[3]).abs() > 1e-6).float().mean()) < 0.005
    twins = attack(torch.cat([images[3:], images[3:] * 0.999]), own)
    assert float(((twins[0] - twins[1]).abs() > 0.01).float().mean()) > 0.02


def test_negative_image_ids_are_keys_like_any_other(model: Darknet, images: Tensor) -> None:
    attack = Pgd.against(model, ThreatModel(random_start=True, steps=1))
    attacked = attack(images, TARGETS, image_ids=[-1, -2, -3, 4])
    assert not torch.equal(attacked, attack(images, TARGETS, image_ids=[1, 2, 3, 4]))


def test_restarts_keep_each_images_worst_attempt(model: Darknet, images: Tensor) -> None:
    network_ = FoldedDarknet(model)
    attempts = []
    for restart in range(3):
        # A wide ball and one short step, so that attempts end far apart.
        noise = start_noise((4, 3, 16, 16), 0.4, [(0, 0, i, restart) for i in range(4)])
        start = (images + noise).clamp(0, 1)
        attempt = reference_pgd(model, images, start, TARGETS, 0.4, 0.005, 1)
        attempts.append(per_image_loss(network_, attempt, TARGETS))
    losses = torch.stack(attempts)  # (restarts, B)
    assert len(set(losses.argmax(0).tolist())) > 1, "the example must have different winners"
    assert bool((losses.amax(0) > 1.005 * losses.median(0).values).any()), "and winners by a clear margin"
    attack = Pgd.against(model, ThreatModel(eps=0.4, step_size=0.005, steps=1, random_start=True, restarts=3))
    kept = per_image_loss(network_, attack(images, TARGETS, image_ids=[0, 1, 2, 3]), TARGETS)
    torch.testing.assert_close(kept, losses.amax(0), rtol=1e-4, atol=1e-4)


def test_more_restarts_never_lower_an_images_loss(model: Darknet, images: Tensor) -> None:
    network_, previous = FoldedDarknet(model), torch.full((4,), -torch.inf)
    for restarts in (1, 2, 4):
        threat_model = ThreatModel(eps=0.4, step_size=0.005, steps=1, random_start=True, restarts=restarts)
        attack = Pgd.against(model, threat_model)
        losses = per_image_loss(network_, attack(images, TARGETS), TARGETS)
        assert bool((losses >= previous).all())
        previous = losses


# A step as long as the ball is wide overshoots: the loss falls again.
OVERSHOOTING = ThreatModel(eps=0.4, step_size=0.4, steps=6, iterate="best")


def reference_iterates(model: Darknet, images: Tensor, start: Tensor, attack: ThreatModel) -> tuple[Tensor, Tensor]:
    """Every iterate of the plain loop, the start among them, and its losses: (n, B, C, H, W) and (n, B)."""
    iterates = [start]
    for _ in range(attack.steps):
        iterates.append(reference_pgd(model, images, iterates[-1], TARGETS, attack.eps, attack.step_size, 1))
    losses = []
    for x in iterates:
        of_images = [TARGETS[TARGETS[:, 0] == i] * torch.tensor([0.0, 1, 1, 1, 1, 1]) for i in range(4)]
        losses.append([loss_of(model, x[i : i + 1], of_images[i]) for i in range(4)])
    return torch.stack(iterates), torch.tensor(losses)


def test_the_best_iterate_is_that_of_a_plain_loop_image_by_image(model: Darknet, images: Tensor) -> None:
    iterates, losses = reference_iterates(model, images, images, OVERSHOOTING)
    assert len(set(losses.argmax(0).tolist())) > 1, "the example must have different winners"
    attacked = Pgd.against(model, OVERSHOOTING)(images, TARGETS)
    expected = iterates[losses.argmax(0), torch.arange(4)]
    assert float(((attacked - expected).abs() > 1e-6).float().mean()) < 0.002
    found = per_image_loss(FoldedDarknet(model), attacked, TARGETS)
    torch.testing.assert_close(found, losses.amax(0), rtol=1e-4, atol=1e-4)
    check_invariants(attacked, images, OVERSHOOTING.eps)
    assert attacked.is_contiguous()


def test_the_best_iterate_is_never_worse_than_the_last_and_better_for_some_image(
    model: Darknet, images: Tensor
) -> None:
    network_, losses = FoldedDarknet(model), {}
    for iterate in ("last", "best"):
        attack = Pgd.against(model, OVERSHOOTING.model_copy(update={"iterate": iterate, "random_start": True}))
        attacked = attack(images, TARGETS)
        check_invariants(attacked, images, OVERSHOOTING.eps)
        losses[iterate] = per_image_loss(network_, attacked, TARGETS)
    assert bool((losses["best"] >= losses["last"]).all())
    assert bool((losses["best"] > 1.001 * losses["last"]).any())


def test_the_best_of_all_iterates_of_all_restarts_is_kept(model: Darknet, images: Tensor) -> None:
    attack = OVERSHOOTING.model_copy(update={"random_start": True, "restarts": 3})
    best = []
    for restart in range(3):
        start = (images + start_noise((4, 3, 16, 16), attack.eps, [(0, 0, i, restart) for i in range(4)])).clamp(0, 1)
        best.append(reference_iterates(model, images, start, attack)[1].amax(0))
    attacked = Pgd.against(model, attack)(images, TARGETS, image_ids=[0, 1, 2, 3])
    found = per_image_loss(FoldedDarknet(model), attacked, TARGETS)
    torch.testing.assert_close(found, torch.stack(best).amax(0), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("iterate", "restarts", "passes"), [("last", 1, 6), ("best", 1, 7), ("best", 2, 14)])
def test_the_best_iterate_costs_one_forward_pass_more(
    model: Darknet, images: Tensor, iterate: str, restarts: int, passes: int
) -> None:
    class Counting(FoldedDarknet):
        passes = 0

        def forward(self, x: Tensor) -> list[Tensor]:
            self.passes += 1
            return super().forward(x)

    network_ = Counting(model)
    attack = OVERSHOOTING.model_copy(update={"iterate": iterate, "random_start": True, "restarts": restarts})
    Pgd(model, network_, attack, "fp32", 0)(images, TARGETS)
    assert network_.passes == passes


def test_per_image_loss_is_the_loss_of_each_image_alone(model: Darknet, images: Tensor) -> None:
    losses = per_image_loss(FoldedDarknet(model), images, TARGETS)
    for index in range(4):
        own = TARGETS[TARGETS[:, 0] == index].clone()
        own[:, 0] = 0
        assert float(losses[index]) == pytest.approx(loss_of(model, images[index : index + 1], own), rel=1e-5)


def test_bf16_finds_nearly_the_same_loss(model: Darknet, images: Tensor) -> None:
    fine = Pgd.against(model, ThreatModel())(images, TARGETS)
    coarse = Pgd.against(model, ThreatModel(), "bf16")(images, TARGETS)
    assert coarse.dtype == torch.float32
    assert not torch.equal(fine, coarse)
    clean = loss_of(model, images, TARGETS)
    gained = loss_of(model, coarse, TARGETS) - clean
    assert gained > 0.8 * (loss_of(model, fine, TARGETS) - clean)


# --- promises ---


def test_a_network_that_changes_during_the_attack_is_noticed(model: Darknet, images: Tensor) -> None:
    class Meddling(FoldedDarknet):
        def forward(self, x: Tensor) -> list[Tensor]:
            with torch.no_grad():
                model.conv(0).mean.add_(1e-3)
            return super().forward(x)

    attack = Pgd(model, Meddling(model), ThreatModel(), "fp32", 0)
    with pytest.raises(AttackInvariantError, match="changed during the attack"):
        attack(images, TARGETS)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda x: x + 0.051, "moved a pixel"),
        (lambda x: x - 0.051, "moved a pixel"),
        (lambda x: torch.where(x == x.max(), x.new_tensor(torch.nan), x), "moved a pixel"),
        (lambda x: torch.where(x == x.max(), x.new_tensor(1.001), x), "pixel range"),
        (lambda x: torch.where(x == x.min(), x.new_tensor(-0.001), x), "pixel range"),
    ],
)
def test_broken_promises_are_noticed(change, says: str) -> None:
    images = torch.linspace(0, 1, 48).view(1, 3, 4, 4)
    with pytest.raises(AttackInvariantError, match=says):
        check_invariants(change(images), images, 0.05)


def test_kept_promises_pass() -> None:
    images = torch.linspace(0, 1, 48).view(1, 3, 4, 4)
    check_invariants((images + 0.05).clamp(0, 1), images, 0.05)
    check_invariants(images[:0], images[:0], 0.05)


def test_a_zero_gradient_is_warned_about(model: Darknet, images: Tensor) -> None:
    with torch.no_grad():
        model.conv(0).scale.zero_()
    with pytest.warns(AttackWarning, match="zero-gradient: the loss does not depend on 4 of 4 images"):
        attacked = Pgd.against(model, ThreatModel())(images, TARGETS)
    assert torch.equal(attacked, images)


def test_a_zero_gradient_of_one_image_does_not_hide_among_the_others(model: Darknet, images: Tensor) -> None:
    class BlindToOne(FoldedDarknet):
        def forward(self, x: Tensor) -> list[Tensor]:
            return super().forward(x * torch.tensor([1.0, 1, 0, 1]).view(4, 1, 1, 1))

    attack = Pgd(model, BlindToOne(model), ThreatModel(), "fp32", 0)
    with pytest.warns(AttackWarning, match="zero-gradient: the loss does not depend on 1 of 4 images"):
        attacked = attack(images, TARGETS)
    assert [torch.equal(one, clean) for one, clean in zip(attacked, images, strict=True)] == [False, False, True, False]


def test_an_honest_attack_warns_about_nothing(model: Darknet, images: Tensor) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Pgd.against(model, ThreatModel(random_start=True, restarts=2))(images, TARGETS)


def test_a_gradient_that_is_not_finite_is_an_error(model: Darknet, images: Tensor) -> None:
    class BrokenForOne(FoldedDarknet):
        def forward(self, x: Tensor) -> list[Tensor]:
            return super().forward(x * torch.tensor([1.0, 0, torch.inf, 1]).view(4, 1, 1, 1))

    with pytest.raises(AttackInvariantError, match="not finite"):
        Pgd(model, BrokenForOne(model), ThreatModel(), "fp32", 0)(images, TARGETS)
    with torch.no_grad():
        model.conv(0).weight[0, 0, 0, 0] = torch.nan
    with pytest.raises(AttackInvariantError, match="not finite"):
        Pgd.against(model, ThreatModel())(images, TARGETS)
