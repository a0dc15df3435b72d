"""`detect`, `engine` and `doctor`: what a device with the base install can do."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from prunedeploy_engines import load_bundle
from prunedeploy_engines.doctor.doctor import diagnose
from tiny_detector import save_tiny_detector

NOT_ON_THE_DEVICE = ("torch", "onnx", "captum", "pycocotools", "scipy", "safetensors")
WHITE_CELL = (145, 4, 361, 240)
"""Of docs/cases/smear.jpg as its annotation has it: x_min, y_min, x_max, y_max in pixels."""
needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="needs tensorrt-rtx, which builds without a GPU"
)


@pytest.mark.parametrize("json_option", [(), ("--json",)])
def test_detect_finds_the_red_cell_without_torch_and_onnx(
    run_process: Any, bundle: Path, red_cell: Path, json_option: tuple[str, ...]
) -> None:
    done = run_process("detect", bundle, red_cell, *json_option, blocked=NOT_ON_THE_DEVICE)
    assert done.returncode == 0, done.stderr
    if not json_option:
        assert "1 detection" in done.stdout
        row = done.stdout.splitlines()[-1].split()
        assert row == ["red", "1.000", "8", "16", "8", "8"]
        return
    assert done.stderr == ""
    (row,) = json.loads(done.stdout)
    assert (row["image"], row["width"], row["height"]) == (str(red_cell), 48, 32)
    assert row["detections"] == [
        {
            "class_id": 0,
            "class_name": "red",
            "score": 1.0,
            "x_min": 8.0,
            "y_min": 16.0,
            "width": 8.0,
            "height": 8.0,
        }
    ]


def test_detect_draws_into_out_and_keeps_images_of_one_name_apart(
    run: Any, bundle: Path, red_cell: Path, tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    Image.fromarray(np.zeros((32, 48, 3), np.uint8)).save(tmp_path / "other" / "red.jpg")
    done = run("detect", bundle, red_cell, tmp_path / "other" / "red.jpg", "--out", tmp_path / "drawn", "--json")
    assert done.exit_code == 0
    drawn = [Path(row["drawn"]) for row in json.loads(done.stdout)]
    assert [path.name for path in drawn] == ["red.png", "red-2.png"]
    with Image.open(drawn[0]) as image:
        assert image.size == (48, 32)
        assert np.asarray(image).any()


def test_detect_takes_a_build_folder(run: Any, bundle: Path, red_cell: Path, tmp_path: Path) -> None:
    folder = build_folder(tmp_path / "build", bundle)
    assert len(json.loads(run("detect", folder, red_cell, "--json").stdout)[0]["detections"]) == 1


def test_detect_threshold_is_the_bundles_unless_given(run: Any, bundle: Path, tmp_path: Path) -> None:
    pixels = np.zeros((32, 48, 3), np.uint8)
    pixels[:8, :8, 1] = 128  # score 128 / 255 = 0.502; the bundle's threshold is 0.9
    Image.fromarray(pixels).save(tmp_path / "green.png")
    assert "0 detections" in run("detect", bundle, tmp_path / "green.png").stdout
    assert "green" in run("detect", bundle, tmp_path / "green.png", "--score-threshold", "0.5").stdout


def test_detect_names_a_bad_image_and_still_does_the_others(
    run: Any, bundle: Path, red_cell: Path, tmp_path: Path
) -> None:
    (tmp_path / "bad.jpg").write_text("no image")
    done = run("detect", bundle, tmp_path / "bad.jpg", red_cell, tmp_path / "absent.png", "--json")
    assert done.exit_code == 2
    rows = json.loads(done.stdout)
    assert ["error" in row for row in rows] == [True, False, True]
    lines = done.stderr.splitlines()
    assert len(lines) == 2
    assert "bad.jpg: this is not an image" in lines[0]
    assert "absent.png: there is no such image" in lines[1]


def test_a_bundle_with_one_byte_changed_is_refused(run: Any, bundle: Path, red_cell: Path) -> None:
    content = bytearray((bundle / "model.onnx").read_bytes())
    content[100] ^= 1
    (bundle / "model.onnx").write_bytes(content)
    done = run("detect", bundle, red_cell)
    assert (done.exit_code, done.stdout) == (2, "")
    assert "model.onnx was changed" in done.stderr


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_the_shipped_bundle_finds_cells_on_a_real_photo(
    run: Any, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    """By its name alone, unless something else is called so; people marked a white cell, a platelet and 14 red ones."""
    monkeypatch.chdir(tmp_path)
    photo = repository / "docs" / "cases" / "smear.jpg"
    done = run("detect", "blood-cells", photo, "--precision", precision, "--json")
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)[0]["detections"]
    assert {row["class_name"] for row in found} == {"RBC", "WBC", "Platelets"}
    assert 8 <= sum(row["class_name"] == "RBC" for row in found) <= 16
    white = max((row for row in found if row["class_name"] == "WBC"), key=lambda row: row["score"])
    x, y, width, height = (white[key] for key in ("x_min", "y_min", "width", "height"))
    x_min, y_min, x_max, y_max = WHITE_CELL
    shared = (min(x + width, x_max) - max(x, x_min)) * (min(y + height, y_max) - max(y, y_min))
    assert shared / (width * height + (x_max - x_min) * (y_max - y_min) - shared) > 0.7
    (tmp_path / "blood-cells").mkdir()
    assert "neither a bundle nor a build" in run("detect", "blood-cells", photo).stderr
    assert "there is no such model" in run("detect", "../blood-cells", photo).stderr


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: None, "there is no such model"),
        (lambda path: path.mkdir(), "neither a bundle nor a build"),
        (lambda path: path.write_text(""), "is not a model that prunedeploy knows"),
    ],
)
def test_what_is_no_bundle_is_refused(run: Any, tmp_path: Path, red_cell: Path, make: Any, said: str) -> None:
    make(tmp_path / "thing")
    done = run("detect", tmp_path / "thing", red_cell)
    assert done.exit_code == 2
    assert done.stderr.count("\n") == 1
    assert said in done.stderr


def test_a_build_that_has_not_ended_is_refused(run: Any, tmp_path: Path, red_cell: Path) -> None:
    (tmp_path / "build").mkdir()
    (tmp_path / "build" / "build.json").write_text("{}")
    assert "has not ended" in run("detect", tmp_path / "build", red_cell).stderr


@needs_rtx
def test_engine_is_built_into_the_bundle_and_registered(run_process: Any, run: Any, bundle: Path) -> None:
    done = run_process("engine", bundle, "--target", "sm86", "--json", blocked=NOT_ON_THE_DEVICE)
    assert done.returncode == 0, done.stderr
    (engine,) = json.loads(done.stdout)
    name = "engines/sm86/model.sm86.tensorrt_rtx.plan"
    assert (engine["target"], engine["cached"], engine["path"]) == ("sm86", False, str(bundle / name))
    files = load_bundle(bundle).manifest.files
    assert (files[name].role, files[name].precision, files[name].target) == ("engine", "fp32", "sm86")
    assert files[f"{name}.json"].role == "metadata"
    assert (bundle / name).read_bytes().startswith(b"vtrt")
    assert sorted(path.name for path in bundle.parent.iterdir()) == ["bundle", "source.onnx"]
    again = run("engine", bundle, "--target", "sm86")
    assert again.exit_code == 0
    assert "was there" in again.stdout
    load_bundle(bundle)


@needs_rtx
def test_engines_of_a_plain_file_lie_beside_it(run: Any, tmp_path: Path) -> None:
    model = save_tiny_detector(tmp_path / "model.onnx")
    done = run("engine", model, "--target", "sm86,sm89")
    assert done.exit_code == 0, done.stderr
    plans = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.plan"))
    assert plans == ["engines/sm86/model.sm86.tensorrt_rtx.plan", "engines/sm89/model.sm89.tensorrt_rtx.plan"]


@needs_rtx
def test_engine_for_an_unknown_target_leaves_the_bundle_alone(run: Any, bundle: Path) -> None:
    before = (bundle / "bundle.json").read_bytes()
    done = run("engine", bundle, "--target", "sm42")
    assert done.exit_code == 2
    assert "sm42" in done.stderr.splitlines()[-1]
    assert (bundle / "bundle.json").read_bytes() == before
    assert sorted(path.name for path in bundle.parent.iterdir()) == ["bundle", "source.onnx"]


def test_engine_without_a_gpu_asks_for_a_target(run: Any, bundle: Path) -> None:
    if not any(finding.name == "cuda driver" and finding.status == "missing" for finding in diagnose()):
        pytest.skip("there is a GPU here")
    done = run("engine", bundle)
    assert done.exit_code == 2
    assert "there is no GPU to build for; name one, e.g. --target sm86" in done.stderr


def test_engine_out_is_not_for_bundles(run: Any, bundle: Path, tmp_path: Path) -> None:
    assert "--out" in run("engine", bundle, "--target", "sm86", "--out", tmp_path / "x").stderr


@pytest.mark.parametrize("json_option", [(), ("--json",)])
def test_doctor_works_without_torch_onnx_and_any_runtime(run_process: Any, json_option: tuple[str, ...]) -> None:
    done = run_process("doctor", *json_option)
    assert done.returncode == 0, done.stderr
    if json_option:
        findings = {row["name"]: row for row in json.loads(done.stdout)}
        expected = {"python", "cpu", "device state", "onnxruntime", "openvino", "torch", "tensorrt", "tensorrt-rtx"}
        assert expected <= set(findings)
        assert set(findings["cpu"]) == {"name", "status", "detail", "advice"}
        return
    assert any(line.startswith("torch ") for line in done.stdout.splitlines())
    for finding in diagnose():
        if finding.name == "device state":  # another moment, another load
            continue
        assert not finding.advice or f"-> {finding.advice}" in done.stdout


def build_folder(folder: Path, bundle: Path, darknet: Path | None = None) -> Path:
    """What a build of the bundle leaves, as far as these commands look."""
    folder.mkdir()
    shutil.copytree(bundle, folder / "bundle")
    (folder / "build.json").write_text("{}")
    (folder / "results.json").write_text(json.dumps({"models": [{"name": "pruned", "macs": 1_000_000}]}))
    if darknet is not None:
        shutil.copy(darknet, folder / "model.cfg")
        shutil.copy(darknet.with_suffix(".weights"), folder / "model.weights")
    return folder
