"""A network without its dead channels computes what it computed with them, at the borders too."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from effort import examples, slow_after
from prunedeploy.models import Darknet, load_darknet
from prunedeploy.models.darknet_cfg import DarknetCfg
from prunedeploy.pruning.constants import inside_taps
from prunedeploy.pruning.coupling import coupling_groups
from prunedeploy.pruning.dead_channels import DeadChannelRecord, remove_dead_channels
from prunedeploy.pruning.granularity import FiltersThenWeights, Granularity, Kernels, Weights
from prunedeploy_engines.errors import PruningError
from pruning.darknets import (
    ACTIVATIONS,
    RandomCfg,
    conv,
    cut_by,
    network,
    random_cfgs,
    random_network,
    randomise,
)

# One class, one anchor: a head of six channels.
YOLO = "yolo mask=0 anchors=4,5 classes=1"
SLOW = settings(max_examples=examples(60), suppress_health_check=[HealthCheck.too_slow])
SLOWER = settings(SLOW, max_examples=examples(20))


def set_parameters(model: Darknet, index: int, **values: object) -> None:
    """Fill parameters of one convolution: numbers or nested lists."""
    with torch.no_grad():
        for name, value in values.items():
            parameter = getattr(model.conv(index), name)
            parameter.copy_(torch.as_tensor(value, dtype=parameter.dtype).expand_as(parameter))


def plain(*sections: str, size: int = 4) -> Darknet:
    """A float64 network on a one-channel image, all of whose parameters are 0 (scale and variance 1)."""
    model = load_darknet(network(*sections, size=size, channels=1)).double()
    for layer in model.cfg.convolutions:
        set_parameters(model, layer.index, weight=0.0, bias=0.0)
    return model


def filters(model: Darknet) -> dict[int, int]:
    return {layer.index: layer.out_channels for layer in model.cfg.convolutions}


def random_images(size: int, seed: int) -> Tensor:
    """Two images that a failing example repeats."""
    return torch.rand(2, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def relative(expected: list[Tensor], found: list[Tensor]) -> float:
    """Largest difference relative to the largest value of the worst head; a head of zeros must stay one."""
    worst = 0.0
    for a, b in zip(expected, found, strict=True):
        assert a.shape == b.shape
        assert bool(torch.isfinite(a).all())
        worst = max(worst, float((a - b).abs().max() / a.abs().max().clamp(min=1e-30)))
    return worst


def zero_at_random(model: Darknet, seed: int) -> Darknet:
    """Zero whole filters, whole input channels, kernels and single weights, each at a rate of its own."""
    generator = torch.Generator().manual_seed(seed)

    def hit(*shape: int) -> Tensor:
        rate = float(torch.rand(1, generator=generator)) ** 2
        return torch.rand(shape, generator=generator) < rate

    with torch.no_grad():
        for layer in model.cfg.convolutions:
            weight = model.conv(layer.index).weight
            filters, per_group = weight.shape[:2]
            weight[hit(filters)] = 0.0
            weight[:, hit(per_group)] = 0.0
            weight[hit(filters, per_group)] = 0.0
            weight[hit(*weight.shape)] = 0.0
    return model


@st.composite
def unpadded_cfgs(draw: st.DrawFn) -> DarknetCfg:
    """A chain of convolutions with and without padding, dilated and strided, with residuals and poolings."""
    sections = []
    size = side = draw(st.sampled_from([23, 24]))
    for _ in range(draw(st.integers(1, 5))):
        kind = draw(st.sampled_from(["conv", "conv", "residual", "maxpool", "upsample"]))
        norm, activation = draw(st.booleans()), draw(st.sampled_from(ACTIVATIONS))
        options = f"activation={activation}" + " batch_normalize=1" * norm
        if kind == "residual" and sections:
            width = draw(st.sampled_from([4, 6]))
            sections.append(f"convolutional filters={width} size=1 {options}")
            sections.append(f"convolutional filters={width} size=3 pad=1 {options}")
            sections.append(f"shortcut from=-2 activation={draw(st.sampled_from(ACTIVATIONS))}")
        elif kind == "maxpool":
            sections.append(f"maxpool size={draw(st.sampled_from([2, 3]))} stride=1")
        elif kind == "upsample" and side < 16:
            sections.append("upsample stride=2")
            side *= 2
        else:
            kernel, stride = draw(st.sampled_from([1, 2, 3])), draw(st.sampled_from([1, 1, 2]))
            padding, dilation = draw(st.integers(0, 2)), draw(st.sampled_from([1, 1, 2]))
            dilation = dilation if kernel > 1 else 1
            after = (side + 2 * padding * dilation - dilation * (kernel - 1) - 1) // stride + 1
            if after < 3:  # what the head needs
                continue
            side = after
            filters = draw(st.sampled_from([4, 6, 8]))
            shape = f"filters={filters} size={kernel} stride={stride} padding={padding} dilation={dilation}"
            sections.append(f"convolutional {shape} {options}")
    kernel, pad = draw(st.sampled_from([1, 3])), draw(st.integers(0, 1))
    head = f"convolutional filters=6 size={kernel} pad={pad} activation=linear"
    return network(*sections, head, YOLO, size=size, channels=2)


def check_exact(
    model: Darknet, images: Tensor, tolerance: float, multiple: int = 1
) -> tuple[Darknet, DeadChannelRecord]:
    """Remove, and compare heads, widths and the record with what can be counted without it."""
    before = {name: value.clone() for name, value in model.state_dict().items()}
    small, record = remove_dead_channels(model, multiple)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    with torch.no_grad():
        assert relative(model(images), small(images)) <= tolerance
    was, now = filters(model), filters(small)
    assert record.filters_removed == sum(was.values()) - sum(now.values())
    for row in record.layers:
        assert (row.filters_before, row.filters_after) == (was[row.layer], now[row.layer])
        assert row.filters_before - row.filters_after == row.constant + row.unread
        assert row.filters_after >= max(1, row.carriers + row.idle)
        assert row.filters_after >= min(multiple, row.filters_before)
    assert record.params_after == sum(parameter.numel() for parameter in small.parameters())
    assert (record.macs_before, record.macs_after) == (model.cfg.macs, small.cfg.macs)
    assert record.deviation <= tolerance
    if record.filters_removed == 0:
        assert small is model
    return small, record


@SLOW
@given(graph=random_cfgs(attention=True), seed=st.integers(0, 9999), multiple=st.sampled_from([1, 1, 4]))
def test_random_networks_compute_the_same_without_dead_channels(graph: RandomCfg, seed: int, multiple: int) -> None:
    # float64, so that a wrong constant cannot hide behind rounding
    model = zero_at_random(random_network(graph.cfg, seed).double(), seed)
    images = random_images(graph.size, seed)
    small, _ = check_exact(model, images, 1e-10, multiple)
    again, _ = remove_dead_channels(small, multiple)
    assert again is small


@pytest.mark.parametrize("multiple", slow_after(1, 8, 4, 1))
def test_widths_stay_multiples_with_as_few_idle_filters_as_that_takes(repository: Path, multiple: int) -> None:
    model = randomise(load_darknet(repository / "configs" / "darknet" / "yolov3-slim.cfg"))
    scores = {layer.index: model.conv(layer.index).weight.detach() for layer in model.cfg.convolutions}
    masked = cut_by(Weights(0.98), model, scores)[0].network
    least = filters(remove_dead_channels(masked)[0])
    _, record = check_exact(masked, torch.rand(1, 3, 160, 160), 1e-5, multiple)
    for row in record.layers:
        # 7 filters that live of 12, in multiples of 4: 8
        assert row.filters_after == min(row.filters_before, -(-least[row.layer] // multiple) * multiple)
        assert row.idle == row.filters_after - least[row.layer]
    assert record.multiple == multiple


@SLOW
@given(cfg=unpadded_cfgs(), seed=st.integers(0, 9999))
def test_paddings_strides_and_dilations_make_no_difference(cfg: DarknetCfg, seed: int) -> None:
    model = zero_at_random(random_network(cfg, seed).double(), seed)
    small, _ = check_exact(model, torch.rand(1, 2, *cfg.input_size, dtype=torch.float64), 1e-10)
    # A network runs on other sizes than its cfg's, and what touches padding must not depend on the size.
    images = torch.rand(1, 2, cfg.input_size[0] + 2, cfg.input_size[1] + 5, dtype=torch.float64)
    with torch.no_grad():
        assert relative(model(images), small(images)) <= 1e-10


@SLOWER
# A product may be zero on these images by its other side, whatever is done to one.
@given(graph=random_cfgs(products=False), seed=st.integers(0, 9999))
def test_everything_that_is_left_is_needed(graph: RandomCfg, seed: int) -> None:
    small, _ = remove_dead_channels(zero_at_random(random_network(graph.cfg, seed).double(), seed))
    images = random_images(graph.size, seed)
    with torch.no_grad():
        heads = small(images)
    for group in coupling_groups(small.cfg):
        if group.reason is not None and "image" in group.reason:
            continue  # depthwise on the image, which has three channels
        for unit in range(group.channels):
            if any(len(member.filters) == 1 for member in group.members):
                continue  # the only filters of a layer stay, whether they are read or not
            found = False
            for member in group.members:
                for push in (10.0, -10.0, 1.0):
                    pushed = copy.deepcopy(small)
                    with torch.no_grad():
                        pushed.conv(member.layer).bias[member.filters[unit]] += push
                        found |= any(bool((a != b).any()) for a, b in zip(heads, pushed(images), strict=True))
            assert found, (group.layers, unit)


def test_what_is_read_only_by_a_filter_that_stays_for_its_unit_is_removed() -> None:
    # A route by halves ties channels 0 and 2 of layer 1, of which the head reads 2 alone. So filter 0 of layer 1 stays
    # with it, and what it reads, filter 0 of layer 0, need not.
    model = plain(
        conv(4, 1, False, "linear"),
        conv(4, 1, False, "linear"),
        "route layers=1 groups=2 group_id=1",
        "route layers=1",
        conv(6, 1, False, "linear"),
        YOLO,
    )
    set_parameters(model, 0, weight=[[[[1.0]]], [[[2.0]]], [[[3.0]]], [[[4.0]]]])
    reads = torch.zeros(4, 4, 1, 1)
    reads[0, 0], reads[2, 1], reads[3, 3] = 1.0, 5.0, 1.0
    set_parameters(model, 1, weight=reads.tolist())
    set_parameters(model, 4, weight=[[[[0.0]], [[0.0]], [[1.0]], [[0.0]]]] * 6)
    small, _ = remove_dead_channels(model)
    assert filters(small) == {0: 1, 1: 2, 4: 6}
    image = torch.rand(1, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        (head,) = small(image)
    assert torch.allclose(head, 10 * image.expand(1, 6, 4, 4), atol=1e-14)


def test_constants_before_padding_go_onto_one_carrier() -> None:
    # Filter 0 is the image, filters 1 and 2 are 2 and 3 everywhere; the head sums all channels over 3 x 3.
    model = plain(conv(3, 1, False, "linear"), conv(6, 3, False, "linear"), YOLO)
    set_parameters(model, 0, weight=[[[[1.0]]], [[[0.0]]], [[[0.0]]]], bias=[0.0, 2.0, 3.0])
    set_parameters(model, 1, weight=1.0)
    small, record = remove_dead_channels(model)
    assert filters(small) == {0: 2, 1: 6}
    assert (record.constants_folded, record.carriers) == (1, 1)
    # 3, the larger one, carries: (2 * 1 + 3 * 1) / 3 at every tap but the centre. That never lies on padding, so its
    # 2 + 3 is in the bias.
    taps = torch.full((3, 3), 5 / 3, dtype=torch.float64)
    taps[1, 1] = 0.0
    assert torch.allclose(small.conv(1).weight[:, 1], taps.expand(6, 3, 3), atol=1e-15)
    assert torch.allclose(small.conv(1).bias, torch.full((6,), 5.0, dtype=torch.float64))
    # A black image leaves 5 times the number of taps on the map: 9 at the inside, 6 at an edge, 4 in a corner.
    # Folding the whole sum into the bias would give 45 everywhere.
    expected = torch.tensor([[20.0, 30, 30, 20], [30, 45, 45, 30], [30, 45, 45, 30], [20, 30, 30, 20]])
    with torch.no_grad():
        (head,) = small(torch.zeros(1, 1, 4, 4, dtype=torch.float64))
    assert torch.allclose(head, expected.double().expand(1, 6, 4, 4), atol=1e-13)


def test_constant_before_an_unpadded_convolution_moves_the_mean() -> None:
    model = plain(conv(2, 1, False, "leaky"), conv(2), conv(6, 1, False, "linear"), YOLO)
    # Filter 1 is leaky(-2) = -0.2.
    set_parameters(model, 0, weight=[[[[1.0]]], [[[0.0]]]], bias=[0.0, -2.0])
    set_parameters(model, 1, weight=[[[[1.0]], [[5.0]]], [[[2.0]], [[-1.0]]]], mean=[0.5, 0.5])
    set_parameters(model, 2, weight=1.0)
    small, record = remove_dead_channels(model)
    assert filters(small) == {0: 1, 1: 2, 2: 6}
    assert (record.constants_folded, record.carriers) == (1, 0)
    # mean - v w: 0.5 + 0.2 * 5 and 0.5 - 0.2
    assert small.conv(1).mean.tolist() == pytest.approx([1.5, 0.3])


def test_constant_behind_normalisation_is_darknets() -> None:
    # Zero weights: bias - mean * scale / (sqrt(variance) + 1e-6) = 1 - 3 * 2 / (0.5 + 1e-6); variance 0.25.
    model = plain(conv(2, 3, True, "linear"), conv(6, 1, False, "linear"), YOLO)
    set_parameters(model, 0, weight=[[[[1.0] * 3] * 3], [[[0.0] * 3] * 3]])
    set_parameters(model, 0, bias=1.0, mean=3.0, scale=2.0, variance=0.25)
    set_parameters(model, 1, weight=[[[[1.0]], [[10.0]]]] * 6)
    small, _ = remove_dead_channels(model)
    assert small.conv(1).bias.tolist() == pytest.approx([10 * (1 - 6 / 0.500001)] * 6, rel=1e-14)


def test_residual_stage_has_other_constants_at_other_depths() -> None:
    # Channel 1 is 1 behind layer 0, and layer 1 adds 2 to it: 3 behind the shortcut. Channel 0 lives.
    model = plain(
        conv(2, 1, False, "linear"), conv(2, 1, False, "linear"), "shortcut from=-2", conv(6, 1, False, "linear"), YOLO
    )
    set_parameters(model, 0, weight=[[[[1.0]]], [[[0.0]]]], bias=[0.0, 1.0])
    set_parameters(model, 1, weight=[[[[1.0]], [[4.0]]], [[[0.0]], [[0.0]]]], bias=[0.0, 2.0])
    set_parameters(model, 3, weight=[[[[1.0]], [[7.0]]]] * 6)
    small, record = remove_dead_channels(model)
    assert filters(small) == {0: 1, 1: 1, 3: 6}
    assert record.constants_folded == 2
    assert small.conv(1).bias.tolist() == [4.0]  # 1 * 4
    assert small.conv(3).bias.tolist() == [21.0] * 6  # 3 * 7


def test_channel_of_a_residual_stage_stays_if_one_side_of_it_lives() -> None:
    model = plain(
        conv(2, 1, False, "linear"), conv(2, 1, False, "linear"), "shortcut from=-2", conv(6, 1, False, "linear"), YOLO
    )
    set_parameters(model, 0, weight=[[[[1.0]]], [[[0.0]]]], bias=[0.0, 1.0])
    set_parameters(model, 1, weight=1.0)
    set_parameters(model, 3, weight=1.0)
    small, record = remove_dead_channels(model)
    assert small is model
    assert record.filters_removed == 0


def test_channel_of_a_residual_stage_that_only_feeds_itself_goes() -> None:
    # Each channel of layer 1 reads the same channel of layer 0; the head reads channel 0 only.
    model = plain(
        conv(2, 1, False, "linear"), conv(2, 3, False, "relu"), "shortcut from=-2", conv(6, 1, False, "linear"), YOLO
    )
    set_parameters(model, 0, weight=1.0)
    eye = torch.eye(2)[:, :, None, None].expand(2, 2, 3, 3)
    set_parameters(model, 1, weight=eye, bias=1.0)
    set_parameters(model, 3, weight=[[[[1.0]], [[0.0]]]] * 6)
    small, record = check_exact(model, torch.rand(1, 1, 4, 4, dtype=torch.float64), 1e-12)
    assert filters(small) == {0: 1, 1: 1, 3: 6}
    assert (record.constants_folded, sum(row.unread for row in record.layers)) == (0, 2)


def test_carrier_needs_to_be_constant_only_where_it_carries() -> None:
    # Behind layer 0 both channels are constant, 1 and 2; behind the shortcut channel 1 is not, but nothing reads it
    # there. So it may carry for layer 1, and what layer 1 adds to it need not be computed.
    model = plain(
        conv(2, 1, False, "linear"),
        conv(1, 3, False, "relu"),
        conv(2, 1, False, "linear"),
        "shortcut from=-3",
        conv(6, 1, False, "linear"),
        YOLO,
    )
    set_parameters(model, 0, bias=[1.0, 2.0])
    set_parameters(model, 1, weight=1.0)
    set_parameters(model, 2, weight=1.0)
    set_parameters(model, 4, weight=[[[[1.0]], [[0.0]]]] * 6)
    small, record = check_exact(model, torch.rand(1, 1, 4, 4, dtype=torch.float64), 1e-12)
    # Channel 0 is read behind the shortcut, so it lives and carries itself; channel 1 goes.
    assert filters(small) == {0: 1, 1: 1, 2: 1, 4: 6}
    assert record.carriers == 0
    # Taps but the centre carry 1 * 1 + 2 * 1 by the channel whose value is 1.
    assert small.conv(1).weight[0, 0].tolist() == [[3.0, 3.0, 3.0], [3.0, 0.0, 3.0], [3.0, 3.0, 3.0]]


@pytest.mark.parametrize(
    ("between", "factor"),
    [
        # A constant 3 stays 3: windows at the border take the larger of 3 and -inf, padding in maxpool.
        (("maxpool size=2 stride=1",), 1),
        (("maxpool size=2 stride=2",), 1),
        (("upsample stride=2",), 1),
        (("route layers=-1,0",), 2),
    ],
)
def test_constants_pass_through(between: tuple[str, ...], factor: int) -> None:
    model = plain(conv(2, 1, False, "linear"), *between, conv(6, 1, False, "linear"), YOLO)
    set_parameters(model, 0, weight=[[[[1.0]]], [[[0.0]]]], bias=[0.0, 3.0])
    set_parameters(model, 2, weight=1.0)
    small, _ = check_exact(model, torch.rand(1, 1, 4, 4, dtype=torch.float64) - 0.5, 1e-12)
    assert filters(small) == {0: 1, 2: 6}
    assert small.conv(2).bias.tolist() == [3.0 * factor] * 6


def test_part_of_a_route_loses_channels_in_every_part() -> None:
    # The head reads the second half: channels 2 and 3. Channel 3 is the constant 5, and channel 1, its partner in the
    # first half, goes with it.
    model = plain(conv(4, 1, False, "linear"), "route layers=-1 groups=2 group_id=1", conv(6, 1, False, "linear"), YOLO)
    set_parameters(model, 0, weight=[[[[1.0]]], [[[1.0]]], [[[1.0]]], [[[0.0]]]], bias=[0.0, 0.0, 0.0, 5.0])
    set_parameters(model, 2, weight=2.0)
    small, record = check_exact(model, torch.rand(1, 1, 4, 4, dtype=torch.float64), 1e-12)
    assert filters(small) == {0: 2, 2: 6}
    assert small.conv(2).bias.tolist() == [10.0] * 6
    assert [(row.constant, row.unread) for row in record.layers] == [(1, 1), (0, 0)]


def test_maxpool_windows_on_padding_alone_break_a_constant() -> None:
    # Padding 4 of windows of 2: the outermost windows hold -inf only, so 3 does not stay 3.
    model = plain(conv(2, 1, False, "relu"), "maxpool size=2 stride=2 padding=4", conv(2), conv(6, 1, False), YOLO)
    set_parameters(model, 0, weight=[[[[1.0]]], [[[0.0]]]], bias=3.0)
    set_parameters(model, 2, weight=[[[[1.0]], [[0.0]]], [[[0.0]], [[1.0]]]])
    set_parameters(model, 3, weight=1.0)
    assert remove_dead_channels(model)[0] is model


def test_normalisation_by_zero_is_as_dead_as_zero_weights() -> None:
    model = random_network(network(conv(4, 3), conv(4, 3), conv(6, 1, False, "linear"), YOLO)).double()
    set_parameters(model, 0, scale=[1.0, 0.0, 1.0, 0.0])
    small, record = check_exact(model, torch.rand(1, 3, 16, 16, dtype=torch.float64), 1e-12)
    # One of the two constants carries for the other.
    assert filters(small) == {0: 3, 1: 4, 2: 6}
    assert record.carriers == 1


def test_only_living_readers_count() -> None:
    # Layer 1 reads all of layer 0, but nothing reads its filter 1, which alone reads filter 1 of layer 0.
    model = plain(conv(2, 3, True, "mish"), conv(2, 3, True, "mish"), conv(6, 1, False, "linear"), YOLO)
    set_parameters(model, 0, weight=1.0)
    set_parameters(model, 1, weight=torch.eye(2)[:, :, None, None].expand(2, 2, 3, 3))
    set_parameters(model, 2, weight=[[[[1.0]], [[0.0]]]] * 6)
    small, record = check_exact(model, torch.rand(1, 1, 4, 4, dtype=torch.float64), 1e-12)
    assert filters(small) == {0: 1, 1: 1, 2: 6}
    assert record.constants_folded == 0


def test_no_layer_loses_all_filters_and_no_head_any() -> None:
    model = plain(conv(8, 3), conv(8, 3), "shortcut from=-2", conv(4, 3, groups=2), conv(6, 1, False, "linear"), YOLO)
    set_parameters(model, 4, bias=[1.0, 2, 3, 4, 5, 6])
    small, _ = check_exact(model, torch.rand(1, 1, 4, 4, dtype=torch.float64), 0.0)
    assert filters(small) == {0: 1, 1: 1, 3: 1, 4: 6}


def test_depthwise_filters_go_with_their_channels() -> None:
    model = random_network(
        network(conv(4, 1), conv(4, 3, activation="mish", groups=4), conv(6, 1, False, "linear"), YOLO)
    ).double()
    with torch.no_grad():
        model.conv(1).weight[1] = 0.0  # a constant behind the depthwise layer
        model.conv(2).weight[:, 3] = 0.0  # read by nothing
    small, record = check_exact(model, torch.rand(1, 3, 16, 16, dtype=torch.float64), 1e-12)
    assert filters(small) == {0: 2, 1: 2, 2: 6}
    assert small.cfg.convolutions[1].groups == 2
    assert [(row.constant, row.unread) for row in record.layers] == [(0, 2), (1, 1), (0, 0)]


@pytest.mark.parametrize(
    ("size", "padding", "dilation", "inside"),
    [
        (1, 0, 1, [0]),
        (3, 0, 1, [0, 1, 2]),
        (3, 1, 1, [1]),
        (3, 1, 2, [1]),
        (5, 1, 2, [1, 2, 3]),
        (5, 1, 1, [1, 2, 3]),
        (2, 1, 1, []),
        (1, 1, 1, []),
    ],
)
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("height", [9, 10, 11, 12])
def test_inside_taps_never_touch_padding(
    size: int, padding: int, dilation: int, inside: list[int], stride: int, height: int
) -> None:
    shape = f"filters=6 size={size} padding={padding} dilation={dilation} stride={stride}"
    (layer,) = network(f"convolutional {shape} activation=linear", YOLO, size=height).convolutions
    found = inside_taps(layer)
    assert found.tolist() == [[row in inside and column in inside for column in range(size)] for row in range(size)]
    # Counted position by position.
    for tap in inside:
        rows = [i * stride + (tap - padding) * dilation for i in range(layer.out_shape[1])]
        assert all(0 <= row < height for row in rows)


def test_removing_leaves_mode_and_type_alone() -> None:
    model = zero_at_random(random_network(network(conv(8, 3), conv(8, 3), conv(6, 1, False), YOLO)), 3).train()
    small, record = remove_dead_channels(model)
    assert record.filters_removed > 0
    assert small.training
    assert model.training
    assert small.conv(0).weight.dtype == torch.float32
    assert small.header == model.header


def test_record_is_plain_and_adds_up() -> None:
    model = zero_at_random(random_network(network(conv(16, 3), conv(16, 3), conv(6, 1, False), YOLO)), 4)
    record = remove_dead_channels(model)[1].as_dict()
    assert record["filters_removed"] == sum(row["constant"] + row["unread"] for row in record["layers"]) > 0
    assert record["carriers"] == sum(row["carriers"] for row in record["layers"])
    assert 0 <= record["deviation"] <= 1e-5


@pytest.mark.parametrize("name", ["yolov3-slim", "yolov3-tiny"])
@pytest.mark.parametrize("ratio", [0.5, 0.95, 0.99])
def test_shipped_networks_compute_the_same_without_dead_channels(repository: Path, name: str, ratio: float) -> None:
    model = randomise(load_darknet(repository / "configs" / "darknet" / f"{name}.cfg"))
    generator = torch.Generator().manual_seed(1)  # whether a filter of 27 weights dies at 95 % is chance
    scores = {layer.index: torch.rand(layer.weight_shape, generator=generator) for layer in model.cfg.convolutions}
    masked = cut_by(Weights(ratio), model, scores)[0].network
    _, record = check_exact(masked, torch.rand(1, 3, 160, 160), 1e-5)
    assert (record.filters_removed > 0) == (ratio > 0.5)


def granularity(name: str, ratio: float, allocation: str) -> Granularity:
    if name == "hybrid":
        return FiltersThenWeights(ratio, allocation, multiple=1)
    return {"weight": Weights, "kernel": Kernels}[name](ratio, allocation)


@pytest.mark.parametrize("name", ["weight", "kernel", "hybrid"])
@settings(SLOW, max_examples=examples(40), suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
@given(
    graph=random_cfgs(),
    ratio=st.floats(0.3, 0.99),
    allocation=st.sampled_from(["uniform", "global", "erk"]),
    seed=st.integers(0, 9999),
)
def test_random_networks_of_every_granularity_equal_their_masked_ones(
    name: str, graph: RandomCfg, ratio: float, allocation: str, seed: int
) -> None:
    model = random_network(graph.cfg, seed).double()
    generator = torch.Generator().manual_seed(seed)
    scores = {layer.index: torch.rand(layer.weight_shape, generator=generator) for layer in graph.cfg.convolutions}
    how = granularity(name, ratio, allocation)
    try:
        cut = cut_by(how, model, scores)[0]
    except PruningError:
        cut = None  # few pieces reach few ratios
    assume(cut is not None)
    images = random_images(graph.size, seed)
    small, _ = check_exact(cut.network, images, 1e-10)
    with torch.no_grad():
        assert relative(cut.masked(images), small(images)) <= 1e-9


@pytest.mark.parametrize("name", ["weight", "kernel", "hybrid"])
@pytest.mark.parametrize("allocation", ["uniform", "global"])
def test_demo_network_of_every_granularity_equals_its_masked_one(repository: Path, name: str, allocation: str) -> None:
    model = randomise(load_darknet(repository / "configs" / "darknet" / "yolov3-slim.cfg"))
    scores = {layer.index: model.conv(layer.index).weight.detach() for layer in model.cfg.convolutions}
    how = granularity(name, 0.98, allocation)
    cut = cut_by(how, model, scores)[0]
    images = torch.rand(1, 3, 160, 160)
    small, record = check_exact(cut.network, images, 1e-5)
    assert record.filters_removed > 0
    with torch.no_grad():
        assert relative(cut.masked(images), small(images)) <= 1e-5


def test_queries_and_keys_are_read_though_no_convolution_reads_them() -> None:
    parts = ("route layers=0", conv(4), "route layers=0", conv(4), "route layers=0", conv(8))
    cfg = network(conv(8, 3), *parts, "attention from=2,4,6 heads=2 scale=0.9", conv(6), YOLO, size=8)
    model = random_network(cfg, seed=1).double()
    with torch.no_grad():
        model.conv(0).weight[:2] = 0.0  # constant filters, which leave
        model.conv(6).weight[[1, 5]] = 0.0  # as do values at one place of both heads
    small, record = remove_dead_channels(model)
    assert record.filters_removed >= 2
    assert [filters(small)[index] for index in (2, 4)] == [4, 4]
    images = random_images(8, seed=0)
    with torch.no_grad():
        (before,), (after,) = model(images), small(images)
    assert float(before.std()) > 0.01
    torch.testing.assert_close(after, before, rtol=1e-9, atol=1e-9)
