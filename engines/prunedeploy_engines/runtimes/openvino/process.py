"""OpenVINO in a process of its own, as a `Runner`: its memory is not this process's, nor are its faults.

Decision 0008 says why. `worker` is the other side.
"""

from __future__ import annotations

import copy
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

from prunedeploy_engines.errors import EngineError, error_from_json
from prunedeploy_engines.processes import how_it_ended, same_imports
from prunedeploy_engines.runtimes.layer_times import LayerExecution
from prunedeploy_engines.runtimes.openvino.messages import Array, receive, send
from prunedeploy_engines.runtimes.runner import Runner

_SECONDS_TO_END = 5.0  # between the end of its output and its own


class OpenVinoProcess(Runner):
    """An `OpenVinoRunner` in a process of its own.

    Its outputs and errors are the same. A call takes longer by the way of images and outputs through two pipes, also
    one of `compute_call`; where that counts, use `OpenVinoRunner`. Calls from several threads wait for each other.

    Args:
        path: As for `OpenVinoRunner`.
        threads: As for `OpenVinoRunner`.
        inference_precision: As for `OpenVinoRunner`.
        device: As for `OpenVinoRunner`.

    Raises:
        RuntimeUnavailableError: As for `OpenVinoRunner`.
        EngineError: As for `OpenVinoRunner`, or the process ended.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        threads: int | None = None,
        inference_precision: str | None = "f32",
        device: str = "CPU",
    ) -> None:
        self._path = Path(path)
        self._lock = threading.Lock()
        # A file, not a pipe: a process that prints a lot must not block.
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `_release`
        self._process = subprocess.Popen(
            [sys.executable, "-m", "prunedeploy_engines.runtimes.openvino.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env=same_imports(),
        )
        arguments = {"threads": threads, "inference_precision": inference_precision, "device": device}
        try:
            self._about, _ = self._ask({"path": str(path), **arguments})
        except BaseException:
            self.close()
            raise

    @property
    def runtime(self) -> str:
        """``"openvino"``."""
        return "openvino"

    @property
    def input_size(self) -> tuple[int, int]:
        """(height, width), from the file."""
        height, width = self._about["input_size"]
        return height, width

    @property
    def uint8_input(self) -> bool:
        """From the type of the file's input."""
        return bool(self._about["uint8_input"])

    @property
    def nms_classes(self) -> int | None:
        """From the file's outputs and metadata."""
        classes: int | None = self._about["nms_classes"]
        return classes

    @property
    def path(self) -> Path:
        """The ONNX file."""
        return self._path

    def describe(self) -> dict[str, Any]:
        """See `OpenVinoRunner.describe`."""
        described: dict[str, Any] = copy.deepcopy(self._about["describe"])
        return described

    def _infer(self, images: Array) -> tuple[Any, Any]:
        _, (first, second) = self._ask({"do": "infer"}, images)
        return first, second

    def _layer_times(self, images: Array, runs: int) -> list[LayerExecution]:
        answer, _ = self._ask({"do": "layer_times", "runs": runs}, images)
        return [(name, kind, precision, time_ms) for name, kind, precision, time_ms in answer["layers"]]

    def _release(self) -> None:
        """End the process; a call of another thread is waited for."""
        with self._lock:
            self._kill()
            self._stderr.close()

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
            answer, outputs = self._exchange(request, images)
        if "error" in answer:
            raise error_from_json(answer["error"])
        if "value_error" in answer:
            raise ValueError(answer["value_error"])
        if "bug" in answer:
            raise RuntimeError(f"in OpenVINO's process:\n{answer['bug']}")
        return answer, outputs

    def _exchange(self, request: dict[str, Any], images: tuple[Array, ...]) -> tuple[dict[str, Any], list[Array]]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        if self._process.returncode is not None:
            raise self._ended()
        try:
            send(self._process.stdin, request, images)
            return receive(self._process.stdout)
        except (EOFError, OSError):
            raise self._ended() from None
        except BaseException:
            self._kill()  # e.g. Ctrl-C: what it is still to say would be taken for the next answer
            raise

    def _ended(self) -> EngineError:
        """What to say of a process that is no more."""
        try:
            code = self._process.wait(_SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        self._stderr.seek(0)
        how = how_it_ended(code, self._stderr.read())
        return EngineError(f"OpenVINO's process ended ({how})", where=self._path, fix="run it again")

    def _kill(self) -> None:
        """End the process, which holds nothing but memory, and this side of its pipes."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            try:
                if pipe is not None:
                    pipe.close()
            except BrokenPipeError:  # what was written last never got through
                continue
