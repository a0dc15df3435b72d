"""A written model repository, run step by step as its own configuration says, without Triton."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

text_format = pytest.importorskip("google.protobuf.text_format", reason="needs protobuf to read config.pbtxt")
json_format = pytest.importorskip("google.protobuf.json_format", reason="needs protobuf to read config.pbtxt")
model_config = pytest.importorskip(
    "tritonclient.grpc.model_config_pb2", reason="needs tritonclient[grpc], which has Triton's schema"
)

PROCESS = Path(__file__).with_name("triton_process.py")
Tensors = dict[str, Any]


class RefusedError(Exception):
    """What a model answered instead of tensors: Triton's error code and message."""


def read_config(repository: Path, model: str) -> Any:
    """A model's configuration by Triton's own schema; an unknown field or a wrong type is an error."""
    return text_format.Parse(
        (repository / model / "config.pbtxt").read_text(encoding="utf-8"), model_config.ModelConfig()
    )


def run_python_model(repository: Path, model: str, requests: Sequence[Tensors], parameters: Sequence[str] = ()) -> list:
    """Give requests to a Python model, in a process of its own; a refusal takes the place of its tensors."""
    config = read_config(repository, model)
    (version,) = (path.name for path in (repository / model).iterdir() if path.is_dir())
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        (work / "config.json").write_text(json_format.MessageToJson(config, preserving_proto_field_name=True))
        (work / "parameters.json").write_text(json.dumps(list(parameters) or ["{}"] * len(requests)))
        np.savez(work / "requests.npz", **dict(_entries(requests)))
        done = subprocess.run(
            [sys.executable, "-I", "-B", str(PROCESS), str(repository / model), version, folder],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        errors = json.loads((work / "errors.json").read_text())
        with np.load(work / "responses.npz") as stored:
            names = [key.split("/") for key in stored.files]
            answers = [
                {name: stored[f"{of}/{name}"] for of, name in names if int(of) == number}
                for number in range(len(requests))
            ]
    return [
        RefusedError(*errors[str(number)]) if str(number) in errors else answers[number]
        for number in range(len(requests))
    ]


def run_ensemble(repository: Path, ensemble: str, inputs: Mapping[str, Any], **parameters: object) -> Tensors:
    """Run the steps of an ensemble for one request, the detector in ONNX Runtime.

    Raises:
        RefusedError: A step refused the request.
    """
    tensors: Tensors = dict(inputs)
    config = read_config(repository, ensemble)
    for step in config.ensemble_scheduling.step:
        given = {name: tensors[of] for name, of in step.input_map.items()}
        if read_config(repository, step.model_name).backend == "python":
            (answer,) = run_python_model(repository, step.model_name, [given], [json.dumps(parameters)])
            if isinstance(answer, RefusedError):
                raise answer
        else:
            answer = run_detector(repository, step.model_name, given)
        tensors.update({of: answer[name] for name, of in step.output_map.items()})
    return {output.name: tensors[output.name] for output in config.output}


def run_detector(repository: Path, model: str, inputs: Tensors) -> Tensors:
    """Run the ONNX file, with the shapes that Triton would give and take."""
    config = read_config(repository, model)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(repository / model / "1" / "model.onnx"), options)
    names = [output.name for output in config.output]
    answers = dict(zip(names, session.run(names, inputs), strict=True))
    for output in config.output:
        if output.HasField("reshape"):  # the configuration's shape is the client's, the model's own is `reshape`
            answers[output.name] = answers[output.name].reshape(len(answers[output.name]), *output.dims)
    return answers


def _entries(requests: Sequence[Tensors]):
    for number, tensors in enumerate(requests):
        for name, value in tensors.items():
            if isinstance(value, list):  # BYTES
                for position, content in enumerate(value):
                    yield f"{number}/{name}/{position}", np.frombuffer(content, np.uint8)
            else:
                yield f"{number}/{name}", value
