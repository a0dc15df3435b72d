"""The sections of a cfg, one file per kind.

- `layer`: what every section can say of itself; `head`: what a detection head can say beside that.
- `reading`: options as typed values, errors with their lines.
- `channels`: where output channels come from; `activations`: by their names in a cfg.
- `net`, and the rest: the sections. `SECTIONS` names those that are layers; adding one is adding its file and its line.
"""

from collections.abc import Mapping

from prunedeploy.models.sections.avgpool import Avgpool
from prunedeploy.models.sections.convolutional import Convolutional
from prunedeploy.models.sections.gaussian_yolo import GaussianYolo
from prunedeploy.models.sections.head import Head
from prunedeploy.models.sections.layer import Layer
from prunedeploy.models.sections.maxpool import Maxpool
from prunedeploy.models.sections.region import Region
from prunedeploy.models.sections.route import Route
from prunedeploy.models.sections.shortcut import Shortcut
from prunedeploy.models.sections.upsample import Upsample
from prunedeploy.models.sections.yolo import Yolo

SECTIONS: Mapping[str, type[Layer]] = {
    "convolutional": Convolutional,
    "maxpool": Maxpool,
    "avgpool": Avgpool,
    "upsample": Upsample,
    "route": Route,
    "shortcut": Shortcut,
    "yolo": Yolo,
    "gaussian_yolo": GaussianYolo,
    "region": Region,
}
"""What a section's layer is, by its name in a cfg."""

_RECURRENT = "a recurrent network keeps a state between images"
REFUSED: Mapping[str, str] = {
    "rnn": _RECURRENT,
    "gru": _RECURRENT,
    "lstm": _RECURRENT,
    "crnn": _RECURRENT,
    "conv_lstm": _RECURRENT,
    "detection": "YOLOv1 predicts through fully connected layers, which have no filters to prune",
    "crop": "Darknet itself cuts images at random there",
}
"""Why sections that Darknet has are refused, by name."""

__all__ = [
    "REFUSED",
    "SECTIONS",
    "Avgpool",
    "Convolutional",
    "GaussianYolo",
    "Head",
    "Layer",
    "Maxpool",
    "Region",
    "Route",
    "Shortcut",
    "Upsample",
    "Yolo",
]
