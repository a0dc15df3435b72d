"""The sections of a cfg, one file per kind.

- `layer`: what every section can say of itself; `head`: what a detection head can say beside that.
- `reading`: options as typed values, errors with their lines.
- `channels`: where output channels come from; `activations`: by their names in a cfg.
- `passing_on`, `product`, `rearranging`, `anchor_free`: what several sections share.
- `net`, and the rest: the sections. `SECTIONS` names those that are layers; adding one is adding its file and its line.
"""

from collections.abc import Mapping

from prunedeploy.models.sections.anchor_free import AnchorFree
from prunedeploy.models.sections.attention import Attention
from prunedeploy.models.sections.avgpool import Avgpool
from prunedeploy.models.sections.contrastive import Contrastive
from prunedeploy.models.sections.convolutional import Convolutional
from prunedeploy.models.sections.cost import Cost
from prunedeploy.models.sections.dfl import Dfl
from prunedeploy.models.sections.dropout import Dropout
from prunedeploy.models.sections.gaussian_yolo import GaussianYolo
from prunedeploy.models.sections.head import Head
from prunedeploy.models.sections.layer import EVERY_LAYER_REFUSED, EVERY_LAYER_TRAINING_ONLY, Layer
from prunedeploy.models.sections.local_avgpool import LocalAvgpool
from prunedeploy.models.sections.maxpool import Maxpool
from prunedeploy.models.sections.net import OPTIONS as NET_OPTIONS
from prunedeploy.models.sections.net import TRAINING_ONLY as NET_TRAINING_ONLY
from prunedeploy.models.sections.product import Product
from prunedeploy.models.sections.rearranging import Rearranging
from prunedeploy.models.sections.region import Region
from prunedeploy.models.sections.reorg import Reorg
from prunedeploy.models.sections.reorg3d import Reorg3d
from prunedeploy.models.sections.route import Route
from prunedeploy.models.sections.sam import Sam
from prunedeploy.models.sections.scale_channels import ScaleChannels
from prunedeploy.models.sections.shortcut import Shortcut
from prunedeploy.models.sections.upsample import Upsample
from prunedeploy.models.sections.yolo import Yolo
from prunedeploy.models.sections.yolox import Yolox

SECTIONS: Mapping[str, type[Layer]] = {
    "convolutional": Convolutional,
    "maxpool": Maxpool,
    "avgpool": Avgpool,
    "local_avgpool": LocalAvgpool,
    "upsample": Upsample,
    "route": Route,
    "shortcut": Shortcut,
    "sam": Sam,
    "scale_channels": ScaleChannels,
    "reorg": Reorg,
    "reorg3d": Reorg3d,
    "dropout": Dropout,
    "cost": Cost,
    "contrastive": Contrastive,
    "yolo": Yolo,
    "gaussian_yolo": GaussianYolo,
    "region": Region,
    "attention": Attention,
    "dfl": Dfl,
    "yolox": Yolox,
}
"""What a section's layer is, by its name in a cfg."""

NOT_IN_DARKNET = frozenset(("attention", "dfl", "yolox"))
"""Sections that no Darknet has: a cfg with one of them is read here only."""

_RECURRENT = "a recurrent network keeps a state between images"
_CONNECTED = "it has no filters to prune"
_CLASSIFIER = "classifiers have it, and detectors are what is pruned here"
REFUSED: Mapping[str, str] = {
    "rnn": _RECURRENT,
    "gru": _RECURRENT,
    "lstm": _RECURRENT,
    "crnn": _RECURRENT,
    "conv_lstm": _RECURRENT,
    "history": _RECURRENT,
    "connected": _CONNECTED,
    "local": _CONNECTED,
    "softmax": _CLASSIFIER,
    "lrn": _CLASSIFIER,
    "normalization": _CLASSIFIER,
    "batchnorm": "normalisation is read as a part of [convolutional] only",
    "activation": "activations are read as parts of other sections only",
    "implicit": "what it adds is no function of the image",
    "detection": "YOLOv1 predicts through fully connected layers, which have no filters to prune",
    "crop": "Darknet itself cuts images at random there",
}
"""Why sections that Darknet has are refused, by name."""


def options_read(kind: str) -> Mapping[str, str]:
    """The options of a section that are read here, and what each means."""
    layer = SECTIONS.get(kind)
    return NET_OPTIONS if layer is None else layer.options


def training_only(kind: str) -> frozenset[str]:
    """The options of a section that only Darknet's own training reads."""
    layer = SECTIONS.get(kind)
    return NET_TRAINING_ONLY if layer is None else layer.training_only | EVERY_LAYER_TRAINING_ONLY


def refused_options(kind: str) -> Mapping[str, str]:
    """The options of a section that Darknet has and that are refused here, and why."""
    layer = SECTIONS.get(kind)
    return {} if layer is None else {**EVERY_LAYER_REFUSED, **layer.refused}


__all__ = [
    "NOT_IN_DARKNET",
    "REFUSED",
    "SECTIONS",
    "AnchorFree",
    "Attention",
    "Avgpool",
    "Contrastive",
    "Convolutional",
    "Cost",
    "Dfl",
    "Dropout",
    "GaussianYolo",
    "Head",
    "Layer",
    "LocalAvgpool",
    "Maxpool",
    "Product",
    "Rearranging",
    "Region",
    "Reorg",
    "Reorg3d",
    "Route",
    "Sam",
    "ScaleChannels",
    "Shortcut",
    "Upsample",
    "Yolo",
    "Yolox",
    "options_read",
    "refused_options",
    "training_only",
]
