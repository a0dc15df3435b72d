"""A whole build, looked at as somebody who did not write it: every number is counted again by other means."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from prunedeploy.cli import cli
from prunedeploy.config import load_config
from prunedeploy.data.coco import load_test_split, measured_subset
from prunedeploy.data.loader import EvaluationLoader
from prunedeploy.models import decode, load_darknet
from prunedeploy.models.loss import yolo_loss
from prunedeploy.pipeline.build import BuildOutcome, build
from prunedeploy.pipeline.context import open_context
from prunedeploy.pipeline.output_folder import open_output_folder
from prunedeploy.pipeline.progress import Progress
from prunedeploy.pipeline.stages.quantise import write_int8
from prunedeploy.pipeline.store.key import check_result
from prunedeploy.pipeline.store.store import Store
from prunedeploy.resources import asset_path, darknet_cfg_path
from prunedeploy_engines import load_bundle
from prunedeploy_engines.errors import ConfigError, DataError
from prunedeploy_engines.runtimes.onnx_file import read_onnx_header

# The demo network on a few scenes: its mAP is far from 0, so that comparing it means something.
SMOKE = (
    "pretrain.steps=1",
    "pretrain.batch_size=2",
    "score_optimization.steps=1",
    "score_optimization.batch_size=2",
    "finetune.steps=3",
    "finetune.batch_size=2",
    "latency.runtimes=onnxruntime",
    "latency.seconds=0.01",
    "latency.min_calls=1",
    "latency.warmup_calls=0",
)


@pytest.fixture(scope="module", params=["structured", "unstructured"])
def outcome(
    request: pytest.FixtureRequest, demo_store: Path, tiny_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> BuildOutcome:
    config = load_config("smoke", [f"data.path={tiny_data}", f"method={request.param}", *SMOKE])
    out = tmp_path_factory.mktemp("builds") / request.param
    return build(config, store=demo_store, out=out, progress=Progress(quiet=True))


def row_of(results: dict[str, Any], name: str) -> dict[str, Any]:
    return next(row for row in results["models"] if row["name"] == name)


def stage_folder(store: Path, results: dict[str, Any], stage: str) -> Path:
    return store / "results" / f"{stage}-{results['stages'][stage]['digest']}"


def test_results_have_every_promised_key(outcome: BuildOutcome) -> None:
    results = json.loads((outcome.out / "results.json").read_text())
    assert results == outcome.results
    top = "ratio_requested ratio_achieved method scores seed models speedup engines environment".split()
    assert set(top) <= set(results)
    assert [row["name"] for row in results["models"]] == ["original", "robust", "pruned"]
    keys = (
        "name params macs onnx_bytes map_clean map_pgd map50_clean map50_pgd map_clean_conf50 map_pgd_conf50 latency_ms"
    )
    for row in results["models"]:
        assert set(keys.split()) <= set(row)
        assert {"onnxruntime", "torch", "tensorrt"} <= set(row["latency_ms"])
        assert {"mean", "p50", "p90", "p95", "p99", "n"} <= set(row["latency_ms"]["onnxruntime"])
        assert row["latency_ms"]["tensorrt"] is None
    engine_keys = "runtime target precision file bytes map_clean map_pgd_transfer latency_ms"
    assert all(set(engine_keys.split()) <= set(engine) for engine in results["engines"])
    dense, pruned = (row_of(results, name)["latency_ms"]["onnxruntime"]["p50"] for name in ("original", "pruned"))
    assert results["speedup"]["onnxruntime"] == pytest.approx(dense / pruned)
    json.dumps(results, allow_nan=False)


def test_folder_holds_what_the_design_promises_and_nothing_else(outcome: BuildOutcome) -> None:
    names = {path.name for path in outcome.out.iterdir()}
    entries = "build.json bundle model.cfg model.weights results.json detections report.html log.jsonl"
    assert names == set(entries.split())
    page = (outcome.out / "report.html").read_text()
    assert page.startswith("<!DOCTYPE html>")
    assert "data:image/png;base64," in page
    assert 'src="http' not in page


def test_saved_network_has_the_size_that_results_say(outcome: BuildOutcome) -> None:
    row = row_of(outcome.results, "pruned")
    model = load_darknet(outcome.out / "model.cfg", outcome.out / "model.weights")
    # Darknet's file is a 20-byte header and nothing but float32; of the numbers in it, running means and variances
    # are no parameters.
    floats = ((outcome.out / "model.weights").stat().st_size - 20) // 4
    running = sum(b.numel() for name, b in model.named_buffers() if name.endswith(("mean", "variance")))
    assert row["params"] == sum(p.numel() for p in model.parameters()) == floats - running
    assert row["onnx_bytes"] == (outcome.out / "bundle" / "model.onnx").stat().st_size
    assert row["macs"] == counted_macs(model)
    engine = outcome.results["engines"][0]
    assert engine["bytes"] == row["onnx_bytes"]
    assert engine["latency_ms"] == row["latency_ms"]["onnxruntime"]
    original = row_of(outcome.results, "original")
    if outcome.results["method"] == "structured":
        assert row["params"] < 0.5 * original["params"]
        assert row["macs"] < original["macs"]
    else:
        assert (row["params"], row["macs"]) == (original["params"], original["macs"])


def counted_macs(model: torch.nn.Module) -> int:
    """Multiplications of all convolutions, from the shapes that really pass through them."""
    counted = 0

    class Counting(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal counted
            result = function(*args, **(kwargs or {}))
            if function in {torch.conv2d, torch.nn.functional.conv2d}:
                weight = args[1]
                counted += weight[0].numel() * result.numel()
            return result

    height, width = model.cfg.input_size  # type: ignore[union-attr]
    with torch.no_grad(), Counting():
        model.eval()(torch.zeros(1, 3, height, width))
    return counted


def prunable_weights(cfg: Path, weights: Path) -> list[torch.Tensor]:
    """Weights of every convolution that is not right before a yolo section, found in the cfg's text."""
    sections = [line for line in cfg.read_text().splitlines() if line.startswith("[")][1:]
    model = load_darknet(cfg, weights)
    tensors = [p.detach() for p in model.parameters() if p.dim() == 4]
    convolutions = [i for i, section in enumerate(sections) if section == "[convolutional]"]
    assert len(tensors) == len(convolutions)
    last = len(sections) - 1
    return [tensor for i, tensor in zip(convolutions, tensors, strict=True) if i == last or sections[i + 1] != "[yolo]"]


