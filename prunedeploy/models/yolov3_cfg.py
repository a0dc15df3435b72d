"""Writes the Darknet cfg of the YOLOv3 family: YOLOv3, YOLOv3-SPP, YOLOv3-tiny and the slim demo network.

The texts are ours, but layer for layer they are the published architectures, so the public
weights load. Layer numbers in ``route`` are computed while the text is written, never typed.

``python -m prunedeploy.models.yolov3_cfg FOLDER`` writes the files that ship in ``configs/darknet``.

Reference: Redmon and Farhadi, YOLOv3: An Incremental Improvement, 2018; for spatial pyramid
pooling He et al., Spatial Pyramid Pooling in Deep Convolutional Networks, 2014.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

AnchorsWh = Sequence[tuple[float, float]]

COCO_ANCHORS_WH: AnchorsWh = (
    (10, 13), (16, 30), (33, 23), (30, 61), (62, 45), (59, 119), (116, 90), (156, 198), (373, 326),
)  # fmt: skip
"""The nine anchors of YOLOv3 on COCO, (width, height) in pixels of a 416 x 416 input."""

COCO_TINY_ANCHORS_WH: AnchorsWh = ((10, 14), (23, 27), (37, 58), (81, 82), (135, 169), (344, 319))
"""The six anchors of YOLOv3-tiny on COCO, (width, height) in pixels of a 416 x 416 input."""

SLIM_ANCHORS_WH: AnchorsWh = (
    (25, 54), (55, 27), (38, 51), (48, 61), (36, 82), (74, 40), (56, 77), (86, 59), (71, 90),
)  # fmt: skip
"""The nine anchors of the slim demo network, (width, height) in pixels of a 160 x 160 input."""

TRAINING_OPTIONS: Mapping[str, str] = {
    "batch": "64",
    "subdivisions": "16",
    "momentum": "0.9",
    "decay": "0.0005",
    "angle": "0",
    "saturation": "1.5",
    "exposure": "1.5",
    "hue": ".1",
    "learning_rate": "0.001",
    "burn_in": "1000",
    "max_batches": "500200",
    "policy": "steps",
    "steps": "400000,450000",
    "scales": ".1,.1",
}
"""What Darknet itself trains with; kept so that our files train there too."""

YOLO_OPTIONS: Mapping[str, str] = {"jitter": ".3", "ignore_thresh": ".7", "truth_thresh": "1", "random": "1"}
"""Loss and augmentation options of every yolo section of the published files."""

SLIM_YOLO_OPTIONS: Mapping[str, str] = {
    "jitter": ".3",
    "ignore_thresh": ".6",
    "iou_thresh": ".213",
    "iou_loss": "ciou",
    "truth_thresh": "1",
    "random": "0",
}
"""The demo network's yolo options: CIoU box loss, and every anchor above ``iou_thresh`` learns the object."""


class _CfgText:
    """Collects sections and knows the number of the layer written last."""

    def __init__(self, width: float = 1.0) -> None:
        self.width = width
        self.sections: list[str] = []

    @property
    def last(self) -> int:
        """Index of the layer written last; ``[net]`` is not a layer."""
        return len(self.sections) - 2

    def section(self, name: str, **options: object) -> int:
        """Append ``[name]`` with its options and return its layer index."""
        lines = [f"[{name}]", *(f"{key}={value}" for key, value in options.items())]
        self.sections.append("\n".join(lines) + "\n")
        return self.last

    def net(self, input_size: int) -> None:
        self.section("net", width=input_size, height=input_size, channels=3, **TRAINING_OPTIONS)

    def conv(self, filters: int, size: int, stride: int = 1) -> int:
        """Append convolution + BN + leaky ReLU; ``filters`` is the count at full width."""
        slim = max(1, round(filters * self.width))
        options = {"batch_normalize": 1, "filters": slim, "size": size, "stride": stride, "pad": 1}
        return self.section("convolutional", **options, activation="leaky")

    def route(self, *layers: int) -> int:
        return self.section("route", layers=",".join(str(layer) for layer in layers))

    def head(
        self, anchor_indices: Sequence[int], anchors_wh: AnchorsWh, classes: int, options: Mapping[str, str]
    ) -> int:
        """Append the linear output convolution and its yolo section."""
        filters = len(anchor_indices) * (5 + classes)
        self.section("convolutional", filters=filters, size=1, stride=1, pad=1, activation="linear")
        return self.section(
            "yolo",
            mask=",".join(str(index) for index in anchor_indices),
            anchors=", ".join(f"{width:g},{height:g}" for width, height in anchors_wh),
            classes=classes,
            num=len(anchors_wh),
            **options,
        )

    def text(self) -> str:
        return "\n".join(self.sections)


