"""Attacks on detectors.

- `threat_model`, `norms`: balls, projections, random starts.
- `objectives`: what an attack drives up.
- `pgd`: projected gradient descent, the paper's attack.
- `apgd`: projected gradient descent that sets its own step sizes.
- `noise`: random points of the ball.
- `universal`: one perturbation for all images.
- `carlini_wagner`, `found_objects`: the smallest change in L2 with which an image loses an object.
- `square`: random search without gradients.
- `answer_margins`: what it lowers, from boxes and scores, or detections alone.
- `checks`: gradients of objectives, and what every attack promises.
"""

from prunedeploy.attacks.apgd import Apgd
from prunedeploy.attacks.carlini_wagner import CarliniWagner
from prunedeploy.attacks.checks import AttackInvariantError, AttackWarning
from prunedeploy.attacks.noise import Noise
from prunedeploy.attacks.pgd import Pgd
from prunedeploy.attacks.square import Square
from prunedeploy.attacks.threat_model import ThreatModel, project_linf
from prunedeploy.attacks.universal import perturbed, universal_perturbation

__all__ = [
    "Apgd",
    "AttackInvariantError",
    "AttackWarning",
    "CarliniWagner",
    "Noise",
    "Pgd",
    "Square",
    "ThreatModel",
    "perturbed",
    "project_linf",
    "universal_perturbation",
]
