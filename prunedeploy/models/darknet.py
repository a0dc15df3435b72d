"""The network that a Darknet cfg describes, as a PyTorch module."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from prunedeploy.models.darknet_cfg import DarknetCfg, read_cfg
from prunedeploy.models.darknet_conv import DarknetConv
from prunedeploy.models.darknet_weights import NEW_HEADER, LayerParameters, WeightFile, read_weights, weights_bytes
from prunedeploy.models.detector import Detector
from prunedeploy.models.sections import Convolutional, Layer
from prunedeploy_engines.files import write_atomically

ConvFunction = Callable[[Convolutional, Tensor], Tensor]
LayerWeights = Mapping[int, Mapping[str, Tensor]]
"""By layer index and name, the weights of layers that have some and are no convolutions."""


def run_layers(
    layers: Sequence[Layer], images: Tensor, convolve: ConvFunction, weights: LayerWeights | None = None
) -> list[Tensor]:
    """Run a layer graph with any implementation of its convolutions.

    Args:
        layers: The graph in cfg order.
        images: ``(B, C, H, W)``.
        convolve: Computes one convolutional layer, its normalisation and activation included.
        weights: The weights of the other layers, by layer index; None if none has any.

    Returns:
        Raw heads in cfg order, each ``(B, A * V, H, W)``.
    """
    last_reader = {source: layer.index for layer in layers for source in layer.inputs}
    outputs: dict[int, Tensor] = {-1: images}
    heads = []
    for layer in layers:
        inputs = [outputs[source] for source in layer.inputs]
        if layer.is_head:
            heads.append(inputs[0])
        elif layer.index in last_reader:
            if isinstance(layer, Convolutional):
                outputs[layer.index] = convolve(layer, inputs[0])
            else:
                outputs[layer.index] = layer.run(inputs, (weights or {}).get(layer.index, {}))
        for source in layer.inputs:
            if last_reader[source] == layer.index:
                outputs.pop(source, None)
    return heads


class OtherWeights(nn.Module):
    """The weights of a layer that is no convolution.

    Args:
        layer: The layer.

    Attributes:
        layer: The same.
    """

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        self.layer = layer
        for name, weight in layer.weights_in_file().items():
            self.register_parameter(name, nn.Parameter(torch.full(weight.shape, weight.initial)))

    def by_name(self) -> dict[str, Tensor]:
        """The weights."""
        return dict(self.named_parameters())


class Darknet(Detector):
    """A YOLO network built from a Darknet cfg.

    Args:
        cfg: The parsed cfg.
        header: Header bytes of the weight file; kept so that the file is written back as it was.

    Attributes:
        convs: `DarknetConv` by ``str(layer.index)``; a layer that shares another one's weights has none.
        others: Likewise, `OtherWeights` of the other layers that have weights.
    """

    def __init__(self, cfg: DarknetCfg, header: bytes = NEW_HEADER) -> None:
        super().__init__()
        self.cfg = cfg
        self.header = header
        self.convs = nn.ModuleDict({str(layer.index): DarknetConv(layer) for layer in cfg.convolutions})
        others = (layer for layer in cfg.weighted if not isinstance(layer, Convolutional))
        self.others = nn.ModuleDict({str(layer.index): OtherWeights(layer) for layer in others})

    def conv(self, index: int) -> DarknetConv:
        """The convolution at layer ``index`` of the cfg, or the one whose weights it shares."""
        layer = self.cfg.layers[index]
        assert isinstance(layer, Convolutional)
        module = self.convs[str(layer.weights_from)]
        assert isinstance(module, DarknetConv)
        return module

    def layer_weights(self) -> dict[int, dict[str, Tensor]]:
        """The weights of layers that are no convolutions, by layer index and name."""
        return {int(name): module.by_name() for name, module in self.others.items() if isinstance(module, OtherWeights)}

    def forward(self, images: Tensor) -> list[Tensor]:
        """Compute the raw heads.

        Args:
            images: ``(B, C, H, W)`` float, RGB in [0, 1].

        Returns:
            Raw heads in cfg order, each ``(B, A * V, H, W)``.

        Raises:
            ValueError: ``images`` has another rank or channel count.
        """
        check_images(images, self.cfg)

        def convolve(layer: Convolutional, x: Tensor) -> Tensor:
            output: Tensor = self.conv(layer.index)(x, layer=layer)
            return output

        return run_layers(self.cfg.layers, images, convolve, self.layer_weights())

    def for_inference(self, dtype: torch.dtype = torch.float32) -> Detector:
        """See `Detector.for_inference`: a `FoldedDarknet`."""
        return FoldedDarknet(self, dtype)

    def weight_file(self) -> WeightFile:
        """The parameters as they stand in a weight file."""
        states = (self._weights_of(layer).state_dict() for layer in self.cfg.weighted)
        parameters = ({name: value.detach().cpu().numpy() for name, value in state.items()} for state in states)
        return WeightFile(self.header, tuple(parameters))

    def _weights_of(self, layer: Layer) -> nn.Module:
        return (self.convs if isinstance(layer, Convolutional) else self.others)[str(layer.index)]

    def load_weight_file(self, file: WeightFile) -> None:
        """Take the parameters (and the header) of a weight file."""
        self.header = file.header
        indices = (layer.index for layer in self.cfg.weighted)
        self.load_parameters(dict(zip(indices, file.parameters, strict=True)))

    def load_parameters(self, parameters: Mapping[int, LayerParameters]) -> None:
        """Take the parameters of some layers, by layer index."""
        with torch.no_grad():
            for index, values in parameters.items():
                state = self._weights_of(self.cfg.layers[index]).state_dict()
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


class FoldedDarknet(Detector):
    """An inference copy of a `Darknet` with batch normalisation folded into constant weights.

    It computes what the original computes in evaluation mode, with one operation per layer, and
    has no parameters, so a backward pass through it reaches the images only. Folding is done once:
    the copy does not follow later changes of the original.

    Args:
        model: The network to copy; not modified.
        dtype: Data type of the folded weights and the computation.

    Attributes:
        cfg: The original's cfg.
        folded: ``(weight, bias)`` by layer index; layers that share weights have the same tensors.
        weights: Those of layers that are no convolutions, by layer index and name.
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
            self.folded = _for_all_convolutions(model.cfg, self.folded)
            self.weights = {
                index: {name: value.detach().to(dtype, copy=True) for name, value in own.items()}
                for index, own in model.layer_weights().items()
            }

    @classmethod
    def from_folded(
        cls, cfg: DarknetCfg, folded: Mapping[int, tuple[Tensor, Tensor]], weights: LayerWeights | None = None
    ) -> FoldedDarknet:
        """A network of given folded weights, which may carry gradients.

        Args:
            cfg: The graph.
            folded: ``(weight, bias)`` of every convolution with weights by layer index, all of one dtype.
            weights: The weights of the other layers, by layer index and name, used in that dtype; None if none has any.
        """
        network = cls.__new__(cls)
        nn.Module.__init__(network)
        network.cfg = cfg
        network.folded = _for_all_convolutions(cfg, folded)
        network.dtype = next(iter(network.folded.values()))[0].dtype
        network.weights = {
            index: {name: value.to(network.dtype) for name, value in own.items()}
            for index, own in (weights or {}).items()
        }
        return network

    @property
    def device(self) -> torch.device:
        """See `Detector.device`."""
        return next(iter(self.folded.values()))[0].device

    def convolve(self, layer: Convolutional, x: Tensor) -> Tensor:
        """One folded layer."""
        weight, bias = self.folded[layer.index]
        return layer.run([x], {"weight": weight, "bias": bias})

    def forward(self, images: Tensor) -> list[Tensor]:
        """Compute the raw heads, float32 whatever the computation (but float64 of float64); see `Darknet.forward`."""
        check_images(images, self.cfg)
        images = images.to(self.dtype).contiguous(memory_format=torch.channels_last)
        heads = run_layers(self.cfg.layers, images, self.convolve, self.weights)
        return [head if head.dtype == torch.float64 else head.float() for head in heads]


def _for_all_convolutions(
    cfg: DarknetCfg, folded: Mapping[int, tuple[Tensor, Tensor]]
) -> dict[int, tuple[Tensor, Tensor]]:
    return {layer.index: folded[layer.weights_from] for layer in cfg.all_convolutions}


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
    for head in model.cfg.heads:
        for source, first in head.prior_layers(model.cfg.layers):
            if isinstance(source, Convolutional):
                conv = model.conv(source.index)
                head.set_prior(conv.weight, conv.bias, first)