def yolov3_cfg(
    width: float = 1.0,
    blocks: tuple[int, int, int, int, int] = (1, 2, 8, 8, 4),
    classes: int = 80,
    input_size: int = 416,
    anchors_wh: AnchorsWh = COCO_ANCHORS_WH,
    spp: bool = False,
    yolo: Mapping[str, str] = YOLO_OPTIONS,
) -> str:
    """Write the cfg of YOLOv3: a Darknet-53 backbone and three detection scales.

    Args:
        width: Factor on the filters of all convolutions but the heads' outputs; 1.0 is the published network.
        blocks: Residual blocks of the five backbone stages, strides 2 to 32; each at least 1.
        classes: Number of object classes.
        input_size: Width and height of the input in pixels, a multiple of 32.
        anchors_wh: Nine (width, height) pairs in input pixels, the small ones first.
        spp: Insert spatial pyramid pooling (max pools of 5, 9 and 13) before the coarsest head.
        yolo: Options of the yolo sections other than mask, anchors, classes and num.

    Returns:
        The text of the file, ending in a newline.

    Raises:
        ValueError: An argument is outside the range above.
    """
    if not width > 0:
        raise ValueError(f"width must be positive, got {width}")
    if classes < 1:
        raise ValueError(f"classes must be at least 1, got {classes}")
    if input_size < 32 or input_size % 32:
        raise ValueError(f"input_size must be a positive multiple of 32, got {input_size}")
    if len(anchors_wh) != 9:
        raise ValueError(f"expected 9 anchors, got {len(anchors_wh)}")
    if len(blocks) != 5 or min(blocks) < 1:
        raise ValueError(f"blocks must be five numbers of at least 1, got {blocks}")
    cfg = _CfgText(width)
    cfg.net(input_size)
    cfg.conv(32, size=3)
    stage_ends = [_residual_stage(cfg, 64 * 2**stage, count) for stage, count in enumerate(blocks)]

    _bottleneck_pairs(cfg, 512, pairs=1)
    cfg.conv(512, size=1)
    if spp:
        _pyramid_pooling(cfg)
        cfg.conv(512, size=1)
    cfg.conv(1024, size=3)
    cfg.conv(512, size=1)
    cfg.conv(1024, size=3)
    cfg.head((6, 7, 8), anchors_wh, classes, yolo)
    for filters, stage_end, anchor_indices in ((256, stage_ends[3], (3, 4, 5)), (128, stage_ends[2], (0, 1, 2))):
        cfg.route(-4)  # the last 1 x 1 convolution before the head above
        cfg.conv(filters, size=1)
        cfg.section("upsample", stride=2)
        cfg.route(-1, stage_end)
        _bottleneck_pairs(cfg, filters, pairs=3)
        cfg.head(anchor_indices, anchors_wh, classes, yolo)
    return cfg.text()


def yolov3_tiny_cfg() -> str:
    """Write the cfg of YOLOv3-tiny: seven convolutions, six max pools and two detection scales.

    The fine head uses anchors 0, 1 and 2, so anchor 3 serves the coarse head only and
    the published weights, which were trained so, decode rightly.

    Returns:
        The text of the file, ending in a newline.
    """
    cfg = _CfgText()
    cfg.net(416)
    stride_16 = 0
    for filters in (16, 32, 64, 128, 256):
        stride_16 = cfg.conv(filters, size=3)
        cfg.section("maxpool", size=2, stride=2)
    cfg.conv(512, size=3)
    cfg.section("maxpool", size=2, stride=1)
    cfg.conv(1024, size=3)
    cfg.conv(256, size=1)
    cfg.conv(512, size=3)
    cfg.head((3, 4, 5), COCO_TINY_ANCHORS_WH, 80, YOLO_OPTIONS)
    cfg.route(-4)
    cfg.conv(128, size=1)
    cfg.section("upsample", stride=2)
    cfg.route(-1, stride_16)
    cfg.conv(256, size=3)
    cfg.head((0, 1, 2), COCO_TINY_ANCHORS_WH, 80, YOLO_OPTIONS)
    return cfg.text()


def shipped_cfgs() -> dict[str, str]:
    """Texts of the files in ``configs/darknet``, by file name."""
    return {
        "yolov3.cfg": yolov3_cfg(),
        "yolov3-spp.cfg": yolov3_cfg(spp=True),
        "yolov3-tiny.cfg": yolov3_tiny_cfg(),
        "yolov3-slim.cfg": yolov3_cfg(
            0.25, (1, 1, 2, 2, 1), classes=10, input_size=160, anchors_wh=SLIM_ANCHORS_WH, yolo=SLIM_YOLO_OPTIONS
        ),
    }


def _residual_stage(cfg: _CfgText, filters: int, blocks: int) -> int:
    """Halve the resolution, append ``blocks`` residual blocks, return the index of the stage's last layer."""
    cfg.conv(filters, size=3, stride=2)
    for _ in range(blocks):
        cfg.conv(filters // 2, size=1)
        cfg.conv(filters, size=3)
        cfg.section("shortcut", **{"from": -3, "activation": "linear"})
    return cfg.last


def _bottleneck_pairs(cfg: _CfgText, filters: int, pairs: int) -> None:
    """Append ``pairs`` of a 1 x 1 convolution to ``filters`` and a 3 x 3 to twice as many."""
    for _ in range(pairs):
        cfg.conv(filters, size=1)
        cfg.conv(2 * filters, size=3)


def _pyramid_pooling(cfg: _CfgText) -> None:
    """Concatenate the last layer with its max pools of 5, 9 and 13, resolution unchanged."""
    cfg.section("maxpool", stride=1, size=5)
    cfg.route(-2)  # the pyramid's input again, for the next pool
    cfg.section("maxpool", stride=1, size=9)
    cfg.route(-4)
    cfg.section("maxpool", stride=1, size=13)
    cfg.route(-1, -3, -5, -6)  # pools of 13, 9 and 5, then the input


if __name__ == "__main__":
    for name, text in shipped_cfgs().items():
        path = Path(sys.argv[1]) / name
        path.write_text(text, encoding="utf-8", newline="\n")
        print(path)
