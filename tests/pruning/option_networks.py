"""Networks with the options of the fork of Darknet that most cfgs come from, hand-made and random."""

from __future__ import annotations

import torch
from hypothesis import strategies as st

from prunedeploy.models import Darknet
from prunedeploy.models.darknet import run_layers
from prunedeploy.models.darknet_cfg import DarknetCfg
from prunedeploy.models.sections import Convolutional
from prunedeploy.models.sections.convolutional import conv2d
from prunedeploy.pruning.coupling import coupling_groups
from pruning.darknets import ACTIVATIONS, HEAD, RandomCfg, conv, random_network

OPTION_NETWORKS: dict[str, tuple[str, ...]] = {
    "a narrower layer is added": (conv(8, 3), conv(12, 3), "shortcut from=-2 activation=relu6", conv(8, 3), *HEAD),
    "a wider layer is added": (conv(12, 3), conv(8, 3), "shortcut from=-2", conv(8, 3), "route layers=-1,0", *HEAD),
    "several layers are added": (
        conv(12, 3),
        conv(6, 3),
        conv(9, 3, activation="selu"),
        "shortcut from=-2,-3,-2 activation=elu",
        conv(8, 3),
        *HEAD,
    ),
    "a weight per input": (
        conv(8, 3),
        conv(12, 3),
        "shortcut from=-2 weights_type=per_feature weights_normalization=softmax",
        conv(8, 3, activation="tanh"),
        *HEAD,
    ),
    "a weight per channel": (
        conv(12, 3),
        conv(6, 3),
        conv(8, 3),
        "shortcut from=-2,-3 weights_type=per_channel weights_normalization=relu activation=leaky",
        conv(8, 3),
        *HEAD,
    ),
    "bare weights per channel": (
        conv(8, 3),
        conv(8, 3),
        "shortcut from=-2 weights_type=per_channel",
        conv(12, 3),
        *HEAD,
    ),
    "two strides": (
        conv(8, 3) + " stride_x=2",
        conv(8, 3) + " stride=2 stride_x=1",
        "maxpool size=3 stride_y=2",
        *HEAD,
    ),
    "antialiasing": (
        conv(8, 3) + " stride=2 antialiasing=1",
        conv(8, 3),
        "maxpool size=2 stride=2 antialiasing=1",
        *HEAD,
    ),
    "antialiasing of 2 x 2": (
        conv(8, 3) + " stride=2 antialiasing=2",
        conv(8, 3),
        "maxpool size=3 stride=2 antialiasing=2",
        *HEAD,
    ),
    "shared weights": (
        conv(8, 3),
        conv(12, 3),
        "route layers=0",
        conv(12, 3, activation="hard_mish") + " share_index=1 dilation=2",
        "shortcut from=1",
        conv(8),
        *HEAD,
    ),
    "shared grouped weights": (
        conv(8, 3),
        conv(8, 3, groups=8),
        conv(8, 3, groups=8) + " share_index=-1",
        conv(8),
        *HEAD,
    ),
    "largest of channels": (conv(12, 3), "maxpool maxpool_depth=1 out_channels=4", conv(8, 3), *HEAD),
    "largest of channels, not all as often": (conv(10, 3), "maxpool maxpool_depth=1 out_channels=4", conv(8), *HEAD),
    "scaled up and down": (
        conv(8, 3),
        "upsample stride=2 scale=1.5",
        conv(8, 3),
        "upsample stride=-2 scale=0.5",
        conv(8),
        *HEAD,
    ),
}
"""Sections by what is special about them."""


