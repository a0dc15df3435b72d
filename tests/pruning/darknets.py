"""Networks for the pruning tests: random cfgs, random parameters, cuts, and counts made without the package."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from hypothesis import strategies as st
from torch import Tensor

from prunedeploy.models import Darknet, load_darknet
from prunedeploy.models.darknet_cfg import DarknetCfg, parse_cfg
from prunedeploy.pruning.coupling import coupling_groups, prunable_convolutions
from prunedeploy.pruning.cut import Cut, Masks, make_cut
from prunedeploy.pruning.granularity import Allocation, Evidence, Granularity

ACTIVATIONS = (
    "linear", "leaky", "relu", "mish", "swish", "logistic", "relu6", "elu", "selu", "tanh", "hard_mish", "h_swish",
)  # fmt: skip
Shape = tuple[int, int, int]


def network(*sections: str, size: int = 16, channels: int = 3) -> DarknetCfg:
    """A cfg from sections in short form, ``"convolutional filters=8 size=3"``."""
    blocks = [f"[net]\nwidth={size}\nheight={size}\nchannels={channels}\n"]
    for section in sections:
        kind, *options = section.split()
        blocks.append("\n".join([f"[{kind}]", *options]) + "\n")
    return parse_cfg("\n".join(blocks))


def conv(filters: int, size: int = 1, norm: bool = True, activation: str = "leaky", groups: int = 1) -> str:
    """A convolution in short form."""
    text = f"convolutional filters={filters} size={size} pad=1 activation={activation}"
    return text + (" batch_normalize=1" if norm else "") + (f" groups={groups}" if groups > 1 else "")


HEAD = (conv(6, norm=False, activation="linear"), "yolo mask=0 anchors=4,5 classes=1")


def sparsity(model: Darknet) -> float:
    """Zeros / weights, of all prunable convolutions."""
    weights = [model.conv(layer.index).weight for layer in prunable_convolutions(model.cfg)]
    return sum(int((weight == 0).sum()) for weight in weights) / sum(weight.numel() for weight in weights)


def randomise(model: Darknet, seed: int = 0) -> Darknet:
    """Give every parameter, statistics included, a random value that keeps activations in a sane range."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(like: Tensor, low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(like.shape, generator=generator, dtype=like.dtype)

    with torch.no_grad():
        for layer in model.cfg.convolutions:
            module = model.conv(layer.index)
            module.bias.copy_(uniform(module.bias, -1, 1))
            if module.scale is not None:
                module.scale.copy_(uniform(module.scale, 0.5, 1.5))
                module.mean.copy_(uniform(module.mean, -0.5, 0.5))
                module.variance.copy_(uniform(module.variance, 0.5, 2))
    return model


def random_network(cfg: DarknetCfg, seed: int = 0) -> Darknet:
    """A network with random parameters, in evaluation mode."""
    return randomise(load_darknet(cfg, seed=seed), seed)


def scores_of(cfg: DarknetCfg, seed: int = 0) -> dict[int, Tensor]:
    """Random scores of either sign."""
    generator = torch.Generator().manual_seed(seed)
    return {layer.index: torch.randn(layer.weight_shape, generator=generator) for layer in cfg.convolutions}


def flat_time(layer: int, filters: float, inputs: float) -> float:
    """As if every weight took the same time."""
    return filters * inputs


def cut_by(granularity: Granularity, model: Darknet, scores: dict[int, Tensor]) -> tuple[Cut, Masks, Allocation]:
    """Cut as a build does: allocate, select, apply."""
    allocation = granularity.allocate(model.cfg, Evidence(scores, flat_time))
    masks = granularity.selection(model.cfg, allocation)(scores).as_bool()
    return make_cut(model, masks), masks, allocation


def largest_difference(model: Darknet, other: Darknet, images: Tensor) -> float:
    """Largest difference relative to the largest value of ``model``'s head, of the worst head."""
    with torch.no_grad():
        pairs = list(zip(model(images), other(images), strict=True))
    for head, _ in pairs:
        assert bool(torch.isfinite(head).all())
        assert float(head.abs().max()) > 1e-3
    return max(float((a - b).abs().max() / a.abs().max()) for a, b in pairs)


def weights_but_head_outputs(model: Darknet, head_outputs: set[int]) -> int:
    """Weights of all convolutions but those named, counted one convolution at a time."""
    total = 0
    for name, parameter in model.named_parameters():
        _, index, kind = name.split(".")
        if kind == "weight" and int(index) not in head_outputs:
            total += parameter.numel()
    return total


@dataclass
class RandomCfg:
    """A cfg under construction; it does its own book-keeping of shapes."""

    size: int
    shapes: list[Shape] = field(default_factory=list)
    sections: list[str] = field(default_factory=list)
    head_outputs: set[int] = field(default_factory=set)

    def add(self, section: str, shape: Shape) -> None:
        self.sections.append(section)
        self.shapes.append(shape)

    @property
    def cfg(self) -> DarknetCfg:
        return network(*self.sections, size=self.size)


