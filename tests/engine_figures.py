"""Rows of engines as a build's ``results.json`` has them, for tests of what shows them."""

from __future__ import annotations

from typing import Any

ALL: dict[str, Any] = {
    "runtime": "onnxruntime",
    "target": "cpu",
    "precision": "int8",
    "file": "bundle/model.int8.onnx",
    "map_clean": 0.7,
    "map_pgd_transfer": 0.5,
    "map_pgd_adaptive": 0.45,
    "adaptive": {"images": 60},
    "map_square": 0.42,
    "square": {
        "images": 60,
        "checks": [{"name": "black-box", "passed": False, "says": "square leaves 0.42, pgd 0.45"}],
    },
    "lowest": {"map": 0.38, "attack": "ensemble_adaptive", "interval": [0.31, 0.44], "images": 60},
    "mpc": 0.33,
    "latency_ms": {"p50": 1.5, "p99": 1.75, "noisy": False},
    "flood": {
        "kind": "end_to_end",
        "clean": {"p50": 2.0, "p99": 2.5, "n": 9, "noisy": False, "candidates": {"mean": 12.0, "largest": 40}},
        "flooded": {
            "apart": {"p50": 2.1, "p99": 2.6, "n": 9, "noisy": False, "ratio": 1.04,
                      "candidates": {"mean": 640.0, "largest": 640}},
            "classes": {"p50": 2.2, "p99": 3.0, "n": 9, "noisy": True, "ratio": 1.2,
                        "candidates": {"mean": 6400.0, "largest": 6400}},
        },
        "worst": "classes",
    },
}  # fmt: skip
"""Everything, of all images."""
FEWER: dict[str, Any] = {
    "runtime": "openvino",
    "target": "cpu",
    "precision": "fp32",
    "file": "bundle/model.onnx",
    "map_clean": 0.71,
    "map_pgd_transfer": 0.52,
    "square": {"images": 20, "map_square": 0.4, "checks": []},
    "corruptions": {"images": 20, "mpc": 0.3},
    "lowest": {"map": 0.4, "attack": "square", "interval": None, "images": 20},
    "latency_ms": None,
}
"""Square and corruptions, of fewer images."""
PLAIN: dict[str, Any] = {
    "runtime": "onnxruntime",
    "target": "cpu",
    "precision": "fp32",
    "file": "bundle/model.onnx",
    "map_clean": 0.71,
    "map_pgd_transfer": 0.52,
    "lowest": {"map": 0.52, "attack": "pgd_transfer", "interval": None, "images": 60},
    "latency_ms": {"p50": 1.5, "p99": 1.75, "noisy": False},
}
"""What every build measures."""
