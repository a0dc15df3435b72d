"""Rows as a grid: the last result counts, and times of two machines never meet."""

from __future__ import annotations

import pytest

from prunedeploy.study.statistics.cells import study_from_rows
from prunedeploy.study.statistics.design import MAP_PGD, MAP_PGD_CONF50, TIME_MS, configuration
from prunedeploy_engines.errors import ConfigError
from study_rows import grid, row


def test_configurations_stand_in_the_papers_order_and_others_behind():
    names = ("kernel-taylor", "structured-scaled", "original", "unstructured-deeplift-grey", "unstructured-deeplift")
    study = study_from_rows([row(name, 0.0 if name == "original" else 0.5) for name in names])
    assert study.configurations == (
        "unstructured-deeplift",
        "structured-scaled",
        "unstructured-deeplift-grey",
        "kernel-taylor",
    )
    assert study.ratios == (0.5,)  # the original network is no cell of the grid
    assert configuration("unstructured-deeplift-grey").label == "unstructured, DeepLIFT, greyscale"
    assert configuration("kernel-taylor").label == "kernel, taylor"
    assert configuration("structured-scaled").caption == "Structured HYDRA"


def test_the_last_finished_row_counts_and_a_failed_one_hides_nothing():
    study = study_from_rows(
        [row(run=0, map_pgd=0.1), row(run=1, map_pgd=0.2), row(run=0, map_pgd=0.4), row(run=1, error="killed")]
    )
    assert study.by_run(MAP_PGD, "structured-scaled", 0.5) == {0: 0.4, 1: 0.2}
    assert study.values(MAP_PGD, "structured-scaled", 0.5).tolist() == [0.4, 0.2]
    assert study.failed == ()


def test_a_later_row_that_only_has_a_time_leaves_the_map_alone():
    study = study_from_rows([row(map_pgd=0.1), row(map_pgd=None, time_ms=5.0)])
    assert study.by_run(MAP_PGD, "structured-scaled", 0.5) == {0: 0.1}
    assert study.by_run(TIME_MS, "structured-scaled", 0.5) == {0: 5.0}


def test_failed_and_missing_cells_are_told_apart():
    rows = [*grid({("structured-scaled", 0.25): (0.3, 0.3), ("structured-scaled", 0.5): (0.2,)})]
    study = study_from_rows([*rows, row("structured-deeplift", 0.25, 1, error="out of memory")])
    assert [r.error for r in study.failed] == ["out of memory"]
    assert study.missing == (
        ("structured-deeplift", 0.25, 0),
        ("structured-deeplift", 0.5, 0),
        ("structured-deeplift", 0.5, 1),
        ("structured-scaled", 0.5, 1),
    )


def test_times_of_two_machines_or_runtimes_never_meet():
    rows = [
        row(run=0, time_ms=5.0),
        row(run=1, time_ms=6.0),
        row(run=2, time_ms=50.0, machine="m2"),
        row(run=3, time_ms=70.0, runtime="torch"),
    ]
    study = study_from_rows(rows)
    assert study.bench == ("m1", "onnxruntime")
    assert study.by_run(TIME_MS, "structured-scaled", 0.5) == {0: 5.0, 1: 6.0}
    assert len(study.values(MAP_PGD, "structured-scaled", 0.5)) == 4  # accuracy is the same anywhere
    assert study.benches == {("m1", "onnxruntime"): 2, ("m2", "onnxruntime"): 1, ("m1", "torch"): 1}
    other = study_from_rows(rows, machine="m2")
    assert other.by_run(TIME_MS, "structured-scaled", 0.5) == {2: 50.0}


def test_a_machine_that_no_row_knows_is_one_line():
    with pytest.raises(ConfigError, match="m9: no row has a time of this machine; give one of: m1, m2"):
        study_from_rows([row(time_ms=5.0), row(run=1, time_ms=5.0, machine="m2")], machine="m9")
    with pytest.raises(ConfigError, match="give one of: none"):
        study_from_rows([row()], machine="m9")


@pytest.mark.parametrize("rows", [[], [row("original", 0.0)]])
def test_a_study_without_models_is_one_line(rows):
    with pytest.raises(ConfigError, match="there is no result row to report on; let the sweep finish a model"):
        study_from_rows(rows)


def test_robust_map_is_at_the_threshold_that_most_rows_have():
    assert study_from_rows([row()]).map_metric == MAP_PGD
    assert study_from_rows([row(map_pgd_conf50=0.2)]).map_metric == MAP_PGD
    assert study_from_rows([row(map_pgd=None, map_pgd_conf50=0.2)]).map_metric == MAP_PGD_CONF50
    assert not study_from_rows([row()]).has(TIME_MS)
    assert study_from_rows([row(error="killed")]).map_metric == MAP_PGD
