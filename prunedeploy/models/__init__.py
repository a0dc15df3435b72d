"""Darknet files, the network, decode and loss.

- `sections`: one file per section of a cfg: its options, shapes, how it runs, and where its channels come from.
- `darknet_cfg`: the cfg format and the layer graph it describes.
- `darknet_weights`: the weight format.
- `cfg_rewriting`: another input size, other classes or anchors for a network.
- `starting_weights`: whole or partial weights to start a training from.
- `darknet`: the network as a PyTorch module; `darknet_conv`: a convolution of it, with its normalisation.
- `detector`: what attacks and measurements ask of a network, a `Darknet` or any other.
- `decode`: raw heads to boxes and scores.
- `loss`: the detection loss; `boxes`: overlaps in tensors.
- `anchor_free_loss`: that of anchor-free heads; `task_aligned`: which predictions an object trains there;
  `distribution_focal`: boxes as distributions of distances.
"""

from prunedeploy.models.darknet import Darknet, FoldedDarknet, load_darknet
from prunedeploy.models.darknet_cfg import DarknetCfg, parse_cfg, read_cfg
from prunedeploy.models.decode import decode
from prunedeploy.models.loss import LossTerms, yolo_loss, yolo_losses

__all__ = [
    "Darknet",
    "DarknetCfg",
    "FoldedDarknet",
    "LossTerms",
    "decode",
    "load_darknet",
    "parse_cfg",
    "read_cfg",
    "yolo_loss",
    "yolo_losses",
]
