"""A build in three precisions, with uint8 images and suppression in the graph: what it leaves, and what it claims."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from prunedeploy.cli import cli
from prunedeploy.cli.serve import _warn_of_thresholds
from prunedeploy.config import load_config
from prunedeploy.data import load_splits, train_test_subset
from prunedeploy.pipeline.build import BuildOutcome, build
from prunedeploy.pipeline.progress import Progress
from prunedeploy_engines import load_bundle
from prunedeploy_engines.builder.from_onnx import read_engine_file
from prunedeploy_engines.errors import DataError
from prunedeploy_engines.runtimes.onnx_file import read_onnx_header
from prunedeploy_engines.runtimes.opening import unavailable_reason
from prunedeploy_engines.runtimes.tensorrt.library import installed_version

# Nothing is cut and nothing is trained after the first step, so that mAP is far from 0 and worth comparing.
SETS = (
    "ratio=0",
    "pretrain.steps=1",
    "pretrain.batch_size=2",
    "score_optimization.steps=0",
    "finetune.steps=0",
    "latency.runtimes=onnxruntime,openvino",
    "latency.seconds=0.01",
    "latency.min_calls=2",
    "latency.warmup_calls=1",
    "report.grid_images=1",
    "evaluation.bootstrap=2",
    "export.precisions=fp32,fp16,int8",
)
EVERYTHING = ("export.uint8_input=true", "export.nms=true", "export.nms_score_threshold=0.3", "targets=cpu,sm86,sm87")


def built(store: Path, out: Path, data: Path, *sets: str) -> BuildOutcome:
    config = load_config("smoke", [f"data.path={data}", *SETS, *sets])
    return build(config, store=store, out=out, progress=Progress(quiet=True))


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("precisions")


@pytest.fixture(scope="module")
def plain(demo_store: Path, out: Path, tiny_data: Path) -> BuildOutcome:
    return built(demo_store, out / "plain", tiny_data)


@pytest.fixture(scope="module")
def everything(demo_store: Path, out: Path, tiny_data: Path) -> BuildOutcome:
    return built(demo_store, out / "everything", tiny_data, *EVERYTHING)


def engine_row(outcome: BuildOutcome, file: str, runtime: str = "onnxruntime") -> dict[str, Any]:
    rows = [row for row in outcome.results["engines"] if row["file"] == f"bundle/{file}" and row["runtime"] == runtime]
    assert len(rows) == 1
    return rows[0]


def test_bundle_holds_a_file_per_precision(plain: BuildOutcome) -> None:
    files = load_bundle(plain.out / "bundle").manifest.files
    assert {name: (file.precision, file.target) for name, file in files.items()} == {
        "model.onnx": ("fp32", None),
        "model.fp16.onnx": ("fp16", None),
        "model.int8.onnx": ("int8", "cpu"),
    }
    sizes = {name: file.bytes for name, file in files.items()}
    assert sizes["model.fp16.onnx"] < 0.6 * sizes["model.onnx"]
    assert sizes["model.int8.onnx"] < 0.4 * sizes["model.onnx"]


def test_every_precision_is_what_it_says(plain: BuildOutcome) -> None:
    bundle = plain.out / "bundle"
    types = {}
    for name in ("model.onnx", "model.fp16.onnx", "model.int8.onnx"):
        graph = onnx.load(bundle / name).graph
        dequantised = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "DequantizeLinear"}
        constants = {tensor.name: tensor.data_type for tensor in graph.initializer}
        weights = [node.input[1] for node in graph.node if node.op_type == "Conv"]
        types[name] = [constants[dequantised.get(weight, weight)] for weight in weights]
    assert set(types["model.onnx"]) == {onnx.TensorProto.FLOAT}
    assert set(types["model.fp16.onnx"]) == {onnx.TensorProto.FLOAT16}
    in_8_bits = types["model.int8.onnx"].count(onnx.TensorProto.INT8)
    made = read_onnx_header(bundle / "model.int8.onnx").quantisation
    assert made is not None
    assert in_8_bits == made["convolutions"] == len(types["model.int8.onnx"]) - len(made["skipped"])
    assert in_8_bits >= 0.8 * len(types["model.int8.onnx"])
    assert (made["images"], made["seed"], made["activations"]) == (4, 0, "uint8")
    assert len(made["costs_db"]) == made["convolutions_in_all"]


def test_clean_and_robust_map_of_every_precision_follow_from_its_detections(
    plain: BuildOutcome, tiny_data: Path
) -> None:
    truth = tiny_data / "test.json"
    for file in ("model.onnx", "model.fp16.onnx", "model.int8.onnx"):
        row = engine_row(plain, file)
        engine = "onnxruntime" if file == "model.onnx" else f"onnxruntime-{file}"
        for kind, key in (("clean", "map_clean"), ("pgd", "map_pgd_transfer")):
            counted = map_of(plain.out / "detections" / f"pruned-{engine}-{kind}.csv", truth)
            assert row[key] == pytest.approx(counted, abs=1e-9)
    fp32, int8 = engine_row(plain, "model.onnx"), engine_row(plain, "model.int8.onnx")
    assert fp32["map_clean"] > 0.5
    assert fp32["map_clean"] != int8["map_clean"]  # it is the int8 file that was measured


def map_of(path: Path, truth: Path) -> float:
    """COCO's mAP of a CSV, by pycocotools alone."""
    with path.open() as file:
        detections = [
            {
                "image_id": int(row["image_id"]),
                "category_id": int(row["category_id"]),
                "bbox": [float(row[key]) for key in ("x_min", "y_min", "width", "height")],
                "score": float(row["score"]),
            }
            for row in csv.DictReader(file)
        ]
    coco = COCO(str(truth))
    evaluation = COCOeval(coco, coco.loadRes(detections), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return float(evaluation.stats[0])


def test_latency_stands_beside_map_and_says_what_was_computed_in(plain: BuildOutcome) -> None:
    for file in ("model.onnx", "model.fp16.onnx", "model.int8.onnx"):
        row = engine_row(plain, file)
        assert row["latency_ms"]["p50"] > 0
        assert row["latency_ms"]["n"] >= 2
        assert sum(row["computes_in"].values()) == pytest.approx(1.0)
    assert engine_row(plain, "model.onnx")["computes_in"] == {"fp32": 1.0}
    assert engine_row(plain, "model.int8.onnx")["computes_in"]["int8"] > 0.8


@pytest.mark.skipif(unavailable_reason("openvino") is not None, reason="needs openvino (prunedeploy[openvino])")
def test_openvino_is_measured_beside_onnxruntime(plain: BuildOutcome) -> None:
    for file in ("model.onnx", "model.fp16.onnx", "model.int8.onnx"):
        row, other = engine_row(plain, file, "openvino"), engine_row(plain, file)
        assert row["latency_ms"]["p50"] > 0
        assert row["map_clean"] == pytest.approx(other["map_clean"], abs=0.05)
    assert engine_row(plain, "model.onnx", "openvino")["computes_in"] == {"fp32": 1.0}
    assert "openvino" in plain.results["speedup"]


def test_gates_of_every_precision_are_recorded(plain: BuildOutcome) -> None:
    passed = {(gate.get("artefact", "model.onnx"), gate["gate"]) for gate in plain.results["gates"]}
    files = ("model.onnx", "model.fp16.onnx", "model.int8.onnx")
    assert {(file, gate) for file in files for gate in ("tensor", "detections", "map")} <= passed


def test_second_build_computes_nothing(plain: BuildOutcome, demo_store: Path, tiny_data: Path) -> None:
    assert built(demo_store, plain.out, tiny_data).computed == ()


def test_report_shows_every_file(everything: BuildOutcome) -> None:
    page = (everything.out / "report.html").read_text()
    for row in everything.results["engines"]:
        if row["file"] is not None:
            assert row["file"] in page


def test_uint8_images_and_suppression_stand_in_every_file(everything: BuildOutcome) -> None:
    for name in ("model.onnx", "model.fp16.onnx", "model.int8.onnx", "model.int8.gpu.onnx"):
        header = read_onnx_header(everything.out / "bundle" / name)
        assert header.uint8_input
        assert header.nms is not None
        assert (header.nms.score_threshold, header.nms.iou_threshold) == (0.3, 0.45)
        graph = onnx.load(everything.out / "bundle" / name, load_external_data=False).graph
        assert [value.name for value in graph.output] == ["detections", "num_detections"]
        assert graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8


def test_detections_are_those_of_the_plain_file(plain: BuildOutcome, everything: BuildOutcome, tiny_data: Path) -> None:
    image = sorted(tiny_data.rglob("*.png"))[-1]
    with load_bundle(plain.out / "bundle") as one, load_bundle(everything.out / "bundle") as other:
        expected = one.detect(image, score_threshold=0.3)
        assert len(expected) > 0
        found = other.detect(image, score_threshold=0.3)
        np.testing.assert_allclose(found.boxes_xyxy, expected.boxes_xyxy, atol=1e-2)
        np.testing.assert_allclose(found.scores, expected.scores, atol=1e-4)
        assert found.class_ids.tolist() == expected.class_ids.tolist()
        pixels = np.asarray(Image.open(image).convert("RGB"))
        with other.runner("onnxruntime", "int8") as runner:
            assert runner.uint8_input
            in_8_bits = other.detect(pixels, runner=runner, score_threshold=0.3)
    assert in_8_bits.class_ids.tolist() == expected.class_ids.tolist()


@pytest.mark.skipif(installed_version("tensorrt_rtx") is None, reason="needs tensorrt-rtx (prunedeploy[rtx])")
def test_engines_are_built_in_every_precision(everything: BuildOutcome) -> None:
    bundle = load_bundle(everything.out / "bundle")
    for precision in ("fp32", "fp16", "int8"):
        about = read_engine_file(bundle.engine_path(precision, "sm86"))
        assert about.precision == precision
        assert about.uint8_input
    only_on_the_device = [row for row in everything.results["engines"] if row["target"] == "sm87"]
    assert len(only_on_the_device) == 3
    for row in only_on_the_device:
        assert row["file"] is None
        assert "prunedeploy engine" in row["note"]
    for row in everything.results["engines"]:
        if row["runtime"].startswith("tensorrt"):
            assert row["map_clean"] is row["map_pgd_transfer"] is row["latency_ms"] is None


def test_bundle_names_map_and_latency_of_its_files(everything: BuildOutcome) -> None:
    metrics = json.loads((everything.out / "bundle" / "bundle.json").read_text())["metrics"]["engines"]
    files = {row["file"] for row in metrics if row["runtime"] == "onnxruntime"}
    assert files == {"model.onnx", "model.fp16.onnx", "model.int8.onnx", "model.int8.gpu.onnx"}
    assert all(row["map_clean"] is not None for row in metrics if row["runtime"] == "onnxruntime")


def held_out(tiny_data: Path) -> list[tuple[Path, list[tuple[int, tuple[float, ...]]]]]:
    """Path and boxes (class, xyxy) of the training images that int8 was not calibrated on."""
    training, _ = load_splits(tiny_data, None, 16, 0)
    _, rest = train_test_subset(training, 4, 0)
    truth = COCO(str(tiny_data / "train.json"))
    order = {category: index for index, category in enumerate(sorted(truth.getCatIds()))}
    images = []
    for record in rest.images:
        rows = truth.loadAnns(truth.getAnnIds(imgIds=[record.image_id]))
        boxes = [(order[row["category_id"]], (x, y, x + w, y + h)) for row in rows for x, y, w, h in [row["bbox"]]]
        images.append((record.path, boxes))
    return images


def overlap(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return width * height / (sum(areas) - width * height)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_bundle_detects_at_its_operating_point_with_the_precision_and_recall_it_claims(
    plain: BuildOutcome, tiny_data: Path, precision: str
) -> None:
    """Counted by a plain loop over what the bundle finds in the held-out images."""
    right = found = boxes = 0
    with load_bundle(plain.out / "bundle") as bundle, bundle.runner("onnxruntime", precision) as runner:
        point = bundle.manifest.operating_points[precision]
        threshold = bundle.score_threshold(precision)
        for path, truth in held_out(tiny_data):
            left = list(truth)
            boxes += len(truth)
            seen = bundle.detect(path, runner=runner, score_threshold=threshold)
            found += len(seen)
            for box, class_id in zip(seen.boxes_xyxy.tolist(), seen.class_ids.tolist(), strict=True):
                fitting = [one for one in left if one[0] == class_id and overlap(box, one[1]) >= 0.5]
                if fitting:
                    right += 1
                    left.remove(max(fitting, key=lambda one: overlap(box, one[1])))
    assert threshold == point.score_threshold
    assert boxes >= 20
    assert right / boxes > 0.8
    assert (point.precision, point.recall) == pytest.approx((right / found, right / boxes), abs=1e-6)
    assert point.f1 == pytest.approx(2 * right / (found + boxes), abs=1e-6)
    assert point.f1 >= max(2 * p * r / (p + r) for _, p, r in point.curve if p + r) - 1e-4


def test_operating_points_stand_in_results_report_and_bundle(plain: BuildOutcome) -> None:
    rows = {(row["model"], row["file"]): row for row in plain.results["operating_points"]}
    files = ("model.onnx", "model.fp16.onnx", "model.int8.onnx")
    assert set(rows) == {*((name, None) for name in ("original", "robust", "pruned")), *(("pruned", f) for f in files)}
    manifest = load_bundle(plain.out / "bundle").manifest
    for precision, file in zip(("fp32", "fp16", "int8"), files, strict=True):
        assert manifest.operating_points[precision].score_threshold == rows["pruned", file]["score_threshold"]
    assert manifest.thresholds.score == rows["pruned", "model.onnx"]["score_threshold"]
    assert "Operating points" in (plain.out / "report.html").read_text()
    assert plain.results["configuration"]["evaluation"]["score_threshold"] == 0.5  # the paper's stays as it was


def test_wanted_precision_is_reached_or_said_to_be_out_of_reach(
    demo_store: Path, out: Path, tiny_data: Path, plain: BuildOutcome
) -> None:
    precise = built(demo_store, out / "precise", tiny_data, "operating_point.rule=precision=0.99")
    assert set(precise.computed) <= {"operating-point", "gallery"}  # nothing else depends on it
    for row in precise.results["operating_points"]:
        if row["why_not"] is None:
            assert row["precision"] >= 0.99
        else:
            assert row["score_threshold"] == 0.5
    assert any(row["why_not"] is None for row in precise.results["operating_points"])


def test_map_of_a_file_with_suppression_is_that_of_the_file_as_it_is_delivered(
    everything: BuildOutcome, demo_store: Path, tiny_data: Path
) -> None:
    row = engine_row(everything, "model.onnx")
    found = everything.out / "detections" / "pruned-onnxruntime-model.onnx-clean.csv"
    with found.open() as file:
        assert min(float(one["score"]) for one in csv.DictReader(file)) > 0.3
    assert row["map_clean"] == pytest.approx(map_of(found, tiny_data / "test.json"), abs=1e-9)
    assert "above a score of 0.3 only" in row["note"]
    gates = [gate for gate in everything.results["gates"] if gate["gate"] == "map" and gate["model"] == "pruned"]
    gate = next(gate for gate in gates if gate["artefact"] == "model.int8.onnx")
    assert gate["candidate"] != engine_row(everything, "model.int8.onnx")["map_clean"]  # the gate counts all scores
    for point in everything.results["operating_points"]:
        assert point["file"] is None or point["score_threshold"] >= 0.3
    said = told("evaluate", everything.out / "bundle", "--data", tiny_data, "--bootstrap", "0", "--json")
    assert json.loads(said.stdout)["results"][0]["map_clean"] == pytest.approx(row["map_clean"], abs=1e-9)
    assert "warning: suppression is part of the graph, which gives detections above a score of 0.3 only" in said.stderr


def test_threshold_below_that_of_the_graph_is_answered_with_a_line(everything: BuildOutcome, tiny_data: Path) -> None:
    image = sorted(tiny_data.rglob("*.png"))[-1]
    low = told("detect", everything.out / "bundle", image, "--score-threshold", "0.1")
    assert "score of 0.3 only; the lower threshold of 0.1 finds no more" in low.stderr
    assert low.stderr.count("warning") == 1
    assert "warning" not in told("detect", everything.out / "bundle", image, "--score-threshold", "0.3").stderr
    assert "warning" not in told("detect", everything.out / "bundle", image).stderr


def test_bench_and_serve_say_it_of_a_bundle_with_a_lower_threshold(
    everything: BuildOutcome, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    low = Path(shutil.copytree(everything.out / "bundle", tmp_path / "bundle"))
    manifest = json.loads((low / "bundle.json").read_text())
    (low / "bundle.json").write_text(json.dumps({**manifest, "operating_points": {}, "thresholds": {"score": 0.1}}))
    measured = told("bench", low, "--seconds", "0.01", "--min-calls", "1", "--warmup", "0")
    assert measured.stderr.count("score of 0.3 only; the lower threshold of 0.1 finds no more") == 1
    capsys.readouterr()
    _warn_of_thresholds({"mine": low}, "int8")
    assert capsys.readouterr().err == (
        "prunedeploy: warning: mine: suppression is part of the graph, which gives detections above a score of 0.3 "
        "only; no request can lower that\n"
    )


def told(*arguments: object) -> Result:
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.stderr
    return result


def test_file_that_fails_its_gate_costs_no_other(demo_store: Path, tiny_data: Path, tmp_path: Path) -> None:
    sets = ("export.int8.match_iou=1", "export.int8.match_share=1", "latency.runtimes=tensorrt")  # measures no latency
    outcome = built(demo_store, tmp_path / "out", tiny_data, *sets)
    assert [one["file"] for one in outcome.results["left_out"]] == ["model.int8.onnx"]
    assert set(load_bundle(outcome.out / "bundle").manifest.files) == {"model.onnx", "model.fp16.onnx"}


def test_too_few_images_to_calibrate_is_told_before_anything_is_trained(tiny_data: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"int8 needs more than 18 training images, there are 16") as caught:
        built(tmp_path / "store", tmp_path / "out", tiny_data, "export.int8.calibration_images=16")
    assert "export.int8.calibration_images" in str(caught.value)
    assert not [folder for folder in (tmp_path / "store").rglob("*") if "pretrain" in folder.name]
