"""Which figures of a file stand where in ``results.json``, and which of them is the lowest."""

from __future__ import annotations

from typing import Any

from prunedeploy.pipeline.engine_figures import lowest_of
from prunedeploy.pipeline.engine_rows import EngineMeasurements, figures_of_file

KEY = "onnxruntime|model.int8.onnx"
FOUND = {
    "map_clean": 0.7, "map_pgd": 0.5, "map50_clean": 0.9, "map50_pgd": 0.8, "n_images": 60,
    "intervals": {"map_clean": [0.6, 0.8], "map_pgd": [0.4, 0.6]},
}  # fmt: skip
MEANS = {"mpc": 0.4, "rpc": 0.57}


def row(images: int, adaptive: bool = True, square: bool = True) -> dict[str, Any]:
    """The row of a file that was attacked and corrupted on so many images."""
    of_twin = {
        "map_pgd_adaptive": 0.45, "map_ensemble_adaptive": 0.38, "map_pgd_conf50_adaptive": 0.1, "images": images,
        "intervals": {"map_pgd_adaptive": [0.4, 0.5], "map_ensemble_adaptive": [0.3, 0.41]}, "adaptive": {"twin": 1},
    }  # fmt: skip
    asked = {
        "images": images, "queries": {"mean": 9.0, "max": 10},
        "figures": {"map_clean": 0.71, "map_pgd_transfer": 0.52, "map_square": 0.42, "map50_square": 0.2},
        "intervals": {"map_clean": None, "map_pgd_transfer": [0.5, 0.54], "map_square": [0.35, 0.5]},
    }  # fmt: skip
    measured = EngineMeasurements(
        {KEY: FOUND},
        {},
        {"images": images, "runners": {KEY: {**MEANS, "map": {}}}},
        {KEY: of_twin} if adaptive else {},
        {KEY: asked} if square else {},
    )
    return figures_of_file(KEY, FOUND, measured)


def test_figures_of_all_images_stand_beside_the_clean_one() -> None:
    found = row(60)
    assert found["map_clean"] == 0.7  # what gate 3 was measured with, not the same again
    assert (found["map_pgd_adaptive"], found["map_square"], found["mpc"], found["rpc"]) == (0.45, 0.42, 0.4, 0.57)
    assert found["adaptive"] == {"images": 60, "twin": 1}
    assert found["square"] == {"images": 60, "queries": {"mean": 9.0, "max": 10}}
    assert found["intervals"]["map_square"] == [0.35, 0.5]
    assert found["intervals"]["map_clean"] == [0.6, 0.8]
    ensemble = {"map": 0.38, "attack": "ensemble_adaptive", "interval": [0.3, 0.41], "images": 60}
    assert found["lowest"] == ensemble


def test_figures_of_fewer_images_stand_within_and_are_not_mixed_with_the_others() -> None:
    found = row(20)
    assert set(found) & {"map_pgd_adaptive", "map_square", "mpc"} == set()
    assert found["adaptive"]["map_pgd_adaptive"] == 0.45
    assert (found["square"]["map_square"], found["square"]["map_clean"]) == (0.42, 0.71)
    assert found["corruptions"] == {"images": 20, **MEANS}
    assert found["lowest"] == {"map": 0.38, "attack": "ensemble_adaptive", "interval": [0.3, 0.41], "images": 20}
    undefined = {"images": 20, "figures": {"map_square": None}, "intervals": {"map_square": None}}
    nothing = figures_of_file(KEY, FOUND, EngineMeasurements({KEY: FOUND}, {}, square={KEY: undefined}))
    assert nothing["lowest"] == {"map": 0.5, "attack": "pgd_transfer", "interval": [0.4, 0.6], "images": 60}
    asked_only = row(20, adaptive=False)["lowest"]
    assert asked_only == {"map": 0.42, "attack": "square", "interval": [0.35, 0.5], "images": 20}


def test_without_attacks_on_the_file_transfer_is_the_lowest_and_without_any_there_is_none() -> None:
    plain = row(60, adaptive=False, square=False)
    assert plain["lowest"] == {"map": 0.5, "attack": "pgd_transfer", "interval": [0.4, 0.6], "images": 60}
    assert "lowest" not in figures_of_file(KEY, {}, EngineMeasurements({}, {}))


def test_a_twin_that_fails_its_gates_has_its_reason_and_no_figure() -> None:
    why_not = {KEY: {"why_not": "tensor 3 differs"}}
    found = figures_of_file(KEY, FOUND, EngineMeasurements({KEY: FOUND}, {}, adaptive=why_not))
    assert found["adaptive"] == {"why_not": "tensor 3 differs"}
    assert found["lowest"]["attack"] == "pgd_transfer"


def test_an_ensemble_stands_for_the_one_of_its_attacks_that_it_equals() -> None:
    figures = {"map_clean": 0.7, "map_apgd_box": 0.3, "map_ensemble": 0.3, "map_pgd": None, "map50_pgd": 0.1}
    assert lowest_of(figures) == {"map": 0.3, "attack": "ensemble", "interval": None}
    assert lowest_of({"map_clean": 0.7, "map_pgd_conf50": 0.2, "map_pgd": None}) is None
