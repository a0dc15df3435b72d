from __future__ import annotations

import math
from pathlib import Path

import pytest

from prunedeploy_engines.bench import server as bench_server
from prunedeploy_engines.bench.scenarios import Search
from prunedeploy_engines.bench.server import ServerResult, bench_servers
from prunedeploy_engines.errors import EngineError
from tiny_detector import save_tiny_detector

SHORT = {"seconds": 0.05, "min_queries": 100, "warmup_s": 0.0, "warmup_calls": 2, "lock": False}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_detector(tmp_path_factory.mktemp("model") / "model.onnx")


def test_two_models_are_searched_in_turns_to_a_rate_that_was_confirmed(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns: list[str] = []
    specs = {"one": {"path": model, "threads": 1}, "batched": {"path": model, "threads": 1, "batch": 4}}
    # A bound that holds on any machine at some rate, so that the search has an end to find; ten of it would be long.
    monkeypatch.setattr(bench_server, "_BOUNDS_OF_A_TRIAL", 0)
    found: dict[str, ServerResult] = bench_servers(specs, bound_ms=2000.0, **SHORT, progress=turns.append)
    assert turns[:4] == ["one", "batched", "one", "batched"]
    for result in found.values():
        assert result.confirmed is not None
        assert result.reason is None
        assert result.confirmed is result.trials[-1]
        assert result.confirmed.holds
        assert len(result.confirmed.latencies_ms) >= 100
        assert result.confirmed.rate <= max(trial.rate for trial in result.trials if trial.holds) * (1 + 1e-9)
        assert result.unloaded.batch == 1
        assert result.describe["runtime"] == "onnxruntime"


def test_a_bound_below_a_single_query_is_told_without_a_trial(model: Path) -> None:
    result = bench_servers({"a": {"path": model, "threads": 1}}, bound_ms=1e-4, **SHORT)["a"]
    assert result.confirmed is None
    assert result.trials == ()
    assert result.reason is not None
    assert "0.0001 ms cannot be held at any rate: p99 of single queries is" in result.reason


def test_a_search_without_end_stops_at_the_lowest_rate(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_server, "_BOUNDS_OF_A_TRIAL", 0)
    # Every trial fails, as if the machine stalled under load.
    monkeypatch.setattr(bench_server.Trial, "holds", property(lambda trial: False))
    result = bench_servers({"a": {"path": model, "threads": 1}}, bound_ms=2000.0, **SHORT)["a"]
    assert result.confirmed is None
    assert len(result.trials) == 5
    assert result.reason is not None
    assert "is not held even at the lowest rate tried" in result.reason
    assert math.isclose(result.trials[0].rate / result.trials[-1].rate, 16)


def test_a_trial_lasts_ten_bounds(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_server, "find_rate", lambda capacity, seed: one_trial(50.0))
    result = bench_servers({"a": {"path": model, "threads": 1}}, bound_ms=300.0, **SHORT)["a"]
    assert [trial.planned for trial in result.trials] == [150]  # 3 s at 50 a second, not .05 s or 100 queries


def one_trial(rate: float) -> Search:
    """A search that is content with anything."""
    return (yield rate, 0)


def test_too_few_queries_for_a_99th_percentile_are_refused(model: Path) -> None:
    with pytest.raises(ValueError, match="at least 100"):
        bench_servers({"a": {"path": model}}, bound_ms=1.0, **{**SHORT, "min_queries": 99})


def test_a_model_that_does_not_open_leaves_the_others_alone(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_server, "_BOUNDS_OF_A_TRIAL", 0)
    failed: dict[str, EngineError] = {}
    specs = {"bad": {"path": tmp_path / "absent.onnx"}, "good": {"path": model, "threads": 1}}
    found = bench_servers(specs, bound_ms=2000.0, **SHORT, on_unusable=failed.__setitem__)
    assert list(found) == ["good"]
    assert "absent.onnx" in str(failed["bad"])
