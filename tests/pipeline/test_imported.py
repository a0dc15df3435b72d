"""An ONNX file where a cfg is given: imported once, and a build's network from then on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F

from importing.exported import anchored, computed
from pipeline.conftest import TinyCase
from prunedeploy.config import load_config
from prunedeploy.data import load_splits
from prunedeploy.data.loader import EvaluationLoader
from prunedeploy.models import Darknet, decode, load_darknet, read_cfg
from prunedeploy.models.normalisation import lacking_normalisation
from prunedeploy.pipeline.context import load_stage_model, open_context
from prunedeploy.pipeline.imported import with_imported_network
from prunedeploy.pipeline.progress import Progress
from prunedeploy.pipeline.stages.train import original_stage
from prunedeploy.pipeline.store.store import Store
from prunedeploy.study.sweep.contexts import Contexts
from prunedeploy_engines.errors import ConfigError, OnnxImportError


def test_an_onnx_file_is_imported_once_beside_the_store(tmp_path: Path) -> None:
    onnx.save(anchored(), tmp_path / "best.onnx")
    config = load_config("smoke", (), {"cfg": str(tmp_path / "best.onnx")})
    found = with_imported_network(config, tmp_path / "store").model
    assert Path(found.names or "").read_text().splitlines() == ["class 0", "class 1", "class 2"]
    assert load_darknet(found.cfg, found.weights).cfg.input_size == (64, 96)
    (folder,) = (tmp_path / "store-imported").iterdir()
    before = (folder / "model.cfg").stat().st_mtime_ns
    again = with_imported_network(config, tmp_path / "store").model
    assert (again, (folder / "model.cfg").stat().st_mtime_ns) == (found, before)
    assert not (tmp_path / "store").exists()  # which is a store's own business


def test_a_cfg_stays_what_it_is_and_weights_beside_a_file_are_refused(tmp_path: Path) -> None:
    config = load_config("smoke", (), {})
    assert with_imported_network(config, tmp_path / "store") is config
    both = load_config("smoke", (), {"cfg": "best.onnx", "weights": "yolov3.weights"})
    with pytest.raises(ConfigError, match=r"model.weights: best.onnx has its own weights; leave --weights out"):
        with_imported_network(both, tmp_path / "store")
    own = load_config("smoke", ("model.weights=null",), {"cfg": "best.onnx"})
    assert own.pretrain.start == "given"
    with pytest.raises(ConfigError, match=r"model.weights is missing: give it, or use pretrain.from=scratch"):
        load_config("smoke", ("model.weights=null",), {})
    missing = load_config("smoke", (), {"cfg": str(tmp_path / "none.onnx")})
    with pytest.raises(OnnxImportError, match=r"none.onnx: cannot be read"):
        with_imported_network(missing, tmp_path / "store")
    assert not (tmp_path / "store-imported").exists()


@pytest.fixture
def ten_classes(tmp_path: Path, tiny_case: TinyCase) -> TinyCase:
    """A tiny build of an ONNX file of the demo's ten classes, pruned by filters."""
    onnx.save(anchored(classes=10), tmp_path / "best.onnx")
    document = json.loads((tiny_case.data / "test.json").read_text())
    (tmp_path / "ten.names").write_text("\n".join(one["name"] for one in document["categories"]) + "\n")
    names = f"model.names={tmp_path / 'ten.names'}"
    sets = (*tiny_case.sets, "model.weights=null", names, "method=structured", "ratio=0.3", "attack.steps=1")
    return replace(tiny_case, cfg=tmp_path / "best.onnx", sets=sets)


def original(case: TinyCase, store: Path, *sets: str) -> Darknet:
    """What training and pruning of a case start from."""
    config = with_imported_network(load_config("smoke", case.arguments(*sets)), store)
    with Store(store, lambda line: None) as stages:
        return load_stage_model(original_stage(open_context(config, stages, Progress(quiet=True))).folder)


