"""Decoding heads: against numbers worked by hand and a plain loop."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from prunedeploy.models import decode, load_darknet
from pruning.darknets import conv, network


def model_of(width: int, height: int, anchors: str, masks: list[str], classes: int, more: str = ""):
    sections = []
    for number, mask in enumerate(masks):
        count = len(mask.split(",")) * (5 + classes)
        sections += [
            "convolutional filters=4 size=1 activation=leaky stride=2" if number == 0 else "upsample stride=2",
            conv(count, norm=False, activation="linear"),
            f"yolo mask={mask} anchors={anchors} classes={classes} {more}",
        ]
        if number == 0 and len(masks) > 1:
            sections.append("route layers=0")
    text = network(*sections).text.replace("width=16", f"width={width}").replace("height=16", f"height={height}")
    return load_darknet(network_from(text))


def network_from(text: str):
    from prunedeploy.models.darknet_cfg import parse_cfg

    return parse_cfg(text)


def test_one_prediction_worked_by_hand() -> None:
    # Input 40 wide, 20 high; head of 4 columns, 2 rows: cells of 10 x 10 pixels. Anchor 8 x 6.
    model = model_of(40, 20, "8,6", ["0"], classes=2)
    raw = torch.full((1, 7, 2, 4), -20.0)
    # Row 1, column 2: tx = 0 -> 0.5, ty = ln 3 -> 0.75, tw = ln 2 -> 2, th = 0 -> 1,
    # objectness ln 4 -> 0.8, classes 0 -> 0.5 and ln 9 -> 0.9.
    raw[0, :, 1, 2] = torch.tensor([0.0, math.log(3), math.log(2), 0.0, math.log(4), 0.0, math.log(9)])
    boxes, scores = decode([raw], model)
    # Centre ((2 + 0.5) * 10, (1 + 0.75) * 10) = (25, 17.5); size 16 x 6; prediction 1 * 4 + 2 = 6.
    torch.testing.assert_close(boxes[0, 6], torch.tensor([17.0, 14.5, 33.0, 20.5]))
    torch.testing.assert_close(scores[0, 6], torch.tensor([0.40, 0.72]))
    assert boxes.shape == (1, 8, 4)
    assert float(scores[0, :6].max()) < 1e-8


def test_scale_x_y_stretches_the_centre_around_the_middle_of_its_cell() -> None:
    # YOLOv4 with 1.2: 0.75 * 1.2 - 0.1 = 0.8; 0.5 stays 0.5.
    model = model_of(40, 20, "8,6", ["0"], classes=1, more="scale_x_y=1.2")
    raw = torch.zeros(1, 6, 2, 4)
    raw[0, 1] = math.log(3)
    boxes, _ = decode([raw], model)
    torch.testing.assert_close(boxes[0, 0], torch.tensor([5.0 - 4, 8.0 - 3, 5.0 + 4, 8.0 + 3]))


def test_two_heads_equal_a_plain_loop() -> None:
    anchors = [(5, 6), (10, 8), (20, 25)]
    model = model_of(32, 16, "5,6, 10,8, 20,25".replace(" ", ""), ["2", "1,0"], classes=3)
    generator = torch.Generator().manual_seed(0)
    heads = [torch.randn(2, 8, 2, 4, generator=generator), torch.randn(2, 16, 4, 8, generator=generator)]
    boxes, scores = decode(heads, model)

    def logistic(value: float) -> float:
        return 1 / (1 + math.exp(-value))

    for image in range(2):
        expected_boxes, expected_scores = [], []
        for head, mask in zip(heads, ([2], [1, 0]), strict=True):
            array = head[image].numpy().astype(float)
            rows, columns = array.shape[1:]
            for place, anchor in enumerate(mask):
                for row in range(rows):
                    for column in range(columns):
                        tx, ty, tw, th, objectness, *classes = array[place * 8 : place * 8 + 8, row, column]
                        x = (logistic(tx) + column) / columns * 32
                        y = (logistic(ty) + row) / rows * 16
                        w, h = anchors[anchor][0] * math.exp(tw), anchors[anchor][1] * math.exp(th)
                        expected_boxes.append([x - w / 2, y - h / 2, x + w / 2, y + h / 2])
                        expected_scores.append([logistic(objectness) * logistic(value) for value in classes])
        np.testing.assert_allclose(boxes[image].numpy(), expected_boxes, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(scores[image].numpy(), expected_scores, rtol=1e-5, atol=1e-7)


def test_split_keeps_anchor_major_channels_apart() -> None:
    model = model_of(32, 32, "5,6,7,8", ["0,1"], classes=1)
    raw = torch.arange(12).view(1, 12, 1, 1).expand(1, 12, 3, 2).float()
    split = model.cfg.heads[0].split(raw)
    assert split.shape == (1, 2, 3, 2, 6)
    assert split[0, 1, 2, 0].tolist() == [6, 7, 8, 9, 10, 11]


def test_wrong_heads_are_refused() -> None:
    model = model_of(32, 32, "5,6", ["0"], classes=1)
    with pytest.raises(ValueError, match="expected 1 heads, got 2"):
        decode([torch.zeros(1, 6, 4, 4)] * 2, model)
    with pytest.raises(ValueError, match=r"expected 6 channels, got \(1, 7, 4, 4\)"):
        decode([torch.zeros(1, 7, 4, 4)], model)
