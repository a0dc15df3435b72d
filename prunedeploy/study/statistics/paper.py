"""The paper's own numbers: 900 raw ones as result rows, and the 90 p-values it prints.

How the paper prints them, found by computing all of them: mAP's p-values (Tables I and III) and the mean and
standard deviation of Table V are cut off after the last digit shown, everything else is rounded.

Reference: Liu, Efficient and Adversarially Robust Object Detection, Tables I to XIV and sections IV-A and IV-B.
"""

from __future__ import annotations

import json
from functools import cache

from prunedeploy.resources import asset_path
from prunedeploy.study.rows.rows import Row
from prunedeploy.study.statistics.design import ORIGINAL

CONFIGURATION_HASH = "paper"
MACHINE = "paper: NVIDIA GeForce RTX 2070 SUPER"
ORIGINAL_MAP, ORIGINAL_MS = 0.176, 119.3
"""YOLOv3 as given, under the same attack, and its inference time (section IV-A); one number each, no runs."""
SCALED_SECONDS, DEEPLIFT_SECONDS = 18, 49
"""What initialising the scores took on average (section IV-B); no runs are given."""


@cache
def paper_rows() -> tuple[Row, ...]:
    """The 450 models of the appendix and the original network, as rows of a study.

    mAP stands in ``map_pgd_conf50``, since the paper drops detections with scores below 0.5.
    """
    document = json.loads(asset_path("paper-appendix.json").read_text(encoding="utf-8"))
    rows = [_row(ORIGINAL, 0.0, 1, ORIGINAL_MAP, ORIGINAL_MS)]
    for name, runs in document["runs"].items():
        for number, (maps, times) in enumerate(zip(runs["map"], runs["time_ms"], strict=True), 1):
            rows += [
                _row(name, float(ratio), number, one_map, one_time)
                for ratio, one_map, one_time in zip(document["ratios"], maps, times, strict=True)
            ]
    return tuple(rows)


def _row(configuration: str, ratio: float, run: int, one_map: float, one_time: float) -> Row:
    return Row(
        configuration=configuration,
        ratio=ratio,
        run=run,
        configuration_hash=CONFIGURATION_HASH,
        map_pgd_conf50=one_map,
        time_ms=one_time,
        runtime="PyTorch",
        machine=MACHINE,
        machine_name="NVIDIA GeForce RTX 2070 SUPER",
    )
