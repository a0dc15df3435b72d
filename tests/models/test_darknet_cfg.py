"""Parsing Darknet cfgs: the graph, and one clear line for everything that is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from prunedeploy.models.darknet_cfg import parse_cfg, read_cfg
from prunedeploy.models.sections import Convolutional, Maxpool, Route, Shortcut, Upsample, Yolo
from prunedeploy.resources import darknet_cfg_path
from prunedeploy_engines.errors import DarknetFormatError
from pruning.darknets import HEAD, conv, network

GOOD = """[net]
width=32
height=16
channels=3

[convolutional]
batch_normalize=1
filters=8
size=3
stride=2
pad=1
activation=leaky

[convolutional]
filters=6
size=1
stride=1
pad=1
activation=linear

[yolo]
mask=0
anchors=4,5
classes=1
"""


def line_of(text: str, needle: str) -> int:
    return next(number for number, line in enumerate(text.splitlines(), 1) if needle in line)


def refusal(text: str) -> DarknetFormatError:
    with pytest.raises(DarknetFormatError) as caught:
        parse_cfg(text, "my.cfg")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300
    return caught.value


def test_layer_shapes_worked_by_hand() -> None:
    cfg = network(
        conv(8, size=3) + " stride=2",  # 0: 8 x 8 x 8
        "maxpool size=2 stride=2",  # 1: 8 x 4 x 4
        conv(4, norm=False),  # 2: 4 x 4 x 4
        "upsample stride=2",  # 3: 4 x 8 x 8
        "route layers=-1,0",  # 4: 12 x 8 x 8
        "route layers=4 groups=3 group_id=2",  # 5: 4 x 8 x 8
        "shortcut from=3 activation=relu",  # 6: 4 x 8 x 8
        *HEAD,  # 7, 8
        "route layers=2",  # 9: 4 x 4 x 4
        "convolutional filters=8 size=5 dilation=2 pad=1 groups=2 activation=swish",  # 10: 8 x 4 x 4
        *HEAD,  # 11, 12
        size=16,
    )
    assert [layer.out_shape for layer in cfg.layers] == [
        (8, 8, 8), (8, 4, 4), (4, 4, 4), (4, 8, 8), (12, 8, 8), (4, 8, 8), (4, 8, 8),
        (6, 8, 8), (6, 8, 8), (4, 4, 4), (8, 4, 4), (6, 4, 4), (6, 4, 4),
    ]  # fmt: skip
    kinds = [type(layer) for layer in cfg.layers]
    assert kinds == [
        Convolutional, Maxpool, Convolutional, Upsample, Route, Route, Shortcut,
        Convolutional, Yolo, Route, Convolutional, Convolutional, Yolo,
    ]  # fmt: skip
    assert [layer.inputs for layer in cfg.layers[4:7]] == [(3, 0), (4,), (5, 3)]
    grouped = cfg.layers[10]
    assert isinstance(grouped, Convolutional)
    assert (grouped.weight_shape, grouped.padding) == ((8, 2, 5, 5), 4)
    # Multiply-accumulates of the first convolution: 8 filters x 3 x 3 x 3 weights x 8 x 8 places.
    assert cfg.convolutions[0].macs == 8 * 27 * 64
    readers = {source: [layer.index for layer in cfg.layers if source in layer.inputs] for source in (-1, 2, 3)}
    assert readers == {-1: [0], 2: [3, 9], 3: [4, 6]}


def test_a_layer_after_a_head_without_a_route_reads_what_the_head_read() -> None:
    cfg = network(conv(8), *HEAD, conv(8), *HEAD)
    assert cfg.layers[3].inputs == (1,)
    assert cfg.layers[3].in_channels == (6,)


def test_options_left_out_have_darknets_defaults() -> None:
    cfg = parse_cfg(GOOD.replace("stride=1\npad=1\nactivation=linear", ""))
    plain = cfg.convolutions[1]
    assert (plain.stride, plain.padding, plain.groups, plain.activation) == (1, 0, 1, "logistic")
    head = cfg.heads[0]
    assert (head.ignore_thresh, head.iou_thresh, head.iou_loss, head.scale_x_y) == (0.5, 1.0, "mse", 1.0)


def test_comments_blank_lines_spaces_and_crlf_are_read_and_kept() -> None:
    text = "# a comment\r\n; another\r\n\r\n" + GOOD.replace("=", " = ").replace("\n", "\r\n")
    cfg = parse_cfg(text)
    assert cfg.text == text
    assert [layer.out_shape for layer in cfg.layers] == [layer.out_shape for layer in parse_cfg(GOOD).layers]


def test_with_filters_changes_those_lines_and_nothing_else() -> None:
    text = "# filters=8 in a comment\r\n" + GOOD.replace("\n", "\r\n").replace("filters=8", "filters = 8")
    narrow = parse_cfg(text).with_filters({0: 5})
    assert narrow.text == text.replace("filters = 8", "filters = 5")
    assert narrow.convolutions[1].weight_shape == (6, 5, 1, 1)


def test_with_filters_adds_an_option_that_was_left_to_its_default() -> None:
    text = GOOD.replace("filters=8\n", "")  # Darknet's default is 1
    wider = parse_cfg(text).with_filters({0: 4})
    assert wider.convolutions[0].out_channels == 4
    added = [line for line in wider.text.split("\n") if line not in text.split("\n")]
    assert added == ["filters=4"]


def test_with_filters_changes_groups_too() -> None:
    cfg = network(conv(8), conv(8, size=3, groups=8), *HEAD)
    halved = cfg.with_filters({0: 4, 1: 4}, groups={1: 4})
    assert halved.convolutions[1].weight_shape == (4, 1, 3, 3)


@pytest.mark.parametrize(
    ("old", "new", "at", "says"),
    [
        ("[yolo]", "[yollo]", "[yollo]", "unknown section [yollo]"),
        ("[yolo]", "[yolo", "[yolo", "unknown section [yolo"),
        ("stride=2", "strid=2", "strid=2", "did you mean 'stride'?"),
        ("anchors=4,5", "anchor=4,5", "anchor=4,5", "did you mean 'anchors'?"),
        ("stride=2", "xyzzy=2", "xyzzy=2", "unknown option 'xyzzy'"),
        ("stride=2", "stride 2", "stride 2", "expected key=value"),
        ("stride=2", "size=3", "stride", "stands twice"),
        ("stride=2", "stride=two", "stride=two", "not a whole number"),
        ("stride=2", "stride=0", "stride=0", "below 1"),
        ("activation=leaky", "activation=gelu", "activation=gelu", "supported are linear, leaky"),
        ("pad=1\nactivation=leaky", "groups=2\nactivation=leaky", "groups=2", "does not divide 3 input"),
        ("filters=6", "filters=7", "[yolo]", "set filters=6"),
        ("classes=1", "classes=2", "[yolo]", "set filters=7"),
        ("mask=0", "mask=1", "mask=1", "outside 0 to 0"),
        ("mask=0", "mask=0.5", "mask=0.5", "whole numbers"),
        ("mask=0", "mask=nan", "mask=nan", "not a list of numbers"),
        ("anchors=4,5", "anchors=4", "anchors=4", "width,height pairs"),
        ("anchors=4,5", "anchors=4,-5", "anchors=4,-5", "positive"),
        ("anchors=4,5", "anchors=4,nan", "anchors=4,nan", "not a list of numbers"),
        ("anchors=4,5", "anchors=4,5\nnum=3", "num=3", "there are 1 anchors"),
        ("classes=1", "classes=1\nignore_thresh=nan", "ignore_thresh=nan", "not a number"),
        ("classes=1", "classes=1\niou_loss=siou", "iou_loss=siou", "supported are mse, iou, giou, diou, ciou"),
        ("size=3", "size=99\npadding=0", "[convolutional]", "empty output"),
        ("width=32", "width=", "width=", "not a whole number"),
        ("width=32\n", "", "[net]", "needs width="),
        ("anchors=4,5\n", "", "[yolo]", "needs anchors="),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_with_its_line(old: str, new: str, at: str, says: str) -> None:
    text = GOOD.replace(old, new, 1)
    assert text != GOOD
    if new == "size=3":  # twice in one section: the second is the culprit
        expected = line_of(GOOD, "stride=2")
    elif says == "empty output":
        text = text.replace("pad=1", "pad=0", 1)
        expected = line_of(text, at)
    else:
        expected = line_of(text, at)
    error = refusal(text)
    assert error.where == f"my.cfg:{expected}"
    assert says in str(error)


@pytest.mark.parametrize(
    ("section", "says"),
    [
        ("[route]\nlayers=5", "layers=5|points at layer 5, but only layers 0 to 0"),
        ("[route]\nlayers=-2", "layers=-2|points at layer -2, but only layers 0 to 0"),
        ("[route]\nlayers=1", "layers=1|points at layer 1"),
        ("[route]\nlayers=", "layers=|names no layer"),
        ("[route]\nlayers=0.5", "layers=0.5|whole numbers"),
        ("[route]\nlayers=nan", "layers=nan|not a list of numbers"),
        ("[route]\nlayers=inf", "layers=inf|not a list of numbers"),
        ("[route]\nlayers=0\ngroups=3", "groups=3|do not fit channels (8,)"),
        ("[route]\nlayers=0\ngroups=2\ngroup_id=2", "groups=2|do not fit"),
        ("[shortcut]\nfrom=-3", "from=-3|points at layer -3"),
        ("[net]\nwidth=32", "[net]|a second [net]"),
    ],
)
def test_wrong_references_are_said_with_their_line(section: str, says: str) -> None:
    head, marker, tail = GOOD.partition("[convolutional]\nfilters=6")
    text = head + section + "\n\n" + marker + tail
    at, message = says.split("|")
    error = refusal(text)
    lines = [number for number, line in enumerate(text.splitlines(), 1) if line == at]
    assert error.where == f"my.cfg:{lines[-1]}"
    assert message in str(error)


def test_a_shortcut_and_a_route_of_another_size_are_refused() -> None:
    with pytest.raises(DarknetFormatError, match=r":\d+: adds maps of different sizes, 8x8 and 16x16 of layer 0"):
        network(conv(8), "maxpool size=2 stride=2", "shortcut from=-2 activation=linear", *HEAD)
    with pytest.raises(DarknetFormatError, match=r":\d+: joins feature maps of different sizes"):
        network(conv(8), "maxpool size=2 stride=2", "route layers=0,1", *HEAD)


def test_a_reference_to_a_head_is_refused() -> None:
    with pytest.raises(DarknetFormatError, match=r":\d+: layers points at layer 2, a \[yolo\] section"):
        network(conv(8), *HEAD, "route layers=2", *HEAD)


def test_heads_that_disagree_are_refused() -> None:
    more = (conv(6, norm=False, activation="linear"), "yolo mask=0 anchors=9,9,10,10 classes=1")
    with pytest.raises(DarknetFormatError, match=r":\d+: \[yolo\] sections differ in classes or number of anchors"):
        network(conv(8), *HEAD, *more)


def test_heads_may_list_anchors_of_their_own() -> None:
    """TridentNet's do; a head goes by its own list."""
    other = (conv(6, norm=False, activation="linear"), "yolo mask=0 anchors=9,9 classes=1")
    assert [head.head_anchors_wh for head in network(conv(8), *HEAD, *other).heads] == [((4, 5),), ((9, 9),)]


