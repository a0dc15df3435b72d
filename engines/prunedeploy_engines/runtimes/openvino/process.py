"""OpenVINO in a process of its own, as a `Runner`: its memory is not this process's, nor are its faults.

Decision 0008 says why. `worker` is the other side.
"""

from __future__ import annotations

import copy
import threading
from pathlib import Path
from typing import Any

from prunedeploy_engines.child import Array, Child
from prunedeploy_engines.errors import EngineError, error_from_json
from prunedeploy_engines.runtimes.layer_times import LayerExecution
from prunedeploy_engines.runtimes.runner import Runner


class OpenVinoProcess(Runner):
    """An `OpenVinoRunner` in a process of its own.

    Its outputs and errors are the same. A call takes longer by the way of images and outputs through two pipes, also
    one of `compute_call`; where that counts, use `OpenVinoRunner`. Calls from several threads wait for each other.

    Args:
        path: As for `OpenVinoRunner`.
        threads: As for `OpenVinoRunner`.
        inference_precision: As for `OpenVinoRunner`.

    Raises:
        RuntimeUnavailableError: As for `OpenVinoRunner`.
        EngineError: As for `OpenVinoRunner`, or the process ended.
    """

    runtime = "openvino"

    def __init__(
        self, path: str | Path, *, threads: int | None = None, inference_precision: str | None = "f32"
    ) -> None:
        self._path = Path(path)
        self._lock = threading.Lock()
        self._child = Child("prunedeploy_engines.runtimes.openvino.worker")
        try:
            about, _ = self._ask({"path": str(path), "threads": threads, "inference_precision": inference_precision})
        except BaseException:
            self.close()
            raise
        height, width = about["input_size"]
        self.input_size, self.uint8_input = (height, width), about["uint8_input"]
        self.channels = about["channels"]
        self.nms_classes = about["nms_classes"]
        self._described: dict[str, Any] = about["describe"]

    def describe(self) -> dict[str, Any]:
        """See `OpenVinoRunner.describe`."""
        return copy.deepcopy(self._described)

    def _infer(self, images: Array) -> tuple[Any, Any]:
        _, (first, second) = self._ask({"do": "infer"}, images)
        return first, second

    def _layer_times(self, images: Array, runs: int) -> list[LayerExecution]:
        answer, _ = self._ask({"do": "layer_times", "runs": runs}, images)
        return [(name, kind, precision, time_ms) for name, kind, precision, time_ms in answer["layers"]]

    def _release(self) -> None:
        """End the process; a call of another thread is waited for."""
        with self._lock:
            self._child.close()

    def _ask(self, request: dict[str, Any], *images: Array) -> tuple[dict[str, Any], list[Array]]:
        """Send a request and wait for its answer.

        Raises:
            PrunedeployError: What the runner there raised.
            ValueError: The same, or this runner is closed.
            EngineError: The process ended.
            RuntimeError: A bug; its traceback.
        """
        with self._lock:
            if self._closed:
                raise ValueError(f"{type(self).__name__} is closed")
            try:
                answer, outputs = self._child.ask(request, images)
            except EOFError as end:
                raise EngineError(f"OpenVINO's process ended ({end})", self._path, "run it again") from None
        if "error" in answer:
            raise error_from_json(answer["error"])
        if "value_error" in answer:
            raise ValueError(answer["value_error"])
        if "bug" in answer:
            raise RuntimeError(f"in OpenVINO's process:\n{answer['bug']}")
        return answer, outputs
