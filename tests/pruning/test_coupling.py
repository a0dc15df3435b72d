"""Which filters live and die together: hand-made graphs, and brute force on random ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings

from effort import examples
from prunedeploy.models import DarknetCfg, parse_cfg, read_cfg
from prunedeploy.models.darknet import run_layers
from prunedeploy.models.sections import Convolutional
from prunedeploy.pruning.coupling import couple, coupling_groups, prunable_convolutions
from prunedeploy.pruning.masks import live_channels
from pruning.darknets import HEAD, RandomCfg, conv, network, random_cfgs

Filter = tuple[int, int]


def units_of(cfg: DarknetCfg) -> list[frozenset[Filter]]:
    """Every unit as a set of (layer, filter)."""
    units = []
    for group in coupling_groups(cfg):
        for unit in range(group.channels):
            members = frozenset((m.layer, int(f)) for m in group.members for f in m.filters[unit])
            if members:
                units.append(members)
    return units


def influence(cfg: DarknetCfg) -> list[tuple[str, set[Filter]]]:
    """Which filters each channel of each layer depends on, found by changing one filter at a time.

    A convolution and a head are put behind every layer so that every layer is observed, and no
    convolution is computed: its output is a constant in which one channel is changed, so that a change only
    travels through the layers between convolutions. Each image of the batch changes another filter.

    A change does not travel where relu6 or tanh has reached its bound, in a sum of several layers say; so small
    constants are tried as well, in float64, and what either shows counts. Where nothing changes images may still differ
    in their last bits, which depend on the place in the batch.

    Returns:
        Per observed channel whether a convolution (``conv``) or a head (``yolo``) reads it, and the filters.
    """
    filters = [(layer.index, f) for layer in cfg.convolutions for f in range(layer.out_channels)]
    head = "[convolutional]\nfilters=6\n[yolo]\nmask=0\nanchors=4,5,6,7\nclasses=1\n"
    probes = [f"[route]\nlayers={layer.index}\n{head}" for layer in cfg.layers if layer.kind != "yolo"]
    probed = parse_cfg(cfg.text + "".join(probes))
    images = torch.ones(1 + len(filters), *cfg.input_shape, dtype=torch.float64)

    def changes(scale: float) -> list[tuple[str, torch.Tensor]]:
        """Per reader which filters (rows) change which of its channels (columns)."""
        observed: list[tuple[str, torch.Tensor]] = []

        def convolve(layer: Convolutional, x: torch.Tensor) -> torch.Tensor:
            observed.append(("conv", x))
            generator = torch.Generator().manual_seed(layer.index)
            out = 1 + torch.rand(layer.out_shape, generator=generator, dtype=x.dtype).repeat(len(x), 1, 1, 1)
            for image, (index, channel) in enumerate(filters, start=1):
                if index == layer.index:
                    out[image, channel] += 3
            return scale * out

        heads = run_layers(probed.layers, images, convolve)
        return [
            (reader, ((x[1:] - x[:1]).abs() > 1e-10 * x[:1].abs()).flatten(2).any(2))
            for reader, x in observed + [("yolo", head) for head in heads]
        ]

    return [
        (reader, {filters[i] for i in (large | small)[:, channel].nonzero().flatten().tolist()})
        for (reader, large), (_, small) in zip(changes(1.0), changes(0.01), strict=True)
        for channel in range(large.shape[1])
    ]


def components(edges: list[set[Filter]], filters: list[Filter]) -> set[frozenset[Filter]]:
    """Connected components by merging sets until none overlap."""
    component = {f: {f} for f in filters}
    for edge in edges:
        merged = set().union(*(component[f] for f in edge)) if edge else set()
        for f in merged:
            component[f] = merged
    return {frozenset(c) for c in component.values()}


# One cell, in which a sum reaches the bound of relu6 before reorg takes four channels together.
BOUNDED = RandomCfg(
    size=12,
    sections=[
        conv(8),
        "avgpool",
        conv(8),
        "route layers=2",
        "shortcut from=2 activation=linear",
        "route layers=4",
        "shortcut from=4 activation=relu6",
        "reorg stride=2 reverse=1",
        conv(6, norm=False, activation="linear"),
        "yolo mask=0 anchors=4,5,6,7 classes=1",
    ],
)


@settings(max_examples=examples(25), suppress_health_check=[HealthCheck.too_slow])
@given(graph=random_cfgs(grouped=False))
@example(graph=BOUNDED)
def test_units_are_what_brute_force_finds(graph: RandomCfg) -> None:
    cfg = graph.cfg
    filters = [(layer.index, f) for layer in cfg.convolutions for f in range(layer.out_channels)]
    expected = components([sources for _, sources in influence(cfg)], filters)
    found = units_of(cfg)
    assert len(found) == len(set(found))
    assert set(found) == expected


@settings(max_examples=examples(25), suppress_health_check=[HealthCheck.too_slow])
@given(graph=random_cfgs(grouped=True))
def test_every_channel_is_wholly_inside_or_outside_a_unit(graph: RandomCfg) -> None:
    cfg = graph.cfg
    units = units_of(cfg)
    filters = [(layer.index, f) for layer in cfg.convolutions for f in range(layer.out_channels)]
    assert sorted(f for unit in units for f in unit) == filters
    unit_of = {f: number for number, unit in enumerate(units) for f in unit}
    frozen = {
        (member.layer, index)
        for group in coupling_groups(cfg)
        if not group.prunable
        for member in group.members
        for index in member.filters.flatten().tolist()
    }
    for reader, sources in influence(cfg):
        assert len({unit_of[f] for f in sources}) <= 1
        if reader == "yolo":
            assert sources <= frozen


@settings(max_examples=examples(25), suppress_health_check=[HealthCheck.too_slow])
@given(graph=random_cfgs())
def test_channels_per_unit_give_the_width_of_every_layer(graph: RandomCfg) -> None:
    coupling = couple(graph.cfg)
    keep = {layer.index: torch.ones(layer.out_channels, dtype=torch.bool) for layer in graph.cfg.convolutions}
    counts = list(coupling.full_counts)
    for index, group in enumerate(coupling.groups):
        if group.prunable and group.channels > 1:
            counts[index] -= 1
            for member in group.members:
                keep[member.layer][member.filters[index % group.channels]] = False
    for index, live in live_channels(graph.cfg, keep).items():
        assert int(live.sum()) == int(coupling.channels_per_unit[index] @ counts)


@settings(max_examples=examples(25), suppress_health_check=[HealthCheck.too_slow])
@given(graph=random_cfgs())
def test_outputs_of_the_heads_are_those_before_the_yolo_sections(graph: RandomCfg) -> None:
    assert graph.cfg.head_outputs == graph.head_outputs
    everything = {layer.index for layer in graph.cfg.convolutions}
    assert {layer.index for layer in prunable_convolutions(graph.cfg)} == everything - graph.head_outputs


def test_residual_stage_of_yolov3_is_one_group(repository: Path) -> None:
    # Redmon's yolov3.cfg: layers 5, 7 and 10 (128 filters) are summed by the shortcuts at 8 and 11.
    groups = coupling_groups(read_cfg(repository / "configs" / "darknet" / "yolov3.cfg"))
    (stage,) = [group for group in groups if 5 in group.layers]
    assert (stage.layers, stage.channels, stage.prunable) == ((5, 7, 10), 128, True)
    for member in stage.members:
        assert torch.equal(member.filters, torch.arange(128)[:, None])
    heads = [group for group in groups if group.reason and "yolo" in group.reason]
    assert [group.layers for group in heads] == [(81,), (93,), (105,)]


def test_a_concatenation_ties_part_of_a_convolution_to_each_source() -> None:
    # layer 3 = [layer 0 | layer 2]; layer 5 adds it to layer 4, whose filters 0-7 then go with layer 0
    # and 8-19 with layer 2.
    cfg = network(conv(8), "route layers=-1", conv(12), "route layers=0,2", conv(20), "shortcut from=-2", *HEAD)
    groups = [group for group in coupling_groups(cfg) if group.prunable]
    assert [(group.layers, group.channels) for group in groups] == [((0, 4), 8), ((2, 4), 12)]
    assert groups[0].members[1].filters.flatten().tolist() == list(range(8))
    assert groups[1].members[1].filters.flatten().tolist() == list(range(8, 20))


def test_a_slice_ties_the_same_offset_in_every_part() -> None:
    cfg = network(conv(8), "route layers=-1 groups=2 group_id=1", conv(4), *HEAD)
    groups = [group for group in coupling_groups(cfg) if group.prunable]
    assert groups[0].members[0].filters.tolist() == [[0, 4], [1, 5], [2, 6], [3, 7]]
    assert (groups[1].layers, groups[1].channels) == ((2,), 4)


def test_depthwise_filters_are_tied_to_their_input_channel() -> None:
    cfg = network(conv(4), conv(8, 3, groups=4), *HEAD)
    (group,) = [group for group in coupling_groups(cfg) if group.prunable]
    assert group.layers == (0, 1)
    assert group.members[0].filters.tolist() == [[0], [1], [2], [3]]
    assert group.members[1].filters.tolist() == [[0, 1], [2, 3], [4, 5], [6, 7]]


def test_wide_groups_shrink_alike() -> None:
    cfg = network(conv(8), conv(12, 3, groups=2), *HEAD)
    first, second = [group for group in coupling_groups(cfg) if group.prunable]
    assert first.members[0].filters.tolist() == [[0, 4], [1, 5], [2, 6], [3, 7]]
    assert second.members[0].filters.tolist() == [[i, i + 6] for i in range(6)]


@pytest.mark.parametrize(
    ("sections", "layer", "reason"),
    [
        ((conv(8, activation="logistic"), *HEAD), 0, "activation logistic"),
        (
            (conv(8), conv(8), "shortcut from=-2 activation=logistic", *HEAD),
            0,
            "layer 2 turns zero into something",
        ),
        (
            (conv(8), conv(6), "maxpool size=3 stride=1", "yolo mask=0 anchors=4,5 classes=1"),
            1,
            "yolo section at layer 3",
        ),
        ((conv(3, groups=3), *HEAD), 0, "channel of the image"),
        (("maxpool size=3 stride=1", conv(3), "shortcut from=-2", *HEAD), 1, "channel of the image"),
        (
            (conv(6), conv(6), "shortcut from=-2", "yolo mask=0 anchors=4,5 classes=1"),
            0,
            "yolo section at layer 3",
        ),
    ],
)
def test_what_cannot_be_removed_says_why(sections: tuple[str, ...], layer: int, reason: str) -> None:
    (group,) = [group for group in coupling_groups(network(*sections)) if layer in group.layers]
    assert not group.prunable
    assert reason in group.reason


@pytest.mark.parametrize("activation", ["linear", "leaky", "relu", "mish", "swish"])
def test_activations_that_keep_zero_at_zero_are_prunable(activation: str) -> None:
    (group,) = [g for g in coupling_groups(network(conv(8, activation=activation), *HEAD)) if 0 in g.layers]
    assert group.prunable
