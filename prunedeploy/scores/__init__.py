"""Importance scores: one float per weight.

- `interface`: what every score takes and gives.
- `baselines`: scaled (HYDRA), magnitude, random: from the weights alone.
- `target`, `reference`: what an attribution explains, and what it compares an image with.
- `deeplift`: contributions of weights, all layers from one forward (`deeplift_trace`) and one backward pass
  (`deeplift_backward`); `activation_slopes` are the exact slopes of its rules.
"""

from prunedeploy.scores.baselines import magnitude_scores, random_scores, scaled_scores
from prunedeploy.scores.deeplift import DeepLift, SummationToDelta, contributions, deeplift, deeplift_scores
from prunedeploy.scores.interface import DetectionLoss, ScoreFunction, Scores
from prunedeploy.scores.target import DetectionTarget, choose_target

__all__ = [
    "DeepLift",
    "DetectionLoss",
    "DetectionTarget",
    "ScoreFunction",
    "Scores",
    "SummationToDelta",
    "choose_target",
    "contributions",
    "deeplift",
    "deeplift_scores",
    "magnitude_scores",
    "random_scores",
    "scaled_scores",
]
