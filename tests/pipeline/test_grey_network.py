"""A network with ``channels=1``: trained, exported, measured and served with one channel."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from export.cluster.triton_models import run_ensemble
from prunedeploy.cli import cli
from prunedeploy.models import decode, load_darknet
from prunedeploy.pipeline.build import BuildOutcome
from prunedeploy_engines import load_bundle
from prunedeploy_engines.bundle import Bundle
from prunedeploy_engines.errors import DarknetFormatError
from prunedeploy_engines.runtimes.onnxruntime.runner import OnnxRuntimeRunner
from prunedeploy_export import with_uint8_input
from prunedeploy_export.cluster.triton_config import TritonSettings
from prunedeploy_export.cluster.triton_repository import write_triton_repository
from prunedeploy_export.graph.edit import read_model, write_model
from served_protocol import running


@pytest.fixture(scope="module")
def grey(tiny_case: Any, tmp_path_factory: pytest.TempPathFactory) -> BuildOutcome:
    folder = tmp_path_factory.mktemp("grey")
    (folder / "grey.cfg").write_text(tiny_case.cfg.read_text().replace("channels=3", "channels=1"))
    load_darknet(folder / "grey.cfg", seed=5).save(folder / "copy.cfg", folder / "grey.weights")
    sets = (f"model.cfg={folder / 'grey.cfg'}", f"model.weights={folder / 'grey.weights'}", "attack.steps=1")
    return tiny_case.build(folder / "store", folder / "out", *sets)


@pytest.fixture
def photo(tiny_data: Path) -> Path:
    return tiny_data / "test" / "00000.png"


@pytest.fixture
def bundle(grey: BuildOutcome) -> Bundle:
    return load_bundle(grey.out / "bundle")


def by_hand(photo: Path) -> np.ndarray:
    """``(1, 1, 64, 64)``: Rec. 601 luma in exact thousandths, resized as the square scenes are, in [0, 1]."""
    luma = (np.asarray(Image.open(photo).convert("RGB"), np.int64) @ [299, 587, 114] + 500) // 1000
    small = Image.fromarray(luma.astype(np.uint8)).resize((64, 64), Image.Resampling.BILINEAR)
    return (np.asarray(small, np.float32) / np.float32(255))[None, None]


def test_its_file_takes_one_channel_and_gives_what_the_network_gives(
    grey: BuildOutcome, bundle: Bundle, photo: Path, tmp_path: Path
) -> None:
    pixels, _ = bundle.prepare(photo)
    assert np.array_equal(pixels[None], by_hand(photo))
    network = load_darknet(grey.out / "model.cfg", grey.out / "model.weights")
    assert network.cfg.input_shape == (1, 64, 64)
    with torch.inference_mode():
        boxes, scores = decode(network(torch.from_numpy(by_hand(photo))), network)
    session = onnxruntime.InferenceSession(grey.out / "bundle" / "model.onnx")
    assert session.get_inputs()[0].shape == ["batch", 1, 64, 64]
    found = session.run(["boxes", "scores"], {"images": by_hand(photo)})
    np.testing.assert_allclose(found[0], boxes, atol=1e-3)
    np.testing.assert_allclose(found[1], scores, atol=1e-5)
    # And so does the file that takes bytes.
    write_model(with_uint8_input(read_model(grey.out / "bundle" / "model.onnx")), tmp_path / "bytes.onnx")
    with OnnxRuntimeRunner(tmp_path / "bytes.onnx") as runner:
        assert (runner.channels, runner.uint8_input) == (1, True)
        prepared, _ = bundle.prepare(photo, uint8=True)
        assert prepared.shape == (64, 64, 1)
        np.testing.assert_array_equal(runner.infer(prepared[None])[1], found[1])
        with pytest.raises(ValueError, match=r"\(N, 1, 64, 64\) float32"):
            runner.infer(np.zeros((1, 3, 64, 64), np.float32))


def test_every_runtime_measures_what_the_build_says(grey: BuildOutcome, tiny_data: Path) -> None:
    pruned = next(row for row in grey.results["models"] if row["name"] == "pruned")
    runtimes = ["torch", "onnxruntime", *(["openvino"] if importlib.util.find_spec("openvino") else [])]
    arguments = ["--runtime", ",".join(runtimes), "--attack", "none", "--bootstrap", "0", "--json"]
    found = CliRunner().invoke(cli, ["evaluate", str(grey.out), *arguments])
    assert found.exit_code == 0, found.output
    rows = {row["runtime"]: row["map_clean"] for row in json.loads(found.stdout)["results"]}
    assert list(rows) == runtimes
    assert rows["torch"] == pruned["map_clean"]
    assert rows["onnxruntime"] == pruned["map_clean_onnxruntime"]
    assert all(value == pytest.approx(pruned["map_clean"], abs=1e-3) for value in rows.values())


def test_it_is_served_with_one_channel(bundle: Bundle, photo: Path) -> None:
    with bundle.runner() as runner:
        scores = runner.infer(by_hand(photo))[1]
    with running({"grey": bundle}) as server:
        about = server.ask("GET", "/v2/models/grey").json
        assert about["inputs"][0]["shape"] == [-1, 1, 64, 64]
        tensor = {
            "name": "images",
            "datatype": "FP32",
            "shape": [1, 1, 64, 64],
            "data": by_hand(photo).ravel().tolist(),
        }
        answer = server.ask("POST", "/v2/models/grey/infer", {"inputs": [tensor]})
        assert answer.status == 200, answer.body
        served = next(one for one in answer.json["outputs"] if one["name"] == "scores")
        np.testing.assert_allclose(np.reshape(served["data"], served["shape"]), scores, atol=1e-6)
        wrong = server.ask("POST", "/v2/models/grey/infer", {"inputs": [{**tensor, "shape": [1, 3, 64, 64]}]})
        assert wrong.status == 400


def test_triton_gives_what_detect_gives(grey: BuildOutcome, photo: Path, tmp_path: Path) -> None:
    shutil.copytree(grey.out / "bundle", tmp_path / "bundle")
    document = json.loads((tmp_path / "bundle" / "bundle.json").read_text())
    document["thresholds"]["score"] = 0.001  # so hardly trained a network is sure of nothing
    del document["operating_points"]
    (tmp_path / "bundle" / "bundle.json").write_text(json.dumps(document))
    bundle = load_bundle(tmp_path / "bundle")
    write_triton_repository(bundle, tmp_path / "models", name="grey", settings=TritonSettings(max_batch=2))
    answer = run_ensemble(tmp_path / "models", "grey-detect", {"image": [photo.read_bytes()]})
    found = bundle.detect(photo)
    assert len(found) > 0
    assert int(answer["num_detections"][0]) == len(found)
    np.testing.assert_array_equal(answer["scores"][0, : len(found)], found.scores)


@pytest.mark.parametrize("channels", [2, 4])
def test_other_channels_are_refused_with_their_line(tiny_case: Any, tmp_path: Path, channels: int) -> None:
    cfg = tmp_path / "odd.cfg"
    cfg.write_text(tiny_case.cfg.read_text().replace("channels=3", f"channels={channels}"))
    with pytest.raises(DarknetFormatError, match=rf"odd\.cfg:4: channels={channels}: .*; use a network with"):
        tiny_case.build(tmp_path / "store", tmp_path / "out", f"model.cfg={cfg}")
