"""A build whose files are attacked by their answers: what is measured, on which images, and what does not change."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prunedeploy.attacks.answer_margins import from_scores, objects_of
from prunedeploy.attacks.square import Square
from prunedeploy.config import as_dict, config_hash, load_config
from prunedeploy.data.coco import load_test_split, measured_subset
from prunedeploy.data.demo import CLASS_NAMES
from prunedeploy.data.loader import EvaluationLoader
from prunedeploy.evaluation import DetectionTable, coco_map
from prunedeploy.pipeline.build import BuildOutcome
from prunedeploy_engines import load_bundle
from prunedeploy_engines.detection.nms import detections_from
from prunedeploy_engines.errors import ConfigError
from prunedeploy_engines.runtimes.onnxruntime.runner import OnnxRuntimeRunner

IMAGES, QUERIES = 5, 40
ASKED = ("attack=[{steps: 2}, square]", f"robustness={{images: {IMAGES}, square: {{queries: {QUERIES}}}}}")


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory, tiny_case: Any, finished: Any) -> tuple[Path, BuildOutcome]:
    out = tmp_path_factory.mktemp("square") / "out"
    return out, tiny_case.build(finished[0], out, *ASKED)


def test_only_the_search_is_computed_anew(asked: Any, tiny_case: Any, finished: Any, tmp_path: Path) -> None:
    _, outcome = asked
    assert outcome.computed == ("square",)
    assert outcome.results["robustness"] == {}
    again = tiny_case.build(finished[0], tmp_path / "out", *ASKED)
    assert again.computed == ()
    assert again.results["engines"] == outcome.results["engines"]


def test_figures_are_those_of_a_search_on_the_file(asked: Any, tiny_data: Path) -> None:
    """The same search on the bundle's file, by hand; mAP of what ONNX Runtime finds in the images that come out."""
    out, outcome = asked
    (row,) = outcome.results["engines"]
    dataset = measured_subset(load_test_split(tiny_data, list(CLASS_NAMES)), IMAGES)
    (batch,) = EvaluationLoader(dataset, (64, 64), IMAGES)
    eps = outcome.results["attack"]["eps"]
    with OnnxRuntimeRunner(out / "bundle" / "model.onnx", threads=1) as runner:
        objects = objects_of(batch.targets, IMAGES, (64, 64), batch.geometries)
        found = Square(eps, QUERIES, seed=outcome.results["seed"])(batch.images.numpy(), from_scores(runner, objects))
        boxes, scores = runner.infer(found.images)
    assert 0 < np.abs(found.images - batch.images.numpy()).max() <= eps + 1e-6
    tables = []
    for number, image_id in enumerate(batch.image_ids):
        xyxy, kept, classes = detections_from(
            boxes[number], scores[number], score_threshold=0.001, iou_threshold=0.45, max_detections=100
        )
        original = xyxy.astype(np.float64) / batch.geometries[number].scale
        size = dataset.images[number].width, dataset.images[number].height
        tables.append(DetectionTable.of_image(image_id, original.clip(0, size * 2), kept, classes))
    whole = coco_map(dataset, DetectionTable.concatenate(tables))
    assert row["square"]["map_square"] == pytest.approx(whole.map_50_95, abs=1e-9)
    assert row["square"]["queries"] == {"mean": found.queries.mean(), "max": found.queries.max()}
    assert row["square"]["attack"]["queries"] == QUERIES


def test_of_fewer_images_figures_are_kept_apart_and_so_is_the_lowest(asked: Any) -> None:
    out, outcome = asked
    assert json.loads((out / "results.json").read_text()) == outcome.results
    (row,) = outcome.results["engines"]
    within = row["square"]
    assert "map_square" not in row
    assert (within["images"], row["lowest"]["images"]) == (IMAGES, IMAGES)
    attacks = {name: within[f"map_{name}"] for name in ("pgd_transfer", "square")}
    assert row["lowest"]["map"] == min(attacks.values()) == attacks[row["lowest"]["attack"]]
    assert row["lowest"]["interval"] == within["intervals"][f"map_{row['lowest']['attack']}"]
    assert within["map_pgd_transfer"] != row["map_pgd_transfer"]  # of eight images
    (delivered,) = load_bundle(out / "bundle").manifest.metrics["engines"]
    assert (delivered["square"], delivered["lowest"]) == (within, row["lowest"])
    page = (out / "report.html").read_text()
    for words in ("mAP Square", "mAP lowest", f"{IMAGES} images", "Where a figure is of fewer images"):
        assert words in page


