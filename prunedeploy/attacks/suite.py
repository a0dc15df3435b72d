"""Attacks by their names: which ones there are, how far each searches, and the ensemble that robustness is reported by.

A reference is a name, for three of them with an objective: ``fgsm``, ``pgd``, ``apgd:box``, ``ensemble``. The ensemble
is APGD on one objective after the other: an attack on the summed loss spends its steps where they do not lower average
precision. A budget fixes how far APGD searches::

    budget      steps    passes through the network and back, of each image: apgd    ensemble
    quick       10                                                           11      66
    standard    30                                                           31      186
    full        100                                                          101     606

``cw`` searches no ball; `prunedeploy.evaluation.robustness.distortion` runs it, with constants of these steps::

    quick       4 of 50, 200 passes
    standard    6 of 150, 900 passes
    full        9 of 1000, 9000 passes, as its authors'

``square`` needs no gradients: `prunedeploy.evaluation.black_box.BlackBox` makes it on the runner that is measured, by
queries instead of a budget.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

from torch import Tensor

from prunedeploy.attacks.apgd import Apgd
from prunedeploy.attacks.noise import Noise
from prunedeploy.attacks.norms import Norm
from prunedeploy.attacks.objectives import objective_parts
from prunedeploy.attacks.pgd import Pgd
from prunedeploy.attacks.threat_model import ThreatModel
from prunedeploy.config import Budget
from prunedeploy.models.detector import Detector
from prunedeploy_engines.errors import ConfigError

Attack = Callable[[Detector, Tensor, Tensor], Tensor]

STEPS: dict[Budget, int] = {"quick": 10, "standard": 30, "full": 100}
CARLINI_WAGNER: dict[Budget, tuple[int, int]] = {"quick": (4, 50), "standard": (6, 150), "full": (9, 1000)}
"""Constants that are searched, and steps of each."""
ENSEMBLE = ("rank", "box", "objectness", "classes", "class-wise", "fabricate")
"""Objectives of the ensemble, in the order in which they run."""
SINGLE, WITH_OBJECTIVE = ("noise", "fgsm", "pgd", "apgd"), ("fgsm", "pgd", "apgd")
NAMES = (*SINGLE, "ensemble", "cw", "square")
"""Every attack, from the weakest to the strongest; ``cw`` measures distortions instead of searching a ball, and
``square`` is a black box."""


@dataclass(frozen=True)
class Suite:
    """Attacks on one network, as `prunedeploy.evaluation.evaluate` takes them.

    Attributes:
        attacks: Single ones by reference; those of the ensemble are among them.
        ensembles: Which of them each ensemble consists of.
        passes: What each attack and ensemble costs: passes through the network and back, of one image.
    """

    attacks: Mapping[str, Attack]
    ensembles: Mapping[str, tuple[str, ...]]
    passes: Mapping[str, int]


def check_references(references: Sequence[str], where: str, *, of_runners: bool = False) -> None:
    """Check that references name attacks and objectives.

    Args:
        references: As `attack_suite` takes them, or ``cw``.
        where: Named in errors: an option or a key.
        of_runners: There are runners to ask, so ``square`` may be among them.

    Raises:
        ConfigError: One does not; the nearest is named. Or one occurs twice.
    """
    for reference in references:
        name, colon, objective = reference.partition(":")
        if name not in NAMES:
            nearest = difflib.get_close_matches(name, NAMES, 1, 0.0)[0]
            raise ConfigError(
                f"there is no attack {name!r}; the nearest is {nearest}", where, f"choose from {', '.join(NAMES)}"
            )
        if name == "square" and not of_runners:
            fix = "make it with prunedeploy.evaluation.black_box"
            raise ConfigError("square is made on a runner, not on a network's gradients", where, fix)
        if colon and name not in WITH_OBJECTIVE:
            raise ConfigError(f"{name} has no objective to choose", where, f"leave {colon}{objective} out")
        if colon:
            objective_parts(objective)
    if len(set(references)) < len(references):
        twice = next(one for one in references if references.count(one) > 1)
        raise ConfigError(f"{twice} is given twice", where, "give it once")


def attack_suite(
    model: Detector,
    references: Sequence[str],
    threat_model: ThreatModel,
    budget: Budget = "standard",
    *,
    norm: Norm = "linf",
    seed: int = 0,
) -> Suite:
    """Prepare attacks on a network as it stands, in fp32.

    Args:
        model: The network; folded once for all of APGD.
        references: Which; all but ``cw`` and ``square``.
        threat_model: The ball of all of them, and the search of PGD.
        budget: How far APGD and the ensemble search.
        norm: Norm of the ball; ``l2`` for noise, APGD and the ensemble.
        seed: Seed of random starts.

    Raises:
        ConfigError: No such attack, objective or budget, or one that has no L2 ball.
    """
    check_references(references, "attack")
    if budget not in STEPS:
        nearest = difflib.get_close_matches(budget, get_args(Budget), 1, 0.0)[0]
        raise ConfigError(f"there is no budget {budget!r}", "budget", f"{nearest} is the nearest")
    attacks: dict[str, Attack] = {}
    ensembles: dict[str, tuple[str, ...]] = {}
    passes: dict[str, int] = {}
    folded: list[Detector] = []

    def add(reference: str) -> None:
        name, _, objective = reference.partition(":")
        if norm == "l2" and name in {"fgsm", "pgd"}:
            raise ConfigError(f"{name} searches an L-inf ball", "norm", "use apgd for an L2 ball")
        if name == "apgd":
            folded[:] = folded or [model.for_inference()]
            attack = Apgd(model, folded[0], threat_model.eps, STEPS[budget], objective or "total", norm, seed=seed)
            attacks[reference], passes[reference] = attack.of_model, STEPS[budget] + 1
        elif name == "noise":
            attacks[reference], passes[reference] = Noise(threat_model.eps, norm, seed).of_model, 0
        elif name == "fgsm":
            attacks[reference] = Pgd.fgsm(model, threat_model.eps, objective or "total").of_model
            passes[reference] = 1
        else:
            pgd = Pgd.against(model, threat_model, "fp32", seed, objective or "total")
            attacks[reference], passes[reference] = pgd.of_model, threat_model.steps * threat_model.restarts

    for reference in references:
        if reference == "ensemble":
            members = tuple(f"apgd:{objective}" for objective in ENSEMBLE)
            for member in members:
                if member not in attacks:
                    add(member)
            ensembles[reference], passes[reference] = members, sum(passes[member] for member in members)
        elif reference != "cw" and reference not in attacks:
            add(reference)
    return Suite(attacks, ensembles, passes)