def test_ratio_is_achieved_when_weights_are_counted_again(outcome: BuildOutcome) -> None:
    results = outcome.results
    dense = prunable_weights(darknet_cfg_path("yolov3-slim"), asset_path("demo-clean.weights"))
    left = prunable_weights(outcome.out / "model.cfg", outcome.out / "model.weights")
    total = sum(tensor.numel() for tensor in dense)
    kept = 0
    for tensor in left:
        for weight in tensor.flatten().tolist():
            kept += weight != 0.0
    assert results["ratio_achieved"] == pytest.approx(1 - kept / total, abs=1e-9)
    assert abs(results["ratio_achieved"] - 0.75) <= 0.01
    assert results["pruning"]["ratio_achieved"] == results["ratio_achieved"]


def test_removed_weights_are_still_zero_after_fine_tuning_and_the_others_have_moved(
    outcome: BuildOutcome, demo_store: Path
) -> None:
    if outcome.results["method"] != "unstructured":
        pytest.skip("a structured network has no removed weights in it")
    before = stage_folder(demo_store, outcome.results, "prune")
    cut = prunable_weights(before / "model.cfg", before / "model.weights")
    tuned = prunable_weights(outcome.out / "model.cfg", outcome.out / "model.weights")
    moved = 0
    for old, new in zip(cut, tuned, strict=True):
        assert torch.equal(old == 0, new == 0)
        moved += int((old != new).sum())
    assert moved > 0
    row = row_of(outcome.results, "pruned")
    everything = sum(int((p == 0).sum()) for p in tuned)
    assert row["zero_weights"] == everything > 0.7 * row["weights"]


def test_detections_give_the_map_of_results_with_plain_pycocotools(outcome: BuildOutcome, tiny_data: Path) -> None:
    for row in outcome.results["models"]:
        for kind in ("clean", "pgd"):
            found = csv_rows(outcome.out / "detections" / f"{row['name']}-{kind}.csv")
            assert row[f"map_{kind}"] == pytest.approx(plain_map(tiny_data, found)[0], abs=1e-12)
            assert row[f"map50_{kind}"] == pytest.approx(plain_map(tiny_data, found)[1], abs=1e-12)
            confident = [one for one in found if one["score"] > 0.5]
            assert row[f"map_{kind}_conf50"] == pytest.approx(plain_map(tiny_data, confident)[0], abs=1e-12)
            for end, side in (("low", min), ("high", max)):
                assert side(row["intervals"][f"map_{kind}"]) == row["intervals"][f"map_{kind}"][end == "high"]
    assert row_of(outcome.results, "original")["map_clean"] > 0.1, "comparing zeros proves nothing"
    engine = csv_rows(outcome.out / "detections" / "pruned-onnxruntime-clean.csv")
    assert outcome.results["engines"][0]["map_clean"] == pytest.approx(plain_map(tiny_data, engine)[0], abs=1e-12)


def csv_rows(path: Path) -> list[dict[str, Any]]:
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    columns = ("x_min", "y_min", "width", "height")
    return [
        {
            "image_id": int(row["image_id"]),
            "category_id": int(row["category_id"]),
            "bbox": [float(row[name]) for name in columns],
            "score": float(row["score"]),
        }
        for row in rows
    ]


