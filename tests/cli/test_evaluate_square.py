"""``evaluate --attack square``: on engines without a parent, beside attacks with gradients, and wrong input."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import onnx
import pytest

from prunedeploy_engines.runtimes.onnx_file import NmsInGraph
from prunedeploy_export.graph.nms import with_nms

QUICK = ("--attack", "square", "--queries", "12")


def test_an_engine_is_attacked_without_a_parent_and_queries_stand_beside_its_figures(
    run: Any, bundle: Path, coco: Path, tmp_path: Path
) -> None:
    arguments = ("evaluate", bundle, "--data", coco, *QUICK, "--bootstrap", "10")
    told = run(*arguments, "--error-kinds", "--csv", tmp_path / "csv", "--json")
    assert told.exit_code == 0, told.stderr
    document = json.loads(told.stdout)
    (attack,), (row,) = document["attacks"], document["results"]
    assert attack == {
        "name": "square", "eps": 0.05, "norm": "linf", "queries": 12, "area": 0.8, "start": "clean",
        "feedback": "scores", "precision": "fp32", "seed": 0,
    }  # fmt: skip
    assert document["attack"] == attack
    assert (row["runtime"], row["transfer"]) == ("onnxruntime", False)
    assert row["queries"]["square"]["max"] <= 12
    assert {"map_square", "map50_square", "map_square_conf50"} <= row.keys()
    assert list(row["error_kinds"]) == ["clean", "square"]
    assert "checks" not in document
    with (tmp_path / "csv" / "onnxruntime-square.csv").open() as file:
        assert next(csv.reader(file))[0] == "image_id"
    in_l2 = run(*arguments, "--norm", "l2", "--eps", "1", "--json")
    assert in_l2.exit_code == 0, in_l2.stderr
    assert json.loads(in_l2.stdout)["attacks"][0]["norm"] == "l2"
    shown = run(*arguments, "--feedback", "detections")
    assert shown.exit_code == 0, shown.stderr
    # The threshold of the bundle; of noise, no cell reaches it, so nothing is ever found.
    assert "square in fp32: within 0.05, at most 12 queries of each image, sees detections above 0.9," in shown.stdout
    assert "square, 1 of 12 queries" in shown.stdout


def test_beside_attacks_with_gradients_it_is_no_transfer_and_is_compared(
    run: Any, bundle: Path, coco: Path, darknet: Path
) -> None:
    arguments = ("evaluate", darknet, "--data", coco, "--attack", "noise,pgd,square", "--queries", "12", "--bootstrap",
                 "0", "--json")  # fmt: skip
    document = json.loads(run(*arguments).stdout)
    assert [one["name"] for one in document["attacks"]] == ["noise", "pgd", "square"]
    assert ["parent" in one for one in document["attacks"]] == [True, True, False]
    (check,) = document["checks"]
    assert check["name"] == "black-box"
    assert "on torch square leaves" in check["says"]
    assert "pgd with its own gradients" in check["says"]
    assert [one.startswith("black-box: ") for one in document["warnings"]].count(True) == (not check["passed"])
    (row,) = document["results"]
    maps = {name: row[f"map_{name}"] for name in ("noise", "pgd", "square")}
    assert row["lowest"]["map"] == min(maps.values()) == maps[row["lowest"]["attack"]]
    onwards = json.loads(run(*arguments, "--start", "white-box").stdout)
    assert "checks" not in onwards
    assert onwards["attacks"][2]["start"] == "white-box"


def test_a_file_with_suppression_in_its_graph_is_seen_by_its_detections(
    run: Any, bundle: Path, coco: Path, tmp_path: Path
) -> None:
    file = tmp_path / "with-nms.onnx"
    onnx.save(with_nms(onnx.load(bundle / "model.onnx"), NmsInGraph(0.45, 0.45, 20)), file)
    (tmp_path / "with-nms.names").write_text("red\ngreen\nblue\n")
    arguments = ("evaluate", file, "--names", tmp_path / "with-nms.names", "--data", coco, *QUICK, "--bootstrap", "0")
    told = run(*arguments, "--json")
    assert told.exit_code == 0, told.stderr
    (attack,) = json.loads(told.stdout)["attacks"]
    assert (attack["feedback"], attack["score_threshold"]) == ("detections", 0.5)
    refused = run(*arguments, "--feedback", "scores")
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert "--feedback scores: a file with suppression in its graph gives no scores" in refused.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--attack", "square", "--queries", "0"), "--queries"),
        (("--attack", "pgd", "--queries", "5"), "--queries has no effect without --attack square"),
        (("--attack", "pgd", "--feedback", "scores"), "--feedback has no effect without --attack square"),
        (("--attack", "square", "--feedback", "logits"), "'logits' is not one of 'scores', 'detections'"),
        (("--attack", "square", "--start", "white-box"), "--start white-box needs an attack with gradients beside"),
        (("--attack", "noise,square", "--start", "white-box"), "--start white-box needs an attack with gradients"),
        (("--attack", "ensemble,square", "--start", "white-box", "--queries", "5"), "5 queries do not reach the 6"),
        (("--attack", "square", "--curve"), "--curve needs an attack that searches a ball by gradients"),
        (("--attack", "square", "--check"), "--check needs an attack with gradients beside square"),
        (("--attack", "square:box"), "square has no objective to choose"),
        (("--attack", "sqare"), "there is no attack 'sqare'; the nearest is square"),
        (("--attack", "square", "--norm", "l2"), "--norm l2: needs a radius of its own"),
        (("--attack", "square", "--eps", "1e-7"), "leaves no other image in the ball"),
    ],
)
def test_wrong_input_is_one_line(run: Any, darknet: Path, coco: Path, more: Any, said: str) -> None:
    done = run("evaluate", darknet, "--data", coco, *more)
    assert (done.exit_code, done.stdout) == (2, "")
    last = done.stderr.splitlines()[-1]
    assert last.startswith("prunedeploy: error: ")
    assert said in last


def test_white_box_starts_of_an_engine_need_its_parent(run: Any, bundle: Path, coco: Path) -> None:
    done = run("evaluate", bundle, "--data", coco, "--attack", "pgd,square", "--start", "white-box")
    assert (done.exit_code, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "--parent-cfg" in done.stderr


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("robustness.square.queries=5", "square has no effect without square in robustness.attacks"),
        ("robustness={attacks: square, square: {queries: 0}}", "robustness.square.queries"),
        ("robustness.attacks=sqare", "there is no attack 'sqare'; the nearest is square"),
    ],
)
def test_a_build_that_asks_for_it_wrongly_says_so_in_one_line(
    run: Any, coco: Path, darknet: Path, tmp_path: Path, setting: str, said: str
) -> None:
    done = run("build", "--config", "smoke", "--ratio", "0.5", "--cfg", darknet, "--weights",
               darknet.with_suffix(".weights"), "--data", coco, "--out", tmp_path / "out", "--store",
               tmp_path / "store", "--set", setting)  # fmt: skip
    assert (done.exit_code, done.stdout) == (2, "")
    assert said in done.stderr.splitlines()[-1]
    assert not (tmp_path / "out").exists()
