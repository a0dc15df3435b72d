"""Scores from a file: what is read, and one line for every file that cannot be used."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save, save_file
from torch import Tensor

from prunedeploy.scores import read_given_scores
from prunedeploy_engines.errors import PruningError
from scores.examples import mixed_network

Tensors = dict[str, Tensor]
CFG = mixed_network().cfg
FIRST = CFG.convolutions[0]


def random_tensors() -> Tensors:
    generator = torch.Generator().manual_seed(1)
    return {str(layer.index): torch.randn(layer.weight_shape, generator=generator) for layer in CFG.convolutions}


def test_scores_are_those_of_the_file_in_the_order_of_the_network(tmp_path: Path) -> None:
    path, tensors = tmp_path / "mine.safetensors", random_tensors()
    save_file(dict(reversed(tensors.items())), path)
    given = read_given_scores(path, CFG)
    assert list(given.scores) == [layer.index for layer in CFG.convolutions]
    assert all(torch.equal(value, tensors[str(index)]) for index, value in given.scores.items())
    assert given.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert given(mixed_network()).keys() == given.scores.keys()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_any_float_is_read_as_float32(tmp_path: Path, dtype: torch.dtype) -> None:
    path = tmp_path / "mine.safetensors"
    tensors = {name: value.to(dtype) for name, value in random_tensors().items()}
    save_file(tensors, path)
    for index, value in read_given_scores(path, CFG).scores.items():
        assert value.dtype == torch.float32
        assert torch.equal(value, tensors[str(index)].float())


def without(name: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {key: value for key, value in tensors.items() if key != name}


def with_value(number: float, dtype: torch.dtype = torch.float32) -> Callable[[Tensors], Tensors]:
    def change(tensors: Tensors) -> Tensors:
        value = tensors[str(FIRST.index)].to(dtype)
        value[0, 0, 0, 0] = number
        return {**tensors, str(FIRST.index): value}

    return change


A = f"layer {FIRST.index}"
OWN = f"the network's weights are {FIRST.weight_shape}; give scores of this network"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (without(str(FIRST.index)), f"has no scores for {A}, {OWN}"),
        (lambda tensors: {**tensors, "99": torch.ones(16, 8, 3, 3)},
         "has scores (16, 8, 3, 3) for layer 99, which is no convolution of the network; give scores of this network"),
        (lambda tensors: {**tensors, str(FIRST.index): torch.ones(16, 9, 3, 3)},
         f"has scores (16, 9, 3, 3) for {A}, {OWN}"),
        (lambda tensors: {**tensors, str(FIRST.index): torch.tensor(1.0)}, f"has scores () for {A}, {OWN}"),
        (lambda tensors: {}, f"has no scores for {A}, {OWN}"),
        (with_value(float("nan")), f"has scores for {A} that are not finite numbers in float32; mend"),
        (with_value(float("-inf")), f"has scores for {A} that are not finite numbers in float32; mend"),
        (with_value(1e300, torch.float64), f"has scores for {A} that are not finite numbers in float32; mend"),
        (with_value(1, torch.int64), f"has scores of type int64 for {A}; store floats"),
        (with_value(1, torch.bool), f"has scores of type bool for {A}; store floats"),
        (with_value(1, torch.complex64), f"has scores of type complex64 for {A}; store floats"),
        (lambda tensors: {**tensors, "convs.0.weight": torch.ones(1)},
         "has a tensor called 'convs.0.weight'; in a file of scores they are called by their layer's index; give a"),
        (lambda tensors: {**tensors, f"0{FIRST.index}": torch.ones(1)}, f"has a tensor called '0{FIRST.index}'; in a"),
        (lambda tensors: {**tensors, "-1": torch.ones(1)}, "has a tensor called '-1'; in a file of scores"),
        (lambda tensors: {**tensors, "\u0664": torch.ones(1)}, "has a tensor called '\u0664'; in a file of scores"),
        (lambda tensors: {**tensors, "9" * 5000: torch.ones(1)}, f"has a tensor called '{'9' * 37}...'; in a file"),
    ],
    ids=[
        "missing", "too many", "another shape", "a number", "none", "NaN", "infinite", "beyond float32", "integers",
        "booleans", "complex", "weights", "leading zero", "negative", "other digits", "long name",
    ],
)  # fmt: skip
def test_scores_that_do_not_fit_are_one_line(tmp_path: Path, change: Callable[[Tensors], Tensors], says: str) -> None:
    path = tmp_path / "mine.safetensors"
    save_file(change(random_tensors()), path)
    assert refused(path).startswith(f"{path}: {says}")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is not a safetensors file that can be read (header too small); give a whole file of scores"),
        (b"PK\x03\x04 a checkpoint of torch", "is not a safetensors file that can be read ("),
        (save(random_tensors())[:-4], "(incomplete metadata, file not fully covered); give a whole file of scores"),
        (save(random_tensors())[:40], "(invalid header length); give a whole file of scores"),
        (save({"0": torch.ones(4, dtype=torch.uint8)}).replace(b'"U8"', b'"F4"').replace(b"[4]", b"[8]"), "('F4')"),
    ],
    ids=["empty", "something else", "last value gone", "half a header", "a type that torch lacks"],
)
def test_file_that_is_not_whole_is_one_line(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "mine.safetensors"
    path.write_bytes(content)
    line = refused(path)
    assert line.startswith(f"{path}: is not a safetensors file that can be read (")
    assert says in line


def test_missing_file_and_folder_are_one_line(tmp_path: Path) -> None:
    said = "give the scores.safetensors that a score stage has left"
    gone = tmp_path / "gone.safetensors"
    assert refused(gone) == f"{gone}: cannot be read (No such file or directory); {said}"
    assert refused(tmp_path) == f"{tmp_path}: cannot be read (Is a directory); {said}"


def refused(path: Path) -> str:
    with pytest.raises(PruningError) as caught:
        read_given_scores(path, CFG)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    return str(caught.value)
