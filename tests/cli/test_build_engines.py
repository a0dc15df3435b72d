"""What the terminal says of a build's engines under attack and floods."""

from __future__ import annotations

import pytest

from engine_figures import ALL, FEWER, PLAIN
from prunedeploy.cli.build_engines import print_engine_figures


def test_every_figure_has_its_column_and_fewer_images_are_said(capsys: pytest.CaptureFixture[str]) -> None:
    cells = print_engine_figures([ALL, FEWER, PLAIN])
    assert cells == [
        ["model.int8.onnx", "onnxruntime", "0.700", "0.500", "0.450", "0.420", "0.330", "0.380 ensemble adaptive",
         "2.50", "3.00* (1.20 x by classes)"],
        ["model.onnx", "openvino", "0.710", "0.520", "-", "0.400", "0.300", "0.400 square", "-", "-"],
    ]  # fmt: skip
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split("   ")[0] == "file"
    titles = [one.strip() for one in lines[1].split("  ") if one.strip()]
    assert titles == [
        *("file", "runtime", "mAP clean", "PGD, transfer", "adaptive", "square", "mPC", "lowest", "p99 ms", "flooded")
    ]
    assert "of 20 images: square, mPC, lowest" in lines


def test_builds_that_were_asked_for_no_more_say_no_more(capsys: pytest.CaptureFixture[str]) -> None:
    assert print_engine_figures([PLAIN]) == []
    assert capsys.readouterr().out == ""


def test_corruptions_alone_bring_no_other_column(capsys: pytest.CaptureFixture[str]) -> None:
    ((*_, last),) = print_engine_figures([{**PLAIN, "mpc": 0.25}])
    assert last == "0.250"
    assert "lowest" not in capsys.readouterr().out
