"""Class names that lie beside a model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from labelled import text
from prunedeploy.data.names_beside import names_beside
from prunedeploy_engines.errors import ConfigError


def test_nothing_beside_is_none(tmp_path: Path) -> None:
    assert names_beside(tmp_path / "model.cfg", 2) is None


def test_the_models_own_file_comes_first(tmp_path: Path) -> None:
    own = text(tmp_path / "model.names", "dog\ncat\n")
    text(tmp_path / "obj.names", "one\ntwo\n")
    text(tmp_path / "bundle" / "bundle.json", json.dumps({"class_names": ["a", "b"]}))
    assert names_beside(tmp_path / "model.cfg", 2) == (["dog", "cat"], own)
    with pytest.raises(ConfigError, match="has 2 names, the network has 3 classes"):
        names_beside(tmp_path / "model.cfg", 3)


def test_a_builds_output_folder_has_them_in_its_bundle(tmp_path: Path) -> None:
    bundle = text(tmp_path / "bundle" / "bundle.json", json.dumps({"class_names": ["dog", "cat"]}))
    assert names_beside(tmp_path / "model.cfg", 2) == (["dog", "cat"], bundle)
    assert names_beside(tmp_path / "model.cfg", 3) is None


@pytest.mark.parametrize("name", ["obj.names", "animals.names", "classes.txt"])
def test_another_file_counts_if_it_has_as_many_names(tmp_path: Path, name: str) -> None:
    file = text(tmp_path / name, "dog\ncat\n")
    assert names_beside(tmp_path / "model.cfg", 2) == (["dog", "cat"], file)
    assert names_beside(tmp_path / "model.cfg", 3) is None
    assert names_beside(tmp_path / "model.onnx", None) is None


def test_files_that_contradict_each_other_say_nothing(tmp_path: Path) -> None:
    text(tmp_path / "a.names", "dog\ncat\n")
    text(tmp_path / "coco.names", "one\ntwo\nthree\n")
    assert names_beside(tmp_path / "model.cfg", 2) is not None
    text(tmp_path / "b.names", "cat\ndog\n")
    assert names_beside(tmp_path / "model.cfg", 2) is None


def test_darknets_description_leads_to_them(tmp_path: Path) -> None:
    names = text(tmp_path / "data" / "obj.names", "dog\ncat\n")
    text(tmp_path / "obj.data", "classes = 2\nnames = data/obj.names\n")
    assert names_beside(tmp_path / "model.cfg", 2) == (["dog", "cat"], names)


def test_a_byte_order_mark_is_no_part_of_the_first_name(tmp_path: Path) -> None:
    file = tmp_path / "model.names"
    file.write_bytes("\ufeffdog\r\ncat\r\n".encode())
    assert names_beside(tmp_path / "model.cfg", 2) == (["dog", "cat"], file)
