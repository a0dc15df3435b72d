"""What a section says of itself is enough: kinds of layers made up here are run, stored, coupled and shrunk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

from prunedeploy.models import Darknet, DarknetCfg, FoldedDarknet, load_darknet
from prunedeploy.models.sections import SECTIONS, Layer
from prunedeploy.models.sections.channels import Sources
from prunedeploy.models.sections.layer import Weight
from prunedeploy.models.sections.reading import LayerReader
from prunedeploy.pruning.coupling import coupling_groups
from prunedeploy.pruning.masks import apply_structured
from prunedeploy.pruning.shrink import shrink
from prunedeploy.scores.deeplift_trace import trace
from prunedeploy_engines.errors import DarknetFormatError, PruningError
from pruning.darknets import HEAD, conv, largest_difference, network, random_network


@dataclass(frozen=True)
class Blend(Layer):
    """The sum of two layers, each channel times a weight of its own; the second may be narrower."""

    options: ClassVar[Mapping[str, str]] = {"from": "a layer"}
    training_only: ClassVar[frozenset[str]] = frozenset({"warm_up"})
    refused: ClassVar[Mapping[str, str]] = {"recursive": "a layer cannot read itself"}

    @classmethod
    def read(cls, reader: LayerReader) -> Blend:
        (source,) = reader.references("from")
        other = reader.layers[source].out_shape[0]
        return cls(*reader.wiring(reader.shape, (reader.previous, source), (reader.shape[0], other)))

    def run(self, inputs: list[Tensor], weights: Mapping[str, Tensor]) -> Tensor:
        first, second = weights["weights"][:, :, None, None]
        narrow = self.in_channels[1]
        x = inputs[0] * first
        return torch.cat([x[:, :narrow] + inputs[1] * second[:narrow], x[:, narrow:]], dim=1)

    def weights_in_file(self) -> dict[str, Weight]:
        return {"weights": Weight((2, self.out_channels), channel_axis=1, initial=1.0)}

    def sources(self) -> Sources:
        channels = np.arange(self.out_channels)
        return Sources((channels, np.where(channels < self.in_channels[1], self.out_channels + channels, -1)))


@dataclass(frozen=True)
class Gate(Layer):
    """The product of two layers."""

    options: ClassVar[Mapping[str, str]] = {"from": "a layer"}

    @classmethod
    def read(cls, reader: LayerReader) -> Gate:
        (source,) = reader.references("from")
        return cls(*reader.wiring(reader.shape, (reader.previous, source), reader.shape[:1] * 2))

    def run(self, inputs: list[Tensor], weights: Mapping[str, Tensor]) -> Tensor:
        return inputs[0] * inputs[1]

    def sources(self) -> Sources:
        channels = np.arange(self.out_channels)
        return Sources((channels, self.out_channels + channels), product=True)


@dataclass(frozen=True)
class Repeat(Layer):
    """Every channel twice, one behind the other."""

    linear: ClassVar[bool] = True

    @classmethod
    def read(cls, reader: LayerReader) -> Repeat:
        channels, height, width = reader.shape
        return cls(*reader.wiring((2 * channels, height, width)))

    def run(self, inputs: list[Tensor], weights: Mapping[str, Tensor]) -> Tensor:
        return inputs[0].repeat_interleave(2, dim=1)

    def sources(self) -> Sources:
        return Sources((np.arange(self.out_channels) // 2,))


@pytest.fixture(autouse=True)
def made_up_sections(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind, layer in {"blend": Blend, "gate": Gate, "repeat": Repeat}.items():
        monkeypatch.setitem(SECTIONS, kind, layer)


BLENDED = (conv(4, 3), conv(6, 3), "blend from=-2", conv(8, 3), *HEAD)
GATED = (conv(6, 3), conv(6, 1, activation="logistic"), "gate from=-2", conv(8, 3), *HEAD)
REPEATED = (conv(6, 3), "repeat", conv(8, 3), *HEAD)


def random_model(cfg: DarknetCfg) -> Darknet:
    model = random_network(cfg)
    with torch.no_grad():
        for weights in model.layer_weights().values():
            weights["weights"].copy_(torch.rand(weights["weights"].shape) + 0.5)
    return model


@pytest.mark.parametrize(
    ("sections", "groups"),
    [
        # Filters 0 to 3 of both convolutions go in pairs, the wider one's others by themselves.
        (BLENDED, [{0: 4, 1: 4}, {1: 2}, {3: 8}]),
        # A dead filter of the logistic convolution gives 0.5, but times what is dead with it: 0.
        (GATED, [{0: 6, 1: 6}, {3: 8}]),
        (REPEATED, [{0: 6}, {2: 8}]),
    ],
)
def test_channels_are_coupled_and_the_shrunk_network_equals_the_masked_one(
    sections: tuple[str, ...], groups: list[dict[int, int]]
) -> None:
    cfg = network(*sections)
    prunable = [group for group in coupling_groups(cfg) if group.prunable]
    assert [{member.layer: len(member.filters) for member in group.members} for group in prunable] == groups
    model = random_model(cfg)
    keep = {layer.index: torch.ones(layer.out_channels, dtype=torch.bool) for layer in cfg.convolutions}
    for group in prunable:
        for member in group.members:
            keep[member.layer][member.filters[::2]] = False
    small = shrink(model, keep)
    assert small.parameter_count() < model.parameter_count()
    assert largest_difference(apply_structured(model, keep), small, torch.rand(2, 3, 16, 16)) < 1e-5


def test_what_reads_a_gate_alive_at_zero_otherwise_freezes_it() -> None:
    cfg = network(*GATED[:3], "route layers=-1,1", *GATED[3:])
    (reason,) = {group.reason for group in coupling_groups(cfg) if 1 in group.layers}
    assert reason == "layer 1 turns zero into something else by activation logistic"


def test_weights_of_a_layer_stand_in_the_file_between_the_convolutions(tmp_path: Path) -> None:
    model = random_model(network(*BLENDED))
    model.save(tmp_path / "x.cfg", tmp_path / "x.weights")
    values = np.fromfile(tmp_path / "x.weights", "<f4", offset=20)
    before = sum(value.numel() for index in (0, 1) for value in model.conv(index).state_dict().values())
    own = model.layer_weights()[2]["weights"].detach().numpy()
    np.testing.assert_array_equal(values[before : before + 12].reshape(2, 6), own)
    again = load_darknet(tmp_path / "x.cfg", tmp_path / "x.weights")
    images = torch.rand(1, 3, 16, 16)
    torch.testing.assert_close(again(images), model(images), rtol=0, atol=0)
    torch.testing.assert_close(FoldedDarknet(model)(images), model(images))


def test_attribution_refuses_what_it_has_no_rule_for() -> None:
    model = random_model(network(*GATED))
    with pytest.raises(PruningError, match=r"layer 2: .*no rule for \[gate\]"):
        trace(model, torch.rand(1, 3, 16, 16), torch.zeros(1, 3, 16, 16), "rescale")


def test_options_of_training_are_counted_and_refused_ones_named() -> None:
    cfg = network(*BLENDED[:2], "blend from=-2 warm_up=3", *BLENDED[3:])
    assert [(one.section, one.option, one.line) for one in cfg.ignored_options] == [("blend", "warm_up", 22)]
    with pytest.raises(DarknetFormatError, match=r"cfg:22: recursive= of \[blend\] .*cannot read itself"):
        network(*BLENDED[:2], "blend from=-2 recursive=1", *BLENDED[3:])


def test_sections_of_darknet_that_are_refused_say_why() -> None:
    with pytest.raises(DarknetFormatError, match=r"cfg:\d+: \[crnn\] is not supported: .*state between images"):
        network(conv(8), "crnn", *HEAD)
