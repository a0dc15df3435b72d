"""What a build says before it computes anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from prunedeploy.config import load_config
from prunedeploy.pipeline.context import open_context
from prunedeploy.pipeline.progress import Progress
from prunedeploy.pipeline.store.store import Store


def test_options_of_the_cfg_that_are_ignored_are_said_once(
    tiny_case: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cfg, size = tmp_path / "with-training.cfg", "model.input_size=96x64"
    cfg.write_text(tiny_case.cfg.read_text().replace("[net]", "[net]\nmomentum=0.9\nburn_in=1000"))
    config = load_config("smoke", tiny_case.arguments(f"model.cfg={cfg}", size))
    with Store(tmp_path / "store", lambda _: None) as store:
        open_context(config, store, Progress(quiet=True))
    lines = [line for line in capsys.readouterr().err.splitlines() if "Darknet" in line]
    ignored = "with-training.cfg: ignored, since only Darknet itself reads them: momentum, burn_in (2 keys)"
    assert [line for line in lines if ignored in line] == lines
    assert len(lines) == 1
