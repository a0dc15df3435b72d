"""The network that a Darknet cfg describes, as a PyTorch module."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunedeploy.models.darknet_cfg import (
    Convolutional,
    DarknetCfg,
    Layer,
    Maxpool,
    Route,
    Shortcut,
    Upsample,
    Yolo,
    read_cfg,
)
from prunedeploy.models.darknet_weights import NEW_HEADER, ConvParameters, WeightFile, read_weights, weights_bytes
from prunedeploy_engines.files import write_atomically

# Darknet normalises by sqrt(var) + 1e-6 (normalize_cpu in blas.c), PyTorch by sqrt(var + eps).
DARKNET_BN_EPS = 1e-6
BN_MOMENTUM = 0.03

ConvFunction = Callable[[Convolutional, Tensor], Tensor]


_ACTIVATIONS: Mapping[str, Callable[[Tensor, bool], Tensor]] = {
    "linear": lambda x, _: x,
    "leaky": lambda x, inplace: F.leaky_relu(x, 0.1, inplace=inplace),
    "relu": lambda x, inplace: F.relu(x, inplace=inplace),
    "mish": lambda x, _: F.mish(x),
    "swish": lambda x, _: F.silu(x),
    "logistic": lambda x, _: torch.sigmoid(x),
}


def activate(x: Tensor, activation: str, inplace: bool = False) -> Tensor:
    """Apply a Darknet activation by its cfg name; leaky has slope 0.1."""
    if activation not in _ACTIVATIONS:
        raise ValueError(f"unknown activation {activation!r}")
    return _ACTIVATIONS[activation](x, inplace)


def run_layers(layers: Sequence[Layer], images: Tensor, convolve: ConvFunction) -> list[Tensor]:
    """Run a layer graph with any implementation of its convolutions.

    Args:
        layers: The graph in cfg order.
        images: ``(B, C, H, W)``.
        convolve: Computes one convolutional layer, its normalisation and activation included.

    Returns:
        Raw heads in cfg order, each ``(B, A * (5 + C), H, W)``.
    """
    last_reader = {source: layer.index for layer in layers for source in layer.inputs}
    outputs: dict[int, Tensor] = {-1: images}
    heads = []
    for layer in layers:
        inputs = [outputs[source] for source in layer.inputs]
        if isinstance(layer, Yolo):
            heads.append(inputs[0])
        elif layer.index in last_reader:
            outputs[layer.index] = (
                convolve(layer, inputs[0]) if isinstance(layer, Convolutional) else run_layer(layer, inputs)
            )
        for source in layer.inputs:
            if last_reader[source] == layer.index:
                outputs.pop(source, None)
    return heads


def run_layer(layer: Layer, inputs: list[Tensor]) -> Tensor:
    """Compute a layer without weights from its inputs, each ``(B, C, H, W)``.

    Raises:
        TypeError: It is not a maxpool, upsample, route or shortcut layer.
    """
    if isinstance(layer, Maxpool):
        return _maxpool(inputs[0], layer)
    if isinstance(layer, Upsample):
        return F.interpolate(inputs[0], scale_factor=float(layer.stride), mode="nearest")
    if isinstance(layer, Route):
        if layer.groups > 1:
            inputs = [x.chunk(layer.groups, dim=1)[layer.group_id] for x in inputs]
        return inputs[0] if len(inputs) == 1 else torch.cat(inputs, dim=1)
    if isinstance(layer, Shortcut):
        return activate(inputs[0] + inputs[1], layer.activation)
    raise TypeError(f"no rule for a {layer.kind} layer")


def _maxpool(x: Tensor, layer: Maxpool) -> Tensor:
    before, after = layer.padding // 2, layer.padding - layer.padding // 2
    if before == after and before <= layer.size // 2:
        return F.max_pool2d(x, layer.size, layer.stride, before)
    border = pool_border(layer, x.shape[-2:])
    return F.max_pool2d(F.pad(x, border, value=-math.inf) if any(border) else x, layer.size, layer.stride)


def pool_border(layer: Maxpool, size: Sequence[int]) -> tuple[int, int, int, int]:
    """The padding that a maxpool reads of a map of ``(height, width)``: left, right, top, bottom.

    Cells beyond the last window that fits are never read, so an even map at 2/2 needs no padding.
    """
    before = layer.padding // 2
    bottom, right = (
        max(0, (side + layer.padding - layer.size) // layer.stride * layer.stride + layer.size - side - before)
        for side in size
    )
    return before, right, before, bottom


class DarknetConv(nn.Module):
    """One convolutional layer: convolution, Darknet's batch normalisation, activation.

    The parameters carry Darknet's names and values, the variance without an epsilon, so that
    they are written back bit for bit.

    Args:
        layer: The layer of the cfg.

    Attributes:
        weight: ``(filters, in / groups, size, size)``.
        bias: ``(filters,)``; with batch normalisation its shift.
        scale: ``(filters,)``, or None without batch normalisation.
        mean: ``(filters,)``, running; only with batch normalisation. So is ``variance``, without any epsilon.
    """

    def __init__(self, layer: Convolutional) -> None:
        super().__init__()
        self.layer = layer
        self.momentum = BN_MOMENTUM
        self.weight = nn.Parameter(torch.empty(layer.weight_shape))
        nn.init.kaiming_normal_(self.weight, a=0.1, nonlinearity="leaky_relu")
        self.bias = nn.Parameter(torch.zeros(layer.out_channels))
        self.scale: nn.Parameter | None = None
        self.mean: Tensor
        self.variance: Tensor
        if layer.batch_normalize:
            self.scale = nn.Parameter(torch.ones(layer.out_channels))
            self.register_buffer("mean", torch.zeros(layer.out_channels))
            self.register_buffer("variance", torch.ones(layer.out_channels))

    def normalisation(self) -> tuple[Tensor, Tensor]:
        """Factor and shift, each ``(filters,)``, of batch normalisation in evaluation."""
        assert self.scale is not None
        factor = self.scale / (self.variance.sqrt() + DARKNET_BN_EPS)
        return factor, self.bias - self.mean * factor

    def folded(self, weight: Tensor | None = None, channel_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Weight and bias of the one convolution that equals convolution + normalisation in evaluation.

        Args:
            weight: As `forward`.
            channel_mask: As `forward`.
        """
        folded: Tensor = self.weight if weight is None else weight
        bias: Tensor = self.bias
        if self.scale is not None:
            factor, bias = self.normalisation()
            folded = folded * factor.view(-1, 1, 1, 1)
        if channel_mask is not None:
            folded, bias = folded * channel_mask.view(-1, 1, 1, 1), bias * channel_mask
        return folded, bias

    def forward(self, x: Tensor, weight: Tensor | None = None, channel_mask: Tensor | None = None) -> Tensor:
        """Compute the layer.

        Args:
            x: ``(B, in, H, W)``.
            weight: Used in the place of the layer's own, e.g. masked; same shape.
            channel_mask: ``(filters,)``, multiplied onto the output before the activation.

        Returns:
            ``(B, filters, H', W')``.
        """
        layer = self.layer
        if self.scale is None or not self.training:
            y = conv2d(x, *self.folded(weight, channel_mask), layer)
            return activate(y, layer.activation, inplace=True)
        y = conv2d(x, self.weight if weight is None else weight, None, layer)
        y = F.batch_norm(
            y, self.mean, self.variance, self.scale, self.bias, training=True, momentum=self.momentum, eps=1e-5
        )
        if channel_mask is not None:
            y = y * channel_mask.view(1, -1, 1, 1).to(y.dtype)
        return activate(y, layer.activation)


def conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, layer: Convolutional) -> Tensor:
    """The bare convolution of ``layer``."""
    return F.conv2d(x, weight, bias, layer.stride, layer.padding, layer.dilation, layer.groups)


class Darknet(nn.Module):
    """A YOLO network built from a Darknet cfg.

    Args:
        cfg: The parsed cfg.
        header: Header bytes of the weight file; kept so that the file is written back as it was.

    Attributes:
        convs: `DarknetConv` by ``str(layer.index)``.
    """

    def __init__(self, cfg: DarknetCfg, header: bytes = NEW_HEADER) -> None:
        super().__init__()
        self.cfg = cfg
        self.header = header
        self.convs = nn.ModuleDict({str(layer.index): DarknetConv(layer) for layer in cfg.convolutions})

    def conv(self, index: int) -> DarknetConv:
        """The convolution at layer ``index`` of the cfg."""
        module = self.convs[str(index)]
        assert isinstance(module, DarknetConv)
        return module

    def forward(self, images: Tensor) -> list[Tensor]:
        """Compute the raw heads.

        Args:
            images: ``(B, C, H, W)`` float, RGB in [0, 1].

        Returns:
            Raw heads in cfg order, each ``(B, A * (5 + C), H, W)``.

        Raises:
            ValueError: ``images`` has another rank or channel count.
        """
        check_images(images, self.cfg)
        return run_layers(self.cfg.layers, images, lambda layer, x: self.conv(layer.index)(x))

    def weight_file(self) -> WeightFile:
        """The parameters as they stand in a weight file."""
        states = [self.conv(layer.index).state_dict() for layer in self.cfg.convolutions]
        parameters = ({name: value.detach().cpu().numpy() for name, value in state.items()} for state in states)
        return WeightFile(self.header, tuple(parameters))

    def load_weight_file(self, file: WeightFile) -> None:
        """Take the parameters (and the header) of a weight file."""
        self.header = file.header
        indices = (layer.index for layer in self.cfg.convolutions)
        self.load_parameters(dict(zip(indices, file.parameters, strict=True)))

    def load_parameters(self, parameters: Mapping[int, ConvParameters]) -> None:
        """Take the parameters of some convolutions, by layer index."""
        with torch.no_grad():
            for index, values in parameters.items():
                state = self.conv(index).state_dict()
                for name, value in values.items():
                    state[name].copy_(torch.from_numpy(value.copy()))

    def save(self, cfg: str | Path, weights: str | Path) -> None:
        """Write ``.cfg`` and ``.weights``, each atomically.

        Raises:
            StoreError: The file system refuses.
        """
        write_atomically(cfg, self.cfg.to_bytes())
        write_atomically(weights, weights_bytes(self.cfg, self.weight_file()))

    def parameter_count(self) -> int:
        """Number of values in the weight file, running statistics included."""
        return sum(value.numel() for value in self.state_dict().values())


