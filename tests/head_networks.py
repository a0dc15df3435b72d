"""One small network per kind of detection head, for 48 x 32 pixels, with cells of 8 pixels."""

from __future__ import annotations

import torch
from torch import Tensor

from prunedeploy.models.darknet_cfg import DarknetCfg, parse_cfg

CLASSES, ANCHORS = 3, 2
WIDTH, HEIGHT = 48, 32
ROWS, COLUMNS = 4, 6

_YOLO = "mask=2,0\nanchors=7,5, 40,9, 12,18\nclasses=3\nnum=3\n"
SECTIONS = {
    "yolo": (8, "linear", f"[yolo]\n{_YOLO}scale_x_y=1.2\n"),
    "new_coords": (8, "logistic", f"[yolo]\n{_YOLO}new_coords=1\nscale_x_y=2.0\n"),
    "gaussian_yolo": (12, "linear", f"[Gaussian_yolo]\n{_YOLO}scale_x_y=1.1\n"),
    "region": (8, "linear", "[region]\nanchors=1.5,2.25, 0.9,0.6\nclasses=3\nnum=2\ncoords=4\nsoftmax=1\n"),
}
"""Numbers per anchor and cell, activation of the convolution before, and the section."""


def head_cfg(kind: str, norm: bool = True, width: int = WIDTH, height: int = HEIGHT, **options: object) -> DarknetCfg:
    """The network whose head is one of `SECTIONS`.

    Args:
        kind: Which.
        norm: Convolutions before the head's are normalised.
        width: Of the input in pixels; ``height`` likewise.
        height: See there.
        options: More options of the head's section.
    """
    values, activation, section = SECTIONS[kind]
    conv = f"[convolutional]\nbatch_normalize={int(norm)}\nsize=3\npad=1\nactivation=leaky\n"
    return parse_cfg(
        f"[net]\nwidth={width}\nheight={height}\nchannels=3\n"
        f"{conv}filters=8\nstride=2\n{conv}filters=16\nstride=2\n[maxpool]\nsize=2\nstride=2\n"
        f"[convolutional]\nsize=1\nstride=1\nfilters={ANCHORS * values}\nactivation={activation}\n"
        + section
        + "".join(f"{key}={value}\n" for key, value in options.items()),
        "head.cfg",
    )


def random_head(kind: str, batch: int, seed: int = 0, certainty: float = 3.0) -> Tensor:
    """Raw heads ``(batch, A * V, H, W)``, float64, with boxes about their anchors and scores of all sizes.

    Args:
        kind: Of `SECTIONS`.
        batch: How many.
        seed: Seed of the numbers.
        certainty: Deviation of the logits of objectness and classes.
    """
    values = SECTIONS[kind][0]
    raw = torch.randn(batch, ANCHORS, values, ROWS, COLUMNS, generator=torch.Generator().manual_seed(seed)).double()
    sizes = slice(4, 8, 2) if kind == "gaussian_yolo" else slice(2, 4)
    raw[:, :, sizes] *= 0.2
    raw[:, :, 8 if kind == "gaussian_yolo" else 4 :] *= certainty
    return (torch.sigmoid(raw) if kind == "new_coords" else raw).flatten(1, 2)