def test_num_may_be_less_than_the_anchors_that_masks_name() -> None:
    """cspx-p7-mish has num=16, and heads up to anchor 19."""
    head = network(conv(8), HEAD[0], "yolo mask=1 anchors=4,5,6,7 num=1 classes=1").heads[0]
    assert head.head_anchors_wh == ((6, 7),)


def test_no_head_is_refused() -> None:
    with pytest.raises(DarknetFormatError, match=r"has no \[yolo\], \[Gaussian_yolo\] or \[region\] section"):
        network(conv(8))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", ":1: does not start with [net]"),
        (b"# nothing\n\n", ":1: does not start with [net]"),
        (b"\x00" * 5000, ":1: expected key=value"),
        (b"\x80\x81\xff", "is not text"),
        (b"[convolutional]\nfilters=1\n", ":1: does not start with [net]"),
        (b"filters=1\n", ":1: expected key=value"),
        pytest.param(b"x" * 1_000_000, ":1: expected key=value", id="a long line"),
        pytest.param(b"[net]\nheight=" + b"x" * 1_000_000, ":2: height=xxx", id="a long value"),
        pytest.param(
            b"[net]\nwidth=8\nheight=8\n[route]\nlayers=-1\n",
            ":5: layers points at layer -1, but this is the first layer",
            id="nothing before a route",
        ),
    ],
)
def test_files_that_are_no_cfg_are_refused_in_one_line(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "x.cfg"
    path.write_bytes(content)
    with pytest.raises(DarknetFormatError) as caught:
        read_cfg(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert says in message
    assert "\n" not in message
    assert len(message) < len(str(path)) + 300


def test_a_missing_cfg_and_a_folder_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none.cfg", tmp_path):
        with pytest.raises(DarknetFormatError, match="cannot be read"):
            read_cfg(path)


@pytest.mark.parametrize(
    ("name", "convolutions", "heads"),
    [("yolov3", 75, 3), ("yolov3-tiny", 13, 2), ("yolov3-spp", 76, 3), ("yolov3-slim", None, 3)],
)
def test_shipped_cfgs_have_the_published_numbers_of_layers(name: str, convolutions: int | None, heads: int) -> None:
    cfg = read_cfg(darknet_cfg_path(name))
    assert len(cfg.heads) == heads
    assert convolutions is None or len(cfg.convolutions) == convolutions


AS_WRITTEN = GOOD.replace("filters=6", "filters=6 # 1*(5+1), as they say").replace("stride=2", "stride=2\t; half")
AS_WRITTEN = "# of its own\n" + AS_WRITTEN.replace("[yolo]", "[yolo] # the head").replace("mask=0", "mask=0;1")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("comments", AS_WRITTEN.encode()),
        ("byte-order mark", b"\xef\xbb\xbf" + AS_WRITTEN.encode()),
        ("carriage returns", AS_WRITTEN.replace("\n", "\r\n").encode()),
        ("UTF-16, little end first", AS_WRITTEN.encode("utf-16")),
        ("UTF-16, big end first", b"\xfe\xff" + AS_WRITTEN.encode("utf-16-be")),
        ("a code page in a comment", b"# gr\xf6\xdfer als \xb2\n" + AS_WRITTEN.encode()),
        ("two files joined", b"# first\n\xef\xbb\xbf" + AS_WRITTEN.encode()),
    ],
)
def test_cfgs_as_editors_leave_them_are_read(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / "x.cfg"
    path.write_bytes(content)
    cfg = read_cfg(path)
    plain = parse_cfg(GOOD)
    assert [layer.out_shape for layer in cfg.layers] == [layer.out_shape for layer in plain.layers], name
    assert cfg.heads[0].anchor_indices == (0,)
    # What is written back has nothing that a stricter reader stumbles over: no mark, no comment behind a value.
    written = [line.strip() for line in cfg.to_bytes().decode("latin-1").split("\n")]
    assert [line for line in written if line and line[0] != "#"] == [line for line in GOOD.split("\n") if line]
    assert parse_cfg(cfg.text).layers == cfg.layers


def test_a_comment_of_its_own_stays_byte_for_byte(tmp_path: Path) -> None:
    content = b"# gr\xf6\xdfer; #\n ; more = #\n" + GOOD.encode()
    path = tmp_path / "x.cfg"
    path.write_bytes(content)
    assert read_cfg(path).to_bytes() == content


def test_lines_are_counted_as_in_the_file_whatever_was_left_out() -> None:
    text = "\ufeff" + AS_WRITTEN.replace("activation=linear", "activation=gelu # no")
    assert refusal(text).where == f"my.cfg:{line_of(text, 'gelu')}"


def test_letter_box_of_the_fork_is_read() -> None:
    assert parse_cfg(GOOD).letterbox
    assert parse_cfg(GOOD.replace("channels=3", "channels=3\nletter_box=1")).letterbox
    assert not parse_cfg(GOOD.replace("channels=3", "channels=3\nletter_box=0")).letterbox
    assert "whole number" in str(refusal(GOOD.replace("channels=3", "letter_box=yes")))


def test_what_only_darknets_training_reads_does_not_matter() -> None:
    """Both ``batch`` of the pair that cfgs come with, for testing and for training; keys of the widespread fork."""
    text = GOOD.replace("[net]", "[net]\nbatch=1\nsubdivisions=1\nbatch=64\nema_alpha=0.9998\nlabel_smooth_eps=0.1")
    text = text.replace("filters=8", "filters=8\nstopbackward=800").replace("mask=0", "mask=0\nobjectness_smooth=1")
    shapes = [layer.out_shape for layer in parse_cfg(text).layers]
    assert shapes == [layer.out_shape for layer in parse_cfg(GOOD).layers]
    assert "stands twice" in str(refusal(GOOD.replace("width=32", "width=32\nwidth=64")))


@pytest.mark.shared
@pytest.mark.parametrize(("name", "heads"), [("yolov3-openimages", 3), ("yolov4-custom", 3), ("yolov3-voc", 3)])
def test_published_cfgs_with_such_options_load(shared: Path, name: str, heads: int) -> None:
    assert len(read_cfg(shared / "real" / "darknet-cfg" / f"{name}.cfg").heads) == heads
