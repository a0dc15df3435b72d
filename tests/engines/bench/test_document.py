from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench_rows import bench_document, bench_row
from prunedeploy_engines.bench.document import (
    device_name,
    measured_rows,
    merge_documents,
    read_document,
    rounds_of,
    varying,
)
from prunedeploy_engines.bench.pairs import compare_documents, machine_notes
from prunedeploy_engines.errors import DataError


def test_a_document_is_read_back_from_file_and_folder(tmp_path: Path) -> None:
    document = bench_document([bench_row(), bench_row(latency_ms=None, reason="no GPU")])
    (tmp_path / "bench.json").write_text(json.dumps(document))
    assert read_document(tmp_path / "bench.json") == read_document(tmp_path) == document
    assert len(measured_rows(document)) == 1


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "there is no such file"),
        ("{", "is not JSON"),
        ("\x00\xff", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[]", "is not a file of `prunedeploy bench`"),
        ('{"rows": []}', "is not a file of `prunedeploy bench`"),
        ('{"rows": [], "schema_version": 99}', "has schema_version 99, this prunedeploy reads 1"),
        ('{"rows": [3], "schema_version": 1}', "row 0: has no model"),
    ],
)
def test_other_files_are_refused_in_one_line(tmp_path: Path, content: str | None, said: str) -> None:
    path = tmp_path / "bench.json"
    if content is not None:
        path.write_text(content, encoding="latin-1")
    with pytest.raises(DataError, match=said) as caught:
        read_document(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"samples_ms": [1.0, -1.0]}, "samples_ms"),
        ({"samples_ms": "many"}, "samples_ms"),
        ({"samples_ms": []}, "samples_ms"),
        ({"round_sizes": [3]}, "add up to 3, not to the 200 samples"),
        ({"round_sizes": [True]}, "round_sizes"),
        ({"latency_ms": {"p50": 1.0}}, "p50, p90, p99 and mean"),
        ({"model": None}, "has no model"),
    ],
)
def test_a_damaged_row_is_named(tmp_path: Path, changed: dict[str, Any], said: str) -> None:
    document = bench_document([bench_row(), bench_row(**changed)])
    (tmp_path / "a.json").write_text(json.dumps(document))
    with pytest.raises(DataError, match=f"row 1: .*{said}"):
        read_document(tmp_path / "a.json")


def test_rounds_are_cut_out_of_the_samples() -> None:
    row = bench_row(samples_ms=[1.0, 2.0, 3.0], round_sizes=[1, 2])
    assert rounds_of(row) == [[1.0], [2.0, 3.0]]


def test_what_varies_is_named_and_a_runtime_without_providers_does_not_count() -> None:
    rows = [bench_row(batch=1), bench_row(batch=8, runtime="torch", provider=None)]
    assert varying(rows, ("runtime", "provider", "batch", "kind")) == ["runtime", "batch"]
    assert varying([*rows, bench_row(provider="cuda")], ("provider",)) == ["provider"]


def test_devices_are_named_by_what_computed_and_by_power_mode() -> None:
    machine = {"cpu": {"name": "Cortex-A78"}, "gpus": [{"name": "Orin"}]}
    assert device_name(machine, {"power_mode": "15W"}, {"device": "gpu"}) == "Orin (15W)"
    assert device_name(machine, None, {"device": "cpu"}) == "Cortex-A78"
    assert device_name(machine, None, None) == "Cortex-A78"
    assert device_name({"cpu": {"name": "Orin"}, "gpus": []}, None, {"device": "gpu"}) == "Orin"
    assert device_name({}, None, None) == "unknown device"


def test_merged_devices_stay_apart() -> None:
    jetson, pi = bench_document([bench_row(device="Orin")]), bench_document([bench_row(device="Pi")])
    other_pi = bench_document([bench_row(device="Pi")], notes=["the board was slowed down"])
    merged = merge_documents({"j": jetson, "kitchen": pi, "cellar": other_pi})
    assert [row["device"] for row in merged["rows"]] == ["Orin", "Pi [kitchen]", "Pi [cellar]"]
    assert list(merged["machines"]) == ["j", "kitchen", "cellar"]
    assert merged["notes"] == ["cellar: the board was slowed down"]
    again = merge_documents({"all": merged, "x": bench_document([bench_row(device="X")])})
    assert len(again["rows"]) == 4
    assert list(again["machines"]) == ["all: j", "all: kitchen", "all: cellar", "x"]


def test_rows_of_the_same_model_and_settings_are_compared() -> None:
    a = bench_document([bench_row(10.0, batch=1), bench_row(70.0, batch=8), bench_row(5.0, precision="int8")])
    b = bench_document([bench_row(70.0, seed=1, batch=8), bench_row(12.0, seed=2, batch=1), bench_row(model="other")])
    compared = compare_documents(a, b, seed=0, where="a and b")
    assert [(row["batch"], row["verdict"]) for row in compared["rows"]] == [
        (1, "slower"),
        (8, "no measurable difference"),
    ]
    slower = compared["rows"][0]
    assert slower["name"] == "pruned, batch 1"
    assert slower["ratio"] == pytest.approx(1.2, rel=0.02)
    assert slower["interval"][0] < slower["ratio"] < slower["interval"][1]
    assert (len(compared["only_a"]), len(compared["only_b"])) == (1, 1)
    assert "other" in compared["only_b"][0]


def test_two_single_models_of_different_names_are_compared_and_named() -> None:
    a, b = bench_document([bench_row(model="dense")]), bench_document([bench_row(5.0, model="pruned", sha256="1")])
    compared = compare_documents(a, b, seed=0, where="a and b")
    assert compared["rows"][0]["verdict"] == "faster"
    assert "two models are compared: A is dense, B is pruned" in compared["notes"]


def test_nothing_in_common_is_an_error() -> None:
    a, b = bench_document([bench_row(batch=1)]), bench_document([bench_row(batch=8)])
    with pytest.raises(DataError, match=r"a\.json and b\.json: .*no row of the same model and settings"):
        compare_documents(a, b, seed=0, where="a.json and b.json")


def test_other_machines_and_files_are_noted() -> None:
    a, b = bench_document([bench_row()]), bench_document([bench_row(sha256="1" * 64)])
    assert machine_notes(a, b) == []
    b["machine"] = {
        **b["machine"],
        "cpu": {"name": "Other CPU", "usable_cpus": 2},
        "libraries": {"onnxruntime": "1.33"},
    }
    b["device_state"] = {"before": {"power_mode": None, "governors": ["powersave"]}}
    notes = compare_documents(a, b, seed=0, where="")["notes"]
    assert "the machines differ: CPU Some CPU in A, Other CPU in B" in notes
    assert "the machines differ: CPU governor performance in A, powersave in B" in notes
    assert "the machines differ: onnxruntime 1.32.0 in A, 1.33 in B" in notes
    assert "pruned: the model files differ" in notes
