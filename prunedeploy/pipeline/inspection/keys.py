"""What the options of a cfg mean here, and which of them are ignored.

Darknet's own training reads many an option that a file has to keep for it; nothing else of this project does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from prunedeploy.models.darknet_cfg import DarknetCfg
from prunedeploy.models.sections import SECTIONS, net
from prunedeploy.models.sections.reading import Section

TRAINING = "only Darknet's own training reads it"
SUPPRESSION = "suppression is chosen where the network is used"

_IGNORED_ELSEWHERE: Mapping[str, Mapping[str, str]] = {
    "yolo": {"nms_kind": SUPPRESSION, "beta_nms": SUPPRESSION},
}

MEANINGS: Mapping[str, Mapping[str, str]] = {
    "net": {
        "width": "width of the network's input, in pixels",
        "height": "height of the network's input, in pixels",
        "channels": "3 takes colour images, 1 grey ones",
        "letter_box": "1, or left out: images are scaled with their aspect kept, and padded; 0: they are stretched",
    },
    "convolutional": {
        "batch_normalize": "1: normalised by statistics in the weights file before the activation; folded on export",
        "filters": "number of output channels; what structured pruning lowers",
        "size": "side of the kernel, in cells",
        "stride": "cells from one window to the next",
        "pad": "1: size / 2 cells of zeros on each side, and padding= is not looked at",
        "padding": "cells of zeros on each side, without pad=1",
        "groups": "parts that channels are split into, each with filters of its own",
        "dilation": "cells from one weight of the kernel to the next",
        "activation": "function of each value of the output",
    },
    "maxpool": {
        "size": "side of the window, in cells",
        "stride": "cells from one window to the next",
        "padding": "cells on both sides together",
    },
    "upsample": {"stride": "times that each cell is repeated in both directions"},
    "route": {
        "layers": "layers whose channels are put one after another; negative: counted back from here",
        "groups": "parts that channels are split into, of which one is taken",
        "group_id": "which of these parts, from 0",
    },
    "shortcut": {
        "from": "layer that is added to the one before; negative: counted back from here",
        "activation": "function of each value of the sum",
    },
    "yolo": {
        "mask": "which of the anchors this head predicts",
        "anchors": "width,height pairs in pixels of the input",
        "classes": "number of classes",
        "num": "number of anchors in the list",
        "ignore_thresh": "training: no objectness loss where a prediction overlaps a box by more (IoU)",
        "iou_thresh": "training: anchors whose shape overlaps a box by more are assigned to it too",
        "iou_loss": "training: how boxes are compared",
        "iou_normalizer": "training: weight of the boxes' loss",
        "obj_normalizer": "training: weight of the objectness loss",
        "cls_normalizer": "training: weight of the classes' loss",
        "scale_x_y": "how far a centre may reach beyond its cell; 1: not at all",
    },
}
"""By section and option; what is not here is shown without words."""


@dataclass(frozen=True)
class IgnoredOption:
    """An option that stands in a cfg and changes nothing here.

    Attributes:
        line: Where it stands, from 1.
        section: Kind of its section.
        option: Its name.
        value: As it stands in the file.
        why: Who reads it instead.
    """

    line: int
    section: str
    option: str
    value: str
    why: str


@dataclass(frozen=True)
class KeyMeaning:
    """An option of a kind of section that this cfg uses, and that counts.

    Attributes:
        section: Kind of the section.
        option: Its name.
        values: The different values it has in this file, in the order of the file.
        meaning: What it means here; empty where that is not written down.
    """

    section: str
    option: str
    values: tuple[str, ...]
    meaning: str


def ignored_options(cfg: DarknetCfg) -> tuple[IgnoredOption, ...]:
    """The options of a cfg that are kept in its text and change nothing here, in the order of the file."""
    found = [
        IgnoredOption(section.option_lines[option], kind, option, value, why)
        for kind, section in _sections(cfg)
        for option, value in section.options.items()
        if (why := _why_ignored(kind, option)) is not None
    ]
    return tuple(sorted(found, key=lambda one: one.line))


def key_meanings(cfg: DarknetCfg) -> tuple[KeyMeaning, ...]:
    """The options that count, once per kind of section, in the order in which they first stand in the file."""
    values: dict[tuple[str, str], dict[str, None]] = {}
    for kind, section in _sections(cfg):
        for option, value in section.options.items():
            if _why_ignored(kind, option) is None:
                values.setdefault((kind, option), {})[value] = None
    kinds = list(dict.fromkeys(kind for kind, _ in values))
    ordered = sorted(values.items(), key=lambda entry: kinds.index(entry[0][0]))
    return tuple(
        KeyMeaning(kind, option, tuple(different), MEANINGS.get(kind, {}).get(option, ""))
        for (kind, option), different in ordered
    )


def _sections(cfg: DarknetCfg) -> Iterator[tuple[str, Section]]:
    """All sections in the order of the file, ``[network]`` under its usual name."""
    yield "net", cfg.net
    for section in cfg.sections:
        yield section.kind, section


def _why_ignored(kind: str, option: str) -> str | None:
    elsewhere = _IGNORED_ELSEWHERE.get(kind, {})
    if option not in (SECTIONS[kind].training_only if kind in SECTIONS else net.TRAINING_ONLY):
        return elsewhere.get(option)
    return elsewhere.get(option, TRAINING)
