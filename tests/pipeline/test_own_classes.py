"""A network that was trained on other classes, another size or in part: what a build makes of it, and says of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from prunedeploy.cli import cli
from prunedeploy.config import as_dict
from prunedeploy.config.blocks import ModelConfig
from prunedeploy.models import load_darknet, read_cfg
from prunedeploy.models.starting_weights import starting_weights
from prunedeploy.pipeline.store.key import StageKey
from prunedeploy_engines import load_bundle
from prunedeploy_engines.errors import ConfigError, DarknetFormatError, DataError
from prunedeploy_engines.files import file_sha256

CELLS = ["WBC", "RBC", "Platelets"]
"""By id; not in the order of their names."""
BY_ID = {CELLS[0]: 3, CELLS[1]: 7, CELLS[2]: 70}
TRANSFER = "attack.steps=1 pretrain.clean_steps=3 pretrain.steps=1 score_optimization.steps=1 finetune.steps=1".split()


@pytest.fixture
def cells(tiny_data: Path, copied: Callable[[Path], Path]) -> Path:
    """The scenes with three classes of other names."""
    data = copied(tiny_data)
    for split in ("train", "test"):
        document = json.loads((data / f"{split}.json").read_text())
        ids = sorted(category["id"] for category in document["categories"])
        for annotation in document["annotations"]:
            annotation["category_id"] = [3, 7, 70][ids.index(annotation["category_id"]) % 3]
        document["categories"] = [{"id": BY_ID[name], "name": name} for name in reversed(CELLS)]
        (data / f"{split}.json").write_text(json.dumps(document))
    return data


def names_file(folder: Path, data: Path) -> Path:
    """The ten names that the tiny network knows."""
    document = json.loads((data / "test.json").read_text())
    path = folder / "ten.names"
    path.write_text("# what it was trained on\n" + "\n".join(one["name"] for one in document["categories"]) + "\n")
    return path


def logged(out: Path) -> list[str]:
    return [json.loads(line)["stage"] for line in (out / "log.jsonl").read_text().splitlines()]


def test_heads_are_remade_for_the_datas_classes_and_trained_on_clean_images_first(
    tiny_case: Any, tiny_data: Path, cells: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sets = (f"data.path={cells}", f"model.names={names_file(tmp_path, tiny_data)}", *TRANSFER)
    outcome = tiny_case.build(tmp_path / "store", tmp_path / "out", *sets)
    said = capsys.readouterr().err
    line = (
        "network: the heads are re-made for the data's 3 classes (WBC, RBC, Platelets); "
        "5 of 7 convolutions are loaded from tiny.weights (10 classes), the rest start fresh"
    )
    assert line in said.splitlines()
    network = outcome.results["network"]
    assert network == json.loads((outcome.out / "results.json").read_text())["network"]
    assert network["original"] == "the given network after 3 steps of transfer training on clean images"
    assert line in network["said"]
    assert network["heads_remade"]
    assert network["weights"]["fresh_layers"] == [5, 11]
    page = (outcome.out / "report.html").read_text()
    assert "Original is the given network after 3 steps of transfer training on clean images" in page
    assert "5 of 7 convolutions are loaded" in page
    assert logged(outcome.out)[:4] == ["clean"] * 3 + ["pretrain"]
    assert read_cfg(outcome.out / "model.cfg").classes == 3
    # What is deployed and measured carries the data's names.
    bundle = load_bundle(outcome.out / "bundle")
    assert list(bundle.class_names) == CELLS
    found = CliRunner().invoke(cli, ["evaluate", str(outcome.out), "--bootstrap", "0", "--json"])
    assert found.exit_code == 0, found.output
    torch_row = next(row for row in json.loads(found.stdout)["results"] if row["runtime"] == "torch")
    pruned = next(row for row in outcome.results["models"] if row["name"] == "pruned")
    assert torch_row["map_clean"] == pruned["map_clean"]
    # Without a training on clean images it takes as many steps as against PGD: the row is never an untrained network.
    again = tiny_case.build(tmp_path / "store", tmp_path / "again", *sets, "pretrain.clean_steps=0")
    assert again.results["network"]["original"].startswith("the given network after 1 step of transfer")
    assert logged(again.out)[:2] == ["clean", "pretrain"]
    # The loaded layers come from the file, the heads from the seed.
    original = tmp_path / "store" / "results" / f"original-{outcome.results['stages']['original']['digest']}"
    assert load_darknet(original / "model.cfg", original / "model.weights").cfg.classes == 3
    with pytest.raises(ConfigError, match=r"nothing trains it; give some.*clean_steps"):
        tiny_case.build(tmp_path / "store", tmp_path / "none", *sets, "pretrain.clean_steps=0", "pretrain.steps=0")


def test_a_network_without_names_gets_heads_for_another_number_of_classes(
    tiny_case: Any, cells: Path, tmp_path: Path
) -> None:
    outcome = tiny_case.build(tmp_path / "store", tmp_path / "out", f"data.path={cells}", *TRANSFER)
    assert list(load_bundle(outcome.out / "bundle").class_names) == CELLS
    assert outcome.results["network"]["heads_remade"]


def test_data_that_the_network_knows_keeps_its_heads_and_every_key(
    finished: Any, tiny_case: Any, tiny_data: Path, copied: Callable[[Path], Path], tmp_path: Path
) -> None:
    """Four of the ten names: they are mapped by name, and the network is the same as for all ten."""
    names, data = names_file(tmp_path, tiny_data), copied(tiny_data)
    for split in ("train", "test"):
        document = json.loads((data / f"{split}.json").read_text())
        document["categories"] = document["categories"][3:7]
        kept = {category["id"] for category in document["categories"]}
        document["annotations"] = [one for one in document["annotations"] if one["category_id"] in kept]
        (data / f"{split}.json").write_text(json.dumps(document))
    sets = (f"data.path={data}", f"model.names={names}", "pretrain.clean_steps=5")
    outcome = tiny_case.build(finished[0], tmp_path / "out", *sets)
    stages = [outcome.results["stages"]["original"]["digest"], finished[2].results["stages"]["original"]["digest"]]
    # As it has been since the first results.
    inputs = {"cfg": file_sha256(tiny_case.cfg), "weights": file_sha256(tiny_case.weights)}
    assert stages == [StageKey("original", 1, {}, inputs).digest] * 2
    network = outcome.results["network"]
    assert not network["heads_remade"]
    assert network["original"] == finished[2].results["network"]["original"] == "the network as given"
    assert network["said"] == ["network: pretrain.clean_steps is not used, since the given weights fit as they are"]
    assert finished[2].results["network"]["said"] == []
    assert len(load_bundle(outcome.out / "bundle").class_names) == 10


def test_keys_that_are_younger_than_results_are_left_out_of_them() -> None:
    assert list(as_dict(ModelConfig())) == ["cfg", "weights", "names"]
    assert as_dict(ModelConfig(letterbox=False, input_size="416x256"))["input_size"] == "416x256"


def test_what_is_wrong_beside_the_classes_is_still_said(
    tiny_case: Any, tiny_data: Path, tmp_path: Path, copied: Callable[[Path], Path]
) -> None:
    """The network knows all names, so its heads stay; a box of a category of test alone is a mistake of the data."""
    data = copied(tiny_data)
    document = json.loads((data / "test.json").read_text())
    document["categories"].append({"id": 99, "name": "zebra"})
    document["annotations"][0]["category_id"] = 99
    (data / "test.json").write_text(json.dumps(document))
    sets = (f"data.path={data}", f"model.names={names_file(tmp_path, tiny_data)}")
    with pytest.raises(DataError, match="zebra"):
        tiny_case.build(tmp_path / "store", tmp_path / "out", *sets)


def test_the_first_layers_of_a_file_start_a_build(tiny_case: Any, tmp_path: Path) -> None:
    """As ``yolov3-tiny.conv.15`` does."""
    cfg = read_cfg(tiny_case.cfg)
    # 16, 32, 32 filters of 3 x 3 with normalisation: 4 values a filter, and the weights.
    floats = sum(4 * out + out * of * 9 for out, of in ((16, 3), (32, 16), (32, 32)))
    part = tmp_path / "tiny.conv.3"
    part.write_bytes(tiny_case.weights.read_bytes()[: 20 + 4 * floats])
    assert starting_weights(cfg, part).loaded == (0, 1, 2)
    outcome = tiny_case.build(tmp_path / "store", tmp_path / "out", f"model.weights={part}", *TRANSFER)
    assert outcome.results["network"]["weights"] == {
        "file": str(part),
        "classes": 10,
        "convolutions_in_file": 3,
        "convolutions_loaded": 3,
        "convolutions": 7,
        "fresh_layers": [4, 5, 10, 11],
    }
    (said, _) = outcome.results["network"]["said"]
    assert said == ("network: 3 of 7 convolutions are loaded from tiny.conv.3 (the first 3 of 7), the rest start fresh")
    other_seed = tiny_case.build(tmp_path / "store", tmp_path / "seed", f"model.weights={part}", *TRANSFER, "seed=1")
    one, other = (built.results["stages"]["original"]["digest"] for built in (outcome, other_seed))
    assert one != other
    part.write_bytes(part.read_bytes()[:-8])
    with pytest.raises(DarknetFormatError, match="ends inside the convolution of layer 2"):
        tiny_case.build(tmp_path / "store", tmp_path / "cut", f"model.weights={part}", *TRANSFER)


def test_size_anchors_and_stretching_reach_everything_that_is_built(
    tiny_case: Any, tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sets = ("model.input_size=96x64", "model.anchors=auto", "model.letterbox=false", *TRANSFER)
    outcome = tiny_case.build(tmp_path / "store", tmp_path / "out", *sets)
    said = capsys.readouterr().err
    assert "network: input 96x64 (width x height) instead of 64x64" in said
    assert "anchors: 4 by k-means on " in said
    cfg, network = read_cfg(outcome.out / "model.cfg"), outcome.results["network"]
    assert (cfg.input_size, cfg.letterbox) == ((64, 96), False)
    anchors = network["anchors"]
    assert [tuple(one) for one in anchors["anchors_wh"]] == list(cfg.heads[0].anchors_wh)
    assert cfg.heads[0].anchors_wh != read_cfg(tiny_case.cfg).heads[0].anchors_wh
    assert anchors["after"]["mean_iou"] > anchors["before"]["mean_iou"]
    # By hand: the recall of the new anchors on the training boxes, stretched to 96 x 64.
    document = json.loads((tiny_data / "train.json").read_text())
    sides = {image["id"]: (image["width"], image["height"]) for image in document["images"]}
    covered = []
    for annotation in document["annotations"]:
        (*_, w, h), (width, height) = annotation["bbox"], sides[annotation["image_id"]]
        w, h = w * 96 / width, h * 64 / height
        shared = [min(w, a) * min(h, b) for a, b in cfg.heads[0].anchors_wh]
        ious = [s / (w * h + a * b - s) for s, (a, b) in zip(shared, cfg.heads[0].anchors_wh, strict=True)]
        covered.append(max(ious) > 0.5)
    assert anchors["boxes"] == len(covered)
    assert anchors["after"]["recall"] == pytest.approx(np.mean(covered), abs=2 / len(covered))
    bundle = load_bundle(outcome.out / "bundle")
    assert not bundle.manifest.input.letterbox
    assert bundle.input_size == (64, 96)
    path = tiny_data / "test" / "00000.png"
    with Image.open(path) as image:
        plain = np.asarray(image.convert("RGB").resize((96, 64), Image.Resampling.BILINEAR))
    pixels, _ = bundle.prepare(path, uint8=True)
    assert np.array_equal(pixels, plain)
    pruned = next(row for row in outcome.results["models"] if row["name"] == "pruned")
    for source in (outcome.out, outcome.out / "bundle" / "model.onnx", outcome.out / "model.cfg"):
        arguments = ["--data", str(tiny_data), "--bootstrap", "0", "--attack", "none", "--json"]
        found = CliRunner().invoke(cli, ["evaluate", str(source), *arguments])
        assert found.exit_code == 0, found.output
        rows = {row["runtime"]: row["map_clean"] for row in json.loads(found.stdout)["results"]}
        known = {"torch": pruned["map_clean"], "onnxruntime": pruned["map_clean_onnxruntime"]}
        assert rows == {runtime: known[runtime] for runtime in rows}, source


def test_letter_box_0_of_a_cfg_is_another_network_than_the_same_without_it(
    finished: Any, tiny_case: Any, tmp_path: Path
) -> None:
    cfg = tmp_path / "tiny.cfg"
    cfg.write_text(tiny_case.cfg.read_text().replace("channels=3", "channels=3\nletter_box=0 # as the fork has it"))
    outcome = tiny_case.build(finished[0], tmp_path / "out", f"model.cfg={cfg}")
    assert not load_bundle(outcome.out / "bundle").manifest.input.letterbox
    same = tiny_case.build(finished[0], tmp_path / "same", f"model.cfg={cfg}", "model.letterbox=true")
    assert load_bundle(same.out / "bundle").manifest.input.letterbox


@pytest.mark.parametrize("sets", [("model.anchors=auto",), ("data.path={cells}", "model.names=null")])
def test_bundled_robust_weights_cannot_be_transferred(cells: Path, tmp_path: Path, tiny_case: Any, sets: Any) -> None:
    bundled = ("model.cfg=yolov3-slim", "model.weights=demo", "pretrain.from=bundled")
    chosen = [one.format(cells=cells) for one in sets]
    with pytest.raises(ConfigError, match=r"pretrain\.from=given"):
        tiny_case.build(tmp_path / "store", tmp_path / "out", *bundled, *chosen)


def test_an_input_size_off_the_stride_says_what_fits(tiny_case: Any, tmp_path: Path) -> None:
    with pytest.raises(DarknetFormatError, match=r"multiples of 8; use 96x64"):
        tiny_case.build(tmp_path / "store", tmp_path / "out", "model.input_size=100x64")
