"""The network against C Darknet, against plain NumPy loops, and against itself folded."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from prunedeploy.models import FoldedDarknet, decode, load_darknet, yolo_loss
from prunedeploy.models.darknet import Darknet
from prunedeploy.models.darknet_cfg import read_cfg
from prunedeploy.models.darknet_weights import read_weights
from prunedeploy.models.sections.activations import activate
from prunedeploy.resources import darknet_cfg_path
from prunedeploy_engines.detection.letterbox import batch_to_input, letterbox, unletterbox_boxes
from prunedeploy_engines.detection.nms import detections_from
from pruning.darknets import HEAD, conv, network, random_network

SHIPPED = ("yolov3", "yolov3-tiny", "yolov3-spp", "yolov3-slim")


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


@pytest.mark.parametrize("name", SHIPPED)
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


# --- layers against loops ---


def numpy_maxpool(x: np.ndarray, size: int, stride: int, padding: int) -> np.ndarray:
    """Darknet's forward_maxpool_layer as its C source does it, one window at a time."""
    batch, channels, height, width = x.shape
    out_h, out_w = (height + padding - size) // stride + 1, (width + padding - size) // stride + 1
    out = np.full((batch, channels, out_h, out_w), -np.inf, x.dtype)
    for i in range(out_h):
        for j in range(out_w):
            for n in range(size):
                for m in range(size):
                    row, column = i * stride + n - padding // 2, j * stride + m - padding // 2
                    if 0 <= row < height and 0 <= column < width:
                        out[:, :, i, j] = np.maximum(out[:, :, i, j], x[:, :, row, column])
    return out


@pytest.mark.parametrize("size", [(8, 8), (7, 9), (13, 13), (5, 6)])
@pytest.mark.parametrize(
    ("pool", "stride", "padding"),
    [(2, 2, None), (2, 1, None), (3, 2, None), (3, 1, None), (5, 1, None), (9, 1, None), (13, 1, None), (4, 3, None),
     (2, 2, 0), (3, 2, 1), (3, 3, 0)],
)  # fmt: skip
def test_maxpool_is_darknets(size: tuple[int, int], pool: int, stride: int, padding: int | None) -> None:
    text = f"maxpool size={pool} stride={stride}" + ("" if padding is None else f" padding={padding}")
    cfg = network("upsample stride=1", text, conv(6, norm=False, activation="linear"), HEAD[1], size=32)
    model = load_darknet(cfg)
    seen: list[torch.Tensor] = []
    model.conv(2).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1)) - 3  # mostly negative
    with torch.no_grad():
        model(images)
    expected = numpy_maxpool(images.numpy(), pool, stride, pool - 1 if padding is None else padding)
    np.testing.assert_array_equal(seen[0].numpy(), expected)


def numpy_convolution(x: np.ndarray, weight: np.ndarray, layer_options: dict[str, int]) -> np.ndarray:
    """One output value at a time, float64."""
    stride, pad, groups, dilation = (layer_options[k] for k in ("stride", "pad", "groups", "dilation"))
    filters, per_group, size, _ = weight.shape
    padded = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    reach = dilation * (size - 1) + 1
    out_h, out_w = (padded.shape[2] - reach) // stride + 1, (padded.shape[3] - reach) // stride + 1
    out = np.zeros((len(x), filters, out_h, out_w))
    for f in range(filters):
        first = f // (filters // groups) * per_group
        for i in range(out_h):
            for j in range(out_w):
                rows, columns = (
                    slice(i * stride, i * stride + reach, dilation),
                    slice(j * stride, j * stride + reach, dilation),
                )
                window = padded[:, first : first + per_group, rows, columns]
                out[:, f, i, j] = (window * weight[f]).sum((1, 2, 3))
    return out


FORMULAS = {
    "linear": lambda x: x,
    "leaky": lambda x: np.where(x > 0, x, 0.1 * x),
    "relu": lambda x: np.maximum(x, 0),
    "mish": lambda x: x * np.tanh(np.logaddexp(0, x)),
    "swish": lambda x: x / (1 + np.exp(-x)),
    "logistic": lambda x: 1 / (1 + np.exp(-x)),
}


@pytest.mark.parametrize("activation", FORMULAS)
def test_activations_equal_their_formulas(activation: str) -> None:
    x = np.linspace(-6, 6, 121)
    ours = activate(torch.from_numpy(x.copy()), activation).numpy()
    np.testing.assert_allclose(ours, FORMULAS[activation](x), rtol=1e-6, atol=1e-9)


def test_an_unknown_activation_is_refused() -> None:
    with pytest.raises(ValueError, match="gelu"):
        activate(torch.zeros(1), "gelu")


