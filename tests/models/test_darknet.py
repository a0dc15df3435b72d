"""The network against C Darknet, against plain NumPy loops, and against itself folded."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from effort import slow_after
from prunedeploy.models import FoldedDarknet, decode, load_darknet, yolo_loss
from prunedeploy.models.darknet import Darknet
from prunedeploy.models.darknet_cfg import read_cfg
from prunedeploy.models.darknet_weights import read_weights
from prunedeploy.resources import darknet_cfg_path
from prunedeploy_engines.detection.letterbox import batch_to_input, letterbox, unletterbox_boxes
from prunedeploy_engines.detection.nms import detections_from
from pruning.darknets import HEAD, conv, network, random_network

SHIPPED = ("yolov3-slim", "yolov3-tiny", "yolov3", "yolov3-spp")


@pytest.fixture(scope="module")
def genuine(shared: Path) -> Darknet:
    folder = shared / "real" / "yolov3-tiny"
    return load_darknet(folder / "yolov3-tiny.cfg", folder / "yolov3-tiny.weights")


def outputs(model: torch.nn.Module, images: np.ndarray | torch.Tensor) -> list[np.ndarray]:
    with torch.no_grad():
        return [head.numpy() for head in model(torch.as_tensor(images))]


# --- the genuine network ---


@pytest.mark.shared
@pytest.mark.parametrize("folded", [False, True], ids=["Darknet", "FoldedDarknet"])
def test_heads_equal_those_of_c_darknet(genuine: Darknet, shared: Path, folded: bool) -> None:
    photos = shared / "real" / "photos"
    pixels = np.asarray(Image.open(photos / "dog-416.png").convert("RGB"), np.float32) / 255
    heads = outputs(FoldedDarknet(genuine) if folded else genuine, pixels.transpose(2, 0, 1)[None].copy())
    with np.load(photos / "dog-416.darknet.npz") as reference:
        for number, head in enumerate(heads):
            expected = reference[f"head{number}"]  # (anchor, 5 + classes, y, x)
            ours = head[0].reshape(expected.shape).astype(np.float64)
            # Darknet's array has the logistic applied to all but w and h, which are raw.
            logistic = [0, 1, *range(4, 85)]
            ours[:, logistic] = 1 / (1 + np.exp(-ours[:, logistic]))
            assert np.abs(ours[:, logistic] - expected[:, logistic]).max() < 1e-5
            assert np.abs(ours[:, 2:4] - expected[:, 2:4]).max() < 1e-5 * np.abs(expected[:, 2:4]).max()


@pytest.mark.shared
def test_dog_bicycle_and_car_are_found_where_they_are(genuine: Darknet, shared: Path) -> None:
    names = (shared / "real" / "yolov3-tiny" / "coco.names").read_text().split("\n")
    photo = np.asarray(Image.open(shared / "real" / "photos" / "dog.jpg").convert("RGB"))
    assert photo.shape == (576, 768, 3)
    inside, geometry = letterbox(photo, genuine.cfg.input_size)
    with torch.no_grad():
        boxes, scores = decode(genuine(torch.from_numpy(batch_to_input([inside]))), genuine)
    found_boxes, found_scores, found_classes = detections_from(
        boxes[0].numpy(), scores[0].numpy(), score_threshold=0.3, iou_threshold=0.45
    )
    found_boxes = unletterbox_boxes(found_boxes, geometry)
    # Where a person sees them in the 768 x 576 photo, xyxy.
    seen = {"dog": (130, 220, 315, 540), "bicycle": (120, 125, 570, 430), "car": (465, 75, 690, 170)}
    for name, truth in seen.items():
        overlaps = [
            iou(tuple(box), truth)
            for box, class_id in zip(found_boxes.tolist(), found_classes, strict=True)
            if names[class_id] == name
        ]
        assert overlaps, f"no {name} among {[names[i] for i in found_classes]} {found_scores}"
        assert max(overlaps) > 0.5, name


@pytest.mark.shared
def test_the_genuine_files_are_written_back_byte_for_byte(genuine: Darknet, shared: Path, tmp_path: Path) -> None:
    genuine.save(tmp_path / "out.cfg", tmp_path / "out.weights")
    folder = shared / "real" / "yolov3-tiny"
    assert (tmp_path / "out.cfg").read_bytes() == (folder / "yolov3-tiny.cfg").read_bytes()
    written = hashlib.sha256((tmp_path / "out.weights").read_bytes()).hexdigest()
    assert written == "dccea06f59b781ec1234ddf8d1e94b9519a97f4245748a7d4db75d5b7080a42c"


def iou(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    overlap = width * height
    return overlap / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - overlap)


# --- the shipped networks ---


@pytest.mark.parametrize("name", slow_after(3, *SHIPPED))
def test_shipped_cfgs_run_forward_and_backward_and_round_trip(name: str, tmp_path: Path) -> None:
    model = load_darknet(darknet_cfg_path(name), seed=3)
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([[0.0, 2, 0.5, 0.5, 0.4, 0.3]])
    heads = model.train()(images)
    values = 5 + model.cfg.classes
    assert [head.shape[1] for head in heads] == [len(h.anchor_indices) * values for h in model.cfg.heads]
    assert all(64 % head.shape[-1] == 0 for head in heads)
    yolo_loss(heads, targets, model.cfg).total.backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert bool(torch.isfinite(parameter.grad).all()), key
    # The running statistics have moved, so what is written is not the initial state.
    model.eval().save(tmp_path / "a.cfg", tmp_path / "a.weights")
    assert (tmp_path / "a.cfg").read_bytes() == darknet_cfg_path(name).read_bytes()
    again = read_weights(tmp_path / "a.weights", read_cfg(tmp_path / "a.cfg"))
    (tmp_path / "a.weights").unlink()  # a quarter of a gigabyte
    for layer, values in zip(model.cfg.convolutions, again.parameters, strict=True):
        state = model.conv(layer.index).state_dict()
        assert state.keys() == values.keys()
        for key, value in values.items():
            assert np.array_equal(state[key].numpy(), value), (layer.index, key)


def test_an_activation_in_place_does_not_change_what_another_layer_reads() -> None:
    # Layer 0 is linear and read twice; the two convolutions behind it work in place.
    model = random_network(network(conv(4, activation="linear"), conv(4), "route layers=0", conv(4), *HEAD))
    images = torch.randn(1, 3, 8, 8)
    with torch.no_grad():
        x = model.conv(0)(images)
        expected = model.conv(4)(model.conv(3)(x.clone()))
        assert torch.equal(model(images)[0], expected)
    assert math.isfinite(float(expected.sum()))


# --- folding ---


def test_the_folded_network_equals_the_network_and_carries_no_parameters() -> None:
    model = random_network(network(
        conv(8, size=3), conv(8, size=3, activation="mish"), "shortcut from=-2 activation=linear",
        "maxpool size=5 stride=1", "route layers=-1,0", conv(8, groups=2), *HEAD,
    ))  # fmt: skip
    images = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    folded = FoldedDarknet(model)
    assert not list(folded.parameters())
    for own, other in zip(outputs(model, images), outputs(folded, images), strict=True):
        np.testing.assert_allclose(own, other, rtol=1e-4, atol=1e-5 * np.abs(own).max())
    # A backward pass through it reaches the images and nothing else.
    images.requires_grad_(True)
    folded(images)[0].sum().backward()
    assert float(images.grad.abs().sum()) > 0
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_bf16_copy_is_close_and_gives_float32_heads() -> None:
    model = random_network(network(conv(8, size=3), conv(8, size=3), *HEAD))
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    own, coarse = outputs(model, images)[0], FoldedDarknet(model, torch.bfloat16)(images)[0]
    assert coarse.dtype == torch.float32
    np.testing.assert_allclose(coarse.detach().numpy(), own, atol=0.03 * np.abs(own).max())
    assert not np.array_equal(coarse.detach().numpy(), own)


def test_folding_follows_the_network_at_that_moment_only() -> None:
    model = random_network(network(conv(4), *HEAD))
    images = torch.rand(1, 3, 8, 8)
    folded = FoldedDarknet(model)
    before = outputs(folded, images)[0]
    with torch.no_grad():
        model.conv(0).weight.mul_(2)
        model.conv(1).bias.add_(1)
    np.testing.assert_array_equal(outputs(folded, images)[0], before)


# --- edges ---


def test_images_of_a_wrong_shape_are_refused_with_the_shape() -> None:
    model = load_darknet(network(conv(4), *HEAD))
    for network_ in (model, FoldedDarknet(model)):
        for shape in ((3, 8, 8), (1, 4, 8, 8)):
            with pytest.raises(ValueError, match=str(shape).replace("(", r"\(").replace(")", r"\)")):
                network_(torch.zeros(shape))


def test_random_initialisation_follows_the_seed_and_leaves_torchs_generator_alone() -> None:
    cfg = network(conv(4, size=3), *HEAD)
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, same, other = load_darknet(cfg, seed=1), load_darknet(cfg, seed=1), load_darknet(cfg, seed=2)
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(first.conv(0).weight, same.conv(0).weight)
    assert not torch.equal(first.conv(0).weight, other.conv(0).weight)
    assert not first.training


def test_parameter_count_is_the_number_of_values_in_the_file() -> None:
    model = load_darknet(network(conv(4, size=3), *HEAD))
    assert model.parameter_count() == 4 * 4 + 4 * 3 * 9 + 6 + 6 * 4
