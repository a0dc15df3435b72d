"""Whether an attack can be believed: what must hold of any network whose gradients lead an attack where it wants to go.

After the checklists of Athalye, Carlini and Wagner (Obfuscated Gradients Give a False Sense of Security, 2018) and of
Carlini et al. (On Evaluating Adversarial Robustness, 2019). A check that fails is a warning with a name, see
docs/attacks.md:

    zero-gradient      in some step of some attack, of some images the objective has no gradient
    not-converged      twice the steps lower mAP by more than `CONVERGED`
    order-broken       a stronger attack leaves more than a weaker one, a larger ball more than a smaller one, or a ball
                       that holds every image (eps 1) more than `NEARLY_NOTHING`
    transfer           images made with another network (the dense parent) hurt more than the network's own
    randomness         five passes over one image differ
    wrong-gradient     backpropagation and finite differences of the objectives differ
    black-box          Square, which needs no gradients, leaves less than every attack that has them, by more than
                       `BLACK_BOX_SLACK`
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from prunedeploy.attacks.apgd import Apgd
from prunedeploy.attacks.checks import AttackWarning, values_and_gradient
from prunedeploy.attacks.norms import random_start
from prunedeploy.attacks.objectives import Objective, objective_for
from prunedeploy.attacks.suite import ENSEMBLE, STEPS, Attack, attack_suite
from prunedeploy.attacks.threat_model import ThreatModel
from prunedeploy.config import Budget
from prunedeploy.data.loader import Batch
from prunedeploy.data.records import CocoDataset
from prunedeploy.evaluation.evaluator import Evaluation, evaluate, figure_name
from prunedeploy.evaluation.robustness import RADII, curve
from prunedeploy.evaluation.torch_runner import TorchRunner
from prunedeploy.models.detector import Detector

CHECKED_IMAGES = 32
"""Enough to see what is wrong, few enough for the radii and the doubled steps."""
CONVERGED = 0.005
NEARLY_NOTHING = 0.01
SLACK = 0.005
"""Tolerance of comparisons of mAP: on a few images it moves by chance, as attacks reorder detections."""
BLACK_BOX_SLACK = 0.002
"""As `SLACK`, on all the images that are measured."""
GRADIENT_TOLERANCE = 1e-4
_EXACT = ("objectness", "classes")
"""Objectives whose gradient is that of their value; CIoU's authors hold its trade-off constant in the gradient."""


@dataclass(frozen=True)
class Check:
    """One check and how it came out.

    Attributes:
        name: As above.
        passed: Whether what must hold does.
        says: What was found, with its numbers.
    """

    name: str
    passed: bool
    says: str