def plain_map(data: Path, detections: list[dict[str, Any]]) -> tuple[float, float]:
    """(mAP 50:95, mAP 50) as pycocotools' own example computes them."""
    if not detections:
        return 0.0, 0.0  # pycocotools cannot read an empty list
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(data / "test.json"))
        evaluation = COCOeval(truth, truth.loadRes([dict(one) for one in detections]), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return float(evaluation.stats[0]), float(evaluation.stats[1])


def test_robust_map_is_that_of_a_plain_pgd_loop(outcome: BuildOutcome, tiny_data: Path, demo_store: Path) -> None:
    """PGD and NMS written out as in a textbook, on the network as it is stored; nothing folded, nothing batched."""
    results = outcome.results
    folder = stage_folder(demo_store, results, "original")
    model = load_darknet(folder / "model.cfg", folder / "model.weights").eval()
    document = json.loads((tiny_data / "test.json").read_text())
    order = {category["id"]: k for k, category in enumerate(sorted(document["categories"], key=lambda c: c["id"]))}
    ids = {k: category_id for category_id, k in order.items()}
    found: list[dict[str, Any]] = []
    for image in document["images"]:
        pixels = np.asarray(Image.open(tiny_data / "test" / image["file_name"]).convert("RGB"), np.float32) / 255
        clean = torch.from_numpy(pixels).permute(2, 0, 1)[None]
        size = float(clean.shape[-1])
        assert tuple(clean.shape[2:]) == model.cfg.input_size, "so that there is nothing to letterbox"
        boxes = [one for one in document["annotations"] if one["image_id"] == image["id"]]
        targets = torch.tensor(
            [
                [0, order[b["category_id"]], *((b["bbox"][i] + b["bbox"][i + 2] / 2) / size for i in (0, 1)),
                 b["bbox"][2] / size, b["bbox"][3] / size]
                for b in boxes
            ]
        )  # fmt: skip
        x = clean.clone()
        for _ in range(results["attack"]["steps"]):
            x.requires_grad_(True)
            model.zero_grad()
            yolo_loss(model(x), targets, model.cfg).total.backward()
            assert x.grad is not None
            step = x.detach() + results["attack"]["step_size"] * x.grad.sign()
            eps = results["attack"]["eps"]
            x = torch.min(torch.max(step, clean - eps), clean + eps).clamp(0, 1)
        with torch.no_grad():
            xyxy, scores = decode(model(x), model)
        found += [
            {"image_id": image["id"], "category_id": ids[k], "bbox": bbox, "score": score}
            for k, bbox, score in plain_nms(xyxy[0].numpy().astype(float), scores[0].numpy(), size)
        ]
    robust, robust_50 = plain_map(tiny_data, found)
    row = row_of(results, "original")
    # A gradient that is 0 up to rounding may step the other way; it moves a score in the fourth digit.
    assert row["map_pgd"] == pytest.approx(robust, abs=0.01)
    assert row["map50_pgd"] == pytest.approx(robust_50, abs=0.01)
    assert row["map_pgd"] < row["map_clean"]


def plain_nms(xyxy: np.ndarray, scores: np.ndarray, size: float) -> list[tuple[int, list[float], float]]:
    kept: list[tuple[int, list[float], float]] = []
    for k in range(scores.shape[1]):
        own: list[np.ndarray] = []
        for i in np.argsort(-scores[:, k], kind="stable"):
            if scores[i, k] <= 0.001:
                break
            if all(plain_iou(xyxy[i], other) <= 0.45 for other in own):
                own.append(xyxy[i])
                x0, y0, x1, y1 = np.clip(xyxy[i], 0, size)
                kept.append((k, [x0, y0, x1 - x0, y1 - y0], float(scores[i, k])))
    return kept


def plain_iou(a: np.ndarray, b: np.ndarray) -> float:
    w = min(a[2], b[2]) - max(a[0], b[0])
    h = min(a[3], b[3]) - max(a[1], b[1])
    common = max(w, 0) * max(h, 0)
    return float(common / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common))


def test_log_has_every_step_of_every_training_once(outcome: BuildOutcome) -> None:
    assert logged_steps(outcome.out) == [
        ("pretrain", 0),
        ("optimise-scores", 0),
        ("finetune", 0),
        ("finetune", 1),
        ("finetune", 2),
    ]


def logged_steps(out: Path) -> list[tuple[str, int]]:
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [(row["stage"], row["step"]) for row in rows]


def test_every_gate_has_measured_something(outcome: BuildOutcome) -> None:
    gates = {(gate["model"], gate["gate"]): gate for gate in outcome.results["gates"]}
    rows = ("original", "robust", "pruned")
    assert set(gates) == {(row, gate) for row in rows for gate in ("tensor", "detections", "map")}
    for row in rows:
        tensor = gates[row, "tensor"]
        # Two libraries that add in another order never agree to the last bit: 0 would mean nothing was compared.
        assert 0 < tensor["boxes"] <= tensor["tolerance"]
        assert 0 < tensor["scores"] <= tensor["tolerance"]
        assert tensor["images"] == 8
        assert abs(gates[row, "map"]["deviation"]) <= gates[row, "map"]["tolerance"]
        assert gates[row, "map"]["reference"] == row_of(outcome.results, row)["map_clean"]
    assert gates["original", "detections"]["detections"] > 0
    if outcome.results["method"] == "structured":
        assert 0 < outcome.results["pruning"]["shrunk_deviation"] <= 1e-5


