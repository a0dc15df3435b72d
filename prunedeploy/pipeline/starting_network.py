"""What a build starts from: the given network, made to fit the data's classes, the input size and the anchors."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from prunedeploy.config import BUNDLED, BuildConfig
from prunedeploy.config.blocks import PretrainConfig
from prunedeploy.data import Allowed, CocoDataset, load_splits
from prunedeploy.data.anchors import AnchorFit, box_sizes, cluster_anchors, fit
from prunedeploy.data.categories import match_categories
from prunedeploy.data.class_names import COCO_NAMES, read_names
from prunedeploy.data.demo import CLASS_NAMES
from prunedeploy.models.cfg_rewriting import anchor_slots, with_anchors, with_classes, with_input_size, with_letterbox
from prunedeploy.models.darknet_cfg import DarknetCfg, read_cfg
from prunedeploy.models.normalisation import lacking_normalisation, normalised_cfg
from prunedeploy.models.starting_weights import StartingWeights, starting_weights
from prunedeploy.resources import asset_path, darknet_cfg_path
from prunedeploy_engines.errors import ConfigError, DataError

NORMALISATION_IMAGES = 64
"""Statistics of normalisation that is put back are those of so many training images, or of all if there are fewer."""
MOST_NAMES = 5
"""So many of the data's classes are named in a message."""


@dataclass(frozen=True)
class NewAnchors:
    """Anchors by k-means on the training boxes.

    Attributes:
        boxes: Number of boxes they were found on.
        before: How well the given anchors cover these boxes.
        after: How well the new ones do.
    """

    boxes: int
    before: AnchorFit
    after: AnchorFit


