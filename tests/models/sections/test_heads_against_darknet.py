"""Every kind of head computes what C Darknet computes: boxes, scores, and the deltas of its training.

``darknet_heads.npz`` was recorded once, on a CPU, from AlexeyAB's Darknet (commit 59596d78, compiled without GPU and
OpenMP) by a few lines of C around its own functions. It holds, of networks of `head_networks` with random weights:

- ``cfg`` and ``weights`` as this package wrote them, ``image`` ``(1, 3, 32, 48)``;
- ``boxes`` ``(N, 4)`` as centre and size in units of the input, and ``scores`` ``(N, C)``, of ``network_predict`` and
  ``get_network_boxes`` with a threshold of 0, put in our order;
- ``raw``, what the head read, and ``deltas``, what its forward pass in training gave for ``objects`` (centre, size,
  class), long after the warm-up: Darknet's deltas are minus the gradient, in most places.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from prunedeploy.models import decode, load_darknet, parse_cfg, yolo_loss
from prunedeploy.models.sections import GaussianYolo, Head, Yolo

RECORDED = np.load(Path(__file__).with_name("darknet_heads.npz"))
CASES = sorted({name.split("/")[0] for name in RECORDED.files if "/" in name})


@dataclass(frozen=True)
class Case:
    head: Head
    raw: Tensor
    boxes: Tensor
    scores: Tensor
    name: str

    def recorded(self, what: str) -> np.ndarray:
        return RECORDED[f"{self.name}/{what}"]


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Case:
    name = request.param
    for suffix in ("cfg", "weights"):
        (tmp_path / f"network.{suffix}").write_bytes(RECORDED[f"{name}/{suffix}"].tobytes())
    model = load_darknet(tmp_path / "network.cfg", tmp_path / "network.weights")
    with torch.no_grad():
        heads = model(torch.from_numpy(RECORDED[f"{name}/image"]))
        boxes, scores = decode(heads, model)
    return Case(model.cfg.heads[0], heads[0], boxes[0], scores[0], name)


def test_boxes_and_scores_are_darknets(case: Case) -> None:
    cx, cy, width, height = case.recorded("boxes").T * np.array([[48], [32], [48], [32]])
    expected = np.stack((cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2), axis=1)
    np.testing.assert_allclose(case.boxes.numpy(), expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())
    np.testing.assert_allclose(case.scores.numpy(), case.recorded("scores"), rtol=1e-4, atol=1e-6)
    assert case.scores.max() > 0.1  # the comparison is of something


def test_gradients_of_the_loss_are_darknets_deltas(case: Case) -> None:
    head = case.head
    objects = torch.from_numpy(RECORDED["objects"]).double()
    targets = torch.cat((torch.zeros(len(objects), 1), objects[:, 4:], objects[:, :4]), dim=1)
    cfg = parse_cfg(case.recorded("cfg").tobytes().decode())
    raw = torch.from_numpy(case.recorded("raw")).double().requires_grad_(True)
    torch.testing.assert_close(raw.detach().float(), case.raw, rtol=1e-4, atol=1e-4)
    (gradient,) = torch.autograd.grad(yolo_loss([raw], targets, cfg).total, raw)

    found = -head.split(gradient) * _factors(head, head.split(raw.detach()))
    expected = head.split(torch.from_numpy(case.recorded("deltas")).double())
    assert (expected[..., : head.box_values] != 0).any(-1).sum() >= 3  # objects have predictions
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def _factors(head: Head, values: Tensor) -> Tensor:
    """By what Darknet's deltas differ from gradients, ``(1, A, H, W, V)``."""
    factors, slopes = torch.ones_like(values), torch.sigmoid(values) * (1 - torch.sigmoid(values))
    if isinstance(head, GaussianYolo):  # to the results of the logistics, for the box
        factors[..., 1:8:2] = 1 / slopes[..., 1:8:2]
        factors[..., 0:4:2] = 1 / slopes[..., 0:4:2] / head.scale_x_y
    elif isinstance(head, Yolo) and head.new_coords:
        # Half the squared error of probabilities, where we have the cross-entropy.
        factors[..., 4:] = values[..., 4:] * (1 - values[..., 4:])
    elif isinstance(head, Yolo):  # as if centres were not stretched
        factors[..., :2] = head.scale_x_y
    return factors
