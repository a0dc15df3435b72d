"""What crosses from one of our processes to another."""

from __future__ import annotations

import json

import pytest

from prunedeploy_engines.errors import (
    EngineError,
    PrunedeployError,
    RuntimeUnavailableError,
    error_from_json,
    error_to_json,
)
from prunedeploy_engines.processes import how_it_ended


@pytest.mark.parametrize(
    "error",
    [
        EngineError("does not load", where="a.onnx", fix="export it again"),
        RuntimeUnavailableError("is not here"),
        PrunedeployError("is wrong", fix="mend it"),
    ],
)
def test_error_crosses_with_its_class_and_words(error: PrunedeployError) -> None:
    received = error_from_json(json.loads(json.dumps(error_to_json(error))))
    assert type(received) is type(error)
    assert str(received) == str(error)
    assert (received.what, received.where, received.fix) == (error.what, error.where, error.fix)


def test_error_of_a_class_of_elsewhere_can_still_be_mended_by_the_user() -> None:
    class ElsewhereError(PrunedeployError):
        pass

    assert type(error_from_json(error_to_json(ElsewhereError("is wrong")))) is PrunedeployError
    assert type(error_from_json({"kind": "Mapping", "what": "x", "where": None, "fix": None})) is PrunedeployError


@pytest.mark.parametrize(
    ("code", "stderr", "told"),
    [
        (3, b"", "exit code 3"),
        (1, b"Traceback\n  line\nMemoryError\n\n", "exit code 1, MemoryError"),
        (-9, b"", "signal SIGKILL"),
        (-11, b"last words \xff\n", "signal SIGSEGV, last words \N{REPLACEMENT CHARACTER}"),
        (-45, b"", "signal 45"),
    ],
)
def test_end_of_a_process_is_told_with_its_last_line(code: int, stderr: bytes, told: str) -> None:
    assert how_it_ended(code, stderr) == told
