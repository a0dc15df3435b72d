"""`evaluate --corruptions`: what is printed and written, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

WANTED = ("--corruptions", "fog,pixelate", "--severities", "1,5", "--bootstrap", "20")


def test_means_are_those_of_the_table(run: Any, darknet: Path, coco: Path) -> None:
    done = run("evaluate", darknet, "--data", coco, *WANTED, "--json")
    assert done.exit_code == 0, done.stderr
    (result,) = json.loads(done.stdout)["results"]
    found = result["corruptions"]
    assert found["severities"] == [1, 5]
    assert list(found["map"]) == ["fog", "pixelate"]
    values = [value for of_one in found["map"].values() for value in of_one]
    assert len(values) == 4
    assert found["mpc"] == pytest.approx(sum(values) / 4, abs=1e-12)
    assert found["map_clean"] == result["map_clean"] > 0
    assert found["rpc"] == pytest.approx(found["mpc"] / found["map_clean"], abs=1e-12)
    assert found["intervals"]["map_clean"] == pytest.approx(result["intervals"]["map_clean"])
    low, high = found["intervals"]["rpc"]
    assert low <= high

    shown = run("evaluate", darknet, "--data", coco, *WANTED).stdout
    assert f"{found['map']['pixelate'][1]:.3f}" in next(line for line in shown.splitlines() if "pixelate" in line)
    assert f"mPC, the mean of all these: {found['mpc']:.3f} (" in shown
    assert "published means are over all 15 corruptions at severities 1 to 5" in shown


def test_nothing_is_said_unless_it_is_asked_for(run: Any, darknet: Path, coco: Path) -> None:
    done = run("evaluate", darknet, "--data", coco, "--bootstrap", "0", "--json")
    assert "corruptions" not in json.loads(done.stdout)["results"][0]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--corruptions", "fogg"), "--corruptions: there is no corruption 'fogg'; the nearest is fog"),
        (("--corruptions", "all,fog"), "--corruptions: 'all' excludes other corruptions"),
        (("--corruptions", ","), "--corruptions is empty"),
        (("--corruptions", "fog", "--severities", "6"), "--severities: '6' is no severity; give 1 to 5"),
        (("--corruptions", "fog", "--severities", "0-3"), "--severities: '0-3' is no severity"),
        (("--corruptions", "fog", "--severities", "4-2"), "--severities: '4-2' runs backwards"),
        (("--severities", "3"), "--severities has no effect without --corruptions"),
    ],
)
def test_wrong_input_is_one_line(run: Any, darknet: Path, coco: Path, more: tuple[str, ...], said: str) -> None:
    done = run("evaluate", darknet, "--data", coco, *more)
    assert (done.exit_code, done.stdout) == (2, "")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