def random_options_network(cfg: DarknetCfg, seed: int = 0) -> Darknet:
    """A network with random parameters, the weights of shortcuts included, in evaluation mode."""
    model = random_network(cfg, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for own in model.layer_weights().values():
            for value in own.values():
                value.copy_(2 * torch.rand(value.shape, generator=generator) - 0.4)
    return model


def fit_normalisation(model: Darknet, images: torch.Tensor) -> Darknet:
    """Give every normalisation the statistics of these images, layer by layer; of shared ones those of the first."""

    def convolve(layer: Convolutional, x: torch.Tensor) -> torch.Tensor:
        conv = model.conv(layer.index)
        if conv.scale is not None and not layer.shares_weights:
            y = conv2d(x, conv.weight, None, layer)
            conv.mean.copy_(y.mean((0, 2, 3)))
            conv.variance.copy_(y.var((0, 2, 3), correction=0) + 1e-3)
        return conv(x, layer=layer)

    with torch.no_grad():
        run_layers(model.cfg.layers, images, convolve, model.layer_weights())
    return model


def half_of_every_group(model: Darknet) -> dict[int, torch.Tensor]:
    """Every second unit of what may leave, by layer index: which filters live."""
    keep = {layer.index: torch.ones(layer.out_channels, dtype=torch.bool) for layer in model.cfg.convolutions}
    for group in coupling_groups(model.cfg):
        if group.prunable and group.channels > 1:
            for member in group.members:
                keep[member.layer][member.filters[::2]] = False
    return keep


def _add(draw: st.DrawFn, graph: RandomCfg) -> None:
    index, (channels, height, width) = len(graph.shapes), graph.shapes[-1]
    same_size = [at for at, shape in enumerate(graph.shapes[:-1]) if shape[1:] == (height, width)]
    alike = [at for at, shape in enumerate(graph.inputs) if shape is not None and shape[0] == channels]
    kinds = ["conv", "conv", "antialiasing", "maxpool", "depth", "upsample"]
    kinds += ["shortcut"] * 4 * bool(same_size) + ["share"] * 3 * bool(alike)
    kind = draw(st.sampled_from(kinds))
    activation = draw(st.sampled_from(ACTIVATIONS))
    down, across = draw(st.sampled_from([(1, 1), (1, 2), (2, 1), (2, 2)])) if min(height, width) >= 8 else (1, 1)
    halved = (-(-height // down), -(-width // across))
    if kind == "shortcut":
        sources = draw(st.lists(st.sampled_from(same_size), min_size=1, max_size=3))
        weights = draw(st.sampled_from(["none", "per_feature", "per_channel"]))
        normalised = draw(st.sampled_from(["none", "relu", "softmax"]))
        text = f"shortcut from={','.join(map(str, sources))} activation={activation}"
        graph.add(f"{text} weights_type={weights} weights_normalization={normalised}", graph.shapes[-1])
    elif kind == "share":
        owner = draw(st.sampled_from(alike))
        size, filters, norm = graph.inputs[owner][1:]
        text = conv(filters, size, norm, activation) + f" dilation={draw(st.sampled_from([1, 2]))}"
        graph.add(f"{text} share_index={owner if draw(st.booleans()) else owner - index}", (filters, height, width))
    elif kind == "depth":
        kept = draw(st.integers(1, channels))
        graph.add(f"maxpool maxpool_depth=1 out_channels={kept}", (kept, height, width))
    elif kind == "maxpool":
        size = draw(st.sampled_from([2, 3]))
        out = ((height - 1) // down + 1, (width - 1) // across + 1)
        blur = draw(st.sampled_from([0, 1]))
        graph.add(f"maxpool size={size} stride_x={across} stride_y={down} antialiasing={blur}", (channels, *out))
    elif kind == "upsample":
        if height % 2 == 0 and width % 2 == 0 and height >= 8:
            graph.add("upsample stride=-2 scale=0.5", (channels, height // 2, width // 2))
        elif height <= 8:
            graph.add("upsample stride=2 scale=1.5", (channels, 2 * height, 2 * width))
    else:
        size, filters, norm = draw(st.sampled_from([1, 3])), draw(st.sampled_from([4, 6, 8, 12])), draw(st.booleans())
        text = conv(filters, size, norm, activation) + f" stride_x={across} stride_y={down}"
        text += " antialiasing=1" if kind == "antialiasing" else ""
        graph.add(text, (filters, *halved))
        graph.inputs[index] = (channels, size, filters, norm)


class OptionCfg(RandomCfg):
    """A cfg under construction that knows what its convolutions look like, so that others can share their weights."""

    @property
    def inputs(self) -> list[tuple[int, int, int, bool] | None]:
        """Per layer input channels, size, filters and normalisation of a convolution."""
        known = self.__dict__.setdefault("_inputs", [])
        known.extend([None] * (len(self.shapes) + 1 - len(known)))
        return known


@st.composite
def random_option_cfgs(draw: st.DrawFn) -> OptionCfg:
    """A small network of the options, with one or two heads."""
    graph = OptionCfg(size=draw(st.sampled_from([8, 12, 16])))
    graph.add(conv(8, 3), (8, graph.size, graph.size))
    for _ in range(draw(st.integers(1, 9))):
        _add(draw, graph)
    body = len(graph.shapes)
    for _ in range(draw(st.integers(1, 2))):
        source = draw(st.integers(0, body - 1))
        graph.add(f"route layers={source}", graph.shapes[source])
        _, height, width = graph.shapes[-1]
        graph.head_outputs.add(len(graph.shapes))
        graph.add(conv(6, 1, False, "linear"), (6, height, width))
        graph.add("yolo mask=0 anchors=4,5 classes=1", graph.shapes[-1])
    return graph
