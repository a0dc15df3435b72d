"""Targets as they are typed: units, ranges, and what is said about the rest."""

from __future__ import annotations

import pytest

from prunedeploy.config.ratio_target import (
    RatioTarget,
    parse_latency,
    parse_map,
    parse_size,
    target_from_options,
)
from prunedeploy_engines.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "measure", "value"),
    [
        ("0.30", "map_pgd", 0.3),
        (".3", "map_pgd", 0.3),
        ("pgd:0.3", "map_pgd", 0.3),
        ("clean:0.5", "map_clean", 0.5),
        ("ensemble:0.25", "map_ensemble", 0.25),
    ],
)
def test_map(text: str, measure: str, value: float) -> None:
    assert parse_map(text) == RatioTarget(measure, value)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "milliseconds"),
    [("20ms", 20.0), ("20 ms", 20.0), ("20", 20.0), ("0.02s", 20.0), ("2s", 2000.0), ("500us", 0.5), ("1.5ms", 1.5)],
)
def test_latency(text: str, milliseconds: float) -> None:
    assert parse_latency(text) == RatioTarget("latency_ms", pytest.approx(milliseconds))


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("5MB", 5_000_000),
        ("5 MB", 5_000_000),
        ("0.5GB", 500_000_000),
        ("800KB", 800_000),
        ("800kB", 800_000),
        ("12B", 12),
        # Powers of 1024: 1024 * 1024 = 1 048 576.
        ("1KiB", 1024),
        ("5MiB", 5_242_880),
        ("1GiB", 1_073_741_824),
    ],
)
def test_size(text: str, count: int) -> None:
    assert parse_size(text) == RatioTarget("onnx_bytes", count)


@pytest.mark.parametrize(
    ("option", "text", "says"),
    [
        ("map", "30", "not between 0 and 1"),
        ("map", "1", "not between 0 and 1"),
        ("map", "0", "not between 0 and 1"),
        ("map", "-0.3", "not an mAP"),
        ("map", "30%", "not an mAP"),
        ("map", "nan", "not an mAP"),
        ("map", "dirty:0.3", "not an mAP"),
        ("map", "clean:", "not an mAP"),
        ("map", "", "not an mAP"),
        ("latency", "20min", "not a latency"),
        ("latency", "20MS", "not a latency"),
        ("latency", "-20ms", "not a latency"),
        ("latency", "0ms", "not above 0"),
        ("latency", "inf", "not a latency"),
        ("latency", "1e1ms", "not a latency"),
        ("latency", "ms", "not a latency"),
        ("size", "5", "no unit; write 5MB"),
        ("size", "5mb", "not a size"),
        ("size", "5Mb", "not a size"),
        ("size", "0MB", "not above 0"),
        ("size", "-1MB", "not a size"),
        ("size", "5M", "not a size"),
        ("size", "٥MB", "not a size"),
    ],
)
def test_what_is_no_target_is_refused_with_an_example(option: str, text: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        target_from_options(None, {option: text})
    line = str(caught.value)
    assert line.startswith(f"--target-{option}: {text!r} ")
    assert says in line
    assert "; write " in line


def test_a_ratio_and_targets_exclude_each_other() -> None:
    assert target_from_options(0.5, {"map": None, "size": None}) is None
    assert target_from_options(None, {"map": None, "size": None}) is None
    with pytest.raises(ConfigError, match=r"--ratio and --target-size exclude each other"):
        target_from_options(0.0, {"map": None, "size": "5MB"})
    with pytest.raises(ConfigError, match=r"--target-map and --target-latency exclude each other"):
        target_from_options(None, {"map": "0.3", "latency": "5ms"})


def test_accuracy_is_a_lower_bound_and_the_others_upper_ones() -> None:
    accuracy, size = RatioTarget("map_clean", 0.3), RatioTarget("onnx_bytes", 100)
    assert [accuracy.is_met_by(value) for value in (0.29, 0.3, 0.31)] == [False, True, True]
    assert [size.is_met_by(value) for value in (99, 100, 101)] == [True, True, False]
    assert accuracy.is_accuracy
    assert not size.is_accuracy


def test_two_spellings_are_one_target() -> None:
    assert parse_latency("20").as_dict() == parse_latency("20 ms").as_dict()
    assert parse_size("0.5GB").as_dict() == parse_size("500MB").as_dict()
    assert parse_map("0.5").as_dict() != parse_map("clean:0.5").as_dict()


@pytest.mark.parametrize(
    ("target", "shown"),
    [
        (RatioTarget("map_pgd", 0.3), "robust mAP 0.3000"),
        (RatioTarget("map_clean", 0.5), "clean mAP 0.5000"),
        (RatioTarget("latency_ms", 19.876), "median latency 19.88 ms"),
        (RatioTarget("latency_ms", 0.9876), "median latency 0.988 ms"),
        (RatioTarget("onnx_bytes", 5_242_880), "size 5.243 MB"),
        (RatioTarget("onnx_bytes", 800), "size 0.800 kB"),
    ],
)
def test_values_are_shown_with_their_unit(target: RatioTarget, shown: str) -> None:
    assert target.show(target.value) == shown
