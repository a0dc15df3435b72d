"""Attacks on detectors.

- `threat_model`, `norms`: balls, projections, random starts.
- `objectives`: what an attack drives up.
- `pgd`: projected gradient descent, the paper's attack.
- `apgd`: projected gradient descent that sets its own step sizes.
- `checks`: gradients of objectives, and what every attack promises.
"""

from prunedeploy.attacks.apgd import Apgd
from prunedeploy.attacks.checks import AttackInvariantError, AttackWarning
from prunedeploy.attacks.pgd import Pgd
from prunedeploy.attacks.threat_model import ThreatModel, project_linf

__all__ = ["Apgd", "AttackInvariantError", "AttackWarning", "Pgd", "ThreatModel", "project_linf"]
