"""What is wrong with one precision, runtime or engine costs nothing but that: the rest is delivered, and it is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.conftest import TinyCase
from prunedeploy.cli import cli
from prunedeploy.pipeline.build import BuildOutcome
from prunedeploy.pipeline.context import StageResult
from prunedeploy.pipeline.left_out import LeftOut, limit_of
from prunedeploy.pipeline.stages import export
from prunedeploy.pipeline.stages.evaluate import without_what_failed
from prunedeploy.pipeline.stages.export import Artefact
from prunedeploy_engines import load_bundle
from prunedeploy_engines.errors import EngineError, GateError
from prunedeploy_engines.runtimes.tensorrt.library import installed_version

ALL = "export.precisions=fp32,fp16,int8"
BAD_INT8 = "export.int8.parity_tolerance=1e-6"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("left-out")


@pytest.fixture(scope="module")
def in_part(folder: Path, tiny_case: TinyCase) -> BuildOutcome:
    return tiny_case.build(folder / "store", folder / "out", ALL, BAD_INT8)


def test_what_passed_is_delivered_and_what_did_not_is_named(in_part: BuildOutcome) -> None:
    assert set(load_bundle(in_part.out / "bundle").manifest.files) == {"model.onnx", "model.fp16.onnx"}
    (left_out,) = in_part.results["left_out"]
    assert (left_out["file"], left_out["precision"], left_out["target"]) == ("model.int8.onnx", "int8", "cpu")
    assert left_out["gate"] == "tensor"
    assert "export.int8.parity_tolerance" in left_out["to_let_it_through"]
    assert left_out["line"].startswith("model.int8.onnx is left out: tensor parity: ")
    (row,) = [row for row in in_part.results["engines"] if row["precision"] == "int8"]
    assert (row["file"], row["map_clean"], row["note"]) == (None, None, left_out["line"])
    failed = [gate for gate in in_part.results["gates"] if gate.get("passed") is False]
    assert [(gate["artefact"], gate["gate"]) for gate in failed] == [("model.int8.onnx", "tensor")]
    page = (in_part.out / "report.html").read_text()
    assert "export.int8.parity_tolerance or lower export.int8.match_share" in page
    assert "failed" in page


def test_second_build_comes_to_the_same_end_without_computing(
    folder: Path, tiny_case: TinyCase, in_part: BuildOutcome
) -> None:
    again = tiny_case.build(folder / "store", folder / "out", ALL, BAD_INT8)
    assert again.computed == ()
    assert again.results == in_part.results
    elsewhere = tiny_case.build(folder / "store", folder / "elsewhere", ALL, BAD_INT8)
    assert elsewhere.computed == ()
    assert elsewhere.results["left_out"] == in_part.results["left_out"]


def test_exit_code_is_3_and_a_line_says_why(
    folder: Path, tiny_case: TinyCase, in_part: BuildOutcome, capsys: pytest.CaptureFixture[str]
) -> None:
    sets = [part for one in tiny_case.arguments(ALL, BAD_INT8) for part in ("--set", one)]
    places = ["--store", str(folder / "store"), "--out", str(in_part.out)]
    code = cli.main(["build", "--config", "smoke", *places, *sets, "--json"], standalone_mode=False)
    told = capsys.readouterr()
    assert code == 3
    (line,) = [line for line in told.err.splitlines() if "left out" in line]
    assert line == f"prunedeploy: warning: {in_part.results['left_out'][0]['line']}"
    assert json.loads(told.out)["left_out"] == in_part.results["left_out"]


def test_key_that_is_named_lets_the_file_through(folder: Path, tiny_case: TinyCase, in_part: BuildOutcome) -> None:
    for number, remedy in enumerate(("export.int8.match_share=0", "export.int8.parity_tolerance=0.5")):
        outcome = tiny_case.build(folder / "store", folder / f"through-{number}", ALL, BAD_INT8, remedy)
        assert outcome.results["left_out"] == []
        assert "model.int8.onnx" in load_bundle(outcome.out / "bundle").manifest.files


def test_budget_that_cannot_be_met_costs_int8_alone(folder: Path, tiny_case: TinyCase, monkeypatch: Any) -> None:
    # A random network has no mAP to lose, so the loss is made up; all else is as it is.
    monkeypatch.setattr("prunedeploy.pipeline.stages.quantise._map_loss", lambda *_: lambda model: 0.3)
    outcome = tiny_case.build(folder / "store", folder / "budget", ALL, "export.int8.map_budget=0.02")
    (left_out,) = outcome.results["left_out"]
    assert left_out["reason"].startswith("int8 costs more than the budget of 0.02")
    assert left_out["to_let_it_through"] == "raise export.int8.map_budget"


def test_failing_fp32_still_ends_the_build_and_names_its_key(folder: Path, tiny_case: TinyCase) -> None:
    with pytest.raises(GateError, match=r"model\.onnx: tensor parity: .*raise export\.parity_tolerance") as told:
        tiny_case.build(folder / "store", folder / "fp32", ALL, "export.parity_tolerance=1e-12")
    assert told.value.exit_code == 2
    assert not (folder / "fp32" / "bundle").exists()


def test_build_with_nothing_to_deliver_ends_with_exit_code_2(folder: Path, tiny_case: TinyCase) -> None:
    with pytest.raises(GateError, match=r"nothing can be delivered: model\.int8\.onnx is left out: ") as told:
        tiny_case.build(folder / "store", folder / "nothing", "export.precisions=int8", BAD_INT8)
    assert told.value.exit_code == 2


@pytest.mark.skipif(installed_version("tensorrt_rtx") is None, reason="needs tensorrt-rtx (prunedeploy[rtx])")
def test_engine_that_is_refused_costs_no_other(folder: Path, tiny_case: TinyCase, monkeypatch: Any) -> None:
    real = export.engine_from_onnx

    def refusing(path: Path, out: Path, **options: Any) -> Any:
        if options["target"] == "sm75":
            raise EngineError("tensorrt_rtx cannot build it: Myelin ([pass.cpp:337])", where=path)
        return real(path, out, **options)

    monkeypatch.setattr(export, "engine_from_onnx", refusing)
    outcome = tiny_case.build(folder / "store", folder / "engines", "targets=cpu,sm75,sm86")
    (left_out,) = outcome.results["left_out"]
    line = left_out["line"]
    assert line.startswith("the engine of model.onnx for sm75 is left out: tensorrt")
    assert line.endswith(" cannot build it")
    assert "Myelin" not in line
    assert str(folder) not in line
    assert "Myelin" in left_out["detail"]
    files = load_bundle(outcome.out / "bundle").manifest.files
    assert {entry.target for entry in files.values() if entry.role == "engine"} == {"sm86"}
    again = tiny_case.build(folder / "store", folder / "engines", "targets=cpu,sm75,sm86")
    assert (again.computed, again.results["left_out"]) == ((), [left_out])


def stage_with(folder: Path, gates: list[dict[str, Any]]) -> StageResult:
    folder.mkdir()
    (folder / "evaluation.json").write_text(json.dumps({"gates": gates}))
    return StageResult("evaluate", folder, "digest")


def test_map_gate_on_onnx_runtime_costs_the_file_and_on_another_runtime_that_runtime(tmp_path: Path) -> None:
    stage = StageResult("precision", tmp_path, "digest")
    files = [Artefact(p, t, stage, tmp_path, tmp_path) for p, t in (("fp32", None), ("fp16", None), ("int8", "cpu"))]
    gates = [
        {"gate": "map", "artefact": "model.onnx", "runtime": "onnxruntime"},  # as they were stored before
        {"gate": "map", "artefact": "model.fp16.onnx", "runtime": "onnxruntime", "passed": True},
        {"gate": "map", "artefact": "model.fp16.onnx", "runtime": "openvino", "passed": False, "reason": "too low"},
        {"gate": "map", "artefact": "model.int8.onnx", "runtime": "onnxruntime", "passed": False, "reason": "lost .3"},
        {"gate": "map", "artefact": "model.int8.onnx", "runtime": "openvino", "passed": False, "reason": "lost .4"},
    ]
    delivered, left_out = without_what_failed(stage_with(tmp_path / "stage", gates), files)
    assert [one.name for one in delivered] == ["model.onnx", "model.fp16.onnx"]
    assert [one.line for one in left_out] == [
        "model.fp16.onnx on openvino is left out: too low; to let it through, raise export.fp16.map_tolerance",
        "model.int8.onnx is left out: lost .3; to let it through, raise export.int8.map_tolerance",
    ]


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("gate", ["tensor", "detections", "map", "budget"])
def test_every_key_that_is_named_exists(gate: str, precision: str) -> None:
    from prunedeploy.config import known_keys

    if (gate, precision) in {("budget", "fp32"), ("budget", "fp16")}:
        return
    keys = [word for word in str(limit_of(gate, precision)).split() if word.startswith("export")]
    assert keys
    assert set(keys) <= set(known_keys())


def test_what_no_limit_would_help_names_none() -> None:
    line = LeftOut("model.onnx", "fp32", "sm75", "it cannot be built", "engine").line
    assert line == "the engine of model.onnx for sm75 is left out: it cannot be built"
    assert LeftOut("model.fp16.onnx", "fp16", None, "too large").line == "model.fp16.onnx is left out: too large"
