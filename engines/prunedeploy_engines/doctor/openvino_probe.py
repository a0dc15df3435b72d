"""``python -m prunedeploy_engines.doctor.openvino_probe``: whether OpenVINO runs the smallest model, as JSON on stdout.

A process of its own: a library that ends the process here must not end the doctor, and OpenVINO shares none with other
runtimes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

from prunedeploy_engines.errors import RuntimeUnavailableError
from prunedeploy_engines.processes import how_it_ended, same_imports, stdout_for_answers
from prunedeploy_engines.runtimes.openvino.library import clean, import_openvino

# y = Identity(x), x float (1,), opset 13. `onnx` is not on a device to make one.
IDENTITY_ONNX = bytes.fromhex(
    "08083a370a100a017812017922084964656e746974791201675a0f0a0178120a0a"
    "08080112040a020801620f0a0179120a0a08080112040a02080142040a00100d"
)
_PRECISIONS = {"float32": "fp32", "f32": "fp32", "float16": "fp16", "f16": "fp16", "bfloat16": "bf16", "bf16": "bf16"}
_TIMEOUT_S = 60.0


def probe_openvino() -> dict[str, Any]:
    """Have a process try OpenVINO.

    Returns:
        ``floats``, what it computes float layers in when it is not told (``"fp32"``, ``"fp16"`` or ``"bf16"``), and
        ``devices``, as it names them. Or ``unavailable`` or ``failed``: why it does not load, or not run.
    """
    command = [sys.executable, "-m", "prunedeploy_engines.doctor.openvino_probe"]
    try:
        done = subprocess.run(command, capture_output=True, env=same_imports(), timeout=_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return {"failed": clean(error)}
    if done.returncode != 0:
        return {"failed": f"its process ended with {how_it_ended(done.returncode, done.stderr)}"}
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def run_identity(ov: Any) -> dict[str, Any]:
    """Run the smallest model on OpenVINO's CPU device; see `probe_openvino`.

    Args:
        ov: The ``openvino`` module.

    Raises:
        Exception: What OpenVINO raises, if it cannot.
        RuntimeError: It computed something else.
    """
    import numpy as np

    core = ov.Core()
    compiled = core.compile_model(core.read_model(IDENTITY_ONNX), "CPU", {"INFERENCE_NUM_THREADS": 1})
    output = compiled({"x": np.ones(1, np.float32)})[0]
    if output.tolist() != [1.0]:
        raise RuntimeError(f"the identity of 1 came out as {output.tolist()}")
    told = str(compiled.get_property("INFERENCE_PRECISION_HINT").to_string())
    return {"floats": _PRECISIONS.get(told, told), "devices": list(core.available_devices)}


def main() -> None:
    """Try it and tell."""
    with os.fdopen(stdout_for_answers(), "w") as answers:
        try:
            answer = run_identity(import_openvino())
        except RuntimeUnavailableError as error:
            answer = {"unavailable": error.what}
        except Exception as error:  # noqa: BLE001  OpenVINO raises RuntimeError for nearly everything
            answer = {"failed": clean(error)}
        json.dump(answer, answers)


if __name__ == "__main__":
    main()