def check_attacks(
    model: Detector,
    batches: Iterable[Batch],
    dataset: CocoDataset,
    threat_model: ThreatModel,
    budget: Budget = "standard",
    *,
    parent: Detector | None = None,
    iou_threshold: float,
    score_threshold: float,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> list[Check]:
    """Check the attacks on one network.

    Args:
        model: The network.
        batches: The images to do it on, some dozens; may be gone through several times.
        dataset: Ground truth of those images.
        threat_model: The ball, and PGD's search.
        budget: Budget of APGD and the ensemble; converged is what twice its steps do not change.
        parent: A network that this one was made of; None leaves ``transfer`` out.
        iou_threshold: As `evaluate` takes it; likewise the rest.
        score_threshold: Score threshold of detections.
        seed: Seed of random starts.
        progress: Called with the number of images after each batch, of each measurement.
    """
    measured = partial(
        _maps,
        batches=batches,
        dataset=dataset,
        iou_threshold=iou_threshold,
        score_threshold=score_threshold,
        progress=progress,
    )
    references = ("noise", "fgsm", "pgd", "ensemble")
    suite = attack_suite(model, references, threat_model, budget, seed=seed)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", AttackWarning)
        maps = measured(model, suite.attacks, suite.ensembles, attacked_model=model)
    over_eps = curve(
        model,
        batches,
        dataset,
        "apgd",
        threat_model,
        (*RADII, 1.0),
        budget=budget,
        iou_threshold=iou_threshold,
        score_threshold=score_threshold,
        resamples=0,
        seed=seed,
        progress=progress,
    )
    checks = [_zero_gradient(caught), _converged(model, maps, threat_model, budget, seed, measured)]
    checks.append(_ordered({name: maps[name] for name in references}, over_eps))
    if parent is not None:
        lent = {name: partial(_of_parent, attack, parent) for name, attack in _own(parent, threat_model, budget, seed)}
        transfer = min(measured(model, lent, {}, attacked_model=model).values())
        checks.append(_transfer(transfer, maps["ensemble"]))
    first = next(iter(batches))
    return [*checks, _repeatable(model, first), _gradient(model, first)]


def black_box_check(found: Evaluation, white_box: Iterable[str], square: str) -> Check | None:
    """Whether attacks with gradients find what a black box finds on the same runner.

    Args:
        found: What was measured with one runner. If that is not the network whose gradients were used, a failure says
            that the figures of transfer hide how weak the runner itself is.
        white_box: Names of the attacks with gradients.
        square: Name of the black box, from clean images: from white-box ones it leaves less by how it is made.

    Returns:
        None if there is nothing to compare.
    """
    maps = {name: found.attacked[name].usual.result.map_50_95 for name in (*white_box, square)}
    own = maps.pop(square)
    there = {name: value for name, value in maps.items() if value is not None}
    if not there or own is None:
        return None
    lowest = min(there, key=lambda name: there[name])
    whose = "of the parent, by transfer," if found.transfer else "with its own gradients"
    says = f"on {found.runner['runtime']} square leaves {own:.4f} mAP, {lowest} {whose} {there[lowest]:.4f}"
    return Check("black-box", own >= there[lowest] - BLACK_BOX_SLACK, says)


def measurements(parent: Detector | None) -> int:
    """How many times `check_attacks` goes through the images, for a progress bar."""
    return 2 + len(RADII) + 1 + (parent is not None)


def _own(model: Detector, threat_model: ThreatModel, budget: Budget, seed: int) -> Iterable[tuple[str, Attack]]:
    return attack_suite(model, ["pgd", "apgd:box"], threat_model, budget, seed=seed).attacks.items()


def _of_parent(attack: Attack, parent: Detector, _: Detector, images: Tensor, targets: Tensor) -> Tensor:
    return attack(parent, images, targets)


def _maps(
    model: Detector,
    attacks: Any,
    ensembles: Any,
    *,
    batches: Iterable[Batch],
    dataset: CocoDataset,
    attacked_model: Detector,
    iou_threshold: float,
    score_threshold: float,
    progress: Callable[[int], None] | None,
) -> dict[str, float]:
    """MAP under every attack and ensemble; 0 where it is undefined."""
    with TorchRunner(model) as runner:
        found = evaluate(
            runner,
            batches,
            dataset,
            attack=attacks,
            ensembles=ensembles,
            attacked_model=attacked_model,
            iou_threshold=iou_threshold,
            score_threshold=score_threshold,
            resamples=0,
            progress=progress,
        )[runner.runtime]
    metrics = found.metrics()
    return {name: metrics[f"map_{figure_name(name)}"] or 0.0 for name in (*attacks, *ensembles)}


def _zero_gradient(caught: list[warnings.WarningMessage]) -> Check:
    found = sorted({str(one.message) for one in caught if issubclass(one.category, AttackWarning)})
    says = (
        found[0].removeprefix("zero-gradient: ")
        if found
        else "every image has a gradient in every step of every attack"
    )
    return Check("zero-gradient", not found, says)


def _converged(
    model: Detector,
    maps: dict[str, float],
    threat_model: ThreatModel,
    budget: Budget,
    seed: int,
    measured: Callable[..., dict[str, float]],
) -> Check:
    """The strongest single attack of the ensemble, once more with twice the steps."""
    objective = min(ENSEMBLE, key=lambda one: maps[f"apgd:{one}"])
    steps = STEPS[budget]
    longer = Apgd(model, model.for_inference(), threat_model.eps, 2 * steps, objective, seed=seed)
    before, after = (
        maps[f"apgd:{objective}"],
        measured(model, {"longer": longer.of_model}, {}, attacked_model=model)["longer"],
    )
    says = f"apgd:{objective} leaves {before:.4f} mAP with {steps} steps and {after:.4f} with {2 * steps}"
    return Check("not-converged", before - after <= CONVERGED, says)


def _transfer(of_parent: float, own: float) -> Check:
    says = f"images made with the parent leave {of_parent:.4f} mAP, the network's own ensemble {own:.4f}"
    return Check("transfer", of_parent >= own - SLACK, says)


def _ordered(maps: dict[str, float], over_eps: list[dict[str, Any]]) -> Check:
    chain = [*maps.items()]
    radii = [(f"eps {row['eps']:.4g}", row["map"] or 0.0) for row in over_eps]
    broken = [
        f"{second} leaves {of_second:.4f} mAP, {first} {of_first:.4f}"
        for pairs in (chain, radii)
        for (first, of_first), (second, of_second) in pairwise(pairs)
        if of_second > of_first + SLACK
    ]
    name, everything = radii[-1]
    if everything > NEARLY_NOTHING:
        broken.append(f"{name} leaves {everything:.4f} mAP, where any image is allowed")
    says = "; ".join(broken) or ", ".join(f"{one} {value:.4f}" for one, value in (*chain, *radii))
    return Check("order-broken", not broken, says)


@torch.no_grad()
def _repeatable(model: Detector, batch: Batch) -> Check:
    network = model.for_inference()
    image = batch.images[:1].to(model.device)
    passes = [network(image) for _ in range(5)]
    furthest = max(
        float((one - other).abs().max()) for heads in passes for one, other in zip(passes[0], heads, strict=True)
    )
    says = f"five passes over one image {'are the same' if furthest == 0 else f'differ by up to {furthest:g}'}"
    return Check("randomness", furthest == 0, says)


def _gradient(model: Detector, batch: Batch) -> Check:
    """The derivative along the gradient's own direction, in float64, beside the first image.

    Not at the image itself: in its grey border, and wherever it is of one colour, max pooling has ties and no gradient.
    """
    device = model.device
    network = model.for_inference(torch.float64)
    image, own = batch.images[:1], batch.targets[batch.targets[:, 0] == 0].to(device)
    image = random_start(image, 1 / 255, "linf", [(0,)]).to(device, torch.float64)
    objective: Objective = objective_for("+".join(_EXACT), lambda: network(image), own.double(), model.cfg)
    _, gradient = values_and_gradient(network, image, objective)
    length = float(gradient.norm())
    if length == 0:
        return Check("wrong-gradient", False, "the first image has no gradient")
    step = 1e-6 * gradient / length
    with torch.no_grad():
        risen = objective(network(image + step)) - objective(network(image - step))
    slope = float(risen.sum()) / 2e-6
    says = f"the slope along the gradient is {length:.6g} by backpropagation, {slope:.6g} by finite differences"
    return Check("wrong-gradient", abs(slope / length - 1) <= GRADIENT_TOLERANCE, says)