class FoldedDarknet(nn.Module):
    """An inference copy of a `Darknet` with batch normalisation folded into constant weights.

    It computes what the original computes in evaluation mode, with one operation per layer, and
    has no parameters, so a backward pass through it reaches the images only. Folding is done once:
    the copy does not follow later changes of the original.

    Args:
        model: The network to copy; not modified.
        dtype: Data type of the folded weights and the computation.

    Attributes:
        cfg: The original's cfg.
        folded: ``(weight, bias)`` by layer index.
    """

    def __init__(self, model: Darknet, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.cfg = model.cfg
        self.dtype = dtype
        self.folded: dict[int, tuple[Tensor, Tensor]] = {}
        with torch.no_grad():
            for layer in model.cfg.convolutions:
                weight, bias = model.conv(layer.index).folded()
                weight = weight.detach().to(dtype, copy=True).contiguous(memory_format=torch.channels_last)
                self.folded[layer.index] = (weight, bias.detach().to(dtype, copy=True))

    @classmethod
    def from_folded(cls, cfg: DarknetCfg, folded: Mapping[int, tuple[Tensor, Tensor]]) -> FoldedDarknet:
        """A network of given folded weights, which may carry gradients.

        Args:
            cfg: The graph.
            folded: ``(weight, bias)`` of every convolution by layer index, all of one dtype.
        """
        network = cls.__new__(cls)
        nn.Module.__init__(network)
        network.cfg = cfg
        network.folded = dict(folded)
        network.dtype = next(iter(network.folded.values()))[0].dtype
        return network

    def convolve(self, layer: Convolutional, x: Tensor) -> Tensor:
        """One folded layer."""
        weight, bias = self.folded[layer.index]
        return activate(conv2d(x, weight, bias, layer), layer.activation, inplace=True)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Compute the raw heads, float32 whatever the computation (but float64 of float64); see `Darknet.forward`."""
        check_images(images, self.cfg)
        images = images.to(self.dtype).contiguous(memory_format=torch.channels_last)
        heads = run_layers(self.cfg.layers, images, self.convolve)
        return [head if head.dtype == torch.float64 else head.float() for head in heads]


def check_images(images: Tensor, cfg: DarknetCfg) -> None:
    """Refuse a batch that the network cannot take.

    Raises:
        ValueError: Prints the expected and the given shape.
    """
    if images.ndim != 4 or images.shape[1] != cfg.input_shape[0]:
        raise ValueError(f"expected images (B, {cfg.input_shape[0]}, H, W), got {tuple(images.shape)}")


def load_darknet(cfg: str | Path | DarknetCfg, weights: str | Path | None = None, seed: int = 0) -> Darknet:
    """Build a network from Darknet files, in evaluation mode.

    Args:
        cfg: A ``.cfg`` file, or one already parsed.
        weights: A ``.weights`` file; None initialises at random.
        seed: Seed of the random initialisation.

    Raises:
        DarknetFormatError: A file is not what it should be; the message says what and where.
    """
    parsed = cfg if isinstance(cfg, DarknetCfg) else read_cfg(cfg)
    file = None if weights is None else read_weights(weights, parsed)
    model = fresh_darknet(parsed, seed)
    if file is not None:
        model.load_weight_file(file)
    return model


def fresh_darknet(cfg: DarknetCfg, seed: int) -> Darknet:
    """Build a network with random weights, in evaluation mode.

    Args:
        cfg: The network.
        seed: Seed of the weights.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Darknet(cfg)
    _prepare_heads(model)
    return model.eval()


def _prepare_heads(model: Darknet) -> None:
    """Start objectness and class logits at a low prior (focal loss paper, Lin et al. 2017, section 4.1)."""
    with torch.no_grad():
        for head in model.cfg.heads:
            source = model.cfg.layers[head.inputs[0]]
            if isinstance(source, Convolutional):
                conv = model.conv(source.index)
                conv.weight.mul_(0.1)
                bias = conv.bias.view(len(head.anchor_indices), 5 + head.classes)
                bias[:, 4] = -4.0
                bias[:, 5:] = -2.0