@pytest.mark.parametrize("activation", ["leaky", "mish"])
@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize(
    ("options", "filters"),
    [
        ({"size": 3, "stride": 1, "pad": 1, "groups": 1, "dilation": 1}, 5),
        ({"size": 3, "stride": 2, "pad": 1, "groups": 3, "dilation": 1}, 6),
        ({"size": 3, "stride": 1, "pad": 2, "groups": 1, "dilation": 2}, 4),
        ({"size": 1, "stride": 1, "pad": 0, "groups": 1, "dilation": 1}, 4),
    ],
)
def test_a_convolution_with_darknets_normalisation_equals_a_loop(
    options: dict[str, int], filters: int, norm: bool, activation: str
) -> None:
    text = (
        f"convolutional filters={filters} size={options['size']} stride={options['stride']} pad=1 "
        f"groups={options['groups']} dilation={options['dilation']} activation={activation} "
        f"batch_normalize={int(norm)}"
    )
    model = random_network(network(text, *HEAD, size=8))
    module = model.conv(0)
    if norm:
        with torch.no_grad():  # where sqrt(var) + 1e-6 and sqrt(var + 1e-6) differ the most
            module.variance[0] = 1e-9
    x = np.random.default_rng(0).random((2, 3, 7, 8), dtype=np.float32)
    expected = numpy_convolution(x, module.weight.detach().double().numpy(), options)
    column = (1, -1, 1, 1)
    if norm:
        mean = module.mean.double().numpy().reshape(column)
        variance = module.variance.double().numpy().reshape(column)
        scale = module.scale.detach().double().numpy().reshape(column)
        expected = (expected - mean) / (np.sqrt(variance) + 1e-6) * scale
    expected = FORMULAS[activation](expected + module.bias.detach().double().numpy().reshape(column))
    with torch.no_grad():
        ours = module(torch.from_numpy(x)).numpy()
    for channel in range(filters):
        atol = 1e-5 * np.abs(expected[:, channel]).max()
        np.testing.assert_allclose(ours[:, channel], expected[:, channel], rtol=1e-5, atol=atol)


def test_a_channel_mask_acts_before_the_activation_in_both_modes() -> None:
    # logistic(0) = 0.5: a masked filter's output is exactly that only if the mask comes before it.
    model = random_network(network(conv(4, size=3, activation="logistic"), *HEAD))
    images, mask = torch.rand(2, 3, 8, 8), torch.tensor([1.0, 0, 1, 0])
    for mode in (model.eval(), model.train()):
        plain, masked = mode.conv(0)(images), mode.conv(0)(images, channel_mask=mask)
        assert bool((masked[:, 1::2] == 0.5).all())
        torch.testing.assert_close(masked[:, ::2], plain[:, ::2])


def test_training_mode_normalises_by_the_batch_and_moves_darknets_statistics() -> None:
    model = random_network(network(conv(4, size=3, activation="linear"), *HEAD)).train()
    module = model.conv(0)
    before = module.mean.numpy().astype(np.float64), module.variance.numpy().astype(np.float64)
    x = np.random.default_rng(0).random((3, 3, 8, 8), dtype=np.float32)
    raw = numpy_convolution(
        x, module.weight.detach().double().numpy(), {"stride": 1, "pad": 1, "groups": 1, "dilation": 1}
    )
    ours = module(torch.from_numpy(x)).detach().numpy()
    mean, n = raw.mean((0, 2, 3)), raw[:, 0].size
    variance = ((raw - mean[None, :, None, None]) ** 2).sum((0, 2, 3)) / n
    scale, bias = module.scale.detach().double().numpy(), module.bias.detach().double().numpy()
    expected = (raw - mean[None, :, None, None]) / np.sqrt(variance + 1e-5)[None, :, None, None]
    expected = expected * scale[None, :, None, None] + bias[None, :, None, None]
    np.testing.assert_allclose(ours, expected, atol=1e-4)
    # Darknet's running variance is the unbiased one (variance_cpu divides by n - 1); our momentum is 0.03.
    np.testing.assert_allclose(module.mean.numpy(), 0.97 * before[0] + 0.03 * mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(module.variance.numpy(), 0.97 * before[1] + 0.03 * variance * n / (n - 1), rtol=1e-5)


def test_upsample_route_groups_and_shortcut_equal_array_operations() -> None:
    sections = (
        conv(6, norm=False),  # 0
        "upsample stride=3",  # 1
        "route layers=0 groups=3 group_id=1",  # 2: channels 2, 3 of layer 0
        "route layers=2,0,0 groups=2 group_id=1",  # 3: the upper half of each: 1 + 3 + 3
        "route layers=0",  # 4
        "shortcut from=0 activation=relu",  # 5: relu(2 x)
    )
    sink = (conv(6, norm=False, activation="linear"), HEAD[1])
    taps = []
    for source in (0, 1, 2, 3, 5):
        taps += [f"route layers={source}", *sink]
    model = random_network(network(*sections, *taps, size=8))
    seen = {}
    for layer in model.cfg.convolutions[1:]:
        model.conv(layer.index).register_forward_pre_hook(
            lambda _, inputs, index=layer.index: seen.update({index: inputs[0].detach().numpy().copy()})
        )
    outputs(model, torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)))
    base, up, second, halves, doubled = (seen[index] for index in sorted(seen))
    np.testing.assert_array_equal(up, base.repeat(3, axis=2).repeat(3, axis=3))
    np.testing.assert_array_equal(second, base[:, 2:4])
    np.testing.assert_array_equal(halves, np.concatenate([base[:, 3:4], base[:, 3:], base[:, 3:]], axis=1))
    np.testing.assert_array_equal(doubled, np.maximum(2 * base, 0))


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
