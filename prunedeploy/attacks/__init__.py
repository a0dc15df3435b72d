"""Attacks on detectors.

- `threat_model`: the ball, its projection, random starts.
- `pgd`: projected gradient descent on the detection loss.
"""

from prunedeploy.attacks.pgd import AttackInvariantError, AttackWarning, Pgd
from prunedeploy.attacks.threat_model import ThreatModel, project_linf

__all__ = ["AttackInvariantError", "AttackWarning", "Pgd", "ThreatModel", "project_linf"]
