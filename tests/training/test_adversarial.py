"""Adversarial training, distillation and re-calibration."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from head_networks import SECTIONS, head_cfg, random_head
from prunedeploy.attacks import Pgd, ThreatModel
from prunedeploy.models import FoldedDarknet, load_darknet, yolo_loss
from prunedeploy.training.adversarial import distillation_loss, recalibrate_normalisation, robust_objective
from pruning.darknets import conv, network, random_network
from training.small import batch_of, loop_settings, small_model

CPU = torch.device("cpu")
SETTINGS = loop_settings(steps=1, lr=0.1)


def test_the_objective_is_the_training_mode_loss_on_images_attacked_in_evaluation_mode() -> None:
    model, batch = small_model(), batch_of(0)
    threat_model = ThreatModel(random_start=True)
    expected_model = copy.deepcopy(model).eval()
    attacked = Pgd.against(expected_model, threat_model, seed=4)(batch.images, batch.targets, batch.image_ids, epoch=17)
    expected = yolo_loss(expected_model.train()(attacked), batch.targets, model.cfg).total
    expected.backward()

    terms = robust_objective(model, SETTINGS, threat_model, 4, CPU)(batch, 17)
    terms["loss"].backward()
    torch.testing.assert_close(terms["loss"].detach(), expected.detach(), rtol=1e-5, atol=0)
    for (name, parameter), other in zip(model.named_parameters(), expected_model.parameters(), strict=True):
        scale = float(other.grad.abs().max())
        torch.testing.assert_close(parameter.grad, other.grad, rtol=1e-3, atol=1e-4 * scale, msg=name)
    # One forward pass in training mode moved the statistics, the attack's passes did not.
    for index in (0, 1, 2):
        torch.testing.assert_close(model.conv(index).mean, expected_model.conv(index).mean)
    parts = terms["box"] + terms["objectness"] + terms["classes"]
    torch.testing.assert_close(terms["loss"], parts)


def test_without_an_attack_the_loss_is_that_of_the_clean_images() -> None:
    model, batch = small_model(), batch_of(0)
    expected = yolo_loss(copy.deepcopy(model).train()(batch.images), batch.targets, model.cfg).total
    clean = robust_objective(model, SETTINGS, None, 0, CPU)(batch, 0)["loss"]
    torch.testing.assert_close(clean, expected)
    attacked = robust_objective(small_model(), SETTINGS, ThreatModel(), 0, CPU)(batch, 0)["loss"]
    assert attacked.item() > clean.item()


def test_the_distillation_term_is_added_with_its_weight() -> None:
    model, batch = small_model(), batch_of(0)
    teacher = FoldedDarknet(small_model(seed=5))
    terms = robust_objective(
        copy.deepcopy(model), SETTINGS, None, 0, CPU, teacher=teacher, distillation=0.3, temperature=2.0
    )(batch, 0)
    heads = model.train()(batch.images)
    expected = 0.3 * distillation_loss(heads, teacher(batch.images), model, 2.0)
    torch.testing.assert_close(terms["distillation"], expected)
    detection = yolo_loss(heads, batch.targets, model.cfg).total
    torch.testing.assert_close(terms["loss"], detection + expected)


# --- distillation ---


def heads_of(seed: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    return [torch.randn(2, 14, 3, 2, generator=torch.Generator().manual_seed(seed), dtype=dtype)]


def reference_distillation(own: Tensor, taught: Tensor, temperature: float) -> float:
    """One number at a time: two anchors of x, y, w, h, objectness, two classes."""

    def logistic(t: float) -> float:
        return 1 / (1 + math.exp(-t))

    def cross_entropy(t: float, wanted: float) -> float:
        p = logistic(t)
        return -wanted * math.log(p) - (1 - wanted) * math.log(1 - p)

    total = 0.0
    for image in range(own.shape[0]):
        for a in range(2):
            for j in range(own.shape[2]):
                for i in range(own.shape[3]):
                    s = own[image, 7 * a : 7 * a + 7, j, i].tolist()
                    t = taught[image, 7 * a : 7 * a + 7, j, i].tolist()
                    soft = [
                        temperature**2 * cross_entropy(s[k] / temperature, logistic(t[k] / temperature))
                        for k in (4, 5, 6)
                    ]
                    boxes = sum((s[k] - t[k]) ** 2 for k in range(4))
                    total += soft[0] + logistic(t[4]) * (soft[1] + soft[2] + boxes)
    return total / own.shape[0]


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_distillation_equals_a_plain_loop(temperature: float) -> None:
    model, own, taught = small_model(), heads_of(0), heads_of(1)
    ours = float(distillation_loss(own, taught, model, temperature))
    assert ours == pytest.approx(reference_distillation(own[0], taught[0], temperature), rel=1e-9)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_distillation_is_least_where_student_and_teacher_agree(temperature: float) -> None:
    model, taught = small_model(), heads_of(1)
    own = [head.clone().requires_grad_(True) for head in taught]
    loss = distillation_loss(own, taught, model, temperature)
    (gradient,) = torch.autograd.grad(loss, own)
    assert float(gradient.abs().max()) < 1e-12
    for seed in range(2, 6):
        moved = [head.detach() + 0.1 * noise for head, noise in zip(own, heads_of(seed), strict=True)]
        assert float(distillation_loss(moved, taught, model, temperature)) > loss.item()


@pytest.mark.parametrize("kind", SECTIONS)
def test_distillation_of_every_kind_of_head_is_least_where_both_agree(kind: str) -> None:
    model, taught = load_darknet(head_cfg(kind)), random_head(kind, 2, seed=1, certainty=1.0)
    own = taught.clone().requires_grad_(True)
    loss = distillation_loss([own], [taught], model, 2.0)
    (gradient,) = torch.autograd.grad(loss, own)
    assert float(gradient.abs().max()) < 1e-12
    for seed in range(2, 6):
        moved = 0.9 * own.detach() + 0.1 * random_head(kind, 2, seed=seed, certainty=1.0)
        assert float(distillation_loss([moved], [taught], model, 2.0)) > loss.item()


def test_distillation_of_exclusive_classes_is_the_cross_entropy_of_their_softmaxes() -> None:
    # All alike but the classes of one prediction, where the teacher sees an object: logit 0, weight 1/2.
    model = load_darknet(head_cfg("region"))
    own, taught = torch.zeros(1, 16, 4, 6, dtype=torch.float64), torch.zeros(1, 16, 4, 6, dtype=torch.float64)
    own[0, 5:8, 1, 2] = torch.tensor([math.log(2), 0, 0])  # 1/2, 1/4, 1/4
    taught[0, 5:8, 1, 2] = torch.tensor([0, 0, math.log(3)])  # 1/5, 1/5, 3/5
    others = 48 * math.log(2) + 47 / 2 * math.log(3)  # objectness everywhere, classes of all others
    expected = -(math.log(1 / 2) / 5 + math.log(1 / 4) * 4 / 5) / 2
    assert float(distillation_loss([own], [taught], model)) == pytest.approx(others + expected)


# --- re-calibration ---


def test_recalibration_gives_the_average_statistics_of_the_batches() -> None:
    model = random_network(network(conv(4, size=3), conv(5, size=3, activation="mish"),
                                   conv(6, norm=False, activation="linear"),
                                   "yolo mask=0 anchors=4,5 classes=1"), seed=3)  # fmt: skip
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    images = [torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(n)) for n in (2, 3)]
    recalibrate_normalisation(model, images)

    def convolve(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
        padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
        return np.einsum("bchwij,fcij->bfhw", windows, weight)

    means: dict[int, list] = {0: [], 1: []}
    variances: dict[int, list] = {0: [], 1: []}
    for batch in images:
        x = batch.double().numpy()
        for index in (0, 1):
            raw = convolve(x, weights[f"convs.{index}.weight"].double().numpy())
            mean, variance = raw.mean((0, 2, 3)), raw.var((0, 2, 3))
            means[index].append(mean)
            variances[index].append(raw.var((0, 2, 3), ddof=1))
            column = (1, -1, 1, 1)
            scale = weights[f"convs.{index}.scale"].double().numpy().reshape(column)
            bias = weights[f"convs.{index}.bias"].double().numpy().reshape(column)
            # Within re-calibration each layer normalises by the batch itself.
            y = (raw - mean.reshape(column)) / np.sqrt(variance.reshape(column) + 1e-5) * scale + bias
            x = np.where(y > 0, y, 0.1 * y)
    for index in (0, 1):
        np.testing.assert_allclose(model.conv(index).mean.numpy(), np.mean(means[index], 0), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(model.conv(index).variance.numpy(), np.mean(variances[index], 0), rtol=1e-4)
    for key, value in model.state_dict().items():
        if not key.endswith(("mean", "variance")):
            assert torch.equal(value, weights[key]), key
    assert not model.training
    # The momentum of training is back.
    before = model.conv(0).mean.clone()
    with torch.no_grad():
        model.train()(images[0])
    expected = 0.97 * before.numpy() + 0.03 * means[0][0]
    np.testing.assert_allclose(model.conv(0).mean.numpy(), expected, rtol=1e-4, atol=1e-6)