@dataclass(frozen=True)
class StartingNetwork:
    """What a build starts from.

    Attributes:
        start: ``pretrain.from``.
        given: The cfg as given, with the build's input size.
        own_size: ``(height, width)`` of the input in the cfg's file.
        cfg: The network that is trained: ``given`` with the data's classes, the build's anchors and normalisation.
        class_names: Class names of the network, in the order of its scores.
        weights: What is loaded, and what starts fresh, before normalisation is put back.
        remade: The heads were re-made for the data's classes, which the network did not know.
        anchors: The anchors, where they were chosen anew.
        normalised: In so many convolutions batch normalisation is put back,
        statistics_images: with statistics of so many training images; 0 where weights are random, whose normalisation
            starts as usual.
    """

    start: str
    given: DarknetCfg
    own_size: tuple[int, int]
    cfg: DarknetCfg
    class_names: list[str]
    weights: StartingWeights
    remade: bool
    anchors: NewAnchors | None
    normalised: int
    statistics_images: int

    @property
    def is_transferred(self) -> bool:
        """Given weights do not fit as they are: a part starts fresh, or the anchors are others."""
        return self.start == "given" and (bool(self.weights.fresh) or self.anchors is not None)

    @property
    def cfg_sha256(self) -> str:
        """Digest of the cfg, for the keys of stages: of an unchanged one the digest of its file."""
        return hashlib.sha256(self.cfg.to_bytes()).hexdigest()

    def clean_steps(self, block: PretrainConfig) -> int:
        """Steps on clean images that make the row ``original``."""
        if self.start == "scratch":
            return block.clean_steps
        return (block.clean_steps or block.steps) if self.is_transferred else 0

    def original(self, block: PretrainConfig) -> str:
        """What the row ``original`` is."""
        steps = f"{self.clean_steps(block):,} step{'s' * (self.clean_steps(block) != 1)}"
        if self.start == "scratch":
            return f"random weights after {steps} on clean images"
        if self.is_transferred:
            return f"the given network after {steps} of transfer training on clean images"
        return "the network as given"

    def said(self, block: PretrainConfig) -> list[str]:
        """What has to be said about it, a line each; nothing of a network that is taken as it is given."""
        own = (*self._size_said(), *self._weights_said(block), *self._normalisation_said())
        lines = [f"network: {line}" for line in own]
        if self.cfg.not_for_darknet is not None:
            lines.append(f"network: {self.cfg.not_for_darknet}")
        if self.anchors is not None:
            lines.append(f"anchors: {self._anchors_said(self.anchors)}")
        if self.is_transferred:
            lines.append(f"original: {self.original(block)}")
        return lines

    def as_dict(self, block: PretrainConfig) -> dict[str, Any]:
        """For ``results.json``."""
        height, width = self.cfg.input_size
        path = self.weights.path
        return {
            "original": self.original(block),
            "said": self.said(block),
            "input_size": {"width": width, "height": height},
            "channels": self.cfg.input_shape[0],
            "letterbox": self.cfg.letterbox,
            "classes": self.cfg.classes,
            "heads_remade": self.remade,
            "normalised_convolutions": self.normalised,
            "weights": None
            if path is None
            else {
                "file": str(path),
                "classes": self.weights.source.classes,
                "convolutions_in_file": self.weights.in_file,
                "convolutions_loaded": len(self.weights.loaded),
                "convolutions": len(self.cfg.convolutions),
                "fresh_layers": list(self.weights.fresh),
            },
            "anchors": None
            if self.anchors is None
            else {"method": "k-means", "anchors_wh": [list(one) for one in self.cfg.heads[0].anchors_wh]}
            | asdict(self.anchors),
        }

    def _size_said(self) -> list[str]:
        height, width = self.cfg.input_size
        own_height, own_width = self.own_size
        if self.own_size == self.cfg.input_size:
            return []
        return [f"input {width}x{height} (width x height) instead of {own_width}x{own_height}"]

    def _weights_said(self, block: PretrainConfig) -> list[str]:
        weights, total = self.weights, len(self.cfg.convolutions)
        named = ", ".join(self.class_names[:MOST_NAMES]) + ", ..." * (len(self.class_names) > MOST_NAMES)
        line = f"the heads are re-made for the data's {self.cfg.classes} classes ({named})" if self.remade else ""
        if weights.path is None:
            return [line] if line else []
        if not weights.fresh:
            unused = self.start == "given" and block.clean_steps > 0 and self.anchors is None
            return ["pretrain.clean_steps is not used, since the given weights fit as they are"] if unused else []
        file = weights.path.name
        if weights.is_partial:
            file += f" (the first {weights.in_file} of {len(weights.source.convolutions)})"
        elif weights.source.classes != self.cfg.classes:
            file += f" ({weights.source.classes} classes)"
        loaded = f"{len(weights.loaded)} of {total} convolutions are loaded from {file}, the rest start fresh"
        line = f"{line}; {loaded}" if line else loaded
        if self.remade and self.given.classes == self.cfg.classes:
            line += "; if it was trained on these classes, say so with model.names=FILE"
        return [line]

    def _normalisation_said(self) -> list[str]:
        if not self.normalised:
            return []
        statistics = f", with statistics of {self.statistics_images} training images" * (self.statistics_images > 0)
        return [f"batch normalisation is put back into {self.normalised} convolutions{statistics}"]

    def _anchors_said(self, anchors: NewAnchors) -> str:
        before, after = anchors.before, anchors.after
        return (
            f"{len(anchor_slots(self.cfg).used)} by k-means on {anchors.boxes:,} training boxes: recall (IoU above .5) "
            f"{before.recall:.3f} before, {after.recall:.3f} after; mean IoU {before.mean_iou:.3f} before, "
            f"{after.mean_iou:.3f} after"
        )


def given_cfg(config: BuildConfig) -> DarknetCfg:
    """The cfg of the network that is pruned, with the configuration's input size and kind of resizing.

    Raises:
        DarknetFormatError: It cannot be used, is not for RGB or grey images, or not of this size.
    """
    model, cfg = config.model, _own_cfg(config)
    cfg.check_channels()
    if model.input_size is not None:
        width, height = map(int, model.input_size.split("x"))
        cfg = with_input_size(cfg, (height, width))
    return cfg if model.letterbox is None else with_letterbox(cfg, model.letterbox)


def _own_cfg(config: BuildConfig) -> DarknetCfg:
    """The cfg as it stands in its file: a path, or a name that ships."""
    path = Path(config.model.cfg)
    return read_cfg(path if path.suffix == ".cfg" or path.exists() else darknet_cfg_path(config.model.cfg))


def original_weights_path(config: BuildConfig) -> Path | None:
    """The weights of the network that is pruned; None if none were given."""
    if config.model.weights == BUNDLED:
        return asset_path("demo-clean.weights")
    return None if config.model.weights is None else Path(config.model.weights)


