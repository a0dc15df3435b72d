"""Importance scores: one float per weight.

- `interface`: what every score takes and gives.
- `baselines`: scaled (HYDRA), magnitude, random.
"""

from prunedeploy.scores.baselines import magnitude_scores, random_scores, scaled_scores
from prunedeploy.scores.interface import DetectionLoss, ScoreFunction, Scores

__all__ = ["DetectionLoss", "ScoreFunction", "Scores", "magnitude_scores", "random_scores", "scaled_scores"]
