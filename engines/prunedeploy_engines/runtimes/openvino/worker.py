"""``python -m prunedeploy_engines.runtimes.openvino.worker``: the process that OpenVINO has to itself, see `process`.

Requests come on stdin and are answered on stdout, both as `child` sends them. What libraries print goes to stderr.
When stdin ends, whoever asked is gone: then this process ends too.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import traceback
from typing import IO, Any

from prunedeploy_engines.child import Array, receive, send
from prunedeploy_engines.errors import PrunedeployError, error_to_json
from prunedeploy_engines.processes import stdout_for_answers
from prunedeploy_engines.runtimes.openvino.runner import OpenVinoRunner

Answer = tuple[dict[str, Any], tuple[Array, ...]]


def serve(requests: IO[bytes], answers: IO[bytes]) -> None:
    """Answer until the requests end: the first one opens the runner."""
    runner: OpenVinoRunner | None = None
    while True:
        try:
            request, arrays = receive(requests)
        except EOFError:
            return
        outputs: tuple[Array, ...] = ()
        try:
            if runner is None:
                runner = OpenVinoRunner(**request)
                answer = _opened(runner)
            else:
                answer, outputs = _answer(runner, request, arrays[0])
        except PrunedeployError as error:
            answer = {"error": error_to_json(error)}
        except ValueError as error:  # a wrong argument
            answer = {"value_error": str(error)}
        except Exception:  # noqa: BLE001 - a bug, which the parent must hear of
            answer = {"bug": traceback.format_exc()}
        send(answers, answer, outputs)


def _opened(runner: OpenVinoRunner) -> dict[str, Any]:
    return {
        "describe": runner.describe(),
        "input_size": runner.input_size,
        "uint8_input": runner.uint8_input,
        "channels": runner.channels,
        "nms_classes": runner.nms_classes,
    }


def _answer(runner: OpenVinoRunner, request: dict[str, Any], images: Array) -> Answer:
    """What the runner in the parent leaves to this one; it has checked the images, and checks the outputs."""
    if request["do"] == "layer_times":
        return {"layers": runner._layer_times(images, request["runs"])}, ()
    return {}, runner._infer(images)


def main() -> None:
    """Serve on stdin and stdout."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal is for the parent
    with contextlib.suppress(BrokenPipeError):
        serve(sys.stdin.buffer, os.fdopen(stdout_for_answers(), "wb"))
    os._exit(0)  # nothing is left to tidy up


if __name__ == "__main__":
    main()
