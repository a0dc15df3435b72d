"""An ONNX file where a cfg is given: imported once, and a build's network from then on."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from importing.exported import anchored
from prunedeploy.config import load_config
from prunedeploy.models import load_darknet
from prunedeploy.pipeline.imported import with_imported_network
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