def test_bundle_verifies_and_computes_what_the_saved_network_computes(outcome: BuildOutcome, tiny_data: Path) -> None:
    bundle = load_bundle(outcome.out / "bundle")
    model = load_darknet(outcome.out / "model.cfg", outcome.out / "model.weights").eval()
    # Scenes, not noise: on noise this hardly trained network scores at most 2e-4, and ONNX Runtime's logistic is right
    # to some 3e-8 whatever its value.
    scenes = measured_subset(load_test_split(tiny_data), 3)
    images = next(iter(EvaluationLoader(scenes, bundle.input_size, 3))).images.contiguous()
    with bundle.runner(threads=1) as runner, torch.no_grad():
        expected = decode(model(images), model)
        found = runner.infer(images.numpy())
    for a, b in zip(expected, found, strict=True):
        assert np.abs(a.numpy() - b).max() <= 1e-4 * float(a.abs().max())
    manifest = json.loads((outcome.out / "bundle" / "bundle.json").read_text())
    assert manifest["pruning"]["ratio_achieved"] == outcome.results["ratio_achieved"]
    assert manifest["metrics"]["map_pgd"] == row_of(outcome.results, "pruned")["map_pgd"]
    assert manifest["provenance"]["seeds"] == {"seed": 0}


def test_methods_and_ratios_share_one_pre_training(outcome: BuildOutcome) -> None:
    if outcome.results["method"] != "unstructured":
        pytest.skip("the structured build is the first one")
    for stage in ("original", "pretrain", "score"):
        assert stage not in outcome.computed
    assert "optimise-scores" in outcome.computed


# From here on with the tiny network, whose numbers mean nothing.


def test_second_identical_build_computes_and_writes_nothing(finished: Any, tiny_case: Any) -> None:
    store, out, first = finished
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    again = tiny_case.build(store, out)
    assert again.computed == ()
    assert again.results == first.results
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()} == before


def test_another_folder_gets_the_same_network_from_the_store(finished: Any, tiny_case: Any, tmp_path: Path) -> None:
    store, out, _ = finished
    again = tiny_case.build(store, tmp_path / "elsewhere")
    assert again.computed == ()
    for name in ("model.cfg", "model.weights", "log.jsonl", "detections/pruned-pgd.csv"):
        assert (tmp_path / "elsewhere" / name).read_bytes() == (out / name).read_bytes()
    load_bundle(tmp_path / "elsewhere" / "bundle")


@pytest.mark.parametrize(
    "spoil",
    [
        lambda out: shutil.rmtree(out / "bundle"),
        lambda out: (out / "report.html").unlink(),
        lambda out: (out / "results.json").write_text("{"),
        lambda out: (out / "model.weights").write_bytes((out / "model.weights").read_bytes()[:-4]),
        lambda out: (out / "bundle" / "model.onnx").write_bytes(b"nothing"),
    ],
    ids=["no bundle", "no report", "half results", "short weights", "changed bundle"],
)
def test_folder_that_lost_something_is_made_whole_again(
    finished: Any, tiny_case: Any, copied: Callable[[Path], Path], spoil: Callable[[Path], object]
) -> None:
    store, out, _ = finished
    spoiled = copied(out)
    spoil(spoiled)
    assert tiny_case.build(store, spoiled).computed == ()
    load_bundle(spoiled / "bundle")
    assert (spoiled / "model.weights").read_bytes() == (out / "model.weights").read_bytes()
    assert (spoiled / "report.html").is_file()
    json.loads((spoiled / "results.json").read_text())


def test_another_ratio_recomputes_only_what_depends_on_it(finished: Any, tiny_case: Any, tmp_path: Path) -> None:
    store, _, _ = finished
    computed = tiny_case.build(store, tmp_path / "out", "ratio=0.45").computed  # a ratio of no other test
    assert not {"original", "pretrain", "score"} & set(computed)
    assert {"optimise-scores", "prune", "finetune"} <= set(computed)
    assert (computed.count("export"), computed.count("evaluate")) == (1, 1)


def test_without_bootstrap_there_are_values_but_no_intervals(finished: Any, tiny_case: Any, tmp_path: Path) -> None:
    results = tiny_case.build(finished[0], tmp_path / "out", "evaluation.bootstrap=0").results
    usual = json.loads((finished[1] / "results.json").read_text())
    assert set(results["models"][2]["intervals"].values()) == {None}
    for name, kept in results["comparisons"].items():
        usual_kept = usual["comparisons"][name]
        assert (kept is None) == (usual_kept is None)
        if kept is not None:
            assert (kept["low"], kept["high"], kept["value"]) == (None, None, usual_kept["value"])
    assert (tmp_path / "out" / "report.html").is_file()


def test_seed_recomputes_every_training(finished: Any, tiny_case: Any, tmp_path: Path) -> None:
    store, _, _ = finished
    computed = tiny_case.build(store, tmp_path / "out", "seed=1").computed
    assert {"pretrain", "optimise-scores", "finetune"} <= set(computed)
    assert "original" not in computed


@pytest.mark.parametrize(
    "change", ["data.workers=1", "data.cache_mb=0", "finetune.checkpoint_every=3", "attack.iterate=last"]
)
def test_what_changes_no_result_recomputes_nothing(finished: Any, tiny_case: Any, tmp_path: Path, change: str) -> None:
    assert tiny_case.build(finished[0], tmp_path / "out", change).computed == ()


