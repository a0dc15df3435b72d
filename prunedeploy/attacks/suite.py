"""The ensemble of attacks by which robustness is reported, and what it costs.

APGD drives up one objective after the other: an attack on the summed loss spends its steps where they do not lower
average precision. Each attack gets the same number of steps; a budget fixes it::

    budget      steps of each attack    passes through the network and back, of each image
    quick       10                      66
    standard    30                      186
    full        100                     606
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Literal, get_args

from torch import Tensor

from prunedeploy.attacks.apgd import Apgd
from prunedeploy.models.darknet import Darknet, FoldedDarknet
from prunedeploy_engines.errors import ConfigError

Budget = Literal["quick", "standard", "full"]
STEPS: dict[Budget, int] = {"quick": 10, "standard": 30, "full": 100}
ENSEMBLE = ("rank", "box", "objectness", "classes", "class-wise", "fabricate")
"""Objectives of the ensemble, in the order in which they run."""


def passes(budget: Budget) -> int:
    """Passes through the network and back that the ensemble takes for one image."""
    return len(ENSEMBLE) * (STEPS[budget] + 1)


def ensemble_attacks(
    model: Darknet, eps: float, budget: Budget, seed: int = 0
) -> dict[str, Callable[[Darknet, Tensor, Tensor], Tensor]]:
    """The attacks of the ensemble by their names, against one network that is folded once.

    Args:
        model: The network.
        eps: Radius of the L-inf ball, in pixel units of [0, 1].
        budget: How hard each one searches.
        seed: Of random starts.

    Raises:
        ConfigError: No such budget; the nearest is named.
    """
    if budget not in STEPS:
        nearest = difflib.get_close_matches(budget, get_args(Budget), 1, 0.0)[0]
        raise ConfigError(f"there is no budget {budget!r}", "attack.budget", f"{nearest} is the nearest")
    network = FoldedDarknet(model)
    return {
        f"apgd {objective}": Apgd(model, network, eps, STEPS[budget], objective, seed=seed).of_model
        for objective in ENSEMBLE
    }
