"""Importance scores: one float per weight.

- `baselines`: scaled (HYDRA), magnitude, random.
"""

from prunedeploy.scores.baselines import Scores, magnitude_scores, random_scores, scaled_scores

__all__ = ["Scores", "magnitude_scores", "random_scores", "scaled_scores"]
