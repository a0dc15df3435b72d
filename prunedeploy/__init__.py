"""prunedeploy: robust training, pruning, shrinking and measured deployment of YOLO detectors.

The packages in the order in which data flows through them:

- `prunedeploy.data`: data sets, the demo set, batches.
- `prunedeploy.models`: Darknet files, the network, decode, loss.
- `prunedeploy.attacks`, `prunedeploy.scores`, `prunedeploy.pruning`: PGD, importance, masks, shrinking.
- `prunedeploy.evaluation`: detections and mAP of any runner, clean and attacked.
- `prunedeploy.training`: the loop, adversarial training, score optimisation.
- `prunedeploy.pipeline`: the stages of a build, their store, the report.
- `prunedeploy.study`: rows of many builds, their statistics, tables, figures and page; without PyTorch.
- `prunedeploy.cli`: the command line.
"""

from prunedeploy_engines.version import __version__

__all__ = ["__version__"]
