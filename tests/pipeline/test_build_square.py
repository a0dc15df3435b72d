"""A build whose files are attacked by their answers: what its rows say, and which figure is the lowest."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.test_build_adaptive import FILES
from prunedeploy.attacks.answer_margins import from_scores, objects_of
from prunedeploy.attacks.square import Square
from prunedeploy.config import as_dict, config_hash, load_config
from prunedeploy.data.coco import load_test_split, measured_subset
from prunedeploy.data.demo import CLASS_NAMES
from prunedeploy.data.loader import EvaluationLoader
from prunedeploy.evaluation import DetectionTable, coco_map
from prunedeploy.evaluation.detecting import Thresholds, detect_batch
from prunedeploy.pipeline.build import BuildOutcome
from prunedeploy_engines import load_bundle
from prunedeploy_engines.errors import ConfigError
from prunedeploy_engines.runtimes.onnxruntime.runner import OnnxRuntimeRunner

QUERIES = 40
ASKED = (*FILES, "attack=[{steps: 2}, square]", f"robustness={{adaptive: true, square: {{queries: {QUERIES}}}}}")