def test_a_build_puts_normalisation_back_and_computes_what_the_file_does(ten_classes: TinyCase, tmp_path: Path) -> None:
    found = original(ten_classes, tmp_path / "store")
    assert lacking_normalisation(found.cfg) == []
    images = np.random.default_rng(0).random((1, 3, 64, 96), np.float32)
    theirs = computed(onnx.load(tmp_path / "best.onnx"), images)[0]
    with torch.no_grad():
        boxes, scores = (values[0].numpy() for values in decode(found(torch.from_numpy(images)), found))
    half = theirs[:, 2:4] / 2
    corners = np.hstack((theirs[:, :2] - half, theirs[:, :2] + half))
    np.testing.assert_allclose(boxes, corners, rtol=0, atol=1e-5 * np.abs(corners).max())
    np.testing.assert_allclose(scores, theirs[:, 4:5] * theirs[:, 5:], rtol=0, atol=1e-5)
    # The statistics are those of the training images: a plain mean over what the first convolution gives for them.
    plain = original(ten_classes, tmp_path / "store", "model.normalisation=false")
    first = lacking_normalisation(plain.cfg)[0]
    training, _ = load_splits(ten_classes.data)
    seen = torch.cat([batch.images for batch in EvaluationLoader(training, (64, 96), 8)])
    values = F.conv2d(seen, plain.conv(first.index).weight, stride=first.stride, padding=first.padding)
    torch.testing.assert_close(found.conv(first.index).mean, values.mean((0, 2, 3)), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        found.conv(first.index).variance, values.var((0, 2, 3), correction=0), rtol=1e-4, atol=1e-6
    )


def test_an_imported_build_scores_and_optimises_normalisation_and_the_store_keeps_it(
    ten_classes: TinyCase, tmp_path: Path
) -> None:
    sets = ("scores.name=bn-scale", "pretrain.steps=1", "score_optimization.steps=1", "finetune.steps=1")
    first = ten_classes.build(tmp_path / "store", tmp_path / "out", *sets)
    line = "batch normalisation is put back into 6 convolutions, with statistics of 16 training images"
    assert f"network: {line}" in first.results["network"]["said"]
    assert first.results["network"]["normalised_convolutions"] == 6
    assert lacking_normalisation(read_cfg(first.out / "model.cfg")) == []
    again = ten_classes.build(tmp_path / "store", tmp_path / "again", *sets)
    assert again.computed == ()
    assert (again.out / "model.weights").read_bytes() == (first.out / "model.weights").read_bytes()
    without = original(ten_classes, tmp_path / "store", "model.normalisation=false")
    assert len(lacking_normalisation(without.cfg)) == 6


def test_a_sweep_imports_as_a_build_does(ten_classes: TinyCase, tmp_path: Path) -> None:
    config = load_config("smoke", ten_classes.arguments())
    with Store(tmp_path / "store", lambda line: None) as stages:
        fields = Contexts(Progress(quiet=True)).fields(config, stages)
        built = open_context(with_imported_network(config, tmp_path / "store"), stages, Progress(quiet=True))
    assert fields["network"].normalised == 6
    assert fields["network"].cfg_sha256 == built.network.cfg_sha256


def test_remade_heads_stay_without_normalisation_and_random_weights_get_their_usual_one(
    ten_classes: TinyCase, tmp_path: Path
) -> None:
    onnx.save(anchored(classes=3), tmp_path / "best.onnx")
    case = replace(ten_classes, sets=tuple(one for one in ten_classes.sets if not one.startswith("model.names")))
    found = original(case, tmp_path / "store", "pretrain.clean_steps=1")
    assert (found.cfg.classes, lacking_normalisation(found.cfg)) == (10, [])
    normalised = [layer.out_channels for layer in found.cfg.convolutions if layer.batch_normalize]
    assert normalised == [8, 16, 8, 16, 16, 12]  # none of the heads' 2 x 15
    scratch = original(case, tmp_path / "store", "pretrain.clean_steps=0", "pretrain.from=scratch")
    assert lacking_normalisation(scratch.cfg) == []
    first = scratch.cfg.convolutions[0].index
    assert scratch.conv(first).mean.abs().max() == 0
    assert torch.equal(scratch.conv(first).scale, torch.ones_like(scratch.conv(first).scale))