def class_names_known(config: BuildConfig, cfg: DarknetCfg) -> list[str] | None:
    """The class names of the given network, None if nothing says them.

    Raises:
        ConfigError: The file of names cannot be used.
    """
    if config.model.names is not None:
        names = read_names(Path(config.model.names))
        if len(names) != cfg.classes:
            what = f"has {len(names)} names, the network has {cfg.classes} classes"
            fix = "correct it; or leave it out, and heads for the data's classes are made where the network lacks them"
            raise ConfigError(what, config.model.names, fix)
        return names
    if config.data.path == BUNDLED and cfg.classes == len(CLASS_NAMES):
        return list(CLASS_NAMES)
    return list(COCO_NAMES) if cfg.classes == len(COCO_NAMES) else None


def starting_network(
    config: BuildConfig, given: DarknetCfg, names: list[str] | None, folder: Path
) -> tuple[CocoDataset, CocoDataset, StartingNetwork]:
    """Read the data, and make the given network fit its classes.

    Args:
        config: The build's configuration.
        given: See `given_cfg`.
        names: See `class_names_known`.
        folder: The data.

    Returns:
        Training and test images, and the network.

    Raises:
        DataError: The data cannot be used.
        DarknetFormatError: The weights are not of this network.
        ConfigError: Something would start fresh, and nothing is trained.
    """
    start, cfg = config.pretrain.start, given
    training, test, remade = _data(config, given, names, folder)
    class_names = list(training.class_names) if names is None or remade else names
    if remade and start == "bundled":
        raise ConfigError(
            f"the network has {given.classes} classes, the data {len(class_names)} others",
            folder,
            "give your own network with --cfg and --weights, or start from the clean demo weights with "
            "--set pretrain.from=given",
        )
    if remade:
        cfg = with_classes(given, len(class_names))
    anchors = None
    if config.model.anchors == "auto":
        if start == "bundled":
            what = "the bundled robust weights are those of the demo's anchors"
            raise ConfigError(what, "model.anchors", "use --set pretrain.from=given, or leave model.anchors out")
        cfg, anchors = _with_new_anchors(cfg, training)
    path = None if start == "scratch" else original_weights_path(config)
    plain, normalised = cfg, len(lacking_normalisation(cfg)) if config.model.normalisation else 0
    if normalised:
        cfg = normalised_cfg(cfg)
    weights = starting_weights(cfg if path is None else plain, path, given, fresh_heads=remade)
    images = min(NORMALISATION_IMAGES, len(training.images)) if normalised and path is not None else 0
    network = StartingNetwork(
        start, given, _own_cfg(config).input_size, cfg, class_names, weights, remade, anchors, normalised, images
    )
    if network.is_transferred and network.clean_steps(config.pretrain) == 0:
        what = "a part of the network starts fresh or has new anchors, but nothing trains it"
        raise ConfigError(what, "pretrain.clean_steps", "give some, e.g. --set pretrain.clean_steps=2000")
    return training, test, network


def _data(
    config: BuildConfig, cfg: DarknetCfg, names: list[str] | None, folder: Path
) -> tuple[CocoDataset, CocoDataset, bool]:
    """Training and test images, and whether they are of classes that the network does not know by name."""
    data = config.data
    allowed = Allowed(data.allow_bad_boxes, data.allow_bad_images, data.only_known_classes)
    split = data.train_images, config.seed, allowed
    if names is not None:
        try:
            return *load_splits(folder, names, *split), False
        except DataError as refused:
            # Of other classes, or wrong in another way: then that is what has to be said.
            training, test = load_splits(folder, None, *split)
            if None not in match_categories(training.class_names, names).values():
                raise refused from None
            return training, test, True
    training, test = load_splits(folder, None, *split)
    return training, test, len(training.class_names) != cfg.classes


def _with_new_anchors(cfg: DarknetCfg, training: CocoDataset) -> tuple[DarknetCfg, NewAnchors]:
    sizes = box_sizes(training, cfg.input_size, not cfg.letterbox)
    slots = anchor_slots(cfg)
    # The same for every seed: a study compares runs of one network.
    found = with_anchors(cfg, cluster_anchors(sizes, len(slots.used)))

    def covered(one: DarknetCfg) -> AnchorFit:
        return fit(sizes, [anchor for head in one.heads for anchor in head.head_anchors_wh])

    return found, NewAnchors(len(sizes), covered(cfg), covered(found))
