"""The shrunk network computes what the masked one computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from effort import examples, slow_after
from prunedeploy.models import Darknet, load_darknet, parse_cfg
from prunedeploy.pruning import Cut, Filters, shrink
from prunedeploy.pruning.masks import apply_structured, apply_unstructured, connected_kernels, live_channels
from prunedeploy.pruning.ratio import ratio_tolerance
from prunedeploy.pruning.shrink import shrink_cfg
from prunedeploy_engines.errors import PruningError
from pruning.darknets import (
    HEAD,
    RandomCfg,
    any_choice_of_units,
    conv,
    cut_by,
    largest_difference,
    network,
    random_cfgs,
    random_network,
    randomise,
    weights_but_head_outputs,
)

RATIOS = (0.25, 0.5, 0.75, 0.9, 0.99)


def cut_filters(model: Darknet, ratio: float, multiple: int = 8) -> tuple[Cut, dict[str, Any]]:
    """Cut filters by the size of their weights, which are random; and what the bundle would say."""
    granularity = Filters(ratio, multiple=multiple)
    scores = {layer.index: model.conv(layer.index).weight.detach() for layer in model.cfg.convolutions}
    cut, masks, allocation = cut_by(granularity, model, scores)
    return cut, granularity.record(model.cfg, masks, allocation)


def check_cut(
    model: Darknet, cut: Cut, record: dict[str, Any], images: torch.Tensor, tolerance: float, heads: set[int]
) -> None:
    """The shrunk network is valid, has the achieved ratio and computes what the masked one does."""
    small = cut.network
    assert small.header == model.header
    before, after = weights_but_head_outputs(model, heads), weights_but_head_outputs(small, heads)
    assert 1 - after / before == pytest.approx(record["ratio_achieved"], abs=1e-12)
    assert abs(record["ratio_achieved"] - record["ratio_requested"]) <= ratio_tolerance(record["ratio_requested"])
    assert parse_cfg(small.cfg.text).layers == small.cfg.layers
    for row in record["layers"]:
        weight = small.conv(row["layer"]).weight
        assert (weight.shape[0], weight.numel()) == (row["filters_after"], row["weights_after"])
        assert model.conv(row["layer"]).weight.shape[0] == row["filters_before"]
    assert largest_difference(cut.masked, small, images) <= tolerance


@pytest.fixture(scope="module")
def shipped(request: pytest.FixtureRequest, repository: Path) -> Darknet:
    return randomise(load_darknet(repository / "configs" / "darknet" / f"{request.param}.cfg"))


# The large networks are cut at fewer ratios, as each cut copies 62 million weights.
@pytest.mark.parametrize(
    ("shipped", "ratio"),
    [
        *slow_after(1, *(("yolov3", ratio) for ratio in (0.75, 0.5, 0.99))),
        *slow_after(1, *(("yolov3-spp", ratio) for ratio in (0.9, 0.75))),
        *(("yolov3-tiny", ratio) for ratio in RATIOS),
        *(("yolov3-slim", ratio) for ratio in RATIOS),
    ],
    indirect=["shipped"],
)
def test_shrunk_network_equals_masked_network(shipped: Darknet, ratio: float) -> None:
    heads = {layer.inputs[0] for layer in shipped.cfg.heads}
    cut, record = cut_filters(shipped, ratio)
    assert record["channel_multiple"] == 8
    assert all(row["filters_after"] % 8 == 0 for row in record["layers"] if row["layer"] not in heads)
    check_cut(shipped, cut, record, torch.rand(1, 3, 96, 96), 1e-5, heads)


@pytest.mark.shared
@pytest.mark.parametrize("ratio", RATIOS)
def test_shrunk_genuine_tiny_equals_masked(shared: Path, ratio: float) -> None:
    folder = shared / "real" / "yolov3-tiny"
    model = load_darknet(folder / "yolov3-tiny.cfg", folder / "yolov3-tiny.weights")
    check_cut(model, *cut_filters(model, ratio), torch.rand(1, 3, 160, 160), 1e-5, {15, 22})


@settings(max_examples=examples(60), suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
@given(
    graph=random_cfgs(attention=True),
    ratio=st.floats(0.05, 0.97),
    seed=st.integers(0, 99),
    multiple=st.sampled_from([1, 2, 4, 8]),
)
def test_random_networks_shrink_to_what_they_compute_masked(
    graph: RandomCfg, ratio: float, seed: int, multiple: int
) -> None:
    # float64, so that a wrong wire cannot hide behind rounding
    model = random_network(graph.cfg, seed).double()
    try:
        cut, record = cut_filters(model, ratio, multiple)
    except PruningError:
        # Few filters reach few ratios; whether a refusal is right is tested with the solver.
        cut, record = None, {}
    assume(cut is not None)
    found = record["channel_multiple"]
    assert found in (multiple, multiple // 2, multiple // 4, multiple // 8)
    for row in record["layers"]:
        assert row["filters_after"] >= min(found, row["filters_before"])
        if row["filters_before"] % found == 0:
            assert row["filters_after"] % found == 0
    images = torch.rand(2, 3, graph.size, graph.size, dtype=torch.float64)
    check_cut(model, cut, record, images, 1e-9, graph.head_outputs)


@settings(max_examples=examples(60), suppress_health_check=[HealthCheck.too_slow])
@given(graph=random_cfgs(attention=True), data=st.data())
def test_any_choice_of_units_can_be_cut(graph: RandomCfg, data: st.DataObject) -> None:
    model = random_network(graph.cfg).double()
    keep = any_choice_of_units(data, graph.cfg)
    images = torch.rand(1, 3, graph.size, graph.size, dtype=torch.float64)
    assert largest_difference(apply_structured(model, keep), shrink(model, keep), images) <= 1e-9


def test_masking_the_weights_of_dead_filters_alone_is_not_the_same_network() -> None:
    model = random_network(network(conv(16, 3), conv(16, 3), "shortcut from=-2", *HEAD))
    cut, _ = cut_filters(model, 0.5)
    rows = {
        layer.index: cut.filters[layer.index][:, None, None, None].expand(layer.weight_shape)
        for layer in model.cfg.convolutions
    }
    images = torch.rand(1, 3, 16, 16)
    # The shift of the dead filters' normalisation is alive and flows on.
    assert largest_difference(apply_unstructured(model, rows), cut.network, images) > 1e-2
    assert largest_difference(cut.masked, cut.network, images) <= 1e-5


@pytest.mark.parametrize("norm", [True, False])
def test_dead_filters_of_the_masked_network_give_zero_themselves(norm: bool) -> None:
    model = random_network(network(conv(16, 3, norm), conv(16, 3, norm), "shortcut from=-2", *HEAD))
    cut, _ = cut_filters(model, 0.5)
    with torch.no_grad():
        out = cut.masked.conv(0)(torch.rand(1, 3, 16, 16))
    assert bool((out[:, ~cut.filters[0]] == 0).all())
    assert bool((out[:, cut.filters[0]] != 0).any())


def test_shrinking_the_masked_network_gives_the_same_parameters() -> None:
    model = random_network(network(conv(16, 3), conv(24, 3, norm=False), *HEAD))
    cut, _ = cut_filters(model, 0.6)
    direct, by_mask = shrink(model, cut.filters), cut.network  # which is made from the masked one
    for (name, a), (_, b) in zip(direct.state_dict().items(), by_mask.state_dict().items(), strict=True):
        assert torch.equal(a, b), name


def test_nothing_removed_is_the_same_file(tmp_path: Path) -> None:
    model = random_network(network(conv(16, 3), *HEAD))
    small = cut_filters(model, 0.0)[0].network
    assert small.cfg.text == model.cfg.text
    model.save(tmp_path / "a.cfg", tmp_path / "a.weights")
    small.save(tmp_path / "b.cfg", tmp_path / "b.weights")
    assert (tmp_path / "a.weights").read_bytes() == (tmp_path / "b.weights").read_bytes()


def test_shrunk_files_load_and_compute_the_same(tmp_path: Path) -> None:
    model = random_network(network(conv(16, 3), conv(16, 3, groups=16), conv(16), "shortcut from=-3", *HEAD))
    small = cut_filters(model, 0.45)[0].network
    small.save(tmp_path / "small.cfg", tmp_path / "small.weights")
    images = torch.rand(1, 3, 16, 16)
    assert largest_difference(small, load_darknet(tmp_path / "small.cfg", tmp_path / "small.weights"), images) == 0


def test_shrinking_leaves_the_model_and_the_random_state_alone() -> None:
    model = random_network(network(conv(16, 3), *HEAD)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.random.get_rng_state()
    small = cut_filters(model, 0.5)[0].network
    assert torch.equal(torch.random.get_rng_state(), state)
    assert small.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_kept_weight_has_a_living_filter_and_a_living_input() -> None:
    cfg = network(conv(4, 3), conv(4, 3), *HEAD)
    keep = {0: torch.tensor([True, False, True, True]), 1: torch.tensor([False, True, True, True])}
    kernels = connected_kernels(cfg, live_channels(cfg, keep))
    for filter_index in range(4):
        for channel in range(4):
            expected = filter_index != 0 and channel != 1
            assert bool(kernels[1][filter_index, channel]) == expected
    assert kernels[2][:, 0].any() == torch.tensor(False)
    assert kernels[2][:, 1:].all() == torch.tensor(True)


@pytest.mark.parametrize(
    ("sections", "keep", "message"),
    [
        ((conv(4), conv(4), "shortcut from=-2", *HEAD), {0: [1, 1, 1, 0]}, "only one side lives"),
        (
            (conv(4), "route layers=-1 groups=2 group_id=0", *HEAD),
            {0: [1, 1, 1, 0]},
            r"would keep \[2, 1\] channels",
        ),
        ((conv(4), conv(4, groups=2), *HEAD), {0: [1, 1, 1, 0]}, r"would keep \[1, 2\] input channels"),
        ((conv(4), conv(4, groups=4), *HEAD), {0: [1, 1, 1, 0]}, r"would keep \[0, 1\] input channels"),
        ((conv(4), conv(4, groups=2), *HEAD), {1: [1, 1, 1, 0]}, r"would keep \[2, 1\] filters"),
        ((conv(4), *HEAD), {0: [0, 0, 0, 0]}, "would lose all of its 4 filters"),
        ((conv(4), *HEAD), {0: [1, 1, 1]}, r"expected a bool mask \(4,\), got torch.bool \(3,\)"),
        ((conv(4), *HEAD), {2: [1, 1, 1]}, r"not convolutions: \[2\]"),
    ],
)
def test_a_cut_that_no_cfg_can_describe_is_refused(sections: tuple[str, ...], keep: dict, message: str) -> None:
    cfg, masks = network(*sections), {index: torch.tensor(mask, dtype=torch.bool) for index, mask in keep.items()}
    with pytest.raises(ValueError, match=message):
        shrink_cfg(cfg, live_channels(cfg, masks))
