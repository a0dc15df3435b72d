"""The public face of `prunedeploy_engines`, and what importing it costs."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

import prunedeploy_engines
from prunedeploy_engines import Detections

HEAVY = (
    "torch",
    "onnx",
    "onnxruntime",
    "pydantic",
    "PIL",
    "tensorrt",
    "tensorrt_rtx",
    "captum",
    "pycocotools",
)


def run(program: str) -> str:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment)
    return done.stdout.strip()


def test_importing_the_package_loads_nothing_heavy() -> None:
    loaded = run(f"import prunedeploy_engines, sys; print([n for n in {(*HEAVY, 'numpy')} if n in sys.modules])")
    assert loaded == "[]"


def test_importing_what_evaluation_needs_loads_only_numpy() -> None:
    program = "from prunedeploy_engines import Detections, Runner, letterbox, nms; import sys;"
    assert run(f"{program} print([n for n in {HEAVY} if n in sys.modules])") == "[]"


@pytest.mark.parametrize("first", ["detection.nms", "detection.letterbox", "bundle"])
def test_functions_are_not_shadowed_by_their_modules(first: str) -> None:
    program = f"import prunedeploy_engines.{first}, prunedeploy_engines as p;"
    assert run(f"{program} print(callable(p.nms), callable(p.letterbox))") == "True True"
    program = f"from prunedeploy_engines import nms, letterbox; import prunedeploy_engines.{first};"
    assert run(f"{program} print(callable(nms), callable(letterbox))") == "True True"


def test_every_public_name_is_there() -> None:
    for name in prunedeploy_engines.__all__:
        assert getattr(prunedeploy_engines, name) is not None
    assert set(prunedeploy_engines.__all__) <= set(dir(prunedeploy_engines))
    with pytest.raises(AttributeError, match="no_such_name"):
        prunedeploy_engines.no_such_name  # noqa: B018


def test_detections_are_rows_with_coco_boxes() -> None:
    found = Detections(
        np.array([[1, 2, 4, 8]], dtype=np.float32),
        np.array([0.5], dtype=np.float32),
        np.array([1]),
        ("a", "b"),
    )
    assert found.to_rows() == [
        {
            "class_id": 1,
            "class_name": "b",
            "score": 0.5,
            "x_min": 1.0,
            "y_min": 2.0,
            "width": 3.0,
            "height": 6.0,
        }
    ]
    assert [(score, name) for _, score, name in found] == [(0.5, "b")]
    assert len(found) == 1


def test_detections_that_do_not_fit_together_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(1, 4\), \(2,\) and \(1,\)"):
        Detections(np.zeros((1, 4)), np.zeros(2), np.zeros(1, dtype=np.int64), ("a",))
    with pytest.raises(ValueError, match="class ids"):
        Detections(np.zeros((1, 4)), np.zeros(1), np.array([3]), ("a",))