def test_results_and_report_say_which_iterate_is_reported(finished: Any, tiny_case: Any, tmp_path: Path) -> None:
    best = tiny_case.build(finished[0], tmp_path / "out", "attack.iterate=best", "finetune.attack.iterate=last")
    assert {"pretrain", "optimise-scores", "evaluate", "gallery"} <= set(best.computed)
    assert best.results["configuration"]["attack"]["iterate"] == "best"
    for out, iterate in ((tmp_path / "out", "best"), (finished[1], "last")):
        assert json.loads((out / "results.json").read_text())["attack"]["iterate"] == iterate
        page = (out / "report.html").read_text()
        assert f"<dt>iterate reported of each image</dt><dd>{iterate}</dd>" in page


def test_workers_and_cache_give_the_same_weights_when_they_are_used(
    finished: Any, tiny_case: Any, tmp_path: Path
) -> None:
    sets = ("data.workers=1", "data.cache_mb=0", "finetune.checkpoint_every=3")
    outcome = tiny_case.build(tmp_path / "store", tmp_path / "out", *sets)
    assert "finetune" in outcome.computed
    assert (tmp_path / "out" / "model.weights").read_bytes() == (finished[1] / "model.weights").read_bytes()


def test_changed_annotations_recompute_trainings_but_not_the_original(
    finished: Any, tiny_case: Any, tiny_data: Path, copied: Callable[[Path], Path], tmp_path: Path
) -> None:
    data = copied(tiny_data)
    assert tiny_case.build(finished[0], tmp_path / "same", f"data.path={data}").computed == ()
    document = json.loads((data / "train.json").read_text())
    document["annotations"][0]["bbox"][2] -= 1
    (data / "train.json").write_text(json.dumps(document))
    computed = tiny_case.build(finished[0], tmp_path / "out", f"data.path={data}").computed
    assert {"pretrain", "finetune"} <= set(computed)
    assert "original" not in computed


def test_changed_test_image_is_measured_again_without_training(
    finished: Any, tiny_case: Any, tiny_data: Path, copied: Callable[[Path], Path], tmp_path: Path
) -> None:
    data = copied(tiny_data)
    path = next((data / "test").iterdir())
    Image.fromarray(255 - np.asarray(Image.open(path))).save(path)
    computed = tiny_case.build(finished[0], tmp_path / "out", f"data.path={data}").computed
    assert {"export", "evaluate", "gallery"} <= set(computed)
    assert not {"pretrain", "optimise-scores", "finetune"} & set(computed)


def test_changed_weights_recompute_everything(finished: Any, tiny_case: Any, tmp_path: Path) -> None:
    content = bytearray(tiny_case.weights.read_bytes())
    content[-4:] = np.float32(0.25).tobytes()
    (tmp_path / "other.weights").write_bytes(content)
    sets = f"model.weights={tmp_path / 'other.weights'}"
    outcome = tiny_case.build(finished[0], tmp_path / "out", sets)
    assert ["check-images", *outcome.computed] == list(finished[2].computed)


def test_ratio_0_is_a_build_without_pruning(finished: Any, tiny_case: Any, tmp_path: Path) -> None:
    outcome = tiny_case.build(finished[0], tmp_path / "out", "ratio=0", "finetune.steps=0")
    robust, pruned = row_of(outcome.results, "robust"), row_of(outcome.results, "pruned")
    assert outcome.results["ratio_achieved"] == 0
    assert pruned["params"] == robust["params"]
    assert pruned["map_clean"] == robust["map_clean"]


def test_build_from_scratch_trains_on_clean_images_first(tiny_case: Any, tmp_path: Path) -> None:
    sets = ("pretrain.from=scratch", "pretrain.clean_steps=2", "pretrain.steps=1")
    outcome = tiny_case.build(tmp_path / "store", tmp_path / "out", *sets)
    stages = [stage for stage, _ in logged_steps(outcome.out)]
    assert stages[:3] == ["clean", "clean", "pretrain"]
    # Another adversarial training takes the clean one from the store.
    longer = tiny_case.build(tmp_path / "store", tmp_path / "longer", *sets[:2], "pretrain.steps=2", "attack.eps=0.04")
    stages_of = [build.results["stages"] for build in (outcome, longer)]
    assert len({one["original"]["digest"] for one in stages_of}) == 1
    assert len({one["pretrain"]["digest"] for one in stages_of}) == 2


def test_greyscale_build_sees_no_colour_and_tells_the_bundle(
    tiny_case: Any, tiny_data: Path, copied: Callable[[Path], Path], tmp_path: Path
) -> None:
    """On a data set whose images were turned grey beforehand, nothing changes."""
    outcome = tiny_case.build(tmp_path / "store", tmp_path / "out", "data.greyscale=true")
    grey = copied(tiny_data)
    for path in grey.rglob("*.png"):
        # Rec. 601 in exact thousandths; Pillow's own conversion rounds one pixel in ten thousand the other way.
        luma = (np.asarray(Image.open(path), np.int64) @ [299, 587, 114] + 500) // 1000
        Image.fromarray(luma.astype(np.uint8)).save(path)
    same = tiny_case.build(tmp_path / "grey-store", tmp_path / "grey", "data.greyscale=true", f"data.path={grey}")
    assert (outcome.out / "model.weights").read_bytes() == (same.out / "model.weights").read_bytes()
    bundle = load_bundle(outcome.out / "bundle")
    image = tiny_data / "test" / "00000.png"
    colour, _ = bundle.prepare(image)
    assert np.abs(colour[0] - colour[1]).max() == np.abs(colour[0] - colour[2]).max() == 0
    assert outcome.results["data"]["greyscale"] is True


