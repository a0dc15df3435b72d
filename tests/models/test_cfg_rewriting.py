"""Another input size, other classes, other anchors: a few lines of the cfg change, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from prunedeploy.models.cfg_rewriting import (
    anchor_slots,
    largest_stride,
    with_anchors,
    with_classes,
    with_input_size,
    with_letterbox,
)
from prunedeploy.models.darknet_cfg import DarknetCfg, parse_cfg, read_cfg
from prunedeploy.resources import darknet_cfg_path
from prunedeploy_engines.errors import DarknetFormatError
from pruning.darknets import HEAD, conv, network


@pytest.fixture
def tiny() -> DarknetCfg:
    return read_cfg(darknet_cfg_path("yolov3-tiny"))


def changed_lines(before: DarknetCfg, after: DarknetCfg) -> list[str]:
    old, new = before.text.split("\n"), after.text.split("\n")
    assert len(old) == len(new)
    return [line for was, line in zip(old, new, strict=True) if was != line]


def test_classes_change_the_heads_and_their_convolutions_alone(tiny: DarknetCfg) -> None:
    cells = with_classes(tiny, 3)
    assert changed_lines(tiny, cells) == ["filters=24", "classes=3"] * 2  # 3 anchors x (5 + 3)
    assert [head.out_shape for head in cells.heads] == [(24, 13, 13), (24, 26, 26)]
    assert with_classes(cells, 80).text == tiny.text


def test_classes_of_a_cfg_with_comments_and_without_classes() -> None:
    text = network(conv(8), *HEAD).text.replace("filters=6", "filters = 6 # 6 of them").replace("classes=1\n", "")
    text = text.replace("filters = 6", "filters = 25")  # Darknet's default is 20 classes
    assert with_classes(parse_cfg(text), 2).heads[0].out_shape[0] == 7


def test_a_head_without_a_convolution_of_its_own_is_refused() -> None:
    cfg = network(conv(4), conv(2), "route layers=-1,-2", "yolo mask=0 anchors=4,5 classes=1")
    with pytest.raises(DarknetFormatError, match=r":\d+: this \[yolo\] section reads no convolution"):
        with_classes(cfg, 3)


def test_input_size_is_rewritten_and_need_not_be_square(tiny: DarknetCfg) -> None:
    wide = with_input_size(tiny, (256, 416))
    assert changed_lines(tiny, wide) == ["height=256"]
    assert [head.out_shape[1:] for head in wide.heads] == [(8, 13), (16, 26)]
    assert with_input_size(wide, (416, 416)).text == tiny.text


@pytest.mark.parametrize(
    ("size", "near"), [((300, 320), "320x288"), ((256, 300), "288x256"), ((20, 10), "32x32"), ((1, 416), "416x32")]
)
def test_an_input_size_that_does_not_fit_says_what_would(tiny: DarknetCfg, size: tuple[int, int], near: str) -> None:
    with pytest.raises(DarknetFormatError, match=rf"width x height\).* multiples of 32; use {near}"):
        with_input_size(tiny, size)


@pytest.mark.parametrize(("name", "stride"), [("yolov3", 32), ("yolov3-spp", 32), ("yolov3-tiny", 32)])
def test_largest_stride_is_that_of_the_coarsest_head(name: str, stride: int) -> None:
    cfg = read_cfg(darknet_cfg_path(name))
    assert largest_stride(cfg) == stride == cfg.input_size[0] // min(head.out_shape[1] for head in cfg.heads)


def test_letterbox_is_written_only_where_it_changes(tiny: DarknetCfg) -> None:
    assert with_letterbox(tiny, True) is tiny
    stretched = with_letterbox(tiny, False)
    assert not stretched.letterbox
    assert stretched.text.replace("letter_box=0\n", "") == tiny.text
    assert with_letterbox(stretched, True).letterbox


ANCHORS = [(1.5, 2.0), (3.0, 4.0), (5.0, 6.0), (7.0, 8.0), (9.0, 10.0), (11.0, 12.0)]


def test_anchors_go_to_the_heads_by_size(tiny: DarknetCfg) -> None:
    coarse, fine = with_anchors(tiny, ANCHORS).heads
    assert (coarse.out_shape[1], coarse.head_anchors_wh) == (13, tuple(ANCHORS[3:]))
    assert (fine.out_shape[1], fine.head_anchors_wh) == (26, tuple(ANCHORS[:3]))


def test_masks_out_of_order_are_put_in_order(tiny: DarknetCfg) -> None:
    """The two heads of a cfg with the masks the wrong way round."""
    first, _, rest = tiny.text.replace("mask=3,4,5", "mask=0,1,2", 1).rpartition("mask=0,1,2")
    coarse, fine = with_anchors(parse_cfg(f"{first}mask=3,4,5{rest}"), ANCHORS).heads
    assert coarse.head_anchors_wh == tuple(ANCHORS[3:])
    assert fine.head_anchors_wh == tuple(ANCHORS[:3])


def test_an_anchor_that_no_head_has_is_not_chosen(tiny: DarknetCfg) -> None:
    """Five places for six anchors: 0 is in no head, 3 in both."""
    text = tiny.text.replace("mask=0,1,2", "mask=1,2,3").replace("mask=3,4,5", "mask=3,4")
    quirk = parse_cfg(text.replace("filters=255", "filters=170", 1))
    assert anchor_slots(quirk).used == (1, 2, 3, 4)
    coarse, fine = with_anchors(quirk, ANCHORS[:4]).heads
    assert fine.head_anchors_wh == tuple(ANCHORS[:3])
    assert coarse.head_anchors_wh == tuple(ANCHORS[2:4])
    with pytest.raises(ValueError, match="uses 4 anchors, got 6"):
        with_anchors(quirk, ANCHORS)


@pytest.mark.shared
def test_every_published_cfg_that_loads_takes_other_classes_and_sizes(shared: Path) -> None:
    loaded = 0
    for path in sorted((shared / "real" / "darknet-cfg").glob("*.cfg")):
        try:
            cfg = read_cfg(path)
        except DarknetFormatError:
            continue
        loaded += 1
        other = with_input_size(with_classes(cfg, 7), (256, 384))
        per_anchor = 16 if cfg.heads[0].kind == "gaussian_yolo" else 12  # 9 or 5, and 7 classes
        assert {head.out_shape[0] for head in other.heads} == {per_anchor * len(h.anchor_indices) for h in cfg.heads}
        sides = [(head.out_shape[1], head.out_shape[2]) for head in other.heads]
        strides = [cfg.input_size[0] // head.out_shape[1] for head in cfg.heads]
        assert sides == [(256 // stride, 384 // stride) for stride in strides]
        taken = anchor_slots(cfg).used
        assert with_anchors(cfg, [(float(k), 9.0) for k in range(1, 1 + len(taken))]).classes == cfg.classes
    assert loaded >= 12


def test_heads_that_share_their_weights_get_other_classes_together() -> None:
    head = conv(6, norm=False, activation="linear")
    cfg = network(conv(8, 3), *HEAD, "route layers=0", f"{head} share_index=1", HEAD[1])
    other = with_classes(cfg, 3)
    assert [layer.out_channels for layer in other.all_convolutions] == [8, 8, 8]
    assert other.with_filters({0: 4}).convolutions[0].out_channels == 4


def test_anchors_of_heads_that_list_different_numbers_stay() -> None:
    region = (conv(12, norm=False), "region anchors=1,1,2,2 classes=1 num=2")
    cfg = network(conv(8, 3), *HEAD, "route layers=0", *region)
    with pytest.raises(DarknetFormatError, match=r"cfg:\d+: lists 2 anchors, and layer 2 1: new ones cannot be shared"):
        with_anchors(cfg, [(4.0, 5.0)])
