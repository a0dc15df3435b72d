"""``prunedeploy import``: three files that other commands take, or one line and nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import torch

from importing.exported import anchored, yolox
from labelled import picture, text
from prunedeploy.models import load_darknet
from prunedeploy.models.normalisation import lacking_normalisation


def test_a_detector_becomes_files_that_other_commands_take(run: Any, tmp_path: Path) -> None:
    onnx.save(anchored(), tmp_path / "best.onnx")
    done = run("import", tmp_path / "best.onnx", tmp_path / "mine")
    assert done.exit_code == 0, done.stderr
    assert done.stdout.startswith(f"{tmp_path / 'mine'}: input 96x64, 2 heads (yolo), 3 classes, ")
    assert "note:" not in done.stdout
    files = sorted(path.name for path in (tmp_path / "mine").iterdir())
    assert files == ["model.cfg", "model.names", "model.weights"]
    assert (tmp_path / "mine" / "model.names").read_text().splitlines() == ["class 0", "class 1", "class 2"]
    document = json.loads(run("inspect", tmp_path / "mine" / "model.cfg", "--json").stdout)
    assert document["input"] == {"channels": 3, "height": 64, "width": 96, "letterbox": True}
    again = run("import", tmp_path / "best.onnx", tmp_path / "mine")
    assert again.exit_code == 2
    assert "exists and is not empty; choose another folder, or --overwrite it" in again.stderr
    assert run("import", tmp_path / "best.onnx", tmp_path / "mine", "--overwrite").exit_code == 0


def test_json_says_what_was_made_and_what_to_know(run: Any, tmp_path: Path) -> None:
    onnx.save(yolox(), tmp_path / "best.onnx")
    (tmp_path / "my.names").write_text("red\ngreen\nblue\n")
    names, size = ("--names", tmp_path / "my.names"), ("--input-size", "48x32")
    done = run("import", tmp_path / "best.onnx", tmp_path / "mine", *names, *size, "--json")
    assert done.exit_code == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["input"] == {"width": 48, "height": 32}
    assert (document["heads"], document["class_names"]) == (["yolox", "yolox"], ["red", "green", "blue"])
    assert len(document["said"]) == 2


def test_normalisation_is_put_back_and_changes_nothing(run: Any, tmp_path: Path) -> None:
    onnx.save(anchored(), tmp_path / "best.onnx")
    photos = tmp_path / "photos"
    for number in range(10):
        picture(photos / "images" / f"{number}.png")
        text(photos / "labels" / f"{number}.txt", "0 0.5 0.5 0.2 0.2\n")
    text(photos / "data.yaml", "train: images\nnames: [red, green, blue]\n")
    assert run("import", tmp_path / "best.onnx", tmp_path / "plain").exit_code == 0
    done = run("import", tmp_path / "best.onnx", tmp_path / "mine", "--data", photos, "--images", "5")
    assert done.exit_code == 0, done.stderr
    plain, mine = (
        load_darknet(tmp_path / name / "model.cfg", tmp_path / name / "model.weights") for name in ("plain", "mine")
    )
    lacking = lacking_normalisation(plain.cfg)
    assert len(lacking) > 0
    assert f"put back into {len(lacking)} convolutions, with statistics of 5 training images" in done.stdout
    assert lacking_normalisation(mine.cfg) == []
    images = torch.rand(2, *plain.cfg.input_shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for before, after in zip(plain(images), mine(images), strict=True):
            torch.testing.assert_close(after, before, rtol=0, atol=1e-5 * float(before.abs().max()))
    empty = run("import", tmp_path / "best.onnx", tmp_path / "other", "--data", tmp_path / "plain")
    assert (empty.exit_code, empty.stderr.count("\n")) == (2, 1)
    assert not (tmp_path / "other").exists()


def test_what_cannot_be_imported_is_one_line_and_nothing_is_written(run: Any, tmp_path: Path) -> None:
    (tmp_path / "best.pt").write_bytes(b"PK\x03\x04pickled")
    onnx.save(anchored(), tmp_path / "best.onnx")
    cases = [
        (("best.pt",), "best.pt: is a PyTorch checkpoint"),
        (("missing.onnx",), "missing.onnx: cannot be read"),
        (("best.onnx", "--input-size", "no"), "--input-size: 'no' is no size"),
        (("best.onnx", "--names", str(tmp_path / "none.txt")), "none.txt: cannot be read"),
    ]
    for (name, *options), says in cases:
        done = run("import", tmp_path / name, tmp_path / "mine", *options)
        assert done.exit_code == 2, done.stderr
        assert says in done.stderr
        assert done.stderr.count("\n") == 1
        assert not (tmp_path / "mine").exists()


def test_a_build_takes_the_file_as_its_model(run: Any, tmp_path: Path) -> None:
    done = run("build", "--config", "smoke", "--model", tmp_path / "none.onnx", "--store", tmp_path / "store")
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
    assert f"{tmp_path / 'none.onnx'}: cannot be read" in done.stderr


def test_a_foreign_file_is_told_where_to_go(run: Any, tmp_path: Path) -> None:
    onnx.save(anchored(), tmp_path / "best.onnx")
    done = run("bench", tmp_path / "best.onnx", "--seconds", "0.1")
    assert done.exit_code == 2
    assert "make a network of it first: prunedeploy import" in done.stderr