def test_the_search_is_made_as_it_was_asked_for(tiny_case: Any, finished: Any, tmp_path: Path) -> None:
    how = "robustness={square: {queries: 2, start: white-box, feedback: detections}}"
    outcome = tiny_case.build(finished[0], tmp_path / "out", "attack=[{steps: 2}, fgsm, square]", how)
    assert set(outcome.computed) == {"robustness", "gallery", "square"}
    (row,) = outcome.results["engines"]
    attack = row["square"]["attack"]
    assert (attack["start"], attack["feedback"], attack["queries"]) == ("white-box", "detections", 2)
    assert attack["score_threshold"] == load_bundle(tmp_path / "out" / "bundle").score_threshold("fp32")
    # All eight images: beside the others, and both white-box images were asked about.
    assert row["square"]["queries"] == {"mean": 2.0, "max": 2}
    assert {"map_pgd_transfer", "map_fgsm_transfer", "map_square"} <= set(row)
    assert {"map_fgsm_transfer", "map_square"} <= set(row["intervals"])
    assert row["square"]["checks"] == []


def test_without_it_only_transfer_is_the_lowest(finished: Any) -> None:
    for row in finished[2].results["engines"]:
        assert row["lowest"] == {
            "map": row["map_pgd_transfer"],
            "attack": "pgd_transfer",
            "interval": row["intervals"]["map_pgd"],
            "images": 8,
        }
        assert "square" not in row
    assert "mAP lowest" not in (finished[1] / "report.html").read_text()


def test_nothing_else_changes_by_the_keys(tiny_case: Any) -> None:
    plain, noise = (load_config("smoke", tiny_case.arguments(*more)) for more in ((), ("robustness.attacks=noise",)))
    square = load_config("smoke", tiny_case.arguments("robustness={attacks: [noise, square], square: {queries: 7}}"))
    defaults = load_config("smoke", tiny_case.arguments("robustness={square: {queries: 1000, start: clean}}"))
    assert config_hash(defaults) == config_hash(plain)
    assert as_dict(square.robustness.of_attacks) == as_dict(noise.robustness.of_attacks) == as_dict(noise.robustness)
    assert "square" not in as_dict(noise)["robustness"]
    assert not load_config("smoke", ["robustness.attacks=square"]).robustness.is_wanted


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (("robustness={attacks: square, square: {queries: 0}}",), r"robustness\.square\.queries: .*at least 1|greater"),
        (("robustness.square.queries=5",), "square has no effect without square in robustness.attacks"),
        (("robustness={attacks: square, square: {feedback: logits}}",), r"robustness\.square\.feedback"),
        (("robustness={attacks: square, square: {start: black-box}}",), r"robustness\.square\.start"),
        (("robustness.attacks=square:box",), r"robustness\.attacks: square has no objective to choose"),
        (("robustness.attacks=square", "attack.eps=0"), r"attack\.eps: a ball of radius 0"),
        (("robustness.attacks=square", "attack.eps=1e-7"), r"attack\.eps: .*leaves no other image in the ball"),
        (
            ("robustness.attacks=square", "attack.eps=0.003", "export.uint8_input=true"),
            r"attack\.eps: .*leaves no other image of 8 bits in the ball",
        ),
        (
            ("robustness={attacks: square, square: {feedback: scores}}", "export.nms=true"),
            r"robustness\.square\.feedback: files with suppression in their graph .* give no scores",
        ),
        (
            ("robustness={attacks: [ensemble, square], square: {queries: 6, start: white-box}}",),
            r"robustness\.square\.queries: 6 queries do not reach the 7 white-box images",
        ),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_read(
    tiny_case: Any, tmp_path: Path, settings: Any, says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        tiny_case.build(tmp_path / "store", tmp_path / "out", *settings, "data.path=nowhere")
    assert not (tmp_path / "out").exists()