def _divisors(*numbers: int) -> list[int]:
    return [d for d in range(1, min(numbers) + 1) if all(number % d == 0 for number in numbers)]


def _add_conv(draw: st.DrawFn, graph: RandomCfg, filters: int, grouped: bool) -> None:
    channels, height, width = graph.shapes[-1] if graph.shapes else (3, graph.size, graph.size)
    groups = 1
    if grouped:
        groups = draw(st.sampled_from(_divisors(channels, filters)))
        if draw(st.booleans()):
            groups, filters = channels, channels * draw(st.sampled_from([1, 1, 2]))
    size, stride = draw(st.sampled_from([1, 3])), 1
    if min(height, width) >= 8:
        stride = draw(st.sampled_from([1, 1, 2]))
    # logistic freezes what it touches, so it comes up less often
    activation = draw(st.sampled_from(ACTIVATIONS[:5] * 2 + ACTIVATIONS))
    text = conv(filters, size, draw(st.booleans()), activation, groups) + f" stride={stride}"
    graph.add(text, (filters, -(-height // stride), -(-width // stride)))


def _add_gate(draw: st.DrawFn, graph: RandomCfg, kind: str) -> None:
    """The last layer times what a convolution makes of it, or of its means."""
    shape, channels = graph.shapes[-1], graph.shapes[-1][0]
    source = len(graph.shapes) - 1
    if kind == "scale_channels":
        graph.add("avgpool", (channels, 1, 1))
    spread = kind == "scale_channels" and draw(st.sampled_from([False, False, False, True]))
    if spread:  # one channel for all
        graph.sections[-1:], graph.shapes[-1:] = [f"route layers={source}"], [shape]
    gate = 1 if spread else channels
    activation = draw(st.sampled_from(("logistic",) * 4 + ACTIVATIONS))
    graph.add(conv(gate, 1, draw(st.booleans()), activation), (gate, *graph.shapes[-1][1:]))
    behind = draw(st.sampled_from(("linear",) * 4 + ACTIVATIONS))
    target = source - len(graph.shapes) if draw(st.booleans()) else source
    graph.add(f"{kind} from={target} activation={behind}" + " scale_wh=1" * spread, shape)


def _add_rearrangement(draw: st.DrawFn, graph: RandomCfg, grouped: bool) -> None:
    channels, height, width = graph.shapes[-1]
    # The odd orders tie more than what a channel is a function of where four divides the height.
    ways = [("reorg3d", False), ("reorg", True)] + [("reorg", False), ("reorg3d", True)] * grouped
    kind, reverse = draw(st.sampled_from(ways))
    odd = (kind, reverse) in (("reorg", False), ("reorg3d", True))
    if reverse:
        fits, out = channels % (16 if odd else 4) == 0, (channels // 4, 2 * height, 2 * width)
    else:
        fits = height % 2 == 0 and width % 2 == 0 and (channels % 4 == 0 or not odd)
        out = 4 * channels, height // 2, width // 2
    if fits and out[0] <= 96 and out[1] <= 16:
        graph.add(f"{kind} stride=2 reverse={int(reverse)}", out)


def _add_attention(draw: st.DrawFn, graph: RandomCfg) -> None:
    """Attention by convolutions of the last layer."""
    source, (_, height, width) = len(graph.shapes) - 1, graph.shapes[-1]
    heads, parts = draw(st.sampled_from([1, 2, 4])), []
    lengths = draw(st.sampled_from([4, 8])), draw(st.sampled_from([8, 12]))
    for filters in (lengths[0], lengths[0], lengths[1]):
        graph.add(f"route layers={source}", graph.shapes[source])
        # What is alive at zero freezes heads, so it comes up less often
        activation = draw(st.sampled_from(("linear",) * 6 + ACTIVATIONS))
        graph.add(conv(filters, 1, draw(st.booleans()), activation), (filters, height, width))
        parts.append(str(len(graph.shapes) - 1))
    text = f"attention from={','.join(parts)} heads={heads} scale={draw(st.sampled_from([0.1, 0.5, -0.3]))}"
    graph.add(text, (lengths[1], height, width))


def _add_layer(draw: st.DrawFn, graph: RandomCfg, grouped: bool, products: bool, attention: bool) -> None:
    index = len(graph.shapes)
    channels, height, width = shape = graph.shapes[-1]
    same_size = [i for i, other in enumerate(graph.shapes) if other[1:] == shape[1:] and i not in graph.head_outputs]
    same_shape = [i for i in same_size[:-1] if graph.shapes[i] == shape]
    kinds = ["conv", "conv", "keep width", "route", "route", "maxpool"]
    kinds += ["avgpool"] * (graph.size > 8) + ["local_avgpool", "passing on", "rearrangement", "rearrangement"]
    kinds += (["sam", "scale_channels"] + ["product"] * bool(same_shape)) * products
    kinds += ["attention"] * 3 * attention
    kinds += ["shortcut"] * 4 * bool(same_shape) + ["upsample"] * (height <= 8)
    kind = draw(st.sampled_from(kinds))
    if kind == "shortcut":
        source = draw(st.sampled_from(same_shape))
        activation = draw(st.sampled_from(("linear",) * 4 + ACTIVATIONS))
        graph.add(f"shortcut from={source - index} activation={activation}", shape)
    elif kind == "route":
        sources = draw(st.lists(st.sampled_from(same_size), min_size=1, max_size=4))
        widths = [graph.shapes[i][0] for i in sources]
        groups = draw(st.sampled_from(_divisors(*widths)[:3])) if grouped else 1
        if sum(widths) // groups > 80:
            return
        text = "route layers=" + ",".join(str(i if draw(st.booleans()) else i - index) for i in sources)
        if groups > 1:
            text += f" groups={groups} group_id={draw(st.integers(0, groups - 1))}"
        graph.add(text, (sum(widths) // groups, height, width))
    elif kind == "maxpool":
        size, stride = draw(st.sampled_from([(2, 2), (2, 1), (3, 1), (5, 1)]))
        if min(height, width) < 4:
            stride = 1
        padding = size - 1
        out = ((height + padding - size) // stride + 1, (width + padding - size) // stride + 1)
        graph.add(f"maxpool size={size} stride={stride}", (channels, *out))
    elif kind == "avgpool":
        graph.add("avgpool", (channels, 1, 1))
    elif kind == "local_avgpool":
        size, stride, padding = draw(st.sampled_from([(2, 2, 0), (2, 2, 1), (3, 1, 2), (3, 2, 2), (4, 3, 3)]))
        if min(height, width) >= size:
            out = ((height + padding - size) // stride + 1, (width + padding - size) // stride + 1)
            graph.add(f"local_avgpool size={size} stride={stride} padding={padding}", (channels, *out))
    elif kind == "passing on":
        graph.add(draw(st.sampled_from(["dropout probability=.5", "cost type=sse", "contrastive classes=1"])), shape)
    elif kind == "rearrangement":
        _add_rearrangement(draw, graph, grouped)
    elif kind == "attention":
        _add_attention(draw, graph)
    elif kind in ("sam", "scale_channels"):
        _add_gate(draw, graph, kind)
    elif kind == "product":
        graph.add(f"sam from={draw(st.sampled_from(same_shape)) - index}", shape)
    elif kind == "upsample":
        graph.add("upsample stride=2", (channels, 2 * height, 2 * width))
    else:
        filters = channels if kind == "keep width" else draw(st.sampled_from([4, 6, 8, 12, 16, 16, 24, 32]))
        _add_conv(draw, graph, filters, grouped)


@st.composite
def random_cfgs(draw: st.DrawFn, grouped: bool = True, products: bool = True, attention: bool = False) -> RandomCfg:
    """A small network of every supported kind of layer, with one to three heads.

    Args:
        draw: From hypothesis.
        grouped: Whether grouped convolutions, sliced routes and Darknet's odd order occur.
        products: Whether layers that multiply occur.
        attention: Whether attention occurs.
    """
    graph = RandomCfg(size=draw(st.sampled_from([8, 12, 16])))
    _add_conv(draw, graph, draw(st.sampled_from([8, 16, 24])), grouped)
    for _ in range(draw(st.integers(1, 12))):
        _add_layer(draw, graph, grouped, products, attention)
    body = len(graph.shapes)
    for _ in range(draw(st.integers(1, 3))):
        source = draw(st.integers(0, body - 1))
        graph.add(f"route layers={source}", graph.shapes[source])
        if draw(st.booleans()):
            _add_conv(draw, graph, draw(st.sampled_from([8, 16])), False)
        anchors = draw(st.integers(1, 2))
        _, height, width = graph.shapes[-1]
        graph.head_outputs.add(len(graph.shapes))
        graph.add(conv(6 * anchors, 1, False, "linear"), (6 * anchors, height, width))
        mask = ",".join(str(i) for i in range(anchors))
        graph.add(f"yolo mask={mask} anchors=4,5,6,7 classes=1", graph.shapes[-1])
    return graph


def any_choice_of_units(data: st.DataObject, cfg: DarknetCfg) -> dict[int, Tensor]:
    """Which filters of every convolution live, where any units but the last of each group may leave."""
    keep = {layer.index: torch.ones(layer.out_channels, dtype=torch.bool) for layer in cfg.convolutions}
    for group in coupling_groups(cfg):
        if group.prunable:
            dead = data.draw(st.sets(st.integers(0, group.channels - 1), max_size=group.channels - 1))
            for member in group.members:
                keep[member.layer][member.filters[sorted(dead)]] = False
    return keep
