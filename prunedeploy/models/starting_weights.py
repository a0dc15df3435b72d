"""Weights to start a training from: a whole file, the first layers of one, or those of the network with other classes.

Such files are what people have: ``darknet53.conv.74`` is YOLOv3 up to layer 74, ``yolov3-tiny.conv.15`` is YOLOv3-tiny
up to layer 15, and COCO's weights have 80 classes. What is there is loaded, the rest starts fresh. A finished network
is read by `prunedeploy.models.load_darknet`, which takes whole files only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from prunedeploy.models.cfg_rewriting import head_convolution, with_classes
from prunedeploy.models.darknet import Darknet, fresh_darknet
from prunedeploy.models.darknet_cfg import DarknetCfg
from prunedeploy.models.darknet_weights import layer_counts, layers_of_size, measure, read_weights, wrong_size
from prunedeploy_engines.errors import DarknetFormatError


@dataclass(frozen=True)
class StartingWeights:
    """What a weight file has for a network.

    Attributes:
        path: The file; None starts everything fresh.
        cfg: The network that is started.
        source: The network that the file belongs to: the same, or with another number of classes.
        in_file: Number of layers with weights, in the order of the cfg, that the file holds.
        loaded: Layer indices of those that are loaded.
    """

    path: Path | None
    cfg: DarknetCfg
    source: DarknetCfg
    in_file: int
    loaded: tuple[int, ...]

    @property
    def fresh(self) -> tuple[int, ...]:
        """Layer indices of those that start from random values."""
        return tuple(layer.index for layer in self.cfg.weighted if layer.index not in self.loaded)

    @property
    def is_partial(self) -> bool:
        """Whether the file ends before the network does."""
        return self.path is not None and self.in_file < len(self.source.weighted)

    def network(self, seed: int) -> Darknet:
        """Build the network, in evaluation mode: loaded where the file has something, fresh elsewhere.

        Args:
            seed: Seed of the fresh values.

        Raises:
            DarknetFormatError: The file holds values that cannot be weights of this network.
        """
        model = fresh_darknet(self.cfg, seed)
        if self.path is not None:
            file = read_weights(self.path, self.source, self.in_file)
            model.header = file.header
            indices = (layer.index for layer in self.source.weighted)
            model.load_parameters(
                {index: values for index, values in zip(indices, file.parameters, strict=False) if index in self.loaded}
            )
        return model


def starting_weights(
    cfg: DarknetCfg, path: str | Path | None, given: DarknetCfg | None = None, fresh_heads: bool = False
) -> StartingWeights:
    """Find out what a weight file has for a network; only its size is looked at.

    Args:
        cfg: The network to start.
        path: The file, whole or the first layers, of this network with any number of classes; None: nothing.
        given: The network before its heads were re-made, if they were; the file may be the first layers of it.
        fresh_heads: The heads' convolutions start fresh even if they fit: they are of other classes.

    Raises:
        DarknetFormatError: The file is missing, is longer than the network, or ends inside a layer.
    """
    given = cfg if given is None else given
    if path is None:
        return StartingWeights(None, cfg, given, 0, ())
    path = Path(path)
    source, in_file = _held(measure(path), path, [cfg, given])
    fits = zip(cfg.weighted, source.weighted[:in_file], strict=False)
    heads = {head_convolution(cfg, head).weights_from for head in cfg.heads} if fresh_heads else set()
    loaded = (mine.index for mine, theirs in fits if mine.weights_in_file() == theirs.weights_in_file())
    return StartingWeights(path, cfg, source, in_file, tuple(index for index in loaded if index not in heads))


def _held(values: int, path: Path, networks: Sequence[DarknetCfg]) -> tuple[DarknetCfg, int]:
    """The network that a file of so many values is of, and how many of its layers with weights the file holds."""
    classes = classes_of(networks[0], values)
    if classes is not None:
        source = next((cfg for cfg in networks if cfg.classes == classes), None)
        source = with_classes(networks[0], classes) if source is None else source
        return source, len(source.weighted)
    for cfg in networks:
        in_file = layers_of_size(cfg, values)
        if in_file is not None:
            return cfg, in_file
    raise wrong_size(path, networks[-1], values)


def classes_of(cfg: DarknetCfg, values: int) -> int | None:
    """The number of classes with which the network has so many values in all, None if there is none."""
    if values == sum(layer_counts(cfg)):
        return cfg.classes
    try:
        one, two = (sum(layer_counts(with_classes(cfg, classes))) for classes in (1, 2))
    except DarknetFormatError:  # the heads of this network cannot be re-made
        return None
    more, left_over = divmod(values - one, two - one)  # every class adds as many
    return 1 + more if more >= 0 and left_over == 0 else None
