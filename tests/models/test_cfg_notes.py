"""What is said of a cfg that has been read: ignored options in one line, options that stand twice."""

from __future__ import annotations

import pytest

from prunedeploy.models import parse_cfg
from prunedeploy.models.cfg_notes import cfg_notes
from prunedeploy.models.sections import SECTIONS
from prunedeploy_engines.errors import DarknetFormatError
from pruning.darknets import HEAD, conv, network

NET = "[net]\nbatch=1\nwidth=16\nheight=16\nbatch=64\nmosaic=1\n"
LAYERS = network(conv(4), *HEAD).text.partition("channels=3\n")[2]


def test_options_of_training_are_one_line_each_counted_once() -> None:
    text = f"{NET.replace('batch=1', '', 1)}{LAYERS}max_delta=5\n"
    assert cfg_notes(parse_cfg(text, "folder/a.cfg")) == [
        "a.cfg: ignored, since only Darknet itself reads them: batch, mosaic, max_delta (3 keys)"
    ]


def test_a_long_list_is_cut_and_still_counted() -> None:
    names = "momentum decay angle saturation exposure hue learning_rate burn_in max_batches policy".split()
    cfg = parse_cfg(NET.replace("mosaic=1\n", "".join(f"{name}=1\n" for name in names)) + LAYERS, "a.cfg")
    (line,) = [line for line in cfg_notes(cfg) if "ignored" in line]
    assert line.endswith("batch, momentum, decay, angle, saturation, exposure, hue, learning_rate, ... (11 keys)")


def test_two_lines_of_batch_are_noted_and_the_last_is_taken() -> None:
    cfg = parse_cfg(NET + LAYERS, "a.cfg")
    assert cfg.net.options["batch"] == "64"
    assert cfg_notes(cfg)[1] == (
        "a.cfg: batch= stands more than once in [net], at lines 2, 5: the last is taken, "
        "while Darknet itself takes the first"
    )
    assert cfg.to_bytes().decode() == NET + LAYERS, "both lines are kept"


def test_nothing_is_said_of_a_cfg_without_such_options() -> None:
    assert cfg_notes(network(conv(4), *HEAD)) == []


ONE_INPUT = sorted(set(SECTIONS) - {"route", "shortcut", "sam", "scale_channels", "attention"})


@pytest.mark.parametrize("kind", [kind for kind in ONE_INPUT if not SECTIONS[kind].is_head])
def test_every_layer_may_have_what_darknet_reads_of_every_layer_to_train_it(kind: str) -> None:
    section = {"convolutional": conv(16), "reorg": "reorg stride=2", "reorg3d": "reorg3d stride=2"}.get(kind, kind)
    cfg = network(conv(16), f"{section} onlyforward=1 stopbackward=1 train_only_bn=1", *HEAD)
    assert [one.option for one in cfg.ignored_options] == ["onlyforward", "stopbackward", "train_only_bn"]


def test_places_of_work_on_a_gpu_are_ignored_by_name() -> None:
    cfg = network(conv(4), "route layers=-1 stream=1 wait_stream=1", conv(4) + " stream=2", *HEAD)
    assert [(one.section, one.option) for one in cfg.ignored_options] == [
        ("route", "stream"),
        ("route", "wait_stream"),
        ("convolutional", "stream"),
    ]


@pytest.mark.parametrize("option", ["dontload", "dontloadscales"])
def test_a_layer_whose_weights_the_file_would_lack_is_refused(option: str) -> None:
    with pytest.raises(DarknetFormatError, match=rf"cfg:\d+: {option}= of \[convolutional\] .*weight file would lack"):
        network(conv(4) + f" {option}=1", *HEAD)


@pytest.mark.parametrize("kind", ["softmax", "connected", "local", "crop", "detection", "history", "implicit"])
def test_refused_sections_say_why(kind: str) -> None:
    with pytest.raises(DarknetFormatError, match=rf"cfg:\d+: \[{kind}\] is not supported: \w+.*; use another network"):
        network(conv(4), kind, *HEAD)
