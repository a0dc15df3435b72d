"""Options of convolutional against loops, and what its weight file holds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from prunedeploy.models import Darknet, load_darknet
from prunedeploy.models.darknet import FoldedDarknet
from prunedeploy_engines.errors import DarknetFormatError
from pruning.darknets import HEAD, conv, network, random_network


def loop(x: np.ndarray, weight: np.ndarray, strides: tuple[int, int], padding: int, dilation: int = 1) -> np.ndarray:
    """A convolution, one output cell at a time: ``(C, H, W)``, ``(O, C, k, k)``, float64."""
    (filters, _, size, _), (down, across) = weight.shape, strides
    padded = np.pad(x, ((0, 0), (padding, padding), (padding, padding)))
    reach = dilation * (size - 1) + 1
    rows, columns = (padded.shape[1] - reach) // down + 1, (padded.shape[2] - reach) // across + 1
    out = np.zeros((filters, rows, columns))
    for o, i, j in np.ndindex(*out.shape):
        taps = padded[:, i * down : i * down + reach : dilation, j * across : j * across + reach : dilation]
        out[o, i, j] = (taps * weight[o]).sum()
    return out


def blurred(x: np.ndarray, antialiasing: int, strides: tuple[int, int]) -> np.ndarray:
    """The fixed depthwise convolution that Darknet puts behind a layer."""
    kernel, padding = (np.outer([1, 2, 1], [1, 2, 1]) / 16, 1) if antialiasing == 1 else (np.full((2, 2), 1 / 4), 0)
    return np.concatenate([loop(channel[None], kernel[None, None], strides, padding) for channel in x])


def output_and_parts(text: str, size: tuple[int, int] = (9, 11)) -> tuple[np.ndarray, np.ndarray, Darknet]:
    """A first layer's output, its input, and the network."""
    model = random_network(network(text, *HEAD, size=12)).double()
    x = np.random.default_rng(0).normal(size=(3, *size))
    with torch.no_grad():
        return model.conv(0)(torch.from_numpy(x)[None])[0].numpy(), x, model


@pytest.mark.parametrize(
    ("options", "strides"),
    [("stride=2 stride_x=1", (2, 1)), ("stride_y=3", (3, 1)), ("stride_x=2 stride_y=3 stride=5", (3, 2))],
)
def test_strides_down_and_across(options: str, strides: tuple[int, int]) -> None:
    text = f"convolutional filters=4 size=3 pad=1 activation=linear {options}"
    found, x, model = output_and_parts(text)
    weight, bias = (value.detach().numpy() for value in (model.conv(0).weight, model.conv(0).bias))
    np.testing.assert_allclose(found, loop(x, weight, strides, 1) + bias[:, None, None], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("pad", "padding"), [("pad=1", 2), ("padding=1", 2), ("padding=2", 4), ("", 0)])
