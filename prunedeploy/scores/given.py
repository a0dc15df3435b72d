"""Scores that somebody else has taken: read from a file instead of from the network."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from prunedeploy.data.batches import Batch
from prunedeploy.models.darknet import Darknet
from prunedeploy.models.darknet_cfg import DarknetCfg
from prunedeploy.scores.interface import DetectionLoss, Scores
from prunedeploy_engines.errors import PruningError

OF_THIS_NETWORK = "give scores of this network"


@dataclass(frozen=True)
class GivenScores:
    """The scores of a file, by the interface of every score.

    Attributes:
        scores: By layer index: weight-shaped float32.
        sha256: SHA-256 of the file's content.
    """

    scores: Scores
    sha256: str

    def __call__(self, model: Darknet, batches: Iterable[Batch] = (), loss: DetectionLoss | None = None) -> Scores:
        """The scores as they were read; neither the network nor images are looked at."""
        return dict(self.scores)


def read_given_scores(path: Path, cfg: DarknetCfg) -> GivenScores:
    """Read scores as a stage leaves them: safetensors, one float tensor per convolution, named by its layer index.

    Args:
        path: The file. It is read once, so that its digest is that of what is returned.
        cfg: The network that the scores must be of.

    Returns:
        Scores in float32, whatever float they were stored in.

    Raises:
        PruningError: The file cannot be read, is not safetensors, is of another network, or has values that are no
            finite floats.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        fix = "give the scores.safetensors that a score stage has left"
        raise PruningError(f"cannot be read ({error.strerror or error})", path, fix) from None
    try:
        tensors = load(content)
    except (SafetensorError, KeyError, ValueError, TypeError) as error:  # KeyError: a dtype that torch does not have
        reason = str(error).removeprefix("Error while deserializing: ")
        fix = "give a whole file of scores"
        raise PruningError(f"is not a safetensors file that can be read ({reason})", path, fix) from None
    return GivenScores(_checked(tensors, path, cfg), hashlib.sha256(content).hexdigest())


def _checked(tensors: Mapping[str, Tensor], path: Path, cfg: DarknetCfg) -> Scores:
    """The tensors by layer index, in the order of the network.

    Raises:
        PruningError: Names the first layer that does not fit, with both shapes.
    """
    by_layer = {_layer_index(name, path): value for name, value in tensors.items()}
    shapes = {layer.index: layer.weight_shape for layer in cfg.convolutions}
    for index in sorted(by_layer.keys() | shapes.keys()):
        found = tuple(by_layer[index].shape) if index in by_layer else None
        if found is None:
            what = f"has no scores for layer {index}, the network's weights are {shapes[index]}"
        elif index not in shapes:
            what = f"has scores {found} for layer {index}, which is no convolution of the network"
        elif found != shapes[index]:
            what = f"has scores {found} for layer {index}, the network's weights are {shapes[index]}"
        else:
            continue
        raise PruningError(what, path, OF_THIS_NETWORK)
    return {index: _finite(by_layer[index], index, path) for index in shapes}


def _layer_index(name: str, path: Path) -> int:
    if not re.fullmatch("0|[1-9][0-9]{0,8}", name):
        shown = name if len(name) <= 40 else f"{name[:37]}..."
        what = f"has a tensor called {shown!r}; in a file of scores they are called by their layer's index"
        raise PruningError(what, path, "give a file of scores, not of weights")
    return int(name)


def _finite(value: Tensor, index: int, path: Path) -> Tensor:
    if not value.is_floating_point():
        what = f"has scores of type {str(value.dtype).removeprefix('torch.')} for layer {index}"
        raise PruningError(what, path, "store floats")
    scores = value.float()
    if not bool(scores.isfinite().all()):
        what = f"has scores for layer {index} that are not finite numbers in float32"
        raise PruningError(what, path, "mend whatever has made them")
    return scores
