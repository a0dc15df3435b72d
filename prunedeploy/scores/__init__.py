"""Importance scores: one float per weight.

- `interface`: what every score takes and gives.
- `baselines`: scaled (HYDRA), magnitude, random, bn-scale: from the network alone.
- `sensitivities`: SNIP, Taylor, gradient x input: from gradients.
- `given`: from a file.
- `target`, `reference`: what an attribution explains, and what it compares an image with.
- `normalise`: layers on a common scale.
- `deeplift`: contributions of weights, all layers from one forward (`deeplift_trace`) and one backward pass
  (`deeplift_backward`); `activation_slopes` are the exact slopes of its rules.
- `captum_deeplift`: the same by Captum, layer by layer: the reference, and for who chooses it.
"""

from prunedeploy.scores.baselines import bn_scale_scores, magnitude_scores, random_scores, scaled_scores
from prunedeploy.scores.deeplift import SummationToDelta, deeplift
from prunedeploy.scores.given import GivenScores, read_given_scores
from prunedeploy.scores.interface import ScoreFunction, Scores
from prunedeploy.scores.normalise import normalised_scores
from prunedeploy.scores.sensitivities import gradient_x_input_scores, snip_scores, taylor_scores
from prunedeploy.scores.target import DetectionTarget, choose_target

__all__ = [
    "DetectionTarget",
    "GivenScores",
    "ScoreFunction",
    "Scores",
    "SummationToDelta",
    "bn_scale_scores",
    "choose_target",
    "deeplift",
    "gradient_x_input_scores",
    "magnitude_scores",
    "normalised_scores",
    "random_scores",
    "read_given_scores",
    "scaled_scores",
    "snip_scores",
    "taylor_scores",
]