def test_padding_grows_with_dilation_as_in_darknet(pad: str, padding: int) -> None:
    found, x, model = output_and_parts(f"convolutional filters=4 size=3 dilation=2 activation=linear {pad}")
    weight, bias = (value.detach().numpy() for value in (model.conv(0).weight, model.conv(0).bias))
    np.testing.assert_allclose(found, loop(x, weight, (1, 1), padding, 2) + bias[:, None, None], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("antialiasing", [1, 2])
@pytest.mark.parametrize("strides", [(2, 2), (1, 1), (2, 1), (3, 2)])
def test_antialiasing_is_a_fixed_blur_behind_the_activation(antialiasing: int, strides: tuple[int, int]) -> None:
    text = f"convolutional filters=4 size=3 pad=1 activation=relu stride_x={strides[1]} stride_y={strides[0]}"
    found, x, model = output_and_parts(f"{text} antialiasing={antialiasing}")
    weight, bias = (value.detach().numpy() for value in (model.conv(0).weight, model.conv(0).bias))
    sharp = np.maximum(loop(x, weight, (1, 1), 1) + bias[:, None, None], 0)
    np.testing.assert_allclose(found, blurred(sharp, antialiasing, strides), rtol=1e-9, atol=1e-12)
    assert list(model.conv(0).state_dict()) == ["weight", "bias"]  # nothing of the blur


SHARED = (
    conv(8, 3),
    conv(8, 3),
    "route layers=0",
    conv(8, 3, activation="relu") + " share_index=1 dilation=2",
    conv(8, 3) + " share_index=-1",
    *HEAD,
)


def test_shared_weights_are_those_of_the_other_layer_with_options_of_its_own(tmp_path: Path) -> None:
    model = random_network(network(*SHARED))
    layers = model.cfg.layers
    assert [layers[index].weights_from for index in (1, 3, 4)] == [1, 1, 1]
    model.save(tmp_path / "x.cfg", tmp_path / "x.weights")
    # The same network with the weights written out wherever they are used.
    apart = load_darknet(
        network(*(section.split(" share_index")[0] + " dilation=2" * (at == 3) for at, section in enumerate(SHARED)))
    )
    state = model.state_dict()
    for index in (3, 4):
        state |= {f"convs.{index}.{name}": value for name, value in model.conv(1).state_dict().items()}
    apart.load_state_dict(state)
    images = torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        (one,), (other,) = model(images), apart(images)
        (folded,) = FoldedDarknet(model)(images)
    torch.testing.assert_close(one, other)
    torch.testing.assert_close(one, folded, rtol=1e-4, atol=1e-4)
    values = np.fromfile(tmp_path / "x.weights", "<f4", offset=20)
    assert values.size == (4 * 8 + 8 * 27) + (4 * 8 + 8 * 72) + (6 + 6 * 8)
    load_darknet(tmp_path / "x.cfg", tmp_path / "x.weights").save(tmp_path / "y.cfg", tmp_path / "y.weights")
    assert (tmp_path / "x.weights").read_bytes() == (tmp_path / "y.weights").read_bytes()


def test_every_use_of_shared_weights_trains_them() -> None:
    model = random_network(network(*SHARED)).double().train()
    images = torch.rand(2, 3, 16, 16, dtype=torch.float64)
    model(images)[0].square().sum().backward()
    gradient = model.conv(1).weight.grad
    assert model.conv(1) is model.conv(3) is model.conv(4)
    assert gradient is not None
    assert bool((gradient != 0).any())


@pytest.mark.parametrize(
    ("section", "says"),
    [
        (conv(8, 3) + " share_index=-2", "points at layer -2"),
        (conv(8, 3) + " share_index=1", "points at layer 1"),
        (conv(6, 3) + " share_index=0", r"has weights \(6, 8, 3, 3\), groups=1, normalisation; layer 0"),
        (conv(8, 3, groups=2) + " share_index=0", "groups=2, normalisation; layer 0"),
        (conv(8, 3, norm=False) + " share_index=0", "groups=1, no normalisation; layer 0"),
        (conv(8) + " xnor=1", r"xnor= of \[convolutional\] is not supported: binary weights"),
        (conv(8) + " flipped=1", "transposed"),
        (conv(8) + " coordconv=1", "on a GPU only"),
        (conv(8) + " dontload=1", "weight file"),
        (conv(8) + " antialias=1", "did you mean 'antialiasing'"),
        (conv(8, activation="normalize_channels"), "each channel depends on all the others"),
        (conv(8, activation="hard_swish"), "Darknet does not know it and computes relu"),
        ("convolutional size=16 antialiasing=2", "empty output"),
    ],
)
def test_what_is_refused_says_why(section: str, says: str) -> None:
    with pytest.raises(DarknetFormatError, match=says):
        network(conv(8, 3), section, *HEAD)


def test_what_only_training_reads_or_is_switched_off_does_not_matter() -> None:
    options = "assisted_excitation=4000 sway=1 angle=15 grad_centr=1 xnor=0 flipped=0 dontload=0 stream=1"
    assert network(conv(8), *HEAD).layers[0] == network(f"{conv(8)} {options}", *HEAD).layers[0]