def test_test_split_without_boxes_has_no_map_and_no_crash(
    finished: Any, tiny_case: Any, tiny_data: Path, copied: Callable[[Path], Path], tmp_path: Path
) -> None:
    data = copied(tiny_data)
    document = json.loads((data / "test.json").read_text())
    (data / "test.json").write_text(json.dumps({**document, "annotations": []}))
    outcome = tiny_case.build(finished[0], tmp_path / "out", f"data.path={data}")
    for row in outcome.results["models"]:
        assert row["map_clean"] is None
        assert row["map_pgd"] is None
    assert outcome.results["comparisons"] == {"map_clean_kept": None, "map_pgd_kept": None}
    json.loads((outcome.out / "results.json").read_text(), parse_constant=pytest.fail)
    assert (outcome.out / "report.html").is_file()


def test_bad_training_images_are_named_counted_and_skipped(
    tiny_case: Any, tiny_data: Path, copied: Callable[[Path], Path], tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    data = copied(tiny_data)
    (data / "train" / "00003.png").unlink()
    (data / "train" / "00007.png").write_bytes(b"not an image")
    sets = (f"data.path={data}", "finetune.steps=5")
    outcome = tiny_case.build(tmp_path / "store", tmp_path / "out", *sets)
    said = capsys.readouterr().err
    for name in ("00003.png", "00007.png"):
        assert any("skipped" in line and name in line for line in said.splitlines())
    assert "2 images were skipped in training" in said
    assert len(outcome.results["models"]) == 3
    bad = [str(data / "train" / name) for name in ("00003.png", "00007.png")]
    assert outcome.results["data"]["skipped_in_training"] == sorted(outcome.results["data"]["skipped"]) == bad
    assert "2 training images could not be read and were left out" in (outcome.out / "report.html").read_text()
    assert not tiny_case.build(tmp_path / "store", tmp_path / "again", *sets).computed
    again = json.loads((tmp_path / "again" / "results.json").read_text())
    assert again["data"] == outcome.results["data"], "the store remembers what its trainings skipped"


def test_int8_is_calibrated_without_bad_training_images(
    finished: Any, tiny_case: Any, tiny_data: Path, copied: Callable[[Path], Path], tmp_path: Path
) -> None:
    data = copied(tiny_data)
    for name in ("00003.png", "00007.png"):
        (data / "train" / name).write_bytes(b"not an image")
    sets = (f"data.path={data}", "export.int8.calibration_images=15", "export.int8.map_budget=null")
    out, made = finished[1], tmp_path / "int8.onnx"
    with Store(tmp_path / "store", pytest.fail) as store:
        context = open_context(load_config("smoke", tiny_case.arguments(*sets)), store, Progress(quiet=True))
        network = load_darknet(out / "model.cfg", out / "model.weights")
        write_int8(context, network, out / "bundle" / "model.onnx", made, "uint8", "model.int8.onnx")
    # 15 of 16 are drawn, and so at least one of the two.
    assert read_onnx_header(made).quantisation["images"] in (13, 14)


def test_bad_records_are_dropped_from_training_said_at_once_and_written_down(
    finished: Any, tiny_case: Any, tiny_data: Path, copied: Callable[[Path], Path], tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    data = copied(tiny_data)
    for split in ("train", "test"):
        document = json.loads((data / f"{split}.json").read_text())
        document["annotations"][0]["bbox"][2] = 0.0
        document["annotations"][1]["iscrowd"] = None
        (data / f"{split}.json").write_text(json.dumps(document))
    with pytest.raises(DataError, match=r"test\.json.*zero area.*data\.allow_bad_boxes=true"):
        tiny_case.build(finished[0], tmp_path / "out", f"data.path={data}")
    capsys.readouterr()
    sets = (f"data.path={data}", "data.allow_bad_boxes=true")
    outcome = tiny_case.build(finished[0], tmp_path / "out", *sets)
    lines = capsys.readouterr().err.splitlines()
    said = "data: 1 x box of zero area left out (train), 1 x box of zero area left out (test)"
    assert any(line.startswith(said) for line in lines)
    rows = outcome.results["data"]["left_out"]
    assert [(row["split"], row["kind"], row["becomes"], row["count"]) for row in rows] == [
        ("train", "box of zero area", "left out", 1), ("test", "box of zero area", "left out", 1),
    ]  # fmt: skip
    assert "train.json: annotation" in rows[0]["named"][0]
    page = (outcome.out / "report.html").read_text()
    assert "Labels in the train split: 1 x box of zero area, left out." in page
    found = CliRunner().invoke(cli, ["evaluate", str(outcome.out), "--bootstrap", "0", "--json"])
    assert found.exit_code == 0, found.stderr
    assert [row["count"] for row in json.loads(found.stdout)["data"]["left_out"]] == [1]


def test_yolo_labels_are_built_from_and_evaluated_as_they_are(
    finished: Any, tiny_case: Any, tiny_data: Path, tmp_path: Path
) -> None:
    """The same boxes as text: the given network, which is not trained, has the same mAP on them."""
    data, names = tmp_path / "yolo", []
    for split in ("train", "test"):
        document = json.loads((tiny_data / f"{split}.json").read_text())
        names = [category["name"] for category in sorted(document["categories"], key=lambda entry: entry["id"])]
        shutil.copytree(tiny_data / split, data / "images" / split)
        (data / "labels" / split).mkdir(parents=True)
        class_of = {name: index for index, name in enumerate(names)}
        name_of = {category["id"]: category["name"] for category in document["categories"]}
        for image in document["images"]:
            lines = []
            for box in (entry for entry in document["annotations"] if entry["image_id"] == image["id"]):
                x, y, width, height = box["bbox"]
                numbers = ((x + width / 2) / image["width"], (y + height / 2) / image["height"],
                           width / image["width"], height / image["height"])  # fmt: skip
                lines.append(" ".join(map(repr, (class_of[name_of[box["category_id"]]], *numbers))))
            file = data / "labels" / split / Path(image["file_name"]).with_suffix(".txt").name
            file.write_text("\n".join(lines))
    description = f"train: images/train\nval: images/test\nnames: {json.dumps(names)}\n"
    (data / "data.yaml").write_text(description)
    outcome = tiny_case.build(tmp_path / "store", tmp_path / "out", f"data.path={data}")
    first = finished[2].results
    assert outcome.results["data"]["train_images"] == first["data"]["train_images"]
    assert outcome.results["data"]["left_out"] == []
    ours, theirs = (row_of(results, "original")["map50_clean"] for results in (outcome.results, first))
    assert ours == pytest.approx(theirs, abs=1e-6)
    found = CliRunner().invoke(cli, ["evaluate", str(outcome.out), "--bootstrap", "0", "--json"])
    assert found.exit_code == 0, found.stderr
    (row,) = json.loads(found.stdout)["results"]
    assert row["map50_clean"] == row_of(outcome.results, "pruned")["map50_clean"]


def test_bad_test_image_ends_the_build_unless_allowed(
    finished: Any, tiny_case: Any, tiny_data: Path, copied: Callable[[Path], Path], tmp_path: Path
) -> None:
    data = copied(tiny_data)
    bad = data / "test" / "00002.png"
    bad.write_bytes(bad.read_bytes()[:-400])  # its header is whole
    with pytest.raises(DataError, match=r"00002\.png.*data\.allow_bad_images=true"):
        tiny_case.build(tmp_path / "store", tmp_path / "out", f"data.path={data}")
    assert list((tmp_path / "store" / "results").iterdir()) == [], "found before anything was trained"
    assert not (tmp_path / "out" / "results.json").exists()
    sets = (f"data.path={data}", "data.allow_bad_images=true")
    outcome = tiny_case.build(finished[0], tmp_path / "out", *sets)
    assert list(outcome.results["data"]["skipped"]) == [str(bad)]
    assert {row["n_images"] for row in outcome.results["models"]} == {7}
    for kind in ("clean", "pgd"):
        kept, values = outcome.results["comparisons"][f"map_{kind}_kept"], outcome.results
        robust, pruned = (row_of(values, name)[f"map_{kind}"] for name in ("robust", "pruned"))
        if kept is not None:
            assert kept["value"] == pytest.approx(pruned / robust)


def test_as_many_class_names_as_the_network_has_are_needed(tiny_case: Any, tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_text("\n".join(f"thing {k}" for k in range(9)))
    with pytest.raises(ConfigError, match="has 9 names, the network has 10 classes"):
        tiny_case.build(tmp_path / "store", tmp_path / "out", f"model.names={names}")


def test_class_names_in_another_order_find_their_category_by_name(
    finished: Any, tiny_case: Any, tiny_data: Path, tmp_path: Path
) -> None:
    document = json.loads((tiny_data / "test.json").read_text())
    given = [category["name"] for category in document["categories"]][::-1]
    names = tmp_path / "names.txt"
    names.write_text("\n".join(given) + "\n")
    outcome = tiny_case.build(finished[0], tmp_path / "out", f"model.names={names}")
    assert list(load_bundle(outcome.out / "bundle").class_names) == given
    ids = {category["name"]: str(category["id"]) for category in document["categories"]}
    with (outcome.out / "detections" / "original-clean.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows
    assert all(ids[row["category"]] == row["category_id"] for row in rows)


def test_failed_command_leaves_its_folder_free_for_the_corrected_one(
    finished: Any, tiny_case: Any, tmp_path: Path
) -> None:
    with pytest.raises(DataError):
        tiny_case.build(finished[0], tmp_path / "out", f"data.path={tmp_path / 'nowhere'}")
    assert tiny_case.build(finished[0], tmp_path / "out").computed == ()


@pytest.mark.shared
def test_genuine_yolov3_tiny_is_built_from_a_coco_folder(shared: Path, tmp_path: Path, coco_of_the_dog: Path) -> None:
    real = shared / "real" / "yolov3-tiny"
    config = load_config(
        "smoke",
        [
            f"data.path={coco_of_the_dog}", "data.train_images=null", "pretrain.steps=1", "pretrain.batch_size=1",
            "score_optimization.steps=1", "score_optimization.batch_size=1", "finetune.steps=1",
            "finetune.batch_size=1", "attack.steps=1", "latency.runtimes=tensorrt", "report.grid_images=1",
            "pretrain.lr=1e-6", "evaluation.batch_size=2", "evaluation.bootstrap=2",
        ],
        {"cfg": real / "yolov3-tiny.cfg", "weights": real / "yolov3-tiny.weights"},
    )  # fmt: skip
    outcome = build(config, store=tmp_path / "store", out=tmp_path / "out", progress=Progress(quiet=True))
    original = row_of(outcome.results, "original")
    assert original["params"] == 8_858_734 - running_statistics(real), "as many as there are floats in the file"
    assert original["map50_clean"] > 0.3, "it finds most of dog, bicycle and car"
    assert abs(outcome.results["ratio_achieved"] - 0.75) <= 0.01
    names = load_bundle(outcome.out / "bundle").class_names
    assert (len(names), names[0], names[16]) == (80, "person", "dog")
    # Categories are COCO's 91-based ids in the CSV, whatever the network counts.
    with (outcome.out / "detections" / "original-clean.csv").open(newline="") as file:
        found = {(row["category"], row["category_id"]) for row in csv.DictReader(file) if float(row["score"]) > 0.3}
    assert {("dog", "18"), ("bicycle", "2")} <= found


def running_statistics(real: Path) -> int:
    """Means and variances in the file: two numbers per filter with batch norm."""
    model = load_darknet(real / "yolov3-tiny.cfg", real / "yolov3-tiny.weights")
    return sum(b.numel() for name, b in model.named_buffers() if name.endswith(("mean", "variance")))


@pytest.fixture
def coco_of_the_dog(shared: Path, tmp_path: Path) -> Path:
    """Six versions of the photo, two mirrored and two smaller, with boxes drawn by hand."""
    folder = tmp_path / "dog"
    (folder / "images").mkdir(parents=True)
    photo = Image.open(shared / "real" / "photos" / "dog.jpg").convert("RGB")
    boxes = {18: (128, 224, 186, 316), 2: (122, 124, 446, 300), 3: (468, 74, 222, 96)}  # xywh of 768 x 576
    assert photo.size == (768, 576)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number in range(6):
        mirrored, scale = number % 2 == 1, (1.0, 0.75, 0.5)[number // 2]
        size = (round(768 * scale), round(576 * scale))
        picture = photo.resize(size)
        if mirrored:
            picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        picture.save(folder / "images" / f"{number}.jpg", quality=95)
        images.append({"id": number + 1, "file_name": f"{number}.jpg", "width": size[0], "height": size[1]})
        for category, (x, y, w, h) in boxes.items():
            left = 768 - x - w if mirrored else x
            bbox = [value * scale for value in (left, y, w, h)]
            annotations.append(
                {"id": len(annotations) + 1, "image_id": number + 1, "category_id": category, "bbox": bbox,
                 "area": bbox[2] * bbox[3], "iscrowd": 0}
            )  # fmt: skip
    categories = [{"id": 2, "name": "bicycle"}, {"id": 3, "name": "car"}, {"id": 18, "name": "dog"}]
    document = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "instances.json").write_text(json.dumps(document))
    return folder


def test_two_builds_at_once_share_a_store(processes: Any, tiny_case: Any, finished: Any, tmp_path: Path) -> None:
    """Each stage is computed by one of them, and both end with the weights of an undisturbed build."""
    outs = [tmp_path / "a", tmp_path / "b"]
    answers = []
    for out in outs:
        _, answer = processes.start(tmp_path / "store", out, tiny_case.arguments(), wait=out is outs[-1])
        answers.append(answer)
    assert processes.exit_code() == 0
    wait_for(answers[0])
    computed = [json.loads(answer.read_text())["computed"] for answer in answers]
    assert sorted([*computed[0], *computed[1]]) == sorted(finished[2].computed)
    for out in outs:
        assert (out / "model.weights").read_bytes() == (finished[1] / "model.weights").read_bytes()
        load_bundle(out / "bundle")
    for folder in (tmp_path / "store" / "results").iterdir():
        check_result(folder, folder.name.rpartition("-")[2])


def wait_for(path: Path) -> None:
    while not path.is_file():
        time.sleep(0.05)


def test_two_builds_into_one_folder_are_refused(processes: Any, tiny_case: Any, tmp_path: Path) -> None:
    with open_output_folder(tmp_path / "out", "0" * 64):
        answer = processes.run(tmp_path / "store", tmp_path / "out", tiny_case.arguments())
    assert "another process is building" in answer["error"]
    assert str(tmp_path / "out") in answer["error"]
    assert os.listdir(tmp_path / "out") == ["build.json"]
